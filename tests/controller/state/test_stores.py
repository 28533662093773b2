"""What every store does, be it memory, one server or a cluster."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from controller.state.bucket import Bucket, charged, wait_us
from controller.state.store import (
    Ask,
    Demand,
    Head,
    Level,
    Limit,
    Limits,
    News,
    Store,
    StoreError,
    TenantNews,
    Verdict,
    View,
    WorkerRecord,
)
from tests.controller.state.conftest import Connect, Ids, OpenStore
from tests.controller.state.servers import Server, free_port

LEVEL = Level(-3.0, 3.0)
SLOW = Bucket.of(per_s=0.001, burst=3)
"""Nothing comes back while a test runs."""


def ask(
    tenant: str,
    limits: Limits,
    lease: str = "",
    tokens: int = 0,
    ttl_s: float = 60,
    released: Sequence[str] = (),
) -> Ask:
    return Ask(tenant, limits, lease, tokens, ttl_s, tuple(released))


def told(tenant: str, number: int = 1, **changes: object) -> TenantNews:
    news = TenantNews(tenant, number, 0.0, 0.0, 0.0, 0.0, 0, 0, (), ())
    return replace(news, **changes)  # type: ignore[arg-type]  # of any field


async def exchange(
    store: Store,
    *tenants: TenantNews,
    controller: str = "one",
    ttl_s: float = 60.0,
    lease_ttl_s: float = 60.0,
    demands: Mapping[str, Demand] | None = None,
) -> View:
    return await store.exchange(News(controller, tenants, demands or {}, LEVEL, ttl_s, lease_ttl_s))


async def test_rates_are_those_of_gcra_by_the_stores_own_clock(store: Store, new_id: Ids) -> None:
    tenant, dice = new_id(), random.Random(7)
    limits = Limits(rate=Bucket.of(per_s=800, burst=4), tokens=Bucket.of(per_s=90_000, burst=500))
    assert limits.rate is not None
    assert limits.tokens is not None
    rate_us = tokens_us = 0
    seen = set()
    for _ in range(400):
        tokens = dice.choice([1, 50, 300, 900])
        verdict = await store.admit(ask(tenant, limits, tokens=tokens))
        rate_cost, tokens_cost = limits.rate.cost_us(1), limits.tokens.cost_us(tokens)
        rate_wait = wait_us(limits.rate, rate_us, rate_cost, verdict.at_us)
        tokens_wait = wait_us(limits.tokens, tokens_us, tokens_cost, verdict.at_us)
        seen.add(verdict.refused)
        if rate_wait == tokens_wait == 0:
            assert verdict == Verdict(None, 0.0, verdict.at_us)
            rate_us = charged(limits.rate, rate_us, rate_cost, verdict.at_us)
            tokens_us = charged(limits.tokens, tokens_us, tokens_cost, verdict.at_us)
        else:
            refused = Limit.RATE if rate_wait >= tokens_wait else Limit.TOKENS
            assert verdict == Verdict(refused, max(rate_wait, tokens_wait) / 1e6, verdict.at_us)
    assert {None, Limit.TOKENS} <= seen


async def test_what_is_refused_by_one_limit_counts_in_none(store: Store, new_id: Ids) -> None:
    tenant = new_id()
    limits = Limits(rate=SLOW, tokens=SLOW, concurrency=1)
    assert (await store.admit(ask(tenant, limits, "a", tokens=2))).refused is None
    assert (await store.admit(ask(tenant, limits, "b", tokens=3))).refused is Limit.TOKENS
    assert (await store.admit(ask(tenant, limits, "c", tokens=1))).refused is Limit.CONCURRENCY
    two_more = Limits(rate=SLOW, concurrency=2)
    assert (await store.admit(ask(tenant, two_more, "d"))).refused is None
    assert (await store.admit(ask(tenant, Limits(rate=SLOW), "e"))).refused is None
    assert (await store.admit(ask(tenant, Limits(rate=SLOW), "f"))).refused is Limit.RATE


async def test_a_tenants_limits_are_its_own(store: Store, new_id: Ids) -> None:
    limits = Limits(rate=Bucket.of(per_s=0.001, burst=1))
    first, second = new_id(), new_id()
    assert (await store.admit(ask(first, limits))).refused is None
    assert (await store.admit(ask(second, limits))).refused is None
    assert (await store.admit(ask(first, limits))).refused is Limit.RATE


async def test_never_more_run_at_once_than_allowed_whoever_asks(open_one: OpenStore, new_id: Ids) -> None:
    tenant, limits = new_id(), Limits(concurrency=5)
    stores = [open_one(), open_one()]
    verdicts = await asyncio.gather(
        *(stores[i % 2].admit(ask(tenant, limits, f"lease-{i}")) for i in range(20))
    )
    assert sum(verdict.refused is None for verdict in verdicts) == 5
    running = [f"lease-{i}" for i, verdict in enumerate(verdicts) if verdict.refused is None]
    ended = await stores[1].admit(ask(tenant, limits, "next", released=running[:1]))
    assert ended.refused is None
    assert (await stores[0].admit(ask(tenant, limits, "last"))).refused is Limit.CONCURRENCY
    await exchange(stores[0], told(tenant, released=("next",)))
    assert (await stores[1].admit(ask(tenant, limits, "last"))).refused is None


async def test_the_places_of_a_dead_controllers_requests_are_free_after_their_ttl(
    store: Store, new_id: Ids
) -> None:
    tenant, limits = new_id(), Limits(concurrency=1)
    assert (await store.admit(ask(tenant, limits, "dead", ttl_s=0.05))).refused is None
    refused = 0
    while (await store.admit(ask(tenant, limits, "next"))).refused is Limit.CONCURRENCY:
        refused += 1
    assert refused > 0


async def test_a_renewed_lease_outlasts_its_ttl(store: Store, new_id: Ids) -> None:
    tenant, limits = new_id(), Limits(concurrency=2)
    await store.admit(ask(tenant, limits, "short", ttl_s=0.05))
    await store.admit(ask(tenant, limits, "renewed", ttl_s=0.05))
    await exchange(store, told(tenant, held=("renewed",)))
    while (await store.admit(ask(tenant, limits, "next"))).refused is Limit.CONCURRENCY:
        pass
    assert (await store.admit(ask(tenant, limits, "last"))).refused is Limit.CONCURRENCY


async def test_news_is_applied_once_however_often_it_is_told(store: Store, new_id: Ids) -> None:
    tenant = new_id()
    news = told(tenant, served=10.5, offset_step=0.25, offset=-0.5)
    for _ in range(3):
        view = await exchange(store, news)
        assert (view.tenants[tenant].served, view.tenants[tenant].offset) == (10.5, -0.25)
    view = await exchange(store, replace(news, number=2))
    assert (view.tenants[tenant].served, view.tenants[tenant].offset) == (21.0, 0.0)
    view = await exchange(store, news, controller="two")
    assert view.tenants[tenant].served == 31.5


async def test_a_floor_lifts_once_and_what_is_served_comes_on_top(store: Store, new_id: Ids) -> None:
    tenant = new_id()
    news = told(tenant, served=5.0, served_floor=100.0)
    assert (await exchange(store, news)).tenants[tenant].served == 105.0
    assert (await exchange(store, news)).tenants[tenant].served == 105.0
    assert (await exchange(store, replace(news, number=2))).tenants[tenant].served == 110.0


async def test_offsets_stay_within_their_range(store: Store, new_id: Ids) -> None:
    tenant = new_id()
    up = await exchange(store, told(tenant, offset=1.0, offset_step=50.0))
    assert up.tenants[tenant].offset == LEVEL.most
    down = await exchange(store, told(tenant, 2, offset=1.0, offset_step=-4.5))
    assert down.tenants[tenant].offset == -1.5


async def test_counters_keep_their_fractions(store: Store, new_id: Ids) -> None:
    tenant, total = new_id(), 0.0
    for number in range(1, 30):
        total += (amount := 123456.7 / number)
        view = await exchange(store, told(tenant, number, served=amount))
    assert view.tenants[tenant].served == total


async def test_costs_let_in_elsewhere_count_and_what_is_given_back_does_not(
    store: Store, new_id: Ids
) -> None:
    tenant, limits = new_id(), Limits(tokens=SLOW)
    unit_us = SLOW.cost_us(1)
    await exchange(store, told(tenant, tokens_us=2 * unit_us))
    assert (await store.admit(ask(tenant, limits, tokens=2))).refused is Limit.TOKENS
    assert (await store.admit(ask(tenant, limits, tokens=1))).refused is None
    await exchange(store, told(tenant, 2, tokens_us=-unit_us))
    assert (await store.admit(ask(tenant, limits, tokens=1))).refused is None
    await exchange(store, told(tenant, 3, rate_us=3 * unit_us))
    assert (await store.admit(ask(tenant, Limits(rate=SLOW)))).refused is Limit.RATE


HEAD = Head("a", 7.125, 3, 5.0)


async def test_each_controller_sees_what_callers_of_the_others_ask(open_one: OpenStore, new_id: Ids) -> None:
    one, two, pool = open_one(), open_one(), new_id()
    mine, theirs = Demand((1.0, 0.5), 64.0), Demand((3.0, 2.25, 1.0), 32.0, 5.0, HEAD, 8.5)
    await exchange(one, demands={pool: mine})
    view = await exchange(two, controller="two", demands={pool: theirs})
    assert view.demands[pool] == {"one": mine, "two": theirs}


async def test_who_is_silent_for_its_ttl_counts_no_more(store: Store, new_id: Ids) -> None:
    pool, silent, alive = new_id(), new_id(), new_id()
    demand = Demand((1.0,), 8.0)
    await exchange(store, controller=silent, ttl_s=0.05, demands={pool: demand})
    both = await exchange(store, controller=alive, demands={pool: demand})
    assert both.controllers == 2
    while (view := await exchange(store, controller=alive, demands={pool: demand})).controllers == 2:
        pass
    assert view.demands[pool].keys() == {alive}


def record(name: str, **changes: object) -> WorkerRecord:
    worker = WorkerRecord(name, "127.0.0.1:7300", "nano", "0.1", capacity=16)
    return replace(worker, **changes)  # type: ignore[arg-type]  # of any field


async def test_workers_are_listed_as_they_announced_themselves_last(open_one: OpenStore, new_id: Ids) -> None:
    one, two = open_one(), open_one()
    a, b = new_id(), new_id()
    await one.announce(record(a), 60)
    await two.announce(record(b, draining=True), 60)
    await one.announce(record(a, load=7), 60)
    assert await two.workers() == {a: record(a, load=7), b: record(b, draining=True)}
    await two.withdraw(a)
    assert await one.workers() == {b: record(b, draining=True)}


async def test_a_worker_that_stops_renewing_is_gone_after_its_ttl(store: Store, new_id: Ids) -> None:
    lost, there = new_id(), new_id()
    await store.announce(record(lost), 0.05)
    await store.announce(record(there), 60)
    assert (await store.workers()).keys() == {lost, there}
    while lost in await store.workers():
        pass
    assert (await store.workers()).keys() == {there}


async def test_every_key_has_a_ttl(redis_url: str, connect: Connect, new_id: Ids) -> None:
    store = connect(redis_url, prefix=new_id.prefix)
    tenant = new_id()
    limits = Limits(rate=SLOW, tokens=SLOW, concurrency=2)
    assert (await store.admit(ask(tenant, limits, "a", tokens=1))).refused is None
    await exchange(
        store, told(tenant, served=1.0, rate_us=5, held=("a",)), demands={"pool": Demand((1.0,), 1.0)}
    )
    await store.announce(record("w"), 60)
    client = store._client
    keys = [key async for key in client.scan_iter(f"{new_id.prefix}:*")]
    assert len(keys) == 5 + 2 * 3
    assert [key for key in keys if await client.pttl(key) <= 0] == []


async def test_a_server_that_is_not_there_is_told_in_one_line(connect: Connect) -> None:
    port = free_port()
    store = connect(f"redis://:secret@127.0.0.1:{port}")
    with pytest.raises(StoreError) as caught:
        await store.workers()
    assert str(port) in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_after_a_restart_the_store_says_that_it_forgot(server: Server, connect: Connect) -> None:
    store = connect(server.url)
    assert (await exchange(store)).forgot
    assert not (await exchange(store)).forgot
    server.stop()
    server.start()
    for _ in range(2):
        try:
            view = await exchange(store)
            break
        except StoreError:
            continue  # the connection that died with it
    assert view.forgot
    assert not (await exchange(store)).forgot


async def test_a_command_that_the_server_refuses_is_a_store_error(server: Server, connect: Connect) -> None:
    server.command("CONFIG", "SET", "min-replicas-to-write", "1")
    store = connect(server.url)
    with pytest.raises(StoreError, match="NOREPLICAS"):
        await exchange(store, told("a", served=1.0))
