"""What a person sees of a stream."""

from __future__ import annotations

from io import StringIO

import pytest
from google.protobuf.duration_pb2 import Duration
from rich.console import Console

from curfew.show import StreamView, spoken
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import reasoning_pb2

Response = reasoning_pb2.GenerateResponse


def ms(value: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(value * 1e6))
    return duration


def plan(**fields: object) -> Response:
    usual: dict[str, object] = {
        "mode": pb.MODE_THINK,
        "budget": pb.Budget(reasoning_tokens=40, answer_tokens=12),
        "deadline": ms(800),
        "target_share": 0.95,
        "why": "it fits",
    }
    return Response(plan=reasoning_pb2.Plan(**(usual | fields)))  # type: ignore[arg-type]


def delta(phase: pb.Phase.ValueType, text: str) -> Response:
    return Response(delta=pb.Delta(phase=phase, text=text, token_ids=[1]))


def completion(**fields: object) -> Response:
    usual: dict[str, object] = {
        "reasoning_end": pb.REASONING_END_BUDGET,
        "usage": pb.TokenUsage(reasoning_tokens=40, forced_tokens=3, answer_tokens=2),
        "latency": ms(512),
        "objectives": [
            reasoning_pb2.ObjectiveResult(
                objective=reasoning_pb2.OBJECTIVE_DEADLINE, promised=ms(800), actual=ms(512), kept=True
            )
        ],
    }
    return Response(completion=reasoning_pb2.Completion(**(usual | fields)))  # type: ignore[arg-type]


def shown(*events: Response, width: int = 80) -> tuple[list[str], StreamView]:
    out = StringIO()
    view = StreamView(Console(file=out, width=width, highlight=False))
    for event in events:
        view.show(event)
    return [line.rstrip() for line in out.getvalue().splitlines()], view


def test_a_cut_request_from_its_plan_to_its_accounting() -> None:
    lines, view = shown(
        plan(),
        delta(pb.PHASE_REASONING, "1 + 2"),
        delta(pb.PHASE_REASONING, " = 3\n3 +"),
        delta(pb.PHASE_FORCED, ""),
        delta(pb.PHASE_ANSWER, "1"),
        delta(pb.PHASE_ANSWER, "0"),
        completion(),
    )
    assert lines == [
        "    plan think up to 40 tokens; 800 ms promised to 95% of requests",
        "     why it fits",
        "1 + 2 = 3",
        "3 +",
        "       ✂ enough thought, now the answer",
        "10",
        "    kept deadline 512 ms of 800 ms ✓",
        "    used 40 reasoning + 3 forced + 2 answer tokens (cut: the budget was used up)",
    ]
    assert view.answer == "10"
    assert view.plan is not None
    assert view.completion is not None


def test_an_answer_at_once_without_a_promise() -> None:
    unpromised = plan(mode=pb.MODE_NO_THINK)
    unpromised.plan.ClearField("deadline")
    lines, _ = shown(
        unpromised,
        delta(pb.PHASE_ANSWER, "7\n"),
        completion(objectives=[], reasoning_end=pb.REASONING_END_NONE, usage=pb.TokenUsage(answer_tokens=1)),
    )
    assert lines == [
        "    plan answer at once",
        "     why it fits",
        "7",
        "    kept nothing was promised; 512 ms",
        "    used 1 answer tokens",
    ]


def test_an_answer_after_a_natural_close_begins_a_line() -> None:
    lines, _ = shown(delta(pb.PHASE_REASONING, "so 3"), delta(pb.PHASE_ANSWER, "3"))
    assert lines == ["so 3", "3"]


def test_a_broken_promise_is_missed() -> None:
    missed = reasoning_pb2.ObjectiveResult(
        objective=reasoning_pb2.OBJECTIVE_FIRST_ANSWER_TOKEN, promised=ms(5), actual=ms(7.5), kept=False
    )
    lines, _ = shown(completion(objectives=[missed]))
    assert lines[0] == "  missed first answer token 7.5 ms of 5 ms ✗"


def test_a_change_of_pace_is_told_between_two_lines() -> None:
    change = reasoning_pb2.BudgetAdjustment(budget=pb.Budget(reasoning_tokens=20), why="it goes slowly")
    lines, _ = shown(
        delta(pb.PHASE_REASONING, "34 + 5 = 3"),
        Response(adjustment=change),
        delta(pb.PHASE_REASONING, "9\n"),
        delta(pb.PHASE_REASONING, "39 + 71"),
    )
    assert lines == ["34 + 5 = 39", "    pace it goes slowly", "39 + 71"]


def test_long_notes_are_wrapped_under_their_beginning() -> None:
    lines, _ = shown(plan(why="because " * 7), width=40)
    assert [line[:9].strip() for line in lines] == ["plan", "", "why", ""]
    assert all(len(line) <= 40 for line in lines)


def test_a_models_text_does_not_steer_the_terminal() -> None:
    lines, view = shown(delta(pb.PHASE_ANSWER, "\x1b[2J[bold]\x07\x7f"))
    assert lines == ["␛[2J[bold]␇␡"]
    assert view.answer == "\x1b[2J[bold]\x07\x7f"


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0 ms"), (0.24, "0.24 ms"), (7.5, "7.5 ms"), (194.2, "194 ms"), (1243, "1.24 s"), (10_000, "10 s")],
)
def test_durations_are_written_as_people_do(value: float, words: str) -> None:
    assert spoken(ms(value)) == words
