"""A request gets the same tokens whatever else runs, and what cannot run is refused at once."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import torch

from kernels.layout import Segment, step_layout
from tests.worker.engine.small import (
    CPU,
    Clock,
    Outcomes,
    RecordingRunner,
    alone,
    computed,
    make_engine,
    make_request,
    make_runner,
    make_settings,
    random_prompt,
    random_request,
    recorded_engine,
    run,
    runs_of,
    small_model,
)
from worker.engine.budget import BudgetMachine, TextFormat
from worker.engine.build import Model
from worker.engine.closing import Closing
from worker.engine.engine import Engine
from worker.engine.events import Failed, FailureKind, Load, Output
from worker.engine.generation import Ban, FinishReason, Phase, ReasoningEnd, Strike, TokenRun
from worker.engine.refusals import DuplicateError, QueueFullError, TooLargeError
from worker.engine.sampling import Draw, Sampling, choose
from worker.engine.scheduler import Plan
from worker.engine.sequence import Request
from worker.engine.text import silent_tokens
from worker.model.pools import Pools

MODEL = small_model()
# After this prompt the model reasons, greedily, for more than 45 tokens.
LONG_THINKER = [30, 33, 39, 3, 16, 32, 34, 20, 13, 5, 36, 34]


@torch.inference_mode()
def recomputed(model: Model, request: Request) -> list[tuple[Phase, int]]:
    """The plainest way to generate: the whole sequence through the network again for every token."""
    chat, config = model.chat, model.config
    table = [*chat.token_bytes, *[b""] * (config.vocab_size - len(chat.token_bytes))]
    banned = {
        Ban.NONE: None,
        Ban.END_OF_TEXT: torch.tensor(sorted(chat.end_ids)),
        Ban.SILENT: torch.tensor(sorted(silent_tokens(table, chat.special_ids | chat.end_ids))),
    }
    machine = BudgetMachine(
        request.limits, TextFormat(table, chat.end_ids, request.closing), stop=request.stop
    )
    tokens, generated = list(request.prompt.ids), list[tuple[Phase, int]]()
    while machine.finish_reason is None:
        length = len(tokens)
        pools = Pools.allocate(config, slots=1, pages=1, page_tokens=length, dtype=torch.float32, device=CPU)
        layout = step_layout(
            [],
            [Segment(0, 0, length, [0])],
            page_tokens=length,
            chunk=config.chunk_size,
            window=config.conv_kernel,
            device=CPU,
        )
        seen = torch.zeros(config.vocab_size, dtype=torch.bool)
        seen[tokens] = True
        hidden = model.network.hidden(torch.tensor(tokens), layout, pools)
        logits = model.network.logits(hidden[-1:])
        draw = Draw(request.sampling, length, banned[machine.ban], seen)
        [choice] = choose(logits, [draw])
        observation = machine.observe(choice.token_id, 0.0)
        if observation.phase is not None:
            generated.append((observation.phase, choice.token_id))
            tokens.append(choice.token_id)
        generated += [(Phase.FORCED, token) for token in observation.force]
        tokens += observation.force
    return generated


@pytest.mark.parametrize("seed", range(8))
def test_alone_is_what_recomputing_everything_gives(seed: int) -> None:
    request = random_request(MODEL, Random(seed))
    assert alone(MODEL, request)[0].tokens == recomputed(MODEL, request)


@pytest.mark.parametrize("pattern", ["M", "*", "-*", "MM*M-*M-"])
def test_models_of_any_pattern_run_in_any_batch(pattern: str) -> None:
    model, random = small_model(1, pattern), Random(pattern)
    requests = [random_request(model, random, f"r{n}") for n in range(6)]
    outcomes = run(make_engine(model, slots=4), *requests)
    for request in requests:
        assert outcomes[request.request_id].whole == alone(model, request)[0].whole


def test_the_random_model_ends_in_every_way() -> None:
    """Or the tests here would show little."""
    requests = [random_request(MODEL, Random(n), f"r{n}") for n in range(60)]
    outcomes = run(make_engine(MODEL, slots=32), *requests)
    ends = [outcomes[request.request_id].end for request in requests]
    assert {end.reason for end in ends} == {FinishReason.STOP, FinishReason.LENGTH}
    assert {end.reasoning_end for end in ends} == {
        ReasoningEnd.NONE,
        ReasoningEnd.NATURAL,
        ReasoningEnd.BUDGET,
    }


# Resuming.


@pytest.mark.parametrize("seed", [0, 1, 2, 5, 8])
def test_a_request_resumed_anywhere_goes_on_as_if_it_had_never_stopped(seed: int) -> None:
    whole = random_request(MODEL, Random(seed), reasoning=10, extra=5)
    expected = alone(MODEL, whole)[0]
    # A closing text is passed on as one piece: no cut is inside.
    cuts = [
        cut
        for cut in range(len(expected.tokens) + 1)
        if {phase for phase, _ in expected.tokens[max(cut - 1, 0) : cut + 1]} != {Phase.FORCED}
    ]
    resumed = [replace(whole, request_id=f"{cut}", resume=runs_of(expected.tokens[:cut])) for cut in cuts]
    outcomes = run(make_engine(MODEL, slots=5), *resumed)
    for cut, request in zip(cuts, resumed, strict=True):
        outcome = outcomes[request.request_id]
        assert outcome.tokens == expected.tokens[cut:]
        assert expected.reasoning.endswith(outcome.reasoning)
        assert expected.answer.endswith(outcome.answer)
        assert outcome.end.reason is expected.end.reason
        assert outcome.end.reasoning_end is expected.end.reasoning_end
        assert outcome.end.answer_tokens == expected.end.answer_tokens


def test_a_request_resumed_at_its_end_only_starts_and_finishes() -> None:
    request = make_request(MODEL, answer=4)
    expected = alone(MODEL, request)[0]
    assert expected.end.reason is FinishReason.LENGTH
    engine, runner = recorded_engine(MODEL)
    outcome = run(engine, replace(request, resume=expected.runs))["r"]
    assert outcome.tokens == []
    assert outcome.end.reason is FinishReason.LENGTH
    assert outcome.end.timings.prefill_s >= 0
    assert runner.steps == []


def test_a_request_resumed_in_its_grace_ends_as_it_would_have_ended() -> None:
    """Why it is in its grace, its tokens do not tell: the strike that came with them does."""
    clock, outcomes, strikes = Clock(), Outcomes(), dict[int, Strike | None]()
    request = make_request(MODEL, prompt=LONG_THINKER, reasoning=30, grace=5, reason_until_s=110.0)
    engine = make_engine(MODEL, clock)
    engine.submit(request)
    while not engine.idle:
        if outcomes.output_tokens("r") == 4:
            clock.now_s = 110.0
        events = engine.step()
        outcomes.take(events)
        strikes |= {outcomes.output_tokens("r"): e.strike for e in events if isinstance(e, Output)}
    expected = outcomes["r"]
    assert expected.end.reasoning_end is ReasoningEnd.DEADLINE
    assert expected.end.reasoning_tokens > 6
    for cut, strike in strikes.items():
        resumed = replace(request, resume=runs_of(expected.tokens[:cut]), strike=strike)
        outcome = run(make_engine(MODEL), resumed)["r"]
        if strike is not None:
            assert outcome.tokens == expected.tokens[cut:]
            assert outcome.end.reasoning_end is ReasoningEnd.DEADLINE
    assert list(strikes.values())[3:5] == [None, Strike(ReasoningEnd.DEADLINE, 5)]


def test_what_no_engine_made_cannot_be_resumed() -> None:
    engine = make_engine(MODEL)
    answer_first = (TokenRun(Phase.ANSWER, [5]), TokenRun(Phase.REASONING, [5]))
    for resume in (answer_first, (TokenRun(Phase.REASONING, [10_000]),), (TokenRun(Phase.FORCED, [5]),)):
        with pytest.raises(ValueError, match=r"cannot be|must be below 45|close nothing"):
            engine.submit(make_request(MODEL, resume=resume))
    with pytest.raises(ValueError, match="samples"):
        engine.submit(make_request(MODEL, resume=(TokenRun(Phase.REASONING, [5]),), samples=2))
    assert engine.idle
    engine.check_integrity()


# Several samples of one prompt.


@pytest.mark.parametrize("prompt_tokens", [1, 7, 8, 9, 40])
def test_samples_are_what_separate_requests_with_their_seeds_give(prompt_tokens: int) -> None:
    prompt = random_prompt(Random(prompt_tokens), prompt_tokens, prompt_tokens)
    sampling = Sampling(temperature=1.0, seed=7, repetition_penalty=1.2)
    request = make_request(MODEL, prompt=prompt, sampling=sampling, samples=4)
    outcomes = run(make_engine(MODEL), request)
    expected = alone(MODEL, request)
    assert [outcomes.samples["r"][n].whole for n in range(4)] == [e.whole for e in expected]
    assert len({tuple(e.ids) for e in expected}) > 1


def test_samples_share_the_pages_that_their_prompt_fills() -> None:
    engine = make_engine(MODEL, pages=100, page_tokens=8)
    request = make_request(MODEL, prompt=list(range(3, 40)), reasoning=0, answer=10, samples=3)
    engine.submit(request)
    outcomes = Outcomes()
    outcomes.take(engine.step())
    # 37 + 10 tokens need 6 pages, 4 of them full of prompt.
    assert engine.load().free_pages == 100 - (4 + 3 * 2)
    assert engine.load().running == 3
    run(engine, outcomes=outcomes)
    assert engine.load().free_pages == 100


def test_samples_are_computed_once_until_they_part() -> None:
    engine, runner = recorded_engine(MODEL, idle_step_tokens=64)
    run(engine, make_request(MODEL, prompt=list(range(3, 40)), samples=3))
    assert runner.steps[0] == {("r", 0): 37}
    assert runner.steps[1] == {("r", 0): 1, ("r", 1): 1, ("r", 2): 1}


# Limits in flight.


def test_adjusting_a_budget_downwards_ends_reasoning_with_the_next_token() -> None:
    engine, outcomes = make_engine(MODEL), Outcomes()
    engine.submit(make_request(MODEL, prompt=LONG_THINKER, reasoning=30, grace=0))
    while outcomes.output_tokens("r") < 5:
        outcomes.take(engine.step())
    limits = engine.adjust("r", reasoning_tokens=2, reason_until_s=None)
    assert limits is not None
    assert limits.reasoning_tokens == 6
    assert engine.reasoning_tokens("r") == 5
    assert run(engine, outcomes=outcomes)["r"].end.reasoning_tokens == 6


def test_adjusting_a_budget_upwards_stays_within_what_was_reserved() -> None:
    engine, outcomes = make_engine(MODEL, pages=12, page_tokens=4), Outcomes()
    request = make_request(MODEL, prompt=LONG_THINKER, reasoning=5, grace=0, answer=4, extra=3)
    engine.submit(request)
    outcomes.take(engine.step())
    limits = engine.adjust("r", reasoning_tokens=1000, reason_until_s=None)
    assert limits is not None
    assert limits.reasoning_tokens == 8
    end = run(engine, outcomes=outcomes)["r"].end
    assert end.reasoning_tokens == 8
    assert end.reasoning_tokens + end.forced_tokens + end.answer_tokens <= request.limits.max_output_tokens


def test_adjusting_what_is_over_or_unknown_changes_nothing() -> None:
    engine = make_engine(MODEL)
    run(engine, make_request(MODEL))
    assert engine.adjust("r", 5, None) is None
    assert engine.adjust("never", None, 1.0) is None
    assert engine.reasoning_tokens("never") == 0


def test_time_ends_reasoning_with_the_token_after_it() -> None:
    clock, outcomes = Clock(), Outcomes()
    engine = make_engine(MODEL, clock)
    engine.submit(make_request(MODEL, prompt=LONG_THINKER, reasoning=30, grace=0, reason_until_s=110.0))
    for _ in range(4):
        outcomes.take(computed(engine))
    clock.now_s = 110.0
    end = run(engine, outcomes=outcomes)["r"].end
    assert end.reasoning_end is ReasoningEnd.DEADLINE
    assert end.reasoning_tokens == 5


def test_time_that_is_over_at_admission_closes_reasoning_before_its_first_token() -> None:
    clock = Clock()
    engine, runner = recorded_engine(MODEL, clock)
    request = make_request(MODEL, prompt=LONG_THINKER, reasoning=30, reason_until_s=110.0, samples=2)
    engine.submit(request)
    clock.now_s = 110.0
    outcomes = run(engine)
    for sample in (0, 1):
        end = outcomes.samples["r"][sample].end
        assert end.reasoning_end is ReasoningEnd.DEADLINE
        assert end.reasoning_tokens == 0
        assert end.forced_tokens > 0
        assert end.answer_tokens > 0
    # The close is fed with the prompt.
    assert runner.steps[0] == {("r", 0): len(LONG_THINKER) + outcomes["r"].end.forced_tokens}


# Steps.


def test_every_decode_advances_in_every_step_while_a_long_prompt_is_computed() -> None:
    engine, runner = recorded_engine(MODEL, step_tokens=16)
    for n in range(3):
        engine.submit(make_request(MODEL, f"short-{n}", prompt=LONG_THINKER, reasoning=40))
    outcomes = Outcomes()
    outcomes.take(computed(engine))
    runner.steps.clear()
    run(engine, make_request(MODEL, "long", prompt=[5] * 300, reasoning=5), outcomes=outcomes)
    while_computed = runner.steps[:19]
    assert [step["long", 0] for step in while_computed] == [16] * 18 + [12]
    for step in while_computed:
        assert all((f"short-{n}", 0) in step for n in range(3))


def test_a_forced_close_is_fed_in_the_same_step_as_the_decodes_of_others() -> None:
    engine, runner = recorded_engine(MODEL)
    cut = make_request(MODEL, "cut", prompt=LONG_THINKER, reasoning=4, grace=0)
    other = make_request(MODEL, "other", prompt=LONG_THINKER, reasoning=30)
    outcomes = run(engine, cut, other)
    forced = outcomes["cut"].end.forced_tokens
    # Prefill, 3 decodes, then the 4th reasoning token and the closing text at once.
    assert [step["cut", 0] for step in runner.steps[:6]] == [len(LONG_THINKER), 1, 1, 1, 1 + forced, 1]
    assert all(step["other", 0] == 1 for step in runner.steps[1:6])
    assert outcomes["cut"].whole == alone(MODEL, cut)[0].whole


def test_a_long_closing_text_does_not_wait_for_a_prompt_either() -> None:
    closing = Closing(MODEL.chat.encode, MODEL.chat.token_bytes, "\n" + "rest is near. " * 5 + "</think>\n\n")
    assert closing.longest > 40
    engine, runner = recorded_engine(MODEL, step_tokens=8)
    request = make_request(MODEL, "cut", prompt=LONG_THINKER, reasoning=3, grace=0, closing=closing)
    outcomes = Outcomes()
    engine.submit(request)
    outcomes.take(computed(engine))
    outcomes = run(engine, make_request(MODEL, "long", prompt=[5] * 200, priority=-1), outcomes=outcomes)
    forced = outcomes["cut"].end.forced_tokens
    assert [step["cut", 0] for step in runner.steps[:5]] == [len(LONG_THINKER), 1, 1, 1 + forced, 1]


# Room to grow.


def test_a_raised_budget_finds_the_pages_that_were_reserved_for_it() -> None:
    engine = make_engine(MODEL, pages=20, page_tokens=8)
    request = make_request(MODEL, prompt=LONG_THINKER, reasoning=6, grace=0, answer=2, reserve=30)
    engine.submit(request)
    outcomes = Outcomes()
    outcomes.take(engine.step())
    held = -(-(len(LONG_THINKER) + 6 + request.closing.longest + 2 + 30) // 8)
    assert engine.load().free_pages == 20 - held
    limits = engine.adjust("r", 1000, None)
    assert limits is not None
    assert (limits.reasoning_tokens, limits.reserve_tokens) == (36, 0)
    outcome = run(engine, outcomes=outcomes)["r"]
    expected = make_request(MODEL, prompt=LONG_THINKER, reasoning=36, grace=0, answer=2)
    assert outcome.whole == alone(MODEL, expected)[0].whole


@pytest.mark.parametrize("lower", [1, 3, 5])
def test_lowering_a_budget_gives_nothing_of_its_reserve_away(lower: int) -> None:
    engine = make_engine(MODEL)
    engine.submit(make_request(MODEL, prompt=LONG_THINKER, reasoning=6, reserve=10))
    for tokens in (lower, 1000, lower, 1000):
        limits = engine.adjust("r", tokens, None)
        assert limits is not None
        assert limits.reasoning_tokens == min(tokens, 16)
    run(engine)


# What cannot run.


def test_what_can_never_fit_is_refused_with_the_numbers() -> None:
    engine = make_engine(MODEL, slots=2, pages=10, page_tokens=8, max_sequence_tokens=100)
    with pytest.raises(TooLargeError, match="prompt 90 \\+ output 11 = 101 tokens exceed the 100") as longer:
        engine.submit(make_request(MODEL, prompt=[5] * 90, reasoning=0, answer=11))
    assert longer.value.numbers == {
        "prompt_tokens": 90,
        "max_output_tokens": 11,
        "max_sequence_tokens": 100,
    }
    with pytest.raises(TooLargeError, match="11 pages are needed, and there are 10") as paged:
        engine.submit(make_request(MODEL, prompt=[5] * 80, reasoning=0, answer=1))
    assert paged.value.numbers == {"needed_pages": 11, "pages": 10}
    with pytest.raises(TooLargeError, match="3 samples") as sampled:
        engine.submit(make_request(MODEL, samples=3))
    assert sampled.value.numbers == {"needed_slots": 3, "slots": 2}
    assert engine.idle
    run(engine, make_request(MODEL, prompt=[5] * 70, reasoning=0, answer=10))


def test_a_full_queue_refuses_with_the_numbers() -> None:
    engine = make_engine(MODEL, queue=2)
    engine.submit(make_request(MODEL, "0"))
    engine.submit(make_request(MODEL, "1", samples=3))
    with pytest.raises(QueueFullError, match="2 requests wait, and 2 may") as full:
        engine.submit(make_request(MODEL, "2"))
    assert full.value.numbers == {"waiting": 2, "queue": 2}
    run(engine)
    run(engine, make_request(MODEL, "2"))


def test_an_id_in_use_is_refused_and_can_be_used_again_when_its_request_is_over() -> None:
    engine = make_engine(MODEL)
    engine.submit(make_request(MODEL))
    with pytest.raises(DuplicateError, match="'r'"):
        engine.submit(make_request(MODEL))
    run(engine)
    run(engine, make_request(MODEL))


def test_limits_without_room_for_an_answer_are_refused() -> None:
    request = make_request(MODEL)
    limits = replace(request.limits, max_output_tokens=request.limits.max_output_tokens - 1)
    engine = make_engine(MODEL)
    with pytest.raises(ValueError, match="max_output_tokens"):
        engine.submit(replace(request, limits=limits))
    assert engine.idle


@pytest.mark.parametrize("prompt", [[], [45], [-1], [5, 1 << 40]])
def test_tokens_that_the_model_does_not_have_are_refused(prompt: list[int]) -> None:
    with pytest.raises(ValueError, match="token"):
        make_engine(MODEL).submit(make_request(MODEL, prompt=prompt))


# Leaving early.


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 12])
@pytest.mark.parametrize("samples", [1, 3])
def test_a_cancelled_request_frees_all_at_once_and_brings_no_more_events(steps: int, samples: int) -> None:
    engine, outcomes = make_engine(MODEL, pages=100, step_tokens=8), Outcomes()
    other = make_request(MODEL, "other", prompt=LONG_THINKER, reasoning=30)
    engine.submit(other)
    outcomes.take(engine.step())
    engine.submit(make_request(MODEL, prompt=LONG_THINKER, reasoning=30, samples=samples))
    for _ in range(steps):
        outcomes.take(engine.step())
    engine.cancel("r")
    engine.check_integrity()
    assert engine.load().running == 1
    assert engine.load().waiting == 0
    events = []
    while not engine.idle:
        events += engine.step()
    assert {event.request_id for event in events} == {"other"}
    outcomes.take(events)
    assert outcomes["other"].whole == alone(MODEL, other)[0].whole
    assert engine.load().free_pages == 100
    engine.cancel("r")
    engine.cancel("never")


class BrokenClosing(Closing):
    """Fails when reasoning is to be closed."""

    def end(self, text: str) -> tuple[int, ...]:
        raise RuntimeError("no close today")


@pytest.mark.parametrize("samples", [1, 3])
def test_a_failure_is_one_requests_own(samples: int) -> None:
    broken = make_request(
        MODEL,
        "broken",
        prompt=LONG_THINKER,
        reasoning=4,
        grace=0,
        closing=BrokenClosing(MODEL.chat.encode, MODEL.chat.token_bytes),
        samples=samples,
    )
    others = [make_request(MODEL, f"r{n}", prompt=LONG_THINKER[n:]) for n in range(3)]
    outcomes = run(make_engine(MODEL), others[0], broken, *others[1:])
    failed = Failed("broken", FailureKind.REQUEST, "RuntimeError: no close today")
    assert outcomes.failed == {"broken": failed}
    for other in others:
        assert outcomes[other.request_id].whole == alone(MODEL, other)[0].whole


def test_a_sequence_whose_numbers_overflow_fails_alone() -> None:
    engine, runner = recorded_engine(MODEL)
    sampling = Sampling(temperature=1.0, top_p=0.9)
    requests = [make_request(MODEL, f"r{n}", prompt=LONG_THINKER, sampling=sampling) for n in range(3)]
    outcomes = Outcomes()
    for request in requests:
        engine.submit(request)
    outcomes.take(computed(engine))
    runner.pools.ssm[0][runner.slots["r1", 0]] = torch.inf
    run(engine, outcomes=outcomes)
    assert set(outcomes.failed) == {"r1"}
    for request in (requests[0], requests[2]):
        assert outcomes[request.request_id].whole == alone(MODEL, request)[0].whole


class DeviceError(RuntimeError):
    pass


def test_a_failure_of_the_device_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, runner = recorded_engine(MODEL)
    engine.submit(make_request(MODEL))

    def fail(plan: Plan) -> torch.Tensor:
        raise DeviceError("gone")

    monkeypatch.setattr(runner, "run", fail)
    with pytest.raises(DeviceError):
        computed(engine)


# Reports.


def test_log_probabilities_come_with_the_tokens_that_were_sampled() -> None:
    request = make_request(MODEL, prompt=LONG_THINKER, reasoning=3, sampling=Sampling(logprobs=2))
    outcome = run(make_engine(MODEL), request, make_request(MODEL, "plain"))["r"]
    sampled = [token for phase, token in outcome.tokens if phase is not Phase.FORCED]
    assert len(outcome.logprobs) == len(sampled)
    for token, logprobs in zip(sampled, outcome.logprobs, strict=True):
        assert len(logprobs.top) == 2
        assert logprobs.top[0][1] >= logprobs.top[1][1]
        if token == logprobs.top[0][0]:
            assert logprobs.chosen == pytest.approx(logprobs.top[0][1])


def test_the_load_says_what_runs_and_what_waits() -> None:
    engine = make_engine(MODEL, slots=2, pages=20, page_tokens=8, idle_step_tokens=16)
    assert engine.load() == Load(
        running=0, waiting=0, backlog_tokens=0, free_slots=2, free_pages=20, step_s=None, tokens_per_s=0.0
    )
    for n in range(3):
        engine.submit(make_request(MODEL, f"{n}", prompt=[5] * 20, reasoning=0, answer=4))
    assert engine.load().waiting == 3
    assert engine.load().backlog_tokens == 60
    outcomes = Outcomes()
    outcomes.take(computed(engine))
    load = engine.load()
    assert (load.running, load.waiting, load.free_slots, load.free_pages) == (2, 1, 0, 14)
    assert load.backlog_tokens == 60 - 16
    run(engine, outcomes=outcomes)
    assert engine.load().backlog_tokens == 0
    assert engine.load().free_pages == 20


def test_timings_add_up() -> None:
    clock = Clock()
    engine, outcomes = make_engine(MODEL, clock, slots=1), Outcomes()
    for n in (0, 1):
        engine.submit(
            make_request(MODEL, f"{n}", prompt=LONG_THINKER, reasoning=3, grace=0, received_s=clock())
        )
    while not engine.idle:
        outcomes.take(engine.step())
        clock.now_s += 1.0
    first, second = (outcomes[name].end for name in "01")
    assert first.timings.queue_s == 0
    assert outcomes.started["1"].queue_s == second.timings.queue_s == first.timings.total_s + 1
    for end in (first, second):
        timings = end.timings
        assert timings.first_token_s == timings.queue_s + timings.prefill_s
        assert timings.first_answer_s is not None
        assert timings.first_token_s < timings.first_answer_s <= timings.total_s
        assert timings.decode_steps == end.reasoning_tokens + end.answer_tokens
        assert timings.mean_batch_size == 1.0


def test_a_step_takes_at_least_as_long_as_the_device_that_is_rehearsed() -> None:
    clock, slept = Clock(), list[float]()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.now_s += seconds

    settings = replace(make_settings(), least_step_s=0.25)
    engine = Engine(make_runner(MODEL, settings, RecordingRunner), MODEL.chat, settings, clock, sleep)
    engine.submit(make_request(MODEL, prompt=LONG_THINKER))
    computed(engine)
    engine.step()
    assert slept == [0.25, 0.25]
    assert engine.load().step_s == 0.25
