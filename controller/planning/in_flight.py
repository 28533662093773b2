"""Re-planning a running request: when its reasoning must end, at the pace that it really has."""

from __future__ import annotations

from dataclasses import dataclass, replace

from controller.planning.forecast import Pace, Times

LOOK_TOKENS = 16
LOOK_S = 0.1
"""A request is looked at after so many tokens, or so long, whichever comes first."""
PRIOR_STEPS = 16
"""Steps that the planned pace counts for beside those seen: a few slow ones are no trend yet."""
LEAST_CHANGE = 0.1
"""Part of the reasoning time left by which its end must differ to be moved: smaller changes are noise."""


@dataclass(frozen=True, slots=True)
class Course:
    """What the end of a request's reasoning follows from. budget_tokens: grace included."""

    times: Times
    pace: Pace
    budget_tokens: int
    grace_tokens: int


class Watch:
    """Follows one request's reasoning. Times are seconds from receipt of the request."""

    def __init__(self, course: Course, reason_until_s: float) -> None:
        self._course = course
        self.reason_until_s = reason_until_s
        """In force. Whoever moves it says so here."""
        self.planned_step_s = course.pace.step_s
        self.step_s = course.pace.step_s
        """The pace of the last look: the planned one, corrected by what was seen."""
        self._first_s: float | None = None
        self._first_tokens = 0
        self._looked_s = 0.0
        self._looked_tokens = 0

    def restart(self) -> None:
        """It goes on elsewhere: the time until its next token is no pace."""
        self._first_s = None

    def look(self, tokens: int, now_s: float) -> float | None:
        """Tells at each delta how many reasoning tokens have come. Returns a better end of reasoning, or None
        while there is none, or none that would matter.

        At a slower pace the answer takes longer, so reasoning must end earlier; at a faster one it may go on.
        An end in the past means at once.
        """
        if self._first_s is None:
            self._first_s, self._first_tokens = now_s, tokens
            self._looked_s, self._looked_tokens = now_s, tokens
            return None
        if tokens - self._looked_tokens < LOOK_TOKENS and now_s - self._looked_s < LOOK_S:
            return None
        self._looked_s, self._looked_tokens = now_s, tokens
        course, steps = self._course, tokens - self._first_tokens
        planned_s = PRIOR_STEPS * course.pace.step_s
        self.step_s = (planned_s + now_s - self._first_s) / (PRIOR_STEPS + steps)
        until_s = course.times.reason_until_s(replace(course.pace, step_s=self.step_s), course.grace_tokens)
        if until_s is None:
            return None
        used_up_s = now_s + (course.budget_tokens - tokens) * self.step_s
        if used_up_s <= min(until_s, self.reason_until_s):
            return None  # the budget ends it before either
        left_s = max(0.0, self.reason_until_s - now_s)
        changes = abs(until_s - self.reason_until_s) > max(self.step_s, LEAST_CHANGE * left_s)
        return until_s if changes and self.reason_until_s > now_s else None
