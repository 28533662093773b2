"""Shows a stream of events to a person as it comes: the plan, reasoning dimmed, the cut, the answer, what was
kept.
"""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from rich.console import Console
from rich.text import Text

from curfew.v1 import generation_pb2 as pb
from curfew.v1 import reasoning_pb2

_CUTS = {
    pb.REASONING_END_BUDGET: "✂ cut: the budget is used up",
    pb.REASONING_END_DEADLINE: "✂ cut: the time to think is over",
    pb.REASONING_END_LOOP: "✂ cut: it went in circles",
}


def milliseconds(value: Duration) -> float:
    """A duration in milliseconds."""
    return value.seconds * 1000 + value.nanos / 1e6


class StreamView:
    """Prints one request's events on a console."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._phase = pb.PHASE_UNSPECIFIED
        self._at_line_start = True
        self._adjustments: list[str] = []
        """Not shown yet: they wait for the end of the line that is being written."""
        self.answer = ""
        """The answer's text so far."""
        self.plan: reasoning_pb2.Plan | None = None
        self.completion: reasoning_pb2.Completion | None = None

    def show(self, event: reasoning_pb2.GenerateResponse) -> None:
        """Prints one event."""
        match event.WhichOneof("event"):
            case "plan":
                self.plan = event.plan
                self._show_plan(event.plan)
            case "delta":
                self._show_delta(event.delta)
            case "adjustment":
                self._adjustments.append(event.adjustment.why)
            case "completion":
                self.completion = event.completion
                self._break_line()
                self._print(_accounting(event.completion), "cyan")

    def _show_plan(self, plan: reasoning_pb2.Plan) -> None:
        think = plan.mode == pb.MODE_THINK
        mode = f"think up to {plan.budget.reasoning_tokens} tokens" if think else "answer at once"
        promise = ""
        if plan.HasField("deadline"):
            promise = f" · {milliseconds(plan.deadline):.0f} ms promised to {plan.target_share:.0%}"
        self._print(f"  plan: {mode}{promise}", "cyan")
        self._print(f"  why: {plan.why}", "cyan")

    def _show_delta(self, delta: pb.Delta) -> None:
        if delta.phase != self._phase:
            self._break_line()
            self._phase = delta.phase
        if delta.phase == pb.PHASE_FORCED:
            self._print("  ✂ thinking is over, the answer is due", "bold yellow")
        style = "dim" if delta.phase == pb.PHASE_REASONING else "bold green"
        for line in delta.text.splitlines(keepends=True):
            self._console.print(Text(line, style=style), end="", soft_wrap=True)
            self._at_line_start = line.endswith("\n")
            if self._at_line_start:
                self._break_line()
        if delta.phase == pb.PHASE_ANSWER:
            self.answer += delta.text

    def _break_line(self) -> None:
        """Goes to the start of a line, and shows there what has waited for one."""
        if not self._at_line_start:
            self._console.print()
            self._at_line_start = True
        for why in self._adjustments:
            self._print(f"  ↻ {why}", "yellow")
        self._adjustments.clear()

    def _print(self, text: str, style: str) -> None:
        self._console.print(Text(text, style=style))


def _accounting(completion: reasoning_pb2.Completion) -> str:
    usage = completion.usage
    tokens = (
        f"{usage.reasoning_tokens} reasoning + {usage.forced_tokens} forced + {usage.answer_tokens} answer"
    )
    parts = [f"{tokens} tokens", f"{milliseconds(completion.latency):.0f} ms"]
    for result in completion.objectives:
        name = reasoning_pb2.Objective.Name(result.objective).removeprefix("OBJECTIVE_").lower()
        times = f"{milliseconds(result.actual):.0f} of {milliseconds(result.promised):.0f} ms"
        parts.append(f"{name} {times} {'✓' if result.kept else '✗'}")
    end = _CUTS.get(completion.reasoning_end)
    return "  " + " · ".join([*([end] if end else []), *parts])
