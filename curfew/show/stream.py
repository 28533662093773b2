"""One request's events: the plan, reasoning dimmed, the cut, the answer, what was kept."""

from __future__ import annotations

from collections.abc import Callable

from curfew.client import Adjustment, Completion, Delta, Event, Phase, Plan
from curfew.show.lines import Lines
from curfew.show.words import came, planned, used


class StreamView:
    """Shows events on lines."""

    def __init__(self, lines: Lines, answer: Callable[[str], object] | None = None) -> None:
        """answer: takes the answer's text, where that does not belong on the lines."""
        self._lines = lines
        self._answer = answer
        self._phase = Phase.UNKNOWN
        self._adjustments: list[str] = []  # they wait for the end of the line that is being written

    def show(self, event: Event) -> None:
        """Shows one event."""
        match event:
            case Plan():
                self._note("plan", planned(event), "cyan")
                self._note("why", event.why, "cyan")
            case Delta():
                self._show_delta(event)
            case Adjustment():
                self._adjustments.append(event.why)
            case Completion():
                self._note("kept" if event.kept else "missed", came(event), "cyan")
                self._note("used", used(event), "cyan")

    def _show_delta(self, delta: Delta) -> None:
        new_phase, self._phase = delta.phase is not self._phase, delta.phase
        if delta.phase is Phase.FORCED:
            self._note("✂", "enough thought, now the answer", "bold yellow")
            return
        if not delta.text:
            return
        if new_phase:
            self._end_line()
        if delta.phase is Phase.ANSWER and self._answer is not None:
            self._answer(delta.text)
            return
        self._lines.write(delta.text, "bold green" if delta.phase is Phase.ANSWER else "dim")
        if not self._lines.within_line:
            self._end_line()

    def _note(self, label: str, text: str, style: str) -> None:
        self._end_line()
        self._lines.note(label, text, style)

    def _end_line(self) -> None:
        self._lines.end_line()
        adjustments, self._adjustments = self._adjustments, []
        for why in adjustments:
            self._lines.note("pace", why, "yellow")
