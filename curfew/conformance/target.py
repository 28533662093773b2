"""What is asked of a server, and what came: the same for every way in which it can be spoken to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class TargetError(Exception):
    """The server is not there, or failed. The message says what came."""


class RefusedError(Exception):
    """The server says that the request is wrong, as 4xx and INVALID_ARGUMENT do. The message says how."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One question. budget: reasoning tokens; 0 for no reasoning, None for as many as the model wants (or the
    server lets it have). A negative one is for servers to refuse. answer_tokens: kept back for the answer.
    """

    text: str
    budget: int | None
    answer_tokens: int = 64
    streamed: bool = True


@dataclass(frozen=True, slots=True)
class Seen:
    """What came. finish: "stop" or "length", or the server's own word. reasoning_tokens, output_tokens: as
    accounted; None where they are not. streamed_tokens: reasoning tokens counted as they came; None where a
    piece may hold several. pieces: of reasoning that came. grace_tokens: that the server openly allows on top
    of the budget. reasoned_again: reasoning came after the answer had begun.
    """

    ask: Ask
    reasoning: str
    answer: str
    finish: str
    reasoning_tokens: int | None
    output_tokens: int | None
    streamed_tokens: int | None = None
    pieces: int = 0
    grace_tokens: int = 0
    reasoned_again: bool = False

    @property
    def tokens(self) -> int | None:
        """Reasoning tokens, from the best source; None when there is none, or they may be more than were
        seen.
        """
        counts = [count for count in (self.reasoning_tokens, self.streamed_tokens) if count is not None]
        return max(counts, default=None)

    @property
    def over(self) -> int | None:
        """Reasoning tokens beyond the budget and the server's grace; None where that is not known."""
        if self.ask.budget is None or self.tokens is None:
            return None
        return self.tokens - self.ask.budget - self.grace_tokens


class Target(Protocol):
    """A server."""

    @property
    def has_budget(self) -> bool:
        """Whether there is a field for a thinking budget at all."""

    @property
    def has_unstreamed(self) -> bool:
        """Whether an answer can be asked for in one piece too."""

    @property
    def has_negative_budgets(self) -> bool:
        """Whether a budget below 0 can be written at all."""

    async def ask(self, ask: Ask) -> Seen:
        """Asks and reads to the end. Raises RefusedError and TargetError."""

    async def leave(self, ask: Ask) -> None:
        """Asks, and leaves after the first piece."""
