"""What the planner is asked, and what it decides."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from controller.planning.in_flight import Course
from controller.planning.needs import NOTHING, Needs
from controller.policy import Brownout


class Mode(Enum):
    """Whether a request reasons before it answers."""

    THINK = "think"
    NO_THINK = "no_think"


class RefusedFor(Enum):
    """Why a request is refused.

    PROMISE: no plan keeps its promise. PRICE: others need its place more. CROWD: as many wait as may.
    """

    PROMISE = "promise"
    PRICE = "price"
    CROWD = "crowd"


@dataclass(frozen=True, slots=True)
class Prefix:
    """The part of a prompt that a worker may have computed for another request: the system turn.

    digest: of its text and that of the tools, 64 bits.
    """

    digest: int


@dataclass(frozen=True, slots=True)
class Ask:
    """A request, in numbers. What is None was not asked for.

    prompt_tokens: as estimated. most_prompt_tokens: what it may turn out to be, for limits that must hold.
    mode, max_reasoning_tokens, max_answer_tokens, max_output_tokens: the caller's wishes, of which the plan
    grants at most that much; the last is of all output together. deadline_s: the caller's own, from receipt.
    needs: what a worker must be for it. prefix: None where nothing of it is worth keeping.
    """

    prompt_tokens: int
    most_prompt_tokens: int
    mode: Mode | None = None
    max_reasoning_tokens: int | None = None
    max_answer_tokens: int | None = None
    max_output_tokens: int | None = None
    deadline_s: float | None = None
    needs: Needs = NOTHING
    prefix: Prefix | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """A request's plan. Times are from receipt by the controller.

    reason_until_s: when reasoning is told to end; None without a promise in time. deadline_s: what is owed,
    the tighter of the tenant's and the caller's. predicted_s: calibrated quantile at `share` of the time to
    the end. promised_probability: that the deadline is kept, 1 without one. keeps_promise: false when the
    tenant's policy takes its best effort instead. quality: expected of the answer. price: of a slot-second,
    in quality times weight, at which it was decided; brownout: what that took away. course: what
    `reason_until_s` follows from; None without it. reserve_tokens: up to which the budget may be raised: what
    an idle pool would have granted.
    """

    mode: Mode
    budget_tokens: int
    grace_tokens: int
    answer_tokens: int
    reason_until_s: float | None
    deadline_s: float | None
    share: float
    predicted_s: float
    promised_probability: float
    keeps_promise: bool
    quality: float
    price: float
    brownout: Brownout
    why: str
    course: Course | None
    reserve_tokens: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request is not served. predicted_s: of the fastest plan, at `share`. retry_s: when it may fare
    better; None when an idle pool would refuse it too.
    """

    reason: RefusedFor
    deadline_s: float | None
    share: float
    predicted_s: float
    why: str
    retry_s: float | None = None
