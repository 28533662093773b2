"""Two thousand requests later nothing has leaked."""

from __future__ import annotations

import contextlib
from random import Random

from tests.worker.engine.small import Outcomes, make_engine, make_request, random_prompt, small_model
from worker.engine.generation import ReasoningEnd
from worker.engine.probes import ProbeRule
from worker.engine.refusals import QueueFullError
from worker.engine.sampling import Sampling

MODEL = small_model()
REQUESTS = 2000


def test_two_thousand_random_requests_leak_neither_slot_nor_page() -> None:
    random, outcomes = Random(0), Outcomes()
    engine = make_engine(MODEL, slots=24, checkpoints=2, pages=200, queue=20, idle_step_tokens=128)
    system = random_prompt(random, 16, 16)
    cancelled, sent, refused = set[str](), 0, 0
    while sent < REQUESTS or not engine.idle:
        for _ in range(random.randrange(6) if sent < REQUESTS else 0):
            request = make_request(
                MODEL,
                f"r{sent}",
                prompt=[*system, *random_prompt(random, 1, 12)],
                shared=len(system),
                reasoning=random.choice([0, 0, 2, 4]),
                grace=0,
                answer=random.randint(1, 3),
                sampling=random.choice([Sampling(), Sampling(temperature=1.0, top_p=0.9, seed=sent)]),
                priority=random.choice([0, 1, 1, 1]),
                samples=random.choice([1, 1, 1, 1, 2, 3]),
                received_s=float(sent),
            )
            try:
                engine.submit(request)
            except QueueFullError:
                refused += 1
                continue
            sent += 1
        if random.random() < 0.1 and sent:
            name = f"r{random.randrange(max(0, sent - 30), sent)}"
            engine.cancel(name)
            cancelled.add(name)
        outcomes.take(engine.step())
        engine.check_integrity()
    assert refused > 0
    assert not outcomes.failed
    for number in range(REQUESTS):
        ends = [outcome.finished for outcome in outcomes.samples[f"r{number}"].values()]
        assert f"r{number}" in cancelled or (ends and all(ends)), number
    load = engine.load()
    assert (load.running, load.waiting, load.backlog_tokens) == (0, 0, 0)
    assert (load.free_slots, load.free_pages) == (24, 200)


def test_six_hundred_probed_requests_leak_neither_slot_nor_page() -> None:
    """Probes are begun, answer, and are ended by arrivals, cancellations, preemptions and answers."""
    random, outcomes = Random(1), Outcomes()
    engine = make_engine(MODEL, slots=8, checkpoints=1, pages=60, queue=4, page_tokens=4)
    sent, requests = 0, 600
    while sent < requests or not engine.idle:
        # In bursts: with someone waiting nothing is probed.
        if sent < requests and random.random() < (0.6 if sent % 100 < 30 else 0.15):
            rule = ProbeRule(random.randint(1, 3), random.randint(1, 3), 2, random.randint(1, 3))
            request = make_request(
                MODEL,
                f"r{sent}",
                prompt=random_prompt(random, 1, 12),
                reasoning=random.choice([0, 12, 20]),
                sampling=Sampling(temperature=1.0, seed=sent),
                priority=random.choice([0, 1, 1]),
                received_s=float(sent),
                probe=rule,
            )
            with contextlib.suppress(QueueFullError):
                engine.submit(request)
                sent += 1
        if random.random() < 0.05 and sent:
            engine.cancel(f"r{random.randrange(max(0, sent - 8), sent)}")
        outcomes.take(engine.step())
        engine.check_integrity()
    assert not outcomes.failed
    ends = [outcome.finished for samples in outcomes.samples.values() for outcome in samples.values()]
    done = [end for end in ends if end is not None]
    stable = sum(end.reasoning_end is ReasoningEnd.STABLE for end in done)
    assert min(stable, sum(end.probes for end in done), sum(end.skipped_probes for end in done)) > 20
    load = engine.load()
    assert (load.running, load.waiting, load.backlog_tokens) == (0, 0, 0)
    assert (load.free_slots, load.free_pages) == (8, 60)
