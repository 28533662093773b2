"""Each test that takes `store` runs against all of them."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

import pytest

from controller.state.connect import open_store
from controller.state.memory import MemoryStore
from controller.state.redis_store import RedisStore
from controller.state.store import Store
from tests.controller.state.servers import Server, serving, serving_as_cluster

TIMEOUT_S = 20.0
"""Far more than any answer takes, so that a busy machine fails no test."""


@dataclass
class Ids:
    """Names that no other test uses, since all of them may use one server."""

    prefix: str = field(default_factory=lambda: secrets.token_hex(4))
    given: int = 0

    def __call__(self) -> str:
        self.given += 1
        return f"{self.prefix}-{self.given}"


@pytest.fixture
def new_id() -> Ids:
    return Ids()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if given := os.environ.get("REDIS_URL"):
        yield given
        return
    with serving(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture(scope="session")
def cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving_as_cluster(tmp_path_factory.mktemp("cluster")) as server:
        yield f"redis+cluster://127.0.0.1:{server.port}"


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the test's own, to be broken."""
    with serving(tmp_path_factory.mktemp("own")) as started:
        yield started


OpenStore = Callable[[], Store]
Connect = Callable[..., RedisStore]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Opens stores that are closed in the end, however the test ends."""
    opened: list[RedisStore] = []

    def open_one_more(url: str, timeout_s: float = TIMEOUT_S, prefix: str = "curfew") -> RedisStore:
        opened.append(open_store(url, timeout_s, prefix))
        return opened[-1]

    yield open_one_more
    for store in opened:
        await store.close()


@pytest.fixture(params=["memory", "redis", "cluster"])
def open_one(request: pytest.FixtureRequest, connect: Connect, new_id: Ids) -> OpenStore:
    """Opens the store once more, as another controller does."""
    if request.param == "memory":
        memory = MemoryStore(time.time)
        return lambda: memory
    url = str(request.getfixturevalue(f"{request.param}_url"))
    return lambda: connect(url, prefix=f"test-{new_id.prefix}")


@pytest.fixture
def store(open_one: OpenStore) -> Store:
    return open_one()
