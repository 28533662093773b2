"""The reasoning budget, example by example."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from tests.worker.engine.vocabulary import Vocabulary
from worker.engine.budget import BudgetMachine
from worker.engine.generation import (
    Ban,
    FinishReason,
    Limits,
    Observation,
    Phase,
    ReasoningEnd,
    Strike,
    TokenRun,
)
from worker.engine.loops import LoopRule

VOCABULARY = Vocabulary(
    piece.encode()
    for piece in (
        "</", "think", ">\n", ">\n\n", "\n\n", " sum", " is", "nk>\n\n", "</think>", "<think>", "done</",
        ">\n\nThe", "<think></think>", "k></think> so", "END<think>so",
    )
)  # fmt: skip
FORMAT = VOCABULARY.text_format()
LONGEST = FORMAT.closing.longest


def limits(
    budget: int, grace: int = 0, *, more: int = 0, answer: int = 20, until_s: float = math.inf
) -> Limits:
    """Room for exactly this and `more`."""
    room = (budget + grace + LONGEST if budget else 0) + answer + more
    return Limits(budget, grace, room, answer, until_s)


class Story:
    """One sequence: what its model writes, and what became of it."""

    def __init__(self, machine: BudgetMachine) -> None:
        self.machine = machine
        self.shown = {Phase.REASONING: "", Phase.ANSWER: ""}
        self.forced: list[str] = []

    def take(self, observation: Observation) -> Observation:
        for phase, text in observation.text:
            self.shown[phase] += text
        if observation.force:
            self.forced.append(VOCABULARY.decode(observation.force))
        return observation

    def write(self, *tokens: str, now_s: float = 0.0) -> Observation:
        """Each text is one token of the vocabulary; gives the last observation."""
        for token in tokens:
            observation = self.take(self.machine.observe(VOCABULARY.token(token), now_s))
        return observation

    def spell(self, text: str, now_s: float = 0.0) -> Observation:
        """One token for each (ASCII) character."""
        return self.write(*text, now_s=now_s)

    def end_text(self) -> Observation:
        return self.take(self.machine.observe(VOCABULARY.end_of_text, 0.0))

    def phase(self) -> Phase:
        return self.machine.phase

    def ban(self) -> Ban:
        return self.machine.ban

    @property
    def reasoning(self) -> str:
        return self.shown[Phase.REASONING]

    @property
    def answer(self) -> str:
        return self.shown[Phase.ANSWER]

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.machine.reasoning_tokens, self.machine.forced_tokens, self.machine.answer_tokens


def story(limits: Limits, *, stop: Sequence[str] = (), **options: Any) -> Story:
    return Story(BudgetMachine(limits, FORMAT, stop=stop, **options))


# Point 1: budget, grace, answer reserve, a point in time.


def test_reasoning_ends_at_its_budget() -> None:
    s = story(limits(5))
    s.spell("abcd")
    assert s.forced == []
    observation = s.spell("e")
    assert s.forced == [".\n</think>\n\n"]
    assert observation.phase is Phase.REASONING
    assert s.phase() is Phase.ANSWER
    assert s.machine.reasoning_end is ReasoningEnd.BUDGET
    assert s.counts == (5, len(VOCABULARY.encode(".\n</think>\n\n")), 0)


def test_a_point_in_time_has_the_effect_of_a_budget() -> None:
    s = story(limits(100, 3, until_s=10.0))
    s.spell("It", now_s=9.9)
    assert s.machine.strike is None
    s.spell(" i", now_s=10.0)
    assert s.machine.strike == Strike(ReasoningEnd.DEADLINE, 3)
    s.spell("s:", now_s=10.1)
    assert s.forced == [".\n</think>\n\n"]
    assert s.machine.reasoning_end is ReasoningEnd.DEADLINE
    assert s.counts[0] == 3 + 3


def test_a_point_in_time_may_pass_before_the_first_token() -> None:
    s = story(limits(100, 3, until_s=10.0))
    assert s.take(s.machine.check(9.0)).force == ()
    observation = s.take(s.machine.check(10.0))
    assert observation.phase is None
    assert s.forced == ["</think>\n\n"]
    assert s.machine.reasoning_end is ReasoningEnd.DEADLINE
    assert s.counts[0] == 0


# Point 2: the end of a line or sentence, and the closing text that fits.


@pytest.mark.parametrize("written", ["It is 5. So", "It is 5\nSo", "It is 5? So", "It is so.So"])
def test_grace_finds_the_end_of_a_line_or_sentence(written: str) -> None:
    s = story(limits(7, 5))
    used = next(n for n, character in enumerate(written, 1) if s.spell(character).force)
    assert written[7:used] in {". ", "\n", "?", "o."}
    assert s.reasoning == written[:used]
    assert s.forced == ["</think>\n\n" if written[used - 1] == "\n" else "\n</think>\n\n"]


def test_no_grace_is_used_where_the_text_may_be_cut() -> None:
    s = story(limits(6, 50))
    s.spell("It is.")
    assert s.forced == ["\n</think>\n\n"]
    assert s.counts[0] == 6


def test_the_closing_line_end_is_not_doubled() -> None:
    s = story(limits(3, 50))
    s.spell("So\n")
    assert s.forced == ["</think>\n\n"]


def test_forced_text_is_not_shown_and_is_counted_apart() -> None:
    s = story(limits(2))
    s.spell("So")
    s.write("\n\n", "4", "2")
    s.end_text()
    assert (s.reasoning, s.answer) == ("So", "42")
    assert s.counts == (2, len(VOCABULARY.encode(".\n</think>\n\n")), 3)
    assert s.machine.output_tokens == sum(s.counts)


def test_another_closing_text_may_be_given() -> None:
    text_format = VOCABULARY.text_format("\nTime is up.\n</think>\n\n")
    machine = BudgetMachine(Limits(2, 0, 100), text_format)
    assert VOCABULARY.decode(Story(machine).spell("So").force) == ".\nTime is up.\n</think>\n\n"


def test_a_character_cut_short_by_the_budget_is_replaced() -> None:
    s = story(limits(2))
    s.spell("a")
    s.take(s.machine.observe("é".encode()[0], 0.0))
    assert s.forced == [".\n</think>\n\n"]
    assert s.reasoning == "a�"


def test_reasoning_is_not_cut_inside_a_character() -> None:
    s = story(limits(4, 9))
    s.spell("So.")
    first, second = "é".encode()
    assert s.take(s.machine.observe(first, 0.0)).force == ()
    assert s.take(s.machine.observe(second, 0.0)).force == ()
    s.spell(".")
    assert (s.reasoning, s.forced) == ("So.é.", ["\n</think>\n\n"])


# Point 3: never more than b + g, and b = 0 is no reasoning.


@pytest.mark.parametrize("grace", [0, 1, 7])
def test_reasoning_never_exceeds_budget_and_grace(grace: int) -> None:
    s = story(limits(10, grace))
    s.spell("x" * (10 + grace))
    assert s.forced == [".\n</think>\n\n"]
    assert s.counts[0] == 10 + grace


def test_tokens_after_a_cut_in_the_same_step_are_the_engines_to_drop() -> None:
    s = story(limits(3, more=9))
    drafted = [VOCABULARY.token(character) for character in "abcdef"]
    kept = []
    for token in drafted:
        kept.append(token)
        if s.take(s.machine.observe(token, 0.0)).force:
            break
    assert kept == drafted[:3]
    assert s.counts[0] == 3


def test_without_a_budget_there_is_no_reasoning() -> None:
    s = story(limits(0, 5, answer=3))
    assert s.phase() is Phase.ANSWER
    assert s.spell("42.").finish is FinishReason.LENGTH
    assert (s.reasoning, s.answer, s.forced) == ("", "42.", [])
    assert s.machine.reasoning_end is ReasoningEnd.NONE


# Point 4: a natural close is never doubled.


@pytest.mark.parametrize("under_way", ["<", "</", "</t", "</th", "</thi", "</thin", "</think"])
def test_a_close_under_way_at_the_limit_is_completed(under_way: str) -> None:
    s = story(limits(3 + len(under_way), 50))
    s.spell("so " + under_way)
    assert s.forced == ["</think>\n\n".removeprefix(under_way)]
    assert s.machine.reasoning_end is ReasoningEnd.BUDGET
    assert s.reasoning == "so "


def test_a_natural_close_in_the_last_token_is_not_doubled() -> None:
    s = story(limits(4, 5))
    s.write("a", "</", "think", ">\n\n")
    assert s.forced == []
    assert s.machine.reasoning_end is ReasoningEnd.NATURAL
    assert s.counts == (4, 0, 0)


def test_a_natural_close_within_the_grace_is_natural() -> None:
    s = story(limits(2, 9))
    s.spell("ab")
    s.write("</think>")
    assert s.forced == []
    assert s.machine.reasoning_end is ReasoningEnd.NATURAL


# Point 5: reasoning cannot reopen.


def test_a_reopened_reasoning_is_closed_once_and_reported() -> None:
    s = story(limits(0, answer=60))
    s.spell("So")
    s.write("<think>")
    assert s.machine.reopened
    assert s.forced == ["</think>\n\n"]
    s.spell(" 42")
    s.spell("<think></think><think>.")
    s.end_text()
    assert s.forced == ["</think>\n\n"]
    assert s.answer == "So 42."
    assert s.phase() is Phase.ANSWER


def test_an_answer_without_a_tag_is_not_reopened() -> None:
    s = story(limits(0))
    s.spell("a <thin> b")
    s.end_text()
    assert not s.machine.reopened
    assert s.answer == "a <thin> b"


def test_what_the_model_closed_again_itself_is_not_closed_by_force() -> None:
    s = story(limits(0))
    s.write("<think></think>", "a")
    assert s.machine.reopened
    assert s.forced == []


def test_a_stray_close_in_the_answer_is_dropped() -> None:
    s = story(limits(0))
    s.spell("4</think>2")
    s.end_text()
    assert (s.answer, s.machine.reopened) == ("42", False)


def test_a_reopened_reasoning_stays_open_where_only_the_close_would_fit() -> None:
    close = len(VOCABULARY.encode("</think>\n\n"))
    for room, forced in [(close, []), (close + 1, ["</think>\n\n"])]:
        s = story(limits(0, answer=2 + room))
        s.write("a", "<think>")
        assert s.forced == forced
        assert s.spell("x" if forced else "x" * room).finish is FinishReason.LENGTH
        assert s.answer.strip("x") == "a"


# Point 6: end of text inside reasoning.


def test_end_of_text_inside_reasoning_forces_the_answer() -> None:
    s = story(limits(50, 9))
    s.spell("so")
    observation = s.end_text()
    assert (observation.phase, observation.finish) == (None, None)
    assert s.forced == [".\n</think>\n\n"]
    assert s.machine.reasoning_end is ReasoningEnd.NATURAL
    assert s.counts[0] == 2
    assert s.ban() is Ban.END_OF_TEXT


def test_end_of_text_in_the_grace_is_a_natural_end() -> None:
    s = story(limits(2, 9))
    s.spell("so i")
    s.end_text()
    assert s.machine.reasoning_end is ReasoningEnd.NATURAL


def test_end_of_text_inside_a_close_completes_it() -> None:
    s = story(limits(50))
    s.spell("so</thi")
    s.end_text()
    assert s.forced == ["nk>\n\n"]


# Point 7: an answer always comes.


def test_limits_that_leave_no_answer_are_refused() -> None:
    BudgetMachine(Limits(100, 10, 110 + LONGEST + 5, 5), FORMAT)
    numbers = f"max_output_tokens {114 + LONGEST} .* 100 .* 10 .* {LONGEST} .* 5"
    with pytest.raises(ValueError, match=numbers):
        BudgetMachine(Limits(100, 10, 110 + LONGEST + 4, 5), FORMAT)
    with pytest.raises(ValueError, match="answer 5"):
        BudgetMachine(Limits(0, 10, 4, 5), FORMAT)


@pytest.mark.parametrize(
    "wrong",
    [{"reasoning_tokens": -1}, {"grace_tokens": -1}, {"answer_tokens": 0}, {"reason_until_s": math.nan}],
)
def test_limits_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        Limits(**({"reasoning_tokens": 5, "grace_tokens": 0, "max_output_tokens": 100} | wrong))


def test_end_of_text_is_banned_until_the_answer_is_visible() -> None:
    s = story(limits(0, answer=20))
    assert s.ban() is Ban.END_OF_TEXT
    s.spell("\n <")
    assert s.ban() is Ban.END_OF_TEXT  # it may become a tag
    with pytest.raises(ValueError, match="banned"):
        s.end_text()
    s.spell("4")
    assert s.ban() is Ban.NONE
    assert s.end_text().finish is FinishReason.STOP
    assert s.answer == "<4"
    assert s.counts == (0, 0, 4)


def test_a_silent_answer_must_become_visible() -> None:
    s = story(limits(0, answer=50))
    s.spell("\n" * 7)
    assert s.ban() is Ban.END_OF_TEXT
    s.spell("\n")
    assert s.ban() is Ban.SILENT
    s.spell("4")
    assert s.ban() is Ban.NONE


def test_the_last_tokens_of_an_answer_must_be_visible() -> None:
    s = story(limits(0, answer=6))
    s.spell("\n")
    assert s.ban() is Ban.END_OF_TEXT
    s.spell("\n")
    assert s.ban() is Ban.SILENT


def test_what_is_held_back_at_the_length_limit_is_shown() -> None:
    s = story(limits(0, answer=6), stop=["END"])
    observation = s.spell("x </th")
    assert observation.finish is FinishReason.LENGTH
    assert s.answer == "x </th"
    s = story(limits(0, answer=3), stop=["END"])
    s.spell("xEN")
    assert s.answer == "xEN"


# Point 8: loops.


def test_a_loop_ends_reasoning_at_once() -> None:
    s = story(limits(5000, 500))
    for n in range(1, 5000):
        if s.spell("wait "[n % 5]).force:
            break
    assert n < 220
    assert s.machine.reasoning_end is ReasoningEnd.LOOP
    assert s.machine.strike == Strike(ReasoningEnd.LOOP, n)


def test_loops_may_be_allowed() -> None:
    s = story(limits(600), loop_rule=None)
    s.spell("x" * 599)
    assert s.phase() is Phase.REASONING


# Point 9: what is written as user text switches nothing.


@pytest.mark.parametrize(
    "text", ["/no_think", "/think", "<SPECIAL_12>", "User\n", "< think>", "</ think>", "</THINK>"]
)
def test_only_the_tags_themselves_change_the_phase(text: str) -> None:
    s = story(limits(40, answer=60))
    s.spell(text)
    assert s.phase() is Phase.REASONING
    s.write("</think>")
    s.spell(text)
    assert s.phase() is Phase.ANSWER
    s.end_text()
    assert (s.reasoning, s.answer) == (text, text)
    assert not s.machine.reopened


# Point 10: detection is on text across token borders.


@pytest.mark.parametrize(
    ("tokens", "reasoning", "answer"),
    [
        (["a", "</think>", "4"], "a", "4"),
        (["a", "</", "think", ">", "\n\n", "4"], "a", "4"),
        (["a", "</", "think", ">\n\n", "4"], "a", "4"),
        (["done</", "think", ">\n\nThe", " sum"], "done", "The sum"),
        ([*"a</thin", "k></think> so"], "a", "so"),
        ([*"a</thin", *"g</thi", "nk>\n\n", "4"], "a</thing", "4"),
        ([*"a<think>b</think>4"], "ab", "4"),
    ],
)
def test_a_close_is_found_across_token_borders(tokens: list[str], reasoning: str, answer: str) -> None:
    s = story(limits(50))
    closed = None
    for n, token in enumerate(tokens, 1):
        observation = s.write(token)
        if closed is None and s.phase() is Phase.ANSWER:
            closed = n
            assert observation.phase is Phase.REASONING  # the token that closes it is part of it
    s.end_text()
    assert (s.reasoning, s.answer) == (reasoning, answer)
    assert closed is not None
    assert s.counts == (closed, 0, len(tokens) - closed)


# Stop strings, the finish, cancelling.


def test_a_stop_string_ends_the_answer() -> None:
    s = story(limits(9, answer=30), stop=["\n\n", "User"])
    s.spell("a\n\nb")
    s.write("</think>", "\n\n")
    observation = s.spell("42\nUser")
    assert observation.finish is FinishReason.STOP
    assert (s.reasoning, s.answer) == ("a\n\nb", "42\n")


def test_a_stop_string_in_the_closing_token_ends_the_answer() -> None:
    s = story(limits(9), stop=["he"])
    observation = s.write("</", "think", ">\n\nThe")
    assert (observation.phase, observation.finish) == (Phase.REASONING, FinishReason.STOP)
    assert s.answer == "T"


def test_nothing_is_shown_after_a_stop_string() -> None:
    s = story(limits(0), stop=["END"])
    assert s.write("a", "END<think>so").finish is FinishReason.STOP
    assert (s.answer, s.forced) == ("a", [])


def test_a_stop_string_completed_by_held_text_is_the_reason() -> None:
    s = story(limits(0, answer=2), stop=["<"])
    assert s.spell("a<").finish is FinishReason.STOP
    assert s.answer == "a"


def test_cancelling_shows_what_was_held_back() -> None:
    s = story(limits(20))
    s.spell("so </th")
    observation = s.take(s.machine.cancel())
    assert observation.finish is FinishReason.CANCELLED
    assert s.reasoning == "so </th"
    assert s.machine.reasoning_end is ReasoningEnd.CANCELLED


def test_cancelling_an_answer_leaves_the_reasons_end() -> None:
    s = story(limits(1), stop=["END"])
    s.spell("aEN")
    s.take(s.machine.cancel())
    assert s.answer == "EN"
    assert s.machine.reasoning_end is ReasoningEnd.BUDGET


def test_nothing_follows_the_finish() -> None:
    s = story(limits(0))
    s.machine.cancel()
    with pytest.raises(RuntimeError, match="finished: CANCELLED"):
        s.spell("a")
    with pytest.raises(RuntimeError, match="finished"):
        s.machine.cancel()
    with pytest.raises(RuntimeError, match="finished"):
        s.machine.check(0.0)


# Adjusting in flight.


def test_a_tightened_budget_strikes_at_the_next_token() -> None:
    s = story(limits(50))
    s.spell("abc")
    assert s.machine.adjust(reasoning_tokens=1).reasoning_tokens == 4
    assert not s.forced
    s.spell("d")
    assert s.forced == [".\n</think>\n\n"]
    assert s.counts[0] == 4


def test_an_extended_budget_is_bounded_by_the_output() -> None:
    s = story(limits(5, 2, more=10))
    assert s.machine.adjust(reasoning_tokens=12).reasoning_tokens == 12
    assert s.machine.adjust(reasoning_tokens=1000).reasoning_tokens == 15
    s.spell("x" * 17)
    assert s.forced == [".\n</think>\n\n"]
    assert s.machine.limits.max_output_tokens - s.machine.output_tokens >= 20


def test_an_extended_limit_takes_its_strike_back() -> None:
    s = story(limits(3, 5, more=10, until_s=9.0))
    s.spell("abcd")
    assert s.machine.strike == Strike(ReasoningEnd.BUDGET, 3)
    s.machine.adjust(reason_until_s=20.0)
    s.machine.adjust(reasoning_tokens=4)  # used already
    assert s.machine.strike == Strike(ReasoningEnd.BUDGET, 3)
    s.machine.adjust(reasoning_tokens=6)
    assert s.machine.strike is None
    s.spell("e", now_s=20.0)
    assert s.machine.strike == Strike(ReasoningEnd.DEADLINE, 5)
    s.machine.adjust(reason_until_s=30.0)
    s.spell("f", now_s=20.0)
    assert s.machine.strike == Strike(ReasoningEnd.BUDGET, 6)


def test_a_point_in_time_may_be_set_moved_and_lifted() -> None:
    s = story(limits(50))
    assert s.machine.adjust(reason_until_s=5.0).reason_until_s == 5.0
    assert s.machine.adjust(reason_until_s=math.inf).reason_until_s == math.inf
    s.spell("abc", now_s=6.0)
    assert s.machine.adjust(10, 2.0) == s.machine.limits
    s.spell("d", now_s=6.0)
    assert s.machine.reasoning_end is ReasoningEnd.DEADLINE


def test_a_strike_by_time_stays_when_the_time_is_moved_back() -> None:
    s = story(limits(50, 3, until_s=9.0))
    s.spell("a", now_s=9.0)
    s.machine.adjust(reason_until_s=8.0)
    s.spell("bcd", now_s=9.0)
    assert s.counts[0] == 1 + 3
    assert s.machine.strike == Strike(ReasoningEnd.DEADLINE, 1)


def test_nothing_is_adjusted_after_the_close() -> None:
    s = story(limits(3, more=10))
    s.spell("abc")
    before = s.machine.limits
    assert s.machine.adjust(8, 1.0) is before


@pytest.mark.parametrize("wrong", [{"reasoning_tokens": -1}, {"reason_until_s": math.nan}])
def test_a_wrong_adjustment_is_refused_and_changes_nothing(wrong: dict[str, Any]) -> None:
    s = story(limits(2, 9))
    s.spell("ab")
    before = s.machine.limits, s.machine.strike
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        s.machine.adjust(**wrong)
    assert (s.machine.limits, s.machine.strike) == before


# Resuming.


def test_a_resumed_sequence_whose_limit_is_due_is_closed_before_sampling() -> None:
    ids = VOCABULARY.encode("abcdefgh")
    machine = BudgetMachine.resume(limits(5, 2), FORMAT, [TokenRun(Phase.REASONING, ids)])
    assert VOCABULARY.decode(machine.check(0.0).force) == ".\n</think>\n\n"


def test_a_budget_strike_is_found_again_and_a_deadline_is_told() -> None:
    runs = [TokenRun(Phase.REASONING, VOCABULARY.encode("abcdef"))]
    machine = BudgetMachine.resume(limits(5, 3), FORMAT, runs)
    assert machine.strike == Strike(ReasoningEnd.BUDGET, 5)
    told = Strike(ReasoningEnd.DEADLINE, 6)
    assert BudgetMachine.resume(limits(9, 3), FORMAT, runs, strike=told).strike == told


def test_a_close_that_nothing_struck_for_came_from_end_of_text() -> None:
    forced = TokenRun(Phase.FORCED, VOCABULARY.encode(".\n</think>\n\n"))
    runs = [TokenRun(Phase.REASONING, VOCABULARY.encode("ab")), forced]
    machine = BudgetMachine.resume(limits(5), FORMAT, runs)
    assert (machine.phase, machine.reasoning_end) == (Phase.ANSWER, ReasoningEnd.NATURAL)
    assert machine.forced_tokens == len(forced.token_ids)


def test_a_finished_sequence_resumes_as_finished() -> None:
    runs = [TokenRun(Phase.ANSWER, VOCABULARY.encode("abc"))]
    assert BudgetMachine.resume(limits(0, answer=3), FORMAT, runs).finish_reason is FinishReason.LENGTH
    stopped = BudgetMachine.resume(limits(0, answer=9), FORMAT, runs, stop=["c"])
    assert stopped.finish_reason is FinishReason.STOP


@pytest.mark.parametrize(
    ("runs", "why"),
    [
        ([(Phase.ANSWER, "a")], "cannot be ANSWER"),
        ([(Phase.REASONING, "a</think>b")], "cannot be REASONING"),
        ([(Phase.FORCED, "</thi")], "close nothing"),
        ([(Phase.REASONING, "a</think>"), (Phase.ANSWER, "b" * 60)], "exceed"),
    ],
)
def test_runs_that_no_machine_makes_are_refused(runs: list[tuple[Phase, str]], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        BudgetMachine.resume(
            limits(5),
            FORMAT,
            [TokenRun(phase, list(text.encode())) for phase, text in runs],
            loop_rule=LoopRule(),
        )


def test_end_of_text_cannot_be_resumed_from() -> None:
    with pytest.raises(ValueError, match="cannot be REASONING"):
        BudgetMachine.resume(limits(5), FORMAT, [TokenRun(Phase.REASONING, [VOCABULARY.end_of_text])])
