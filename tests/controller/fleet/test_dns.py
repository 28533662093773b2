"""Workers that a name stands for."""

from __future__ import annotations

import asyncio
from collections.abc import Set

import pytest

from controller.fleet.dns import follow_name, resolve


class Names:
    """What each look-up brings; an exception is raised."""

    def __init__(self, *answers: Set[str] | OSError) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[str, int]] = []
        self.seen: list[Set[str]] = []

    async def look_up(self, name: str, port: int) -> Set[str]:
        self.asked.append((name, port))
        answer = self._answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    async def sleep(self, seconds: float) -> None:
        if not self._answers:
            raise asyncio.CancelledError


async def test_each_change_of_a_name_is_told_and_a_failed_look_up_changes_nothing() -> None:
    one, two = {"10.0.0.1:7210"}, {"10.0.0.1:7210", "10.0.0.2:7210"}
    names = Names(OSError("no such name"), one, one, OSError("away"), one, two, set())
    with pytest.raises(asyncio.CancelledError):
        await follow_name("workers", 7210, names.seen.append, names.look_up, sleep=names.sleep)
    assert names.seen == [one, two, set()]
    assert set(names.asked) == {("workers", 7210)}


async def test_this_machines_own_name_is_looked_up() -> None:
    found = await resolve("localhost", 7210)
    assert found <= {"127.0.0.1:7210", "[::1]:7210"}
    assert found


@pytest.mark.parametrize("name", ["workers.invalid", "workers..svc", f"{'x' * 64}.svc"])
async def test_a_name_that_does_not_exist_is_an_error(name: str) -> None:
    with pytest.raises(OSError, match=r".+"):
        await resolve(name, 7210)
