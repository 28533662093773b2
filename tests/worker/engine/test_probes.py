"""Answer probes: a copy of a reasoning request answers now; the request notices when it may stop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.worker.engine.small import (
    Outcome,
    Outcomes,
    alone,
    make_engine,
    make_request,
    recorded_engine,
    run,
    small_model,
)
from worker.engine.closing import at_boundary
from worker.engine.engine import Engine
from worker.engine.generation import Phase, ReasoningEnd, TokenRun
from worker.engine.probes import ProbeLog, ProbeRule
from worker.engine.sampling import Sampling
from worker.engine.sequence import Request

MODEL = small_model()
PROMPT = [30, 33, 39, 3, 16, 32, 34, 20, 13, 5, 36, 34]
# Of one checkpoint, and so never stable.
ONCE = ProbeRule(first_tokens=6, every_tokens=1000, stable_answers=2, answer_tokens=5)
# Of a checkpoint at each token, and never stable.
ALWAYS = ProbeRule(first_tokens=6, every_tokens=1, stable_answers=1000, answer_tokens=5)
# Of answers so short that some in a row are equal.
OFTEN = ProbeRule(first_tokens=4, every_tokens=4, stable_answers=2, answer_tokens=1)


def thinker(probe: ProbeRule | None = None, name: str = "r", **fixed: object) -> Request:
    """A request that reasons for 40 tokens, unless it is stopped."""
    values = {"prompt": PROMPT, "reasoning": 40, "grace": 0, "sampling": Sampling(temperature=1.0, seed=113)}
    return make_request(MODEL, name, probe=probe, **(values | fixed))  # type: ignore[arg-type]


def undisturbed() -> Outcome:
    [outcome] = alone(MODEL, thinker())
    return outcome


def probed_engine(steps: int = 0, **sizes: int) -> tuple[Engine, Outcomes]:
    """An engine so many steps after it has begun the only probe of `r`, which takes 5."""
    engine, outcomes = make_engine(MODEL, None, **sizes), Outcomes()
    engine.submit(thinker(ONCE))
    while engine.load().running < 2:
        outcomes.take(engine.step())
    for _ in range(steps):
        outcomes.take(engine.step())
    return engine, outcomes


def text_of(ids: Iterable[int]) -> str:
    """Ids beyond the tokenizer's stand for nothing."""
    table = MODEL.chat.token_bytes
    return b"".join(table[token] for token in ids if token < len(table)).decode()


def stopped_at(tokens: int, answer_tokens: int) -> tuple[Sequence[int], Outcome]:
    """How the thinker is closed after so many reasoning tokens, and what is answered then, greedily."""
    reasoning = undisturbed().ids[:tokens]
    closed = thinker(reasoning=tokens, resume=(TokenRun(Phase.REASONING, reasoning),))
    closing = alone(MODEL, closed)[0].runs[0].token_ids
    asked = make_request(MODEL, prompt=[*PROMPT, *reasoning, *closing], reasoning=0, answer=answer_tokens)
    return closing, alone(MODEL, asked)[0]


# When to probe, and when answers are stable.

rules = st.builds(ProbeRule, st.integers(1, 30), st.integers(1, 30), st.integers(2, 4), st.just(1))


@given(rules, st.lists(st.booleans(), max_size=100))
def test_every_checkpoint_is_taken_once_and_late_only_to_find_a_boundary(
    rule: ProbeRule, boundaries: list[bool]
) -> None:
    log = ProbeLog(rule)
    taken = [n for n, at in enumerate(boundaries, 1) if log.due(n, at_boundary=at)]
    for number, checkpoint in enumerate(range(rule.first_tokens, len(boundaries) + 1, rule.every_tokens)):
        latest = checkpoint + min(rule.every_tokens // 2, 16)
        if latest > len(boundaries):
            break
        after = range(checkpoint, latest + 1)
        assert taken[number] == next((n for n in after if boundaries[n - 1]), latest)
    assert len(taken) <= max(0, 1 + (len(boundaries) - rule.first_tokens) // rule.every_tokens)


@given(rules, st.integers(0, 100))
def test_a_resumed_reasoning_keeps_the_checkpoints_that_are_left(rule: ProbeRule, at: int) -> None:
    whole, resumed = ProbeLog(rule), ProbeLog(rule, at)
    due = [n for n in range(1, 200) if whole.due(n, at_boundary=True)]
    assert [n for n in range(at + 1, 200) if resumed.due(n, at_boundary=True)] == [n for n in due if n > at]


def test_answers_are_stable_when_enough_in_a_row_are_equal_but_for_white_space() -> None:
    log = ProbeLog(ProbeRule(1, 1, stable_answers=3, answer_tokens=1))
    answers = ["4 2", "4  2\n", "42", "42", " 42"]
    assert [log.stable(answer) for answer in answers] == [False, False, False, False, True]


@pytest.mark.parametrize("numbers", [(0, 1, 2, 1), (1, 0, 2, 1), (1, 1, 1, 1), (1, 1, 2, 0)])
def test_a_rule_out_of_range_is_an_error(numbers: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        ProbeRule(*numbers)


# What the engine makes of it.


@pytest.mark.parametrize("first", range(1, 13))
def test_reasoning_ends_once_requests_stopped_at_the_checkpoints_answer_the_same(first: int) -> None:
    rule = ProbeRule(first, every_tokens=6, stable_answers=2, answer_tokens=2)
    unprobed, log = undisturbed(), ProbeLog(rule)
    expected = unprobed.end.reasoning_tokens, ReasoningEnd.BUDGET
    begun = tokens = 0
    for used in range(1, 40):
        if not log.due(used, at_boundary=at_boundary(text_of(unprobed.ids[:used]))):
            continue
        closing, stopped = stopped_at(used, rule.answer_tokens)
        told_at = used + stopped.end.timings.decode_steps
        begun, tokens = begun + 1, tokens + len(closing) + len(stopped.tokens)
        if log.stable(stopped.answer) and told_at < 40:
            expected = told_at, ReasoningEnd.STABLE
            break
    outcome = run(make_engine(MODEL), thinker(rule))["r"]
    assert (outcome.end.reasoning_tokens, outcome.end.reasoning_end) == expected
    assert (outcome.end.probes, outcome.end.skipped_probes, outcome.end.probe_tokens) == (begun, 0, tokens)
    assert outcome.reasoning == unprobed.reasoning[: len(outcome.reasoning)]


def test_a_stable_reasoning_is_closed_and_answered_as_if_its_budget_were_used_up() -> None:
    outcome = run(make_engine(MODEL), thinker(OFTEN))["r"]
    assert outcome.end.reasoning_end is ReasoningEnd.STABLE
    used = outcome.end.reasoning_tokens
    assert used < 40
    cut = alone(MODEL, thinker(reasoning=used, extra=40 - used))[0]
    assert (outcome.tokens, outcome.answer) == (cut.tokens, cut.answer)


def test_a_stable_reasoning_may_use_its_grace_to_end_a_sentence() -> None:
    outcome = run(make_engine(MODEL), thinker(OFTEN, grace=6))["r"]
    assert outcome.strike is not None
    used = outcome.end.reasoning_tokens
    assert outcome.strike.reasoning_tokens <= used <= outcome.strike.reasoning_tokens + 6
    assert at_boundary(text_of(outcome.ids[:used])) or used == outcome.strike.reasoning_tokens + 6


def test_a_probe_that_finds_nothing_stable_changes_nothing() -> None:
    outcome = run(make_engine(MODEL), thinker(ONCE))["r"]
    assert outcome.end.probes == 1
    assert outcome.whole == undisturbed().whole


def test_a_probe_is_closed_and_sampled_in_the_next_step_of_the_batch() -> None:
    engine, runner = recorded_engine(MODEL)
    outcomes = Outcomes()
    engine.submit(thinker(ALWAYS))
    while outcomes.output_tokens("r") < 6:
        outcomes.take(engine.step())
    closing, _ = stopped_at(6, 5)
    runner.steps.clear()
    engine.step()
    # The token that the original fed next is fed again, and the close behind it: no second prefill.
    assert runner.steps == [{("r", 0): 1, ("r", 1): 1 + len(closing)}]


def test_a_probe_holds_one_slot_and_only_the_pages_that_it_writes() -> None:
    engine, outcomes = make_engine(MODEL, page_tokens=8, pages=100), Outcomes()
    engine.submit(thinker(replace(ALWAYS, first_tokens=24)))
    while outcomes.output_tokens("r") < 23:
        outcomes.take(engine.step())
    before = engine.load()
    outcomes.take(engine.step())
    after = engine.load()
    assert after.free_slots == before.free_slots - 1
    # 35 tokens are computed: 4 full pages are shared.
    closing, _ = stopped_at(24, 5)
    assert before.free_pages - after.free_pages == -(-(12 + 24 + len(closing) + 5) // 8) - 4
    engine.check_integrity()
    run(engine, outcomes=outcomes)
    assert engine.load().free_pages == 100


def test_one_probe_at_a_time_answers() -> None:
    engine, outcomes = make_engine(MODEL), Outcomes()
    engine.submit(thinker(ALWAYS))
    while not engine.idle:
        outcomes.take(engine.step())
        assert engine.load().running <= 2
    end = outcomes["r"].end
    assert end.probes > 3
    assert end.probes + end.skipped_probes == 40 - 6
    assert outcomes["r"].whole == undisturbed().whole


def test_no_probe_answers_for_longer_than_the_answer_may_be() -> None:
    rule = replace(ALWAYS, answer_tokens=500)
    end = run(make_engine(MODEL, max_sequence_tokens=100), thinker(rule, answer=1))["r"].end
    # Each answers with the original's next token, so that every other checkpoint finds none under way.
    assert (end.probes, end.skipped_probes) == (17, 17)


# Room.


@pytest.mark.parametrize("sizes", [{"slots": 1}, {"slots": 2, "pages": 9}])
def test_a_checkpoint_without_room_for_a_probe_is_passed_over(sizes: dict[str, int]) -> None:
    outcome = run(make_engine(MODEL, None, **sizes), thinker(OFTEN))["r"]
    assert outcome.end.probes == outcome.end.probe_tokens == 0
    assert outcome.end.skipped_probes == 9
    assert outcome.whole == undisturbed().whole


def test_no_probe_takes_room_while_someone_waits() -> None:
    outcomes = run(make_engine(MODEL, slots=2), thinker(ONCE), thinker(name="large", samples=2))
    assert (outcomes["r"].end.probes, outcomes["r"].end.skipped_probes) == (0, 1)


def test_a_probe_makes_room_for_whoever_comes() -> None:
    engine, outcomes = probed_engine(1, slots=2)
    engine.submit(thinker(name="next"))
    outcomes.take(engine.step())
    assert "next" in outcomes.started
    assert engine.load().waiting == 0
    engine.check_integrity()
    run(engine, outcomes=outcomes)
    assert outcomes["r"].whole == outcomes["next"].whole == undisturbed().whole


@pytest.mark.parametrize("steps", range(5))
def test_a_probe_ends_when_its_original_is_preempted(steps: int) -> None:
    engine, outcomes = probed_engine(steps, slots=2)
    run(engine, make_request(MODEL, "urgent", priority=-1, samples=2), outcomes=outcomes)
    end = outcomes["r"].end
    assert (end.preemptions, end.probes) == (1, 1)
    assert outcomes["r"].whole == undisturbed().whole


@pytest.mark.parametrize("steps", range(3))
def test_a_probe_is_cancelled_with_its_original(steps: int) -> None:
    engine, _ = probed_engine(steps, slots=3, pages=50)
    engine.cancel("r")
    assert engine.idle
    engine.check_integrity()
    assert (engine.load().free_slots, engine.load().free_pages) == (3, 50)
    assert engine.step() == []


def test_a_probe_ends_with_the_reasoning() -> None:
    """It would tell nothing any more."""
    engine, outcomes = make_engine(MODEL), Outcomes()
    engine.submit(thinker(ALWAYS, reasoning=7, answer=20))
    while not outcomes["r"].answer:
        outcomes.take(engine.step())
    assert engine.load().running == 1
    run(engine, outcomes=outcomes)
    assert outcomes["r"].end.probes == 1


# Resuming, and what is not probed.


@pytest.mark.parametrize("grace", [0, 3, 8])
def test_a_reasoning_struck_as_stable_resumes_anywhere_as_it_would_have_gone_on(grace: int) -> None:
    engine, outcomes = make_engine(MODEL), Outcomes()
    request = thinker(OFTEN, grace=grace)
    engine.submit(request)
    states = []
    while not engine.idle:
        outcomes.take(engine.step())
        states.append((outcomes["r"].runs, outcomes["r"].strike))
    whole, struck = outcomes["r"], [state for state in states if state[1] is not None]
    assert whole.end.reasoning_end is ReasoningEnd.STABLE
    assert len(struck) > 3
    for runs, strike in struck[:-1]:
        again = thinker(OFTEN, grace=grace, resume=runs, strike=strike)
        resumed = run(make_engine(MODEL), again)["r"]
        before = [(run.phase, token) for run in runs for token in run.token_ids]
        assert before + resumed.tokens == whole.tokens
        assert resumed.end.reasoning_end is ReasoningEnd.STABLE
        assert resumed.end.probes == 0


def test_a_resumed_reasoning_is_probed_at_the_checkpoints_that_are_left() -> None:
    rule = ProbeRule(10, 10, stable_answers=100, answer_tokens=2)
    half = TokenRun(Phase.REASONING, undisturbed().ids[:24])
    assert run(make_engine(MODEL), thinker(rule))["r"].end.probes == 3
    assert run(make_engine(MODEL), thinker(rule, resume=(half,)))["r"].end.probes == 1


def test_an_answer_without_reasoning_is_not_probed() -> None:
    rule = ProbeRule(1, 1, stable_answers=2, answer_tokens=1)
    end = run(make_engine(MODEL), thinker(rule, reasoning=0, answer=20))["r"].end
    assert (end.probes, end.skipped_probes) == (0, 0)


def test_several_samples_are_not_probed() -> None:
    with pytest.raises(ValueError, match="samples must be"):
        make_engine(MODEL).submit(thinker(ONCE, samples=2))
