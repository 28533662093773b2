"""The policy in force, which may change while requests run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from controller.policy.document import PolicyError
from controller.policy.model import Policy


@dataclass(slots=True)
class Reloads:
    """How often a policy file was read again: ok, whether it was another or not, or with errors."""

    ok: int = 0
    rejected: int = 0


class LivePolicy:
    """Owns the policy in force. A request asks once, for `current`, and keeps what it got to its end."""

    def __init__(self, read: Callable[[], Policy]) -> None:
        """read: loads the policy; now, and later in a thread of its own. Raises PolicyError."""
        self._read = read
        self._current = read()
        self._rejected: PolicyError | None = None
        self.reloads = Reloads()
        self._one_at_a_time = asyncio.Lock()
        self.on_read: Callable[[bool], Awaitable[None]] = _nobody
        """Told after each reload whether what was read is in force."""

    @property
    def current(self) -> Policy:
        """The policy in force."""
        return self._current

    @property
    def rejected(self) -> PolicyError | None:
        """Why what was last read is not in force; None when it is."""
        return self._rejected

    async def reload(self) -> bool:
        """Reads again and puts into force what was read. Returns whether that is another policy.

        Raises PolicyError, and the policy in force stays.
        """
        async with self._one_at_a_time:
            try:
                policy = await asyncio.to_thread(self._read)
            except PolicyError as error:
                self._rejected = error
                self.reloads.rejected += 1
                await self.on_read(False)
                raise
            self._rejected = None
            self.reloads.ok += 1
            changed = _identity(policy) != _identity(self._current)
            if changed:
                self._current = policy
            await self.on_read(True)
            return changed


async def _nobody(in_force: bool) -> None:
    pass


def _identity(policy: Policy) -> tuple[str, dict[bytes, str]]:
    """What makes it another policy: its text, and the keys that the text only names."""
    return policy.version, {digest: tenant.name for digest, (_, tenant) in policy.keys.items()}
