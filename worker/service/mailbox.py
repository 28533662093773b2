"""What a stream's reader has not taken yet, merged."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from worker.engine.events import Event, Failed, Finished, Output, Piece


class Mailbox:
    """Events of one request, between the engine and its stream. Lives in the event loop.

    Pieces of one sample and phase that wait are merged, so that a slow reader finds few and large ones: what
    waits is bounded by the phases that a request goes through, not by its tokens.
    """

    def __init__(self, samples: int) -> None:
        self._waiting: list[Event] = []
        self._arrived = asyncio.Event()
        self._samples = samples

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self._samples == 0

    def put(self, event: Event) -> None:
        """Adds an event."""
        if isinstance(event, Finished):
            self._samples -= 1
        elif isinstance(event, Failed):
            self._samples = 0
        last = self._waiting[-1] if self._waiting else None
        if isinstance(event, Output) and isinstance(last, Output) and last.sample == event.sample:
            self._waiting[-1] = replace(last, pieces=merge(last.pieces, event.pieces))
        else:
            self._waiting.append(event)
        self._arrived.set()

    async def arrived(self) -> None:
        """Waits until there is something to take."""
        await self._arrived.wait()

    def take(self) -> list[Event]:
        """Everything that waits."""
        taken, self._waiting = self._waiting, []
        self._arrived.clear()
        return taken


def merge(first: tuple[Piece, ...], second: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """Joins two lists of pieces, adjacent ones of one phase into one."""
    merged = list(first)
    for piece in second:
        if merged and merged[-1].phase is piece.phase:
            last = merged[-1]
            merged[-1] = Piece(
                piece.phase,
                last.token_ids + piece.token_ids,
                last.text + piece.text,
                last.logprobs + piece.logprobs,
            )
        else:
            merged.append(piece)
    return tuple(merged)
