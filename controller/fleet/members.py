"""Which workers there are: what all sources name, as one set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Source(Enum):
    """Who names workers: the command line, the workers themselves, or a name in DNS."""

    STATIC = "static"
    ANNOUNCED = "announced"
    DNS = "dns"


@dataclass(frozen=True, slots=True)
class Member:
    """sources: that name it. draining: it is to get nothing new."""

    sources: frozenset[Source]
    draining: bool = False


class Members:
    """Owns the set of addresses. Pure state.

    A worker that two sources name is one. Each source tells all that it knows whenever that changes, and a
    worker that no source names any more is no member.
    """

    def __init__(self) -> None:
        self._named: dict[Source, Mapping[str, bool]] = {}

    def tell(self, source: Source, named: Mapping[str, bool]) -> Mapping[str, Member]:
        """Takes all addresses, HOST:PORT, that a source names now, with whether each is draining. Returns all
        members.
        """
        self._named[source] = named
        return {
            address: Member(
                frozenset(who for who, known in self._named.items() if address in known),
                any(known.get(address, False) for known in self._named.values()),
            )
            for address in sorted(set().union(*self._named.values()))
        }
