"""One controller's part of what is summed over all, so told that nothing is lost or counted twice."""

from __future__ import annotations

from dataclasses import dataclass, field

from controller.state.store import Level, TenantNews, TenantView


@dataclass(slots=True)
class _Change:
    """What is to be added in the store. served_floor: what was served at least, before `served`."""

    served: float = 0.0
    served_floor: float = 0.0
    offset_step: float = 0.0
    rate_us: int = 0
    tokens_us: int = 0

    def is_nothing(self) -> bool:
        return not (self.served or self.offset_step or self.rate_us or self.tokens_us)


@dataclass(slots=True)
class Tally:
    """One tenant's.

    A change is sent under a number until the store has answered it, and what comes meanwhile is kept for the
    next number. The value known here is thus what the store told last, and every change that is not in it.
    """

    offset: float
    _served: float = 0.0
    _sent: _Change = field(default_factory=_Change)
    _unsent: _Change = field(default_factory=_Change)
    _number: int = 0
    _unanswered: bool = False
    _told_offset: float = field(init=False)

    def __post_init__(self) -> None:
        self._told_offset = self.offset

    @property
    def served(self) -> float:
        """What the tenant was served by all controllers, as far as is known here."""
        sent, unsent = self._sent, self._unsent
        before = max(self._served, sent.served_floor) + sent.served
        return max(before, unsent.served_floor) + unsent.served

    def serve(self, amount: float) -> None:
        """Adds to what was served; negative where it is given back."""
        self._unsent.served += amount

    def lift(self, at_least: float) -> None:
        """Raises what was served to this, unless it is more."""
        if self.served < at_least:
            self._unsent.served_floor = at_least - self._unsent.served

    def step(self, by: float, level: Level) -> None:
        """Moves the offset within its range."""
        self._unsent.offset_step += by
        self.offset = min(max(self.offset + by, level.least), level.most)

    def charge(self, rate_us: int, tokens_us: int) -> None:
        """Adds costs that the store does not know of; negative ones where something is given back."""
        self._unsent.rate_us += rate_us
        self._unsent.tokens_us += tokens_us

    def news(self, tenant: str, held: tuple[str, ...], released: tuple[str, ...]) -> TenantNews:
        """What to tell the store; once more the same, as long as that was not answered."""
        if not self._unanswered:
            self._sent, self._unsent = self._unsent, _Change()
            # What was known is told too, should the store have lost it.
            self._sent.served_floor = max(self._sent.served_floor, self._served)
            self._number += not self._sent.is_nothing()
            self._unanswered = True
        sent = self._sent
        return TenantNews(
            tenant,
            self._number,
            sent.served,
            sent.served_floor,
            sent.offset_step,
            self._told_offset,
            sent.rate_us,
            sent.tokens_us,
            held,
            released,
        )

    def answered(self, view: TenantView, level: Level) -> None:
        """Takes up what the store made of the news."""
        self._served, self._told_offset = view.served, view.offset
        self._sent, self._unanswered = _Change(), False
        self.offset = min(max(view.offset + self._unsent.offset_step, level.least), level.most)
