"""The state of several controllers in Redis 7.0 or newer, or what speaks its language. docs/state.md lists
the keys.

Each read-modify-write is one Lua script that touches one hash tag and goes by the server's clock.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from importlib import resources
from typing import cast

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import NoScriptError, RedisError

from controller.state.store import (
    Ask,
    Demand,
    Head,
    Limit,
    News,
    StoreError,
    TenantNews,
    TenantView,
    Verdict,
    View,
    WorkerRecord,
)

log = logging.getLogger(__name__)

Argument = str | int | float
Reply = list[str | int]

_LIMIT = {0: None, 1: Limit.RATE, 2: Limit.TOKENS, 3: Limit.CONCURRENCY}
DEMAND_FORM = 2
"""Of the demand's JSON, and a part of its key: a release with another form does not read it, and divides the
pool by what it sees of the workers until all controllers are of one release.
"""
_CLUSTER_CALLS = 32
"""Scripts under way at once on a cluster, whose pipelines run none."""


@dataclass(frozen=True, slots=True)
class _Script:
    text: str
    sha: str


def _script(name: str) -> _Script:
    text = resources.files(__package__).joinpath("lua", f"{name}.lua").read_text()
    return _Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


@dataclass(frozen=True, slots=True)
class _Call:
    script: _Script
    keys: Sequence[str]
    arguments: Sequence[Argument]


class RedisStore:
    """Any number of controllers may use one server through it, or one cluster."""

    def __init__(
        self, client: Redis | RedisCluster, prefix: str = "curfew", sentinels: Sequence[Redis] = ()
    ) -> None:
        """client: decodes replies, has its timeouts set and does not retry. prefix: of all keys. sentinels:
        that the client asks, to be closed with it.
        """
        self._sentinels = sentinels
        self._client = client
        self._prefix = prefix
        self._admit, self._tell = _script("admit"), _script("tell")
        self._lease, self._drop = _script("lease"), _script("drop")
        self._forgot = False

    async def admit(self, ask: Ask) -> Verdict:
        """Checks all limits, then counts in all or in none."""
        rate, tokens = ask.limits.rate, ask.limits.tokens
        arguments: list[Argument] = [
            ask.lease,
            round(ask.lease_ttl_s * 1e6),
            -1 if ask.limits.concurrency is None else ask.limits.concurrency,
            *((rate.cost_us(1), rate.window_us) if rate else (0, -1)),
            *((tokens.cost_us(ask.tokens), tokens.window_us) if tokens else (0, -1)),
            *ask.released,
        ]
        (reply,) = await self._run([_Call(self._admit, self._of_tenant(ask.tenant)[:3], arguments)])
        code, wait_us, now_us = map(int, reply)
        return Verdict(_LIMIT[code], wait_us / 1e6, now_us)

    async def exchange(self, news: News) -> View:
        """Takes what a controller has to tell, and tells what all have."""
        calls = [self._tenant_call(news, told) for told in news.tenants]
        for pool, demand in news.demands.items():
            keys = self._leased(f"{{pool:{pool}}}:demand:{DEMAND_FORM}")
            calls.append(self._lease_call(keys, news.controller, _demand_text(demand), news.ttl_s))
        calls.append(self._lease_call(self._leased("{fleet}:controllers"), news.controller, "", news.ttl_s))
        replies = await self._run(calls)
        tenants = {
            told.tenant: TenantView(float(reply[0]), float(reply[1]))
            for told, reply in zip(news.tenants, replies, strict=False)
        }
        demands = {
            pool: {name: _demand(text) for name, text in _pairs(reply)}
            for pool, reply in zip(news.demands, replies[len(news.tenants) :], strict=False)
        }
        forgot, self._forgot = self._forgot, False
        return View(tenants, demands, len(replies[-1]) // 2, forgot)

    async def announce(self, worker: WorkerRecord, ttl_s: float) -> None:
        """Registers a worker, or renews its lease with what is new of it."""
        keys = self._leased("{fleet}:workers")
        await self._run([self._lease_call(keys, worker.id, json.dumps(asdict(worker)), ttl_s)])

    async def withdraw(self, worker_id: str) -> None:
        """Removes a worker at once."""
        await self._run([_Call(self._drop, self._leased("{fleet}:workers"), [worker_id])])

    async def workers(self) -> Mapping[str, WorkerRecord]:
        """The workers whose leases last, by id. One that cannot be read, since another release wrote it, is
        left out.
        """
        (reply,) = await self._run([_Call(self._lease, self._leased("{fleet}:workers"), [])])
        found: dict[str, WorkerRecord] = {}
        for name, text in _pairs(reply):
            try:
                found[name] = WorkerRecord(**json.loads(text))
            except (TypeError, ValueError):
                log.warning("worker %s announces itself in a way that is not known here", name)
        return found

    async def close(self) -> None:
        """Gives connections back."""
        for client in (self._client, *self._sentinels):
            await client.aclose()

    def _of_tenant(self, tenant: str) -> list[str]:
        tagged = f"{self._prefix}:{{{tenant}}}"
        return [f"{tagged}:rate", f"{tagged}:tokens", f"{tagged}:running", f"{tagged}:shared"]

    def _leased(self, name: str) -> list[str]:
        return [f"{self._prefix}:{name}", f"{self._prefix}:{name}:leases"]

    def _tenant_call(self, news: News, told: TenantNews) -> _Call:
        keys = self._of_tenant(told.tenant)
        arguments: list[Argument] = [
            told.number,
            repr(told.served),
            repr(told.served_floor),
            repr(told.offset_step),
            repr(told.offset),
            repr(news.level.least),
            repr(news.level.most),
            told.rate_us,
            told.tokens_us,
            round(news.lease_ttl_s * 1e6),
            len(told.held),
            *told.held,
            *told.released,
        ]
        return _Call(
            self._tell, [*keys, f"{self._prefix}:{{{told.tenant}}}:number:{news.controller}"], arguments
        )

    def _lease_call(self, keys: Sequence[str], name: str, entry: str, ttl_s: float) -> _Call:
        return _Call(self._lease, keys, [name, entry, round(ttl_s * 1e3)])

    async def _run(self, calls: Sequence[_Call]) -> list[Reply]:
        """All calls in one round trip; two when the server does not have the scripts, as after a restart."""
        try:
            replies = await self._send(calls)
            missing = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if missing:
                self._forgot = True
                for script in {calls[i].script for i in missing}:
                    await self._client.script_load(script.text)
                for i, reply in zip(missing, await self._send([calls[i] for i in missing]), strict=True):
                    replies[i] = reply
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreError(_one_line(error)) from error
        for reply in replies:
            if isinstance(reply, Exception):
                raise StoreError(_one_line(reply)) from reply
        return cast("list[Reply]", replies)

    async def _send(self, calls: Sequence[_Call]) -> list[object]:
        if isinstance(self._client, RedisCluster):
            return await _spread(self._client, calls)
        pipeline = self._client.pipeline(transaction=False)
        for call in calls:
            pipeline.evalsha(call.script.sha, len(call.keys), *call.keys, *call.arguments)
        return list(await pipeline.execute(raise_on_error=False))


async def _spread(cluster: RedisCluster, calls: Sequence[_Call]) -> list[object]:
    places = asyncio.Semaphore(_CLUSTER_CALLS)

    async def run(call: _Call) -> object:
        async with places:
            return await cluster.evalsha(call.script.sha, len(call.keys), *call.keys, *call.arguments)

    return list(await asyncio.gather(*map(run, calls), return_exceptions=True))


def _pairs(reply: Reply) -> Iterable[tuple[str, str]]:
    texts = list(map(str, reply))
    return zip(texts[::2], texts[1::2], strict=True)


def _demand_text(demand: Demand) -> str:
    head = None if demand.head is None else astuple(demand.head)
    by_price = (round(part, 6) for part in demand.by_price)
    return json.dumps([demand.capacity, demand.weight, demand.reached, head, *by_price])


def _demand(text: str) -> Demand:
    capacity, weight, reached, head, *by_price = json.loads(text)
    return Demand(tuple(by_price), capacity, weight, None if head is None else Head(*head), reached)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
