"""The words in which the engine speaks of what is generated, shared with the service."""

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass


class Phase(enum.Enum):
    """What a generated token is."""

    REASONING = enum.auto()
    """Sampled until reasoning was closed, a close that the model wrote itself included."""
    FORCED = enum.auto()
    """Fed, not sampled: closing text."""
    ANSWER = enum.auto()
    """Sampled after the close."""


class ReasoningEnd(enum.Enum):
    """Why reasoning ended."""

    NONE = enum.auto()
    """There was none."""
    NATURAL = enum.auto()
    """The model closed it, or ended its text there."""
    BUDGET = enum.auto()
    DEADLINE = enum.auto()
    LOOP = enum.auto()
    CANCELLED = enum.auto()
    """The sequence was cancelled while the model reasoned."""
    STABLE = enum.auto()
    """Its answer had not changed over the last probes."""


class FinishReason(enum.Enum):
    """Why a sequence ended."""

    STOP = enum.auto()
    """The model ended its answer, or a stop string did."""
    LENGTH = enum.auto()
    """All output tokens are used."""
    TOOL_CALLS = enum.auto()
    """The model ended an answer that calls tools."""
    CANCELLED = enum.auto()


class Ban(enum.Enum):
    """What must not be sampled next. A sampler that honours it never makes an empty answer."""

    NONE = enum.auto()
    END_OF_TEXT = enum.auto()
    SILENT = enum.auto()
    """End of text, and every token of `silent_tokens`."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a sequence may generate, in tokens. Raises ValueError for a number out of range.

    `reasoning_tokens` 0 means no reasoning: the prompt has closed it already.
    """

    reasoning_tokens: int
    grace_tokens: int
    """More tokens, after either limit of reasoning, in which the end of a line or sentence is awaited."""
    max_output_tokens: int
    """Reasoning, closing text and answer together."""
    answer_tokens: int = 1
    """What only the answer may use. At least 1."""
    reason_until_s: float = math.inf
    """When reasoning must end, on the clock of the times that the machine is given."""
    reserve_tokens: int = 0
    """Beyond `max_output_tokens`: by so many may an adjustment raise it, and `reasoning_tokens` with it."""

    def __post_init__(self) -> None:
        if min(self.reasoning_tokens, self.grace_tokens, self.reserve_tokens) < 0 or self.answer_tokens < 1:
            raise ValueError(
                f"reasoning_tokens, grace_tokens and reserve_tokens must be >= 0, answer_tokens >= 1: {self}"
            )
        if math.isnan(self.reason_until_s):
            raise ValueError(f"reason_until_s must be a time: {self}")

    @property
    def reserved_output_tokens(self) -> int:
        """The most output that there may ever be."""
        return self.max_output_tokens + self.reserve_tokens

    def required_output_tokens(self, closing_tokens: int) -> int:
        """The least `max_output_tokens` that keeps the answer safe if a close takes `closing_tokens`."""
        reasoning = self.reasoning_tokens + self.grace_tokens + closing_tokens if self.reasoning_tokens else 0
        return reasoning + self.answer_tokens


@dataclass(frozen=True, slots=True)
class Strike:
    """Why reasoning is, or will be, closed by force if the model does not close it first."""

    reason: ReasoningEnd
    """BUDGET, DEADLINE, LOOP, STABLE, or NATURAL for an end of text."""
    reasoning_tokens: int
    """Used when it struck."""


@dataclass(frozen=True, slots=True)
class TokenRun:
    """Consecutive tokens of one phase."""

    phase: Phase
    token_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of a call of a tool."""

    index: int
    """Which call of the answer, from 0."""
    name: str
    """Of the tool, in a call's first piece; empty in others."""
    arguments: str
    """What follows of the arguments' JSON text."""


@dataclass(frozen=True, slots=True)
class MalformedCall:
    """What was written as a call, but is none. Pieces that came with its index are void."""

    index: int
    text: str
    why: str


@dataclass(frozen=True, slots=True)
class Observation:
    """What follows from one sampled token."""

    phase: Phase | None
    """What the token is; None if it does not enter the sequence (end of text) or there is none."""
    text: tuple[tuple[Phase, str], ...]
    """What to show now, each piece not empty and of REASONING or ANSWER, in order."""
    force: tuple[int, ...]
    """Tokens to feed next, all of them, before anything is sampled. They are counted already."""
    finish: FinishReason | None
    """The sequence is over."""
    calls: tuple[CallPiece, ...] = ()
    """What the answer adds to calls of tools."""
