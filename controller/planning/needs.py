"""What a request needs of a worker."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Ability(Enum):
    """What a worker may or may not be able to do, as `WorkerCapabilities` names it."""

    RESUME = "resume"
    ADJUST = "adjust"
    TOKEN_IDS = "token_ids"
    TOOLS = "tools"
    ANSWER_FORMAT = "answer_format"
    PROBE = "probe"


@dataclass(frozen=True, slots=True)
class Needs:
    """What a worker must be for a request. model: that it is asked of, or whose tokens it goes on
    with; None where any will do.
    """

    abilities: frozenset[Ability] = frozenset()
    model: str | None = None

    def resumed(self, model: str) -> Needs:
        """The same for a request of which a part has been passed on."""
        return Needs(self.abilities | {Ability.RESUME}, model)


NOTHING = Needs()
