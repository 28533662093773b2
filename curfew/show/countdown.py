"""What is left of a request's time: of the reasoning, then of the deadline."""

from __future__ import annotations

from collections.abc import Callable

from rich.text import Text

from curfew.client import Adjustment, Budget, Completion, Delta, Event, Mode, Phase, Plan
from curfew.show.words import spoken


class Countdown:
    """Follows a stream, and is rendered as one line for the time being. Empty once the stream has ended."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """clock: seconds from any beginning. The countdown begins now."""
        self._clock = clock
        self._begun_s = clock()
        self._plan: Plan | None = None
        self._budget: Budget | None = None
        self._reasoning_tokens = 0
        self._thinks = True
        self._ended = False

    def take(self, event: Event) -> None:
        """An event has come."""
        match event:
            case Plan():
                self._plan = event
                self._budget = event.budget
                self._thinks = event.mode is Mode.THINK
            case Delta(phase=Phase.REASONING):
                self._reasoning_tokens += event.raw.token_count or len(event.token_ids)
            case Delta():
                self._thinks = False
            case Adjustment():
                self._budget = event.budget
            case Completion():
                self._ended = True

    def __str__(self) -> str:
        """The line's text now."""
        if self._ended:
            return ""
        if self._plan is None or self._budget is None:
            return "asking …"
        elapsed_s = self._clock() - self._begun_s
        parts = []
        if self._thinks:
            budget = self._budget
            grace = f" + {budget.grace_tokens}" if budget.grace_tokens else ""
            parts.append(f"thinking, {self._reasoning_tokens} of {budget.reasoning_tokens}{grace} tokens")
            if budget.reason_until_s is not None:
                parts.append(f"curfew {_left(budget.reason_until_s - elapsed_s)}")
        else:
            parts.append("answering")
        if self._plan.deadline_s is not None:
            parts.append(f"answer due {_left(self._plan.deadline_s - elapsed_s)}")
        return " · ".join(parts)

    def __rich__(self) -> Text:
        return Text(str(self), style="cyan", overflow="ellipsis", no_wrap=True)


def _left(seconds: float) -> str:
    return f"in {seconds:.1f} s" if seconds >= 0 else f"{spoken(-seconds)} ago"
