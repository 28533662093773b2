"""What a person sees of a stream."""

from __future__ import annotations

import re
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from curfew.client import Adjustment, Budget, Completion, Event, Mode, Plan, wire
from curfew.client.values import Objective, ObjectiveResult, ReasoningEnd, Usage
from curfew.show import Countdown, Lines, LiveLines, StreamView, spoken
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import reasoning_pb2
from tests.curfew.reasoning_server import COMPLETION, PLAN, delta


def event_of(message: reasoning_pb2.GenerateResponse) -> Event:
    event = wire.event(message)
    assert event is not None
    return event


def plan(**changes: object) -> Plan:
    return replace(wire.plan(PLAN), **changes)  # type: ignore[arg-type]


def piece(phase: pb.Phase.ValueType, text: str, tokens: int = 1) -> Event:
    return event_of(delta(phase, text, tokens))


def completion(**changes: object) -> Completion:
    event = event_of(reasoning_pb2.GenerateResponse(completion=COMPLETION))
    assert isinstance(event, Completion)
    return replace(event, **changes)  # type: ignore[arg-type]


def adjustment(why: str, reason_until_s: float | None = None) -> Adjustment:
    return Adjustment(Budget(20, 0, 12, reason_until_s), why, reasoning_pb2.BudgetAdjustment())


def shown(*events: Event, width: int = 80) -> list[str]:
    out = StringIO()
    with Lines(Console(file=out, width=width, highlight=False)) as lines:
        view = StreamView(lines)
        for event in events:
            view.show(event)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_a_cut_request_from_its_plan_to_its_accounting() -> None:
    assert shown(
        plan(),
        piece(pb.PHASE_REASONING, "1 + 2"),
        piece(pb.PHASE_REASONING, " = 3\n3 +"),
        piece(pb.PHASE_FORCED, ""),
        piece(pb.PHASE_ANSWER, "1"),
        piece(pb.PHASE_ANSWER, "0"),
        completion(),
    ) == [
        "    plan think up to 40 tokens; 800 ms promised to 95% of requests",
        "     why it fits",
        "1 + 2 = 3",
        "3 +",
        "       ✂ enough thought, now the answer",
        "10",
        "    kept deadline 512 ms of 800 ms ✓",
        "    used 3 reasoning + 2 forced + 2 answer tokens (cut: the budget was used up)",
    ]


def test_an_answer_at_once_without_a_promise() -> None:
    usage = Usage(9, 0, 1, 0, 0, 1)
    assert shown(
        plan(mode=Mode.NO_THINK, deadline_s=None),
        piece(pb.PHASE_ANSWER, "7\n"),
        completion(objectives=(), reasoning_end=ReasoningEnd.NONE, usage=usage),
    ) == [
        "    plan answer at once",
        "     why it fits",
        "7",
        "    kept nothing was promised; 512 ms",
        "    used 1 answer tokens",
    ]


def test_an_answer_after_a_natural_close_begins_a_line() -> None:
    assert shown(piece(pb.PHASE_REASONING, "so 3"), piece(pb.PHASE_ANSWER, "3")) == ["so 3", "3"]


def test_a_broken_promise_is_missed() -> None:
    missed = ObjectiveResult(Objective.FIRST_ANSWER_TOKEN, promised_s=0.005, actual_s=0.0075, kept=False)
    assert shown(completion(objectives=(missed,)))[0] == "  missed first answer token 7.5 ms of 5 ms ✗"


def test_a_change_of_pace_is_told_between_two_lines() -> None:
    assert shown(
        piece(pb.PHASE_REASONING, "34 + 5 = 3"),
        adjustment("it goes slowly"),
        piece(pb.PHASE_REASONING, "9\n"),
        piece(pb.PHASE_REASONING, "39 + 71"),
    ) == ["34 + 5 = 39", "    pace it goes slowly", "39 + 71"]


def test_long_notes_are_wrapped_under_their_beginning() -> None:
    lines = shown(plan(why="because " * 7), width=40)
    assert [line[:9].strip() for line in lines] == ["plan", "", "why", ""]
    assert all(len(line) <= 40 for line in lines)


def test_a_models_text_does_not_steer_the_terminal() -> None:
    assert shown(piece(pb.PHASE_ANSWER, "\x1b[2J[bold]\x07\x7f")) == ["␛[2J[bold]␇␡"]


def test_an_answer_that_belongs_elsewhere_goes_there_as_it_is() -> None:
    out, answer = StringIO(), StringIO()
    view = StreamView(Lines(Console(file=out)), answer.write)
    view.show(piece(pb.PHASE_REASONING, "so\n"))
    view.show(piece(pb.PHASE_ANSWER, "\x1b"))
    assert (out.getvalue(), answer.getvalue()) == ("so\n", "\x1b")


def test_a_terminal_keeps_the_last_line_beneath_the_text_and_leaves_only_the_text() -> None:
    out = StringIO()
    console = Console(file=out, width=20, force_terminal=True, color_system=None)
    with LiveLines(console, "footer") as lines:
        lines.write("one two three four five\nsix", "")
        assert [str(part) for part in lines.__rich__().renderables] == ["six", "footer"]
        assert "footer" in out.getvalue()
        lines.write(" seven", "")
    printed = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", out.getvalue())
    assert "one two three four \nfive" in printed
    assert printed.count("six seven") == 1


def test_the_countdown_tells_the_curfew_then_the_deadline_then_nothing() -> None:
    now_s = 10.0
    countdown = Countdown(lambda: now_s)
    assert str(countdown) == "asking …"
    countdown.take(plan())
    countdown.take(piece(pb.PHASE_REASONING, "1 + 2", 3))
    now_s += 0.1
    assert str(countdown) == "thinking, 3 of 40 + 4 tokens · curfew in 0.4 s · answer due in 0.7 s"
    countdown.take(adjustment("slowly", 0.3))
    assert str(countdown).startswith("thinking, 3 of 20 tokens · curfew in 0.2 s")
    countdown.take(piece(pb.PHASE_FORCED, ""))
    assert str(countdown) == "answering · answer due in 0.7 s"
    now_s += 1.0
    assert str(countdown) == "answering · answer due 300 ms ago"
    countdown.take(completion())
    assert str(countdown) == ""


@pytest.mark.parametrize(
    ("value", "words"),
    [
        *((0, "0 ms"), (0.00024, "0.24 ms"), (0.0075, "7.5 ms"), (0.1942, "194 ms")),
        *((1.243, "1.24 s"), (10.0, "10 s"), (132.4, "132 s")),
    ],
)
def test_durations_are_written_as_people_do(value: float, words: str) -> None:
    assert spoken(value) == words
