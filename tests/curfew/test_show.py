"""What a person sees of a stream."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from curfew.show import StreamView
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import reasoning_pb2


def delta(phase: pb.Phase.ValueType, text: str) -> reasoning_pb2.GenerateResponse:
    return reasoning_pb2.GenerateResponse(delta=pb.Delta(phase=phase, text=text))


def adjustment(why: str) -> reasoning_pb2.GenerateResponse:
    return reasoning_pb2.GenerateResponse(adjustment=reasoning_pb2.BudgetAdjustment(why=why))


def shown(*events: reasoning_pb2.GenerateResponse) -> tuple[StreamView, list[str]]:
    console = Console(record=True, width=200, file=StringIO())
    view = StreamView(console)
    for event in events:
        view.show(event)
    return view, console.export_text().splitlines()


def test_the_plan_stands_above_what_it_decided() -> None:
    plan = reasoning_pb2.Plan(mode=pb.MODE_THINK, budget=pb.Budget(reasoning_tokens=27), why="it fits")
    plan.deadline.nanos, plan.target_share = 600_000_000, 0.95
    view, lines = shown(reasoning_pb2.GenerateResponse(plan=plan))
    assert lines == ["  plan: think up to 27 tokens · 600 ms promised to 95%", "  why: it fits"]
    assert view.plan == plan


def test_a_cut_stands_on_a_line_of_its_own_between_reasoning_and_answer() -> None:
    view, lines = shown(
        delta(pb.PHASE_REASONING, "1 + 2 "),
        delta(pb.PHASE_REASONING, "= 3\n3 + "),
        delta(pb.PHASE_FORCED, ""),
        delta(pb.PHASE_ANSWER, "1"),
        delta(pb.PHASE_ANSWER, "0"),
    )
    assert lines == ["1 + 2 = 3", "3 + ", "  ✂ thinking is over, the answer is due", "10"]
    assert view.answer == "10"


def test_an_adjustment_waits_for_the_end_of_the_line() -> None:
    _, lines = shown(
        delta(pb.PHASE_REASONING, "34 + 5 = 3"), adjustment("later"), delta(pb.PHASE_REASONING, "9\n39 + 71")
    )
    assert lines == ["34 + 5 = 39", "  ↻ later", "39 + 71"]


def test_markup_in_a_model_s_text_is_only_text() -> None:
    _, lines = shown(delta(pb.PHASE_ANSWER, "[bold]x[/bold]"))
    assert lines == ["[bold]x[/bold]"]


def test_the_accounting_tells_counts_times_and_promises() -> None:
    completion = reasoning_pb2.Completion(
        reasoning_end=pb.REASONING_END_BUDGET,
        usage=pb.TokenUsage(reasoning_tokens=31, forced_tokens=3, answer_tokens=2),
    )
    completion.latency.nanos = 341_000_000
    result = completion.objectives.add(objective=reasoning_pb2.OBJECTIVE_DEADLINE, kept=True)
    result.promised.nanos, result.actual.nanos = 600_000_000, 341_000_000
    _, (line,) = shown(reasoning_pb2.GenerateResponse(completion=completion))
    assert "the budget is used up" in line
    assert "31 reasoning + 3 forced + 2 answer tokens" in line
