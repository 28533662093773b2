"""What the gRPC methods need of whatever runs the requests: the engine's thread, or a server behind this
worker.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from curfew.v1 import worker_pb2
from worker.engine.events import Load
from worker.engine.generation import Limits
from worker.service.mailbox import Mailbox


class DeviceFailedError(Exception):
    """The device has failed; the worker takes nothing more."""


class Seeded(Protocol):
    """How tokens are chosen, as far as the methods must know."""

    @property
    def seed(self) -> int:
        """In force."""


class Readable(Protocol):
    """A request that was read."""

    @property
    def sampling(self) -> Seeded:
        """How its tokens are chosen."""

    @property
    def limits(self) -> Limits:
        """What it may generate."""


R = TypeVar("R", bound=Readable)
R_co = TypeVar("R_co", bound=Readable, covariant=True)
R_contra = TypeVar("R_contra", bound=Readable, contravariant=True)


class Reader(Protocol[R_co]):
    """Reads requests."""

    def read(
        self, message: worker_pb2.WorkerServiceGenerateRequest, *, random_seed: int, now_s: float
    ) -> R_co:
        """The request. Runs in a thread of its own. Raises RpcError INVALID_ARGUMENT with every violation."""


class Backend(Protocol[R_contra]):
    """Runs requests. All methods belong to the event loop, and those that wait raise DeviceFailedError."""

    @property
    def load(self) -> Load:
        """As last known."""

    async def fresh_load(self) -> Load:
        """As it is now."""

    async def submit(self, request: R_contra) -> Mailbox:
        """Takes a request; its events come in the mailbox. Raises RefusedError, or ValueError for what a
        resumed one cannot be.
        """

    def cancel(self, mailbox: Mailbox) -> None:
        """Ends a request, if it has not ended."""

    async def adjust(
        self, request_id: str, reasoning_tokens: int | None, reason_until_s: float | None
    ) -> tuple[Limits, int] | None:
        """Changes a running request's budget; None leaves a limit. Returns the limits in force and the
        reasoning tokens used; None when it does not run.
        """
