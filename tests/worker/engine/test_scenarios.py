"""Whatever happens between two steps, the cache stays whole and every request gets its tokens."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from random import Random

from tests.worker.engine.small import (
    Outcome,
    Outcomes,
    make_engine,
    random_prompt,
    random_request,
    run,
    small_model,
)
from worker.engine.generation import Phase, ReasoningEnd, TokenRun
from worker.engine.probes import ProbeRule
from worker.engine.refusals import QueueFullError
from worker.engine.sequence import Request

MODEL = small_model()
SYSTEM_TEXTS = [random_prompt(Random(f"system {n}"), 20, 45) for n in range(3)]


@dataclass
class Scenario:
    """An engine of random sizes under random events. `adjusted`: (output tokens then, new budget) by id."""

    random: Random
    requests: dict[str, Request] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    adjusted: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    outcomes: Outcomes = field(default_factory=Outcomes)

    def __post_init__(self) -> None:
        random = self.random
        self.at_once = random.choice([1, 1, 2, 4])
        page_tokens = random.choice([4, 8, 16])
        # What the largest request needs, or somewhat more.
        pages = 3 * -(-120 // page_tokens) * random.choice([2, 4, 8, 16]) // 2
        self.engine = make_engine(
            MODEL,
            slots=random.randint(3, 12),
            checkpoints=random.randint(0, 2),
            pages=pages,
            page_tokens=page_tokens,
            step_tokens=random.choice([1, 8, 20]),
            idle_step_tokens=random.choice([8, 50]),
            queue=random.choice([5, 50]),
        )

    def play(self, events: int) -> None:
        for _ in range(events):
            for _ in range(self.random.randint(0, self.at_once)):
                self.happen()
            self.outcomes.take(self.engine.step())
            self.engine.check_integrity()
        run(self.engine, outcomes=self.outcomes)

    def happen(self) -> None:
        random, event = self.random, self.random.random()
        if event < 0.3 or not self.requests:
            self.submit(f"r{len(self.requests)}")
        elif event < 0.4:
            name = random.choice([*self.requests])
            self.cancelled.add(name)
            self.engine.cancel(name)
        else:
            running = [name for name in self.requests if self.engine.reasoning_tokens(name)]
            random.shuffle(running)
            any(self.adjust(name) for name in running)

    def submit(self, name: str) -> None:
        random = self.random
        system = random.choice(SYSTEM_TEXTS)
        request = random_request(
            MODEL,
            random,
            name,
            prompt=[*system, *random_prompt(random, 1, 20)],
            shared=len(system),
            priority=random.choice([0, 1, 1, 2, 2]),
            deadline_s=random.choice([110.0, 120.0]),
            reasoning=random.choice([0, 20, 30]),
            samples=(samples := random.choice([1, 1, 1, 1, 2, 3])),
            probe=random_rule(random) if samples == 1 else None,
            reserve=random.choice([0, 10]),
            received_s=100.0 + len(self.requests),
        )
        try:
            self.engine.submit(request)
        except QueueFullError:
            return
        self.requests[name] = request

    def adjust(self, name: str) -> bool:
        """Not for several samples: they need not stand at the same token."""
        at, budget = self.outcomes.output_tokens(name), self.random.randrange(40)
        if self.requests[name].samples > 1 or self.engine.adjust(name, budget, None) is None:
            return False
        self.adjusted.setdefault(name, []).append((at, budget))
        return True

    def alone(self, name: str, sample: int) -> Outcome:
        """A sample of a request with nothing beside, no probe either: adjustments happen to it again."""
        request = self.requests[name]
        sampling = replace(request.sampling, seed=request.sampling.seed + sample)
        own = replace(request, sampling=sampling, samples=1, probe=None)
        engine, outcomes = make_engine(MODEL, slots=1, idle_step_tokens=1024), Outcomes()
        adjusted = list(self.adjusted.get(name, []))
        engine.submit(own)
        while not engine.idle:
            at = outcomes.output_tokens(name)
            while adjusted and adjusted[0][0] == at:
                engine.adjust(name, adjusted.pop(0)[1], None)
            outcomes.take(engine.step())
        return outcomes[name]

    def check_stable(self, name: str, got: Outcome, unprobed: Outcome) -> None:
        """It reasons as it does without probes, and ends as when it is told elsewhere that it is stable."""
        assert got.strike is not None
        struck = got.strike.reasoning_tokens
        assert got.tokens[:struck] == unprobed.tokens[:struck], name
        runs = (TokenRun(Phase.REASONING, got.ids[:struck]),)
        own = replace(self.requests[name], probe=None, resume=runs, strike=got.strike)
        if name not in self.adjusted:
            rest = run(make_engine(MODEL, slots=1), own)[name]
            assert got.tokens[struck:] == rest.tokens, name

    def check(self) -> Counter[str]:
        """Compares everything with its run alone; counts what happened."""
        counts: Counter[str] = Counter()
        for name, request in self.requests.items():
            for sample in range(request.samples):
                got, expected = self.outcomes.samples[name][sample], self.alone(name, sample)
                if name in self.cancelled and got.finished is None:
                    assert got.tokens == expected.tokens[: len(got.tokens)], name
                    counts["cancelled"] += 1
                    continue
                if got.end.reasoning_end is ReasoningEnd.STABLE:
                    self.check_stable(name, got, expected)
                    counts["stable"] += 1
                else:
                    assert got.whole == expected.whole, (name, sample)
                counts["finished"] += 1
                counts["probed"] += got.end.probes
                counts["skipped"] += got.end.skipped_probes
                counts["preempted"] += got.end.preemptions
                counts["cached"] += got.end.cached_tokens > 0
        counts["adjusted"] = len(self.adjusted)
        return counts


def random_rule(random: Random) -> ProbeRule:
    return ProbeRule(
        random.randint(1, 4), random.randint(1, 4), stable_answers=2, answer_tokens=random.choice([1, 1, 3])
    )


def test_any_interleaving_leaves_the_cache_whole_and_every_request_its_tokens() -> None:
    """Arrivals, cancellations, adjustments, probes and preemptions, in engines of any size."""
    counts: Counter[str] = Counter()
    for seed in range(36):
        scenario = Scenario(Random(seed))
        scenario.play(events=50)
        load = scenario.engine.load()
        settings = scenario.engine.settings
        assert (load.free_slots, load.free_pages) == (settings.slots, settings.pages), seed
        try:
            counts += scenario.check()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}") from error
    # Or it would show little.
    assert counts["finished"] > 300
    events = ("preempted", "cached", "probed", "skipped", "adjusted", "cancelled")
    assert min(counts[event] for event in events) > 25, counts
    assert counts["stable"] > 5
