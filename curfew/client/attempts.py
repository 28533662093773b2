"""When a request may be tried again, where, and after how long. Without a transport."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from curfew.client.errors import LOST, CurfewError, Overloaded
from curfew.client.values import Options


@dataclass(frozen=True, slots=True)
class Retry:
    """How a request that nothing came of is tried again: when nobody answers, when it was dropped on its way,
    and when the service is full and says for how long. A stream never is after its first event: what was
    delivered is not delivered twice. `ask` delivers nothing before the end, and goes on after what is not
    available until then.
    """

    attempts: int = 4
    """The most rounds, at least 1. A round tries every address that is not available, one after the other."""
    first_backoff_s: float = 0.1
    """Before the second round; doubled before each further one, and shortened by up to half by chance. Where
    RetryInfo asks for more, that is kept, and lengthened by up to a fifth.
    """
    max_backoff_s: float = 2.0
    max_wait_s: float = 10.0
    """Who is told to come back later than this is not kept waiting: the error says when."""


RETRY = Retry()
ONCE = Retry(attempts=1)
"""Each address at most once."""


def timeout_after(deadline_s: float) -> float:
    """When a call with a deadline and no timeout is given up: half as much again, and a second at least."""
    return deadline_s + max(1.0, deadline_s / 2)


class Addresses:
    """Controllers to ask. Remembers which one answered last: the next request begins there."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.preferred = 0
        self.closed = False
        """Nobody is to be asked any more: the client is closed."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call."""

    address: int
    deadline_s: float | None
    """What is left of the caller's deadline."""
    timeout_s: float | None
    """What is left until the call is given up."""


class Attempts:
    """The attempts at one request."""

    def __init__(
        self,
        retry: Retry,
        options: Options,
        addresses: Addresses,
        clock: Callable[[], float],
        random: Random,
    ) -> None:
        """clock: seconds from any beginning."""
        self._retry = retry
        self._addresses = addresses
        self._clock = clock
        self._random = random
        self._deadline_s = options.get("deadline_s")
        self._timeout_s = options.get("timeout_s")
        if self._timeout_s is None and self._deadline_s is not None:
            self._timeout_s = timeout_after(self._deadline_s)
        self._address = addresses.preferred
        self._begun_s: float | None = None
        self._rounds = 0
        self._tried = 0  # addresses in this round

    def begin(self) -> Attempt:
        """The call to make now."""
        now_s = self._clock()
        if self._begun_s is None:
            self._begun_s = now_s
        elapsed_s = now_s - self._begun_s
        return Attempt(
            self._address,
            None if self._deadline_s is None else self._deadline_s - elapsed_s,
            None if self._timeout_s is None else self._timeout_s - elapsed_s,
        )

    def succeeded(self) -> None:
        """Something came."""
        self._addresses.preferred = self._address

    def after(self, error: CurfewError) -> float:
        """Seconds to wait before the next call. Raises the error when there must be none."""
        elsewhere = isinstance(error, LOST)
        again = elsewhere or (isinstance(error, Overloaded) and error.retry_after_s is not None)
        if not again or self._addresses.closed:
            raise error
        self._tried += 1
        another = elsewhere and self._tried < self._addresses.count
        wait_s = 0.0 if another else self._next_round(error)
        left = self.begin()
        limits_s = [limit for limit in (left.deadline_s, left.timeout_s) if limit is not None]
        if limits_s and wait_s >= min(limits_s):
            raise error
        if elsewhere:
            self._address = (self._address + 1) % self._addresses.count
        return wait_s

    def _next_round(self, error: CurfewError) -> float:
        self._tried = 0
        self._rounds += 1
        backoff_s = min(self._retry.max_backoff_s, self._retry.first_backoff_s * 2.0 ** (self._rounds - 1))
        wait_s = max(
            backoff_s * self._random.uniform(0.5, 1.0),
            (error.retry_after_s or 0.0) * self._random.uniform(1.0, 1.2),
        )
        if self._rounds >= self._retry.attempts or (error.retry_after_s or 0.0) > self._retry.max_wait_s:
            raise error
        return wait_s
