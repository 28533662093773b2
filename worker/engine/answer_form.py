"""What form an answer has: free text, one JSON value, calls of tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Matcher(Protocol):
    """Follows one answer, token by token, and knows what may come next."""

    def accept(self, token_ids: Sequence[int]) -> None:
        """Takes the answer's next tokens. Raises ValueError where they do not keep the form."""

    def end(self) -> None:
        """The answer ends here. Raises ValueError where it may not."""

    def allowed(self) -> Tensor:
        """Which tokens may come next, of the end of text too: bool [vocab], on the CPU, and never empty."""


class Grammar(Protocol):
    """What an answer is held to. Is shared by all answers of the form, in any thread."""

    def matcher(self) -> Matcher:
        """For a new answer."""


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """A form. The default is free text.

    tools: names of those that the answer may call; most_calls: how often. is_json: what is no call is one
    JSON value, in which tags are data. grammar: what the answer is held to while it is sampled; None for
    nothing.
    """

    tools: frozenset[str] = frozenset()
    most_calls: int = 0
    is_json: bool = False
    grammar: Grammar | None = None


FREE_FORM = AnswerForm()
