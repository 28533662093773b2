"""What a stream's reader has not taken yet, merged."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING

from worker.engine.events import Event, Failed, Finished, Output, Piece, Started
from worker.engine.generation import CallPiece, Phase, Strike

if TYPE_CHECKING:  # which needs torch
    from worker.engine.sampling import TokenLogprobs

# With 20 log-probabilities for each, so many tokens are a message of a few hundred KiB; a gRPC client takes
# 4 MiB.
_MAX_RUN_TOKENS = 1024


class Mailbox:
    """Events of one request, between the engine and its stream. Belongs to the event loop.

    Pieces of one sample and phase are merged while they wait, so that a slow reader finds few and large ones:
    what waits is bounded by the request's own output, and its number by the phases that samples go through
    (and a message's size).
    """

    def __init__(self, request_id: str, samples: int) -> None:
        self.request_id = request_id
        self._unfinished = samples
        self._waiting: list[Started | Finished | Failed | _Run] = []
        self._last: dict[int, _Run] = {}
        """Of each sample, the run that may still grow."""
        self._arrived, self._complete = asyncio.Event(), asyncio.Event()

    @property
    def complete(self) -> bool:
        """Whether nothing more will come."""
        return self._complete.is_set()

    @property
    def exhausted(self) -> bool:
        """Whether it is complete and everything was taken."""
        return self.complete and not self._waiting

    def put(self, event: Event) -> None:
        """Adds an event."""
        match event:
            case Output():
                for piece in event.pieces:
                    self._put_piece(event.sample, piece, event.strike)
            case Finished():
                self._unfinished -= 1
                self._waiting.append(event)
            case Failed():
                self._unfinished = 0
                self._waiting.append(event)
            case Started():
                self._waiting.append(event)
        self._arrived.set()
        if not self._unfinished:
            self._complete.set()

    async def arrived(self) -> None:
        """Waits until there is something to take."""
        await self._arrived.wait()

    async def complete_within(self, seconds: float) -> None:
        """Waits until it is complete, but not for longer than so many seconds."""
        if seconds > 0 and not self.complete:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._complete.wait()

    def take(self) -> list[Event]:
        """Everything that waits; an Output holds one piece."""
        taken = [
            event.output(self.request_id) if isinstance(event, _Run) else event for event in self._waiting
        ]
        self._waiting, self._last = [], {}
        self._arrived.clear()
        return taken

    def _put_piece(self, sample: int, piece: Piece, strike: Strike | None) -> None:
        run = self._last.get(sample)
        if run is None or run.phase is not piece.phase or run.full:
            run = self._last[sample] = _Run(sample, piece.phase)
            self._waiting.append(run)
        run.add(piece, strike)


class _Run:
    """Adjacent pieces of one sample and phase. strike: after the last of them."""

    __slots__ = ("_calls", "_logprobs", "_sample", "_texts", "_token_count", "_token_ids", "phase", "strike")

    def __init__(self, sample: int, phase: Phase) -> None:
        self._sample = sample
        self.phase = phase
        self.strike: Strike | None = None
        self._token_ids: list[int] = []
        self._token_count = 0
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprobs] = []
        self._calls: list[CallPiece] = []

    @property
    def full(self) -> bool:
        return len(self._token_ids) + self._token_count >= _MAX_RUN_TOKENS

    def add(self, piece: Piece, strike: Strike | None) -> None:
        self._token_ids += piece.token_ids
        self._token_count += piece.token_count
        self._logprobs += piece.logprobs
        self.strike = strike
        if piece.text:
            self._texts.append(piece.text)
        self._calls += piece.calls

    def output(self, request_id: str) -> Output:
        text = "".join(self._texts)
        calls = tuple(_merged(index, pieces) for index, pieces in groupby(self._calls, lambda c: c.index))
        logprobs, count = tuple(self._logprobs), self._token_count
        piece = Piece(self.phase, tuple(self._token_ids), text, logprobs, count, calls)
        return Output(request_id, self._sample, (piece,), self.strike)


def _merged(index: int, pieces: Iterable[CallPiece]) -> CallPiece:
    """Adjacent pieces of one call; its name is in the first."""
    first, *later = pieces
    return CallPiece(index, first.name, first.arguments + "".join(piece.arguments for piece in later))
