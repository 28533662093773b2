"""Hedging: a request that yields no token for long goes to a second worker too (Dean & Barroso 2013, "The
Tail at Scale").
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from controller.fleet.link import Stream
from curfew.v1 import worker_pb2

Responses = list[worker_pb2.WorkerServiceGenerateResponse]


class StreamLostError(Exception):
    """The worker of a stream was given up while its beginning was awaited."""


async def race(
    first: Stream, after_s: float, second: Callable[[], Stream | None]
) -> tuple[Stream, Responses]:
    """The stream that yields a token first, and what it has yielded; the other is closed.

    after_s: that `first` has alone. second: begins another; None when there is no place for one. Raises what
    ended `first` when neither yields anything: AioRpcError or StreamLostError. Cancelled, it closes both.
    """
    heads = {asyncio.create_task(_head(first)): first}
    winner: Stream | None = None
    try:
        await asyncio.wait(heads, timeout=after_s)
        (own,) = heads
        if not own.done() and (other := second()) is not None:
            heads[asyncio.create_task(_head(other))] = other
        pending = set(heads)
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for head in done:
                if head.exception() is None:
                    winner = heads[head]
                    return winner, head.result()
        return first, own.result()
    finally:
        losers = {head: stream for head, stream in heads.items() if stream is not winner}
        for head, stream in losers.items():
            head.cancel()
            stream.close()
        try:
            await asyncio.gather(*losers, return_exceptions=True)
        except asyncio.CancelledError:
            if winner is not None:  # whom nobody gets now
                winner.close()
            raise


async def _head(stream: Stream) -> Responses:
    """What comes up to the first token."""
    head: Responses = []
    try:
        async for response in stream.responses:
            head.append(response)
            if not response.HasField("started"):
                break
    except asyncio.CancelledError:
        if stream.is_lost:
            raise StreamLostError from None
        raise
    return head
