"""Shows a stream of events to a person as it comes: the plan, reasoning dimmed, the cut, the answer, what was
kept.
"""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from rich.console import Console
from rich.table import Table
from rich.text import Text

from curfew.v1 import generation_pb2 as pb
from curfew.v1 import reasoning_pb2

_ENDS = {
    pb.REASONING_END_BUDGET: "cut: the budget was used up",
    pb.REASONING_END_DEADLINE: "cut: the time to think was over",
    pb.REASONING_END_LOOP: "cut: it went in circles",
}
_OBJECTIVES = {
    reasoning_pb2.OBJECTIVE_DEADLINE: "deadline",
    reasoning_pb2.OBJECTIVE_FIRST_TOKEN: "first token",
    reasoning_pb2.OBJECTIVE_FIRST_ANSWER_TOKEN: "first answer token",
    reasoning_pb2.OBJECTIVE_PER_TOKEN: "per token",
}
# A model's text must not steer the terminal: control characters are shown as their pictures.
_PICTURES = {code: 0x2400 + code for code in range(0x20) if code not in b"\n\t"} | {0x7F: 0x2421}


def milliseconds(value: Duration) -> float:
    """A duration in milliseconds."""
    return value.seconds * 1000 + value.nanos / 1e6


def spoken(value: Duration) -> str:
    """A duration as people write it: 7.5 ms, 194 ms, 1.24 s, 10 s."""
    ms = milliseconds(value)
    if ms >= 1000:
        return f"{ms / 1000:.3g} s" if ms < 100_000 else f"{ms / 1000:.0f} s"
    return f"{ms:.0f} ms" if ms >= 10 else f"{ms:.2g} ms"


class StreamView:
    """Prints one request's events on a console.

    For reading: `plan` and `completion`, None until they have come, and `answer`, its text so far.
    """

    def __init__(self, console: Console) -> None:
        self.plan: reasoning_pb2.Plan | None = None
        self.completion: reasoning_pb2.Completion | None = None
        self.answer = ""
        self._console = console
        self._phase = pb.PHASE_UNSPECIFIED
        self._within_line = False
        self._adjustments: list[str] = []  # they wait for the end of the line that is being written

    def show(self, event: reasoning_pb2.GenerateResponse) -> None:
        """Prints one event."""
        match event.WhichOneof("event"):
            case "plan":
                self.plan = event.plan
                self._note("plan", _planned(event.plan), "cyan")
                self._note("why", event.plan.why, "cyan")
            case "delta":
                self._show_delta(event.delta)
            case "adjustment":
                self._adjustments.append(event.adjustment.why)
            case "completion":
                self.completion = event.completion
                self._note("kept" if _kept(event.completion) else "missed", _came(event.completion), "cyan")
                self._note("used", _used(event.completion), "cyan")

    def _show_delta(self, delta: pb.Delta) -> None:
        if delta.phase == pb.PHASE_FORCED:
            self._note("✂", "enough thought, now the answer", "bold yellow")
            return
        if delta.phase == pb.PHASE_ANSWER:
            self.answer += delta.text
        if not delta.text:
            return
        if delta.phase != self._phase:
            self._end_line()
            self._phase = delta.phase
        style = "bold green" if delta.phase == pb.PHASE_ANSWER else "dim"
        text = Text(delta.text.translate(_PICTURES), style=style)
        self._console.print(text, end="", soft_wrap=True)
        self._within_line = not delta.text.endswith("\n")
        if not self._within_line:
            self._end_line()

    def _note(self, label: str, text: str, style: str) -> None:
        """A line of our own, indented, and wrapped under its beginning."""
        self._end_line()
        line = Table.grid(padding=(0, 1))
        line.add_column(min_width=8, justify="right")
        line.add_column(overflow="fold")
        line.add_row(label, text, style=style)
        self._console.print(line)

    def _end_line(self) -> None:
        if self._within_line:
            self._console.print()
            self._within_line = False
        adjustments, self._adjustments = self._adjustments, []
        for why in adjustments:
            self._note("pace", why, "yellow")


def _planned(plan: reasoning_pb2.Plan) -> str:
    mode = f"think up to {plan.budget.reasoning_tokens} tokens"
    if plan.mode != pb.MODE_THINK:
        mode = "answer at once"
    if not plan.HasField("deadline"):
        return mode
    return f"{mode}; {spoken(plan.deadline)} promised to {plan.target_share:.0%} of requests"


def _kept(completion: reasoning_pb2.Completion) -> bool:
    return all(result.kept for result in completion.objectives)


def _came(completion: reasoning_pb2.Completion) -> str:
    if not completion.objectives:
        return f"nothing was promised; {spoken(completion.latency)}"
    return ", ".join(
        f"{_OBJECTIVES[result.objective]} {spoken(result.actual)} of {spoken(result.promised)}"
        f" {'✓' if result.kept else '✗'}"
        for result in completion.objectives
        if result.objective in _OBJECTIVES
    )


def _used(completion: reasoning_pb2.Completion) -> str:
    usage = completion.usage
    counts = {
        "reasoning": usage.reasoning_tokens,
        "forced": usage.forced_tokens,
        "answer": usage.answer_tokens,
    }
    tokens = " + ".join(f"{count} {name}" for name, count in counts.items() if count)
    end = _ENDS.get(completion.reasoning_end)
    return f"{tokens} tokens" + (f" ({end})" if end else "")
