"""From a URL to a store."""

from __future__ import annotations

from typing import TypedDict
from urllib.parse import unquote, urlsplit

from redis.asyncio import Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from controller.state.redis_store import RedisStore

FORMS = (
    "redis://, rediss:// or redis+cluster:// and HOST:PORT, unix:///PATH, "
    "or redis+sentinel://HOST:PORT,HOST:PORT/SERVICE"
)
DEFAULT_PORT = 6379
DEFAULT_SENTINEL_PORT = 26379


class _Options(TypedDict):
    decode_responses: bool
    socket_timeout: float
    socket_connect_timeout: float


def open_store(url: str, timeout_s: float, prefix: str = "curfew") -> RedisStore:
    """A store that connects when it is first used. timeout_s: for a connection, and for each reply. prefix:
    of all keys.

    `redis://[USER:PASSWORD@]HOST[:PORT][/DB]`, `rediss://` for TLS, `unix:///PATH`,
    `redis+cluster://HOST:PORT,HOST:PORT` and `redis+sentinel://HOST:PORT,HOST:PORT/SERVICE[/DB]`; lists name
    servers to ask first. Raises ValueError for anything else.
    """
    scheme = url.partition("://")[0]
    options: _Options = {
        "decode_responses": True,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
    }
    if scheme in ("redis", "rediss", "unix"):
        return RedisStore(Redis.from_url(url, retry=_never(), **options), prefix)
    if scheme == "redis+cluster":
        return RedisStore(_cluster(url, options), prefix)
    if scheme == "redis+sentinel":
        master, sentinels = _sentinel(url, options)
        return RedisStore(master, prefix, sentinels)
    raise ValueError(f"not the URL of a store; write {FORMS}")


def _cluster(url: str, options: _Options) -> RedisCluster:
    parts = urlsplit(url)
    nodes = [ClusterNode(host, port) for host, port in _hosts(parts.netloc, DEFAULT_PORT)]
    user, password = _credentials(parts.netloc)
    # Once more for a slot that has moved, and once for a server that has gone.
    again = Retry(NoBackoff(), 2)
    return RedisCluster(startup_nodes=nodes, username=user, password=password, retry=again, **options)


def _sentinel(url: str, options: _Options) -> tuple[Redis, list[Redis]]:
    parts = urlsplit(url)
    service, _, database = parts.path.strip("/").partition("/")
    if not service or not (database or "0").isdigit():
        raise ValueError(f"names no service; write {FORMS}")
    user, password = _credentials(parts.netloc)
    hosts = _hosts(parts.netloc, DEFAULT_SENTINEL_PORT)
    sentinel = Sentinel(hosts, sentinel_kwargs={**options, "retry": _never()})  # type: ignore[no-untyped-call]  # redis-py's
    master: Redis = sentinel.master_for(
        service,
        db=int(database or "0"),
        username=user,
        password=password,
        retry=_never(),
        **options,
    )
    return master, sentinel.sentinels


def _never() -> Retry:
    """Who calls knows better than the client when to try again."""
    return Retry(NoBackoff(), 0)


def _hosts(netloc: str, default_port: int) -> list[tuple[str, int]]:
    """Raises ValueError."""
    hosts = []
    for text in netloc.rpartition("@")[2].split(","):
        one = urlsplit(f"//{text}")
        if not one.hostname:
            raise ValueError(f"names no host; write {FORMS}")
        hosts.append((one.hostname, one.port or default_port))
    return hosts


def _credentials(netloc: str) -> tuple[str | None, str | None]:
    given = netloc.rpartition("@")[0]
    user, _, password = given.partition(":")
    return unquote(user) or None, unquote(password) or None
