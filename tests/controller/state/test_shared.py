"""What controllers share, with every store; and how they go on without one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.state.bucket import Bucket
from controller.state.memory import MemoryStore
from controller.state.shared import Permit, Refused, SharedState, Timings
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
    Verdict,
    View,
)
from tests.controller.state.conftest import TIMEOUT_S, Connect, Ids, OpenStore
from tests.controller.state.servers import Server, free_port

LEVEL = Level(-3.0, 3.0)
PATIENT = Timings(call_s=TIMEOUT_S)
TWO_AT_ONCE = Limits(concurrency=2)


class Clock:
    """Stands still unless a test moves it."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def shared(
    store: Store,
    new_id: Callable[[], str],
    clock: Callable[[], float] | None = None,
    timings: Timings = PATIENT,
) -> SharedState:
    return SharedState(store, LEVEL, -0.5, clock or Clock(), lambda: 0.5, new_id, timings)


async def meet(*controllers: SharedState, tenant: str = "a") -> None:
    """Each tells its news, and then hears those of all about a tenant."""
    for _ in range(2):
        for controller in controllers:
            controller.served(tenant)
            await controller.synchronise()
            assert controller.outage is None


async def let_in(state: SharedState, tenant: str, limits: Limits, tokens: int = 0) -> Permit:
    answer = await state.admit(tenant, limits, tokens)
    assert isinstance(answer, Permit)
    return answer


class Counting(MemoryStore):
    """Counts calls, and fails while it is `away`; with `hears`, after it has done what it was asked."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        super().__init__(clock or Clock())
        self.admits = self.exchanges = 0
        self.away = self.hears = False

    async def admit(self, ask: Ask) -> Verdict:
        self.admits += 1
        verdict = None if self.away and not self.hears else await super().admit(ask)
        if self.away or verdict is None:
            raise StoreError("away")
        return verdict

    async def exchange(self, news: News) -> View:
        self.exchanges += 1
        view = None if self.away and not self.hears else await super().exchange(news)
        if self.away or view is None:
            raise StoreError("away")
        return view


# Together.


async def test_what_one_controller_serves_the_others_know_after_an_exchange(
    open_one: OpenStore, new_id: Ids
) -> None:
    one, two, tenant = shared(open_one(), new_id), shared(open_one(), new_id), new_id()
    one.serve(tenant, 10.5)
    assert one.served(tenant) == 10.5
    assert two.served(tenant) == 0.0
    two.serve(tenant, 4.0)
    await meet(one, two, tenant=tenant)
    assert one.served(tenant) == two.served(tenant) == 14.5
    two.serve(tenant, -1.0)
    assert two.served(tenant) == 13.5


async def test_a_tenant_is_lifted_once_though_two_controllers_lift_it(
    open_one: OpenStore, new_id: Ids
) -> None:
    one, two, tenant = shared(open_one(), new_id), shared(open_one(), new_id), new_id()
    for controller in (one, two):
        controller.serve(tenant, 3.0)
        controller.lift_served(tenant, 100.0)
        controller.serve(tenant, 1.0)
        assert controller.served(tenant) == 101.0
    await meet(one, two, tenant=tenant)
    # Each had counted 4 on its own, of which 3 before it lifted.
    assert one.served(tenant) == two.served(tenant) == 105.0
    one.lift_served(tenant, 50.0)
    assert one.served(tenant) == 105.0


async def test_calibration_moves_with_the_outcomes_of_all(open_one: OpenStore, new_id: Ids) -> None:
    one, two, tenant = shared(open_one(), new_id), shared(open_one(), new_id), new_id()
    assert one.offset(tenant) == -0.5
    one.step_offset(tenant, 0.25)
    two.step_offset(tenant, 0.5)
    assert (one.offset(tenant), two.offset(tenant)) == (-0.25, 0.0)
    await meet(one, two, tenant=tenant)
    assert one.offset(tenant) == two.offset(tenant) == 0.25
    one.step_offset(tenant, 50.0)
    assert one.offset(tenant) == LEVEL.most


async def test_demand_is_that_of_all_controllers_and_no_leader_is_needed(
    open_one: OpenStore, new_id: Ids
) -> None:
    one, two, pool = shared(open_one(), new_id), shared(open_one(), new_id), new_id()
    three = shared(open_one(), new_id)
    head = Head("a", 7.5, 2, 3.0)
    one.publish_demand(pool, Demand((4.0, 2.0, 0.5), 32.0, 3.0, head, 8.0))
    two.publish_demand(pool, Demand((1.0, 1.0), 64.0, 1.0))
    three.publish_demand(pool, Demand())
    assert one.others_demand(pool) == Demand()
    await meet(one, two, three)
    assert one.others_demand(pool) == Demand((1.0, 1.0), 64.0, 1.0)
    assert two.others_demand(pool) == Demand((4.0, 2.0, 0.5), 32.0, 3.0, reached=8.0)
    assert three.others_demand(pool) == Demand((5.0, 3.0, 0.5), 64.0, 4.0, reached=8.0)
    assert one.others_heads(pool) == []
    assert two.others_heads(pool) == three.others_heads(pool) == [head]
    assert one.controllers == two.controllers == 3


async def test_what_is_published_before_an_exchange_goes_with_it_and_after_it_the_news_is_there(
    new_id: Ids,
) -> None:
    store = Counting()
    one, two = shared(store, new_id), shared(store, new_id)
    heard: list[float] = []
    one.before_exchange = lambda: one.publish_demand("p", Demand((1.0,), 8.0))
    two.before_exchange = lambda: two.publish_demand("p", Demand())
    two.after_exchange = lambda: heard.append(two.others_demand("p").capacity)
    await one.synchronise()
    await two.synchronise()
    store.away = True
    await two.synchronise()
    assert heard == [8.0, 8.0]


async def test_two_controllers_let_in_no_more_than_one_would(open_one: OpenStore, new_id: Ids) -> None:
    one, two, tenant = shared(open_one(), new_id), shared(open_one(), new_id), new_id()
    limits = Limits(rate=Bucket.of(per_s=0.001, burst=7))
    answers = await asyncio.gather(*(state.admit(tenant, limits, 1) for state in (one, two) * 10))
    assert sum(isinstance(answer, Permit) for answer in answers) == 7
    refused = next(answer for answer in answers if isinstance(answer, Refused))
    assert refused.limit is Limit.RATE
    assert 900 < refused.retry_s <= 1000


async def test_a_place_that_one_controller_frees_another_may_have(open_one: OpenStore, new_id: Ids) -> None:
    one, two, tenant = shared(open_one(), new_id), shared(open_one(), new_id), new_id()
    first = await let_in(one, tenant, TWO_AT_ONCE)
    await let_in(two, tenant, TWO_AT_ONCE)
    refused = await two.admit(tenant, TWO_AT_ONCE, 1)
    assert isinstance(refused, Refused)
    assert refused.retry_s > 0
    first.end(1)
    await one.synchronise()
    await let_in(two, tenant, TWO_AT_ONCE)


async def test_the_controller_that_frees_a_place_needs_no_exchange_to_give_it_away(
    open_one: OpenStore, new_id: Ids
) -> None:
    state, tenant = shared(open_one(), new_id), new_id()
    for _ in range(5):
        first, second = await let_in(state, tenant, TWO_AT_ONCE), await let_in(state, tenant, TWO_AT_ONCE)
        first.end(1)
        second.end(1)


# Exactly once.

STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([0, 1]), st.sampled_from(["serve", "step"]), st.integers(1, 9)),
        st.tuples(st.sampled_from([0, 1]), st.sampled_from(["well", "deaf", "lost answer"]), st.just(0)),
    ),
    max_size=40,
)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(STEPS)
async def test_nothing_is_lost_and_nothing_counted_twice_however_exchanges_fail(
    steps: list[tuple[int, str, int]],
) -> None:
    memory, ids = Counting(), Ids()
    controllers = [shared(memory, ids), shared(memory, ids)]
    served, offset = 0, 0
    for which, what, amount in steps:
        state = controllers[which]
        before = state.served("a")
        if what == "serve":
            state.serve("a", amount)
            served += amount
            assert state.served("a") == before + amount
        elif what == "step":
            state.step_offset("a", amount / 1024)
            offset += amount
        else:
            memory.away, memory.hears = what != "well", what == "lost answer"
            await state.synchronise()
            memory.away = False
            assert state.served("a") >= before
    await meet(*controllers, *controllers)
    assert [state.served("a") for state in controllers] == [served, served]
    assert [state.offset("a") for state in controllers] == [-0.5 + offset / 1024] * 2


async def test_what_happens_during_an_exchange_belongs_to_the_next(new_id: Ids) -> None:
    amounts = iter([5.0, 7.0, 0.0, 0.0])

    class Slow(MemoryStore):
        async def exchange(self, news: News) -> View:
            state.serve("a", next(amounts))
            view = await super().exchange(news)
            state.serve("a", next(amounts))
            told.append(view.tenants["a"].served)
            return view

    told: list[float] = []
    state = shared(Slow(Clock()), new_id)
    state.serve("a", 1.0)
    await state.synchronise()
    assert (told, state.served("a")) == ([1.0], 13.0)
    await state.synchronise()
    assert (told, state.served("a")) == ([1.0, 13.0], 13.0)


async def test_of_very_many_tenants_some_wait_for_the_next_exchange(new_id: Ids) -> None:
    memory = Counting()
    one, two = shared(memory, new_id), shared(memory, new_id)
    names = [f"tenant-{i}" for i in range(2500)]
    for name in names:
        one.serve(name, 1.0)
    for _ in range(3):
        await one.synchronise()
    for _ in range(2):
        seen = [two.served(name) for name in names]
        for _ in range(3):
            await two.synchronise()
    assert seen == [1.0] * len(names)


# Without the store.


async def test_once_the_store_is_away_no_request_asks_it(new_id: Ids) -> None:
    memory = Counting()
    state = shared(memory, new_id)
    memory.away = True
    limits = Limits(rate=Bucket.of(per_s=0.001, burst=50))
    for _ in range(40):
        await let_in(state, "a", limits)
    assert memory.admits == 1
    assert state.outage is not None
    assert (state.outage.since_s, state.outage.why) == (1000.0, "away")
    memory.away = False
    await state.synchronise()
    assert state.outage is None
    await let_in(state, "a", limits)
    assert memory.admits == 2


async def test_without_the_store_a_controller_keeps_to_its_share(new_id: Ids) -> None:
    memory, clock = Counting(), Clock()
    controllers = [shared(memory, new_id, clock) for _ in range(3)]
    await meet(*controllers)
    memory.away = True
    limits = Limits(rate=Bucket.of(per_s=30, burst=9))
    for state in controllers:
        for _ in range(3):
            await let_in(state, "a", limits)
        refused = await state.admit("a", limits, 0)
        assert refused == Refused(Limit.RATE, 0.1)
    clock.now_s += 0.1
    await let_in(controllers[0], "a", limits)


async def test_without_the_store_places_are_shared_out_too(new_id: Ids) -> None:
    memory = Counting()
    one, two = shared(memory, new_id), shared(memory, new_id)
    await meet(one, two)
    memory.away = True
    limits = Limits(concurrency=4)
    for state in (one, two):
        permits = [await let_in(state, "a", limits) for _ in range(2)]
        assert isinstance(await state.admit("a", limits, 0), Refused)
        permits[0].end(1)
        await let_in(state, "a", limits)


async def test_what_was_let_in_meanwhile_counts_when_the_store_is_back(new_id: Ids) -> None:
    memory, clock = Counting(), Clock()
    one, two = shared(memory, new_id, clock), shared(memory, new_id, clock)
    limits = Limits(
        rate=Bucket.of(per_s=0.001, burst=10), tokens=Bucket.of(per_s=0.001, burst=1000), concurrency=4
    )
    memory.away = True
    await one.synchronise()
    permits = [await let_in(one, "a", limits, tokens=100) for _ in range(4)]
    assert memory.admits == 0
    permits[0].end(tokens=300)
    memory.away = False
    await one.synchronise()
    # 3 of 4 places, 4 of 10 requests and 600 of 1000 tokens are taken.
    await let_in(two, "a", Limits(concurrency=4))
    refused = await two.admit("a", Limits(concurrency=4), 0)
    assert isinstance(refused, Refused)
    for _ in range(6):
        await let_in(two, "a", Limits(rate=limits.rate))
    assert isinstance(await two.admit("a", Limits(rate=limits.rate), 0), Refused)
    await let_in(two, "a", Limits(tokens=limits.tokens), tokens=400)
    assert isinstance(await two.admit("a", Limits(tokens=limits.tokens), 1), Refused)


async def test_a_place_given_while_the_answer_was_lost_is_the_same_place(new_id: Ids) -> None:
    memory = Counting()
    one, two = shared(memory, new_id), shared(memory, new_id)
    memory.away = memory.hears = True
    permit = await let_in(one, "a", TWO_AT_ONCE)
    memory.away = False
    await meet(one, two)
    await let_in(two, "a", TWO_AT_ONCE)
    assert isinstance(await two.admit("a", TWO_AT_ONCE, 0), Refused)
    permit.end(1)
    await one.synchronise()
    await let_in(two, "a", TWO_AT_ONCE)


async def test_a_caller_that_leaves_while_the_store_is_asked_takes_no_place(new_id: Ids) -> None:
    class Hanging(Counting):
        async def admit(self, ask: Ask) -> Verdict:
            await super().admit(ask)
            asked.set()
            await asyncio.Event().wait()
            raise AssertionError

    asked = asyncio.Event()
    state = shared(memory := Hanging(), new_id)
    leaving = asyncio.create_task(state.admit("a", TWO_AT_ONCE, 1))
    await asked.wait()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await state.synchronise()
    for lease in "xy":
        assert (await MemoryStore.admit(memory, Ask("a", TWO_AT_ONCE, lease, 0, 60.0))).refused is None


async def test_leases_are_renewed_as_long_as_requests_run(new_id: Ids) -> None:
    clock = Clock()
    memory = Counting(clock)
    one, two = shared(memory, new_id, clock), shared(memory, new_id, clock)
    await let_in(one, "a", TWO_AT_ONCE)
    ended = await let_in(one, "a", TWO_AT_ONCE)
    for _ in range(20):
        clock.now_s += 5.0
        await one.synchronise()
    assert isinstance(await two.admit("a", TWO_AT_ONCE, 0), Refused)
    ended.end(1)
    await one.synchronise()
    await let_in(two, "a", TWO_AT_ONCE)
    assert isinstance(await two.admit("a", TWO_AT_ONCE, 0), Refused)


async def test_a_store_that_forgot_is_told_who_runs(new_id: Ids) -> None:
    class Forgetful(MemoryStore):
        forgot = False

        async def exchange(self, news: News) -> View:
            return replace(await super().exchange(news), forgot=self.forgot)

    memory = Forgetful(Clock())
    one, two = shared(memory, new_id), shared(memory, new_id)
    await let_in(one, "a", TWO_AT_ONCE)
    await let_in(one, "a", TWO_AT_ONCE)
    await meet(one)
    memory._tenants.clear()
    memory.forgot = True
    await one.synchronise()
    memory.forgot = False
    await one.synchronise()
    assert isinstance(await two.admit("a", TWO_AT_ONCE, 0), Refused)


# In the background.


async def test_a_request_takes_two_round_trips_at_most(new_id: Ids) -> None:
    memory = Counting()
    state = shared(memory, new_id, timings=Timings(sync_s=3600))
    await state.start(required=True)
    met = memory.exchanges
    for _ in range(50):
        permit = await let_in(state, "a", TWO_AT_ONCE)
        state.serve("a", 1.0)
        state.offset("a")
        permit.end(1)
        await asyncio.sleep(0)
    await state.stop()
    assert memory.admits == 50
    assert memory.exchanges - met <= 51  # one more when it stops


async def test_a_freed_place_is_told_at_once(new_id: Ids) -> None:
    told = asyncio.Event()

    class Listening(Counting):
        async def exchange(self, news: News) -> View:
            if any(tenant.released for tenant in news.tenants):
                told.set()
            return await super().exchange(news)

    state = shared(Listening(), new_id, timings=Timings(sync_s=3600))
    await state.start(required=True)
    (await let_in(state, "a", TWO_AT_ONCE)).end(1)
    await asyncio.wait_for(told.wait(), 20)
    await state.stop()


async def test_what_was_not_told_yet_is_told_at_the_end(new_id: Ids) -> None:
    memory = Counting()
    state, other = shared(memory, new_id, timings=Timings(sync_s=3600)), shared(memory, new_id)
    await state.start(required=True)
    state.serve("a", 3.0)
    await state.stop()
    other.served("a")
    await other.synchronise()
    assert other.served("a") == 3.0


async def test_a_required_store_must_be_there_at_the_start(connect: Connect, new_id: Ids) -> None:
    port = free_port()
    state = shared(connect(f"redis://127.0.0.1:{port}"), new_id)
    with pytest.raises(StoreError, match=str(port)):
        await state.start(required=True)
    await state.stop()


async def test_an_optional_store_may_come_later(server: Server, connect: Connect, new_id: Ids) -> None:
    server.stop()
    state = shared(connect(server.url), new_id, timings=QUICK)
    await state.start(required=False)
    assert state.outage is not None
    await let_in(state, "a", TWO_AT_ONCE)
    server.start()
    await until(lambda: state.outage is None)
    await state.stop()


async def test_pauses_between_attempts_grow_and_are_spread(
    new_id: Ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    enough = asyncio.Event()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) >= 8:
            enough.set()
            await asyncio.Event().wait()

    monkeypatch.setattr("controller.state.shared.asyncio.sleep", sleep)
    memory = Counting()
    memory.away = True
    state = SharedState(memory, LEVEL, 0.0, Clock(), iter([0.0, 1.0] * 4).__next__, new_id, PATIENT)
    await state.start(required=False)
    await enough.wait()
    await state.stop()
    whole = [0.1 * 2**n for n in range(1, 5)] + [3.0] * 4
    spread = [0.5, 1.0] * 4
    assert pauses == pytest.approx([a * b for a, b in zip(whole, spread, strict=True)])


# A real server that breaks.

QUICK = Timings(sync_s=0.01, call_s=TIMEOUT_S, first_retry_s=0.01, last_retry_s=0.02)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110  # nothing tells when it does
            await asyncio.sleep(0.002)


async def test_a_server_that_forgets_everything_is_told_what_is_known(
    server: Server, connect: Connect, new_id: Ids
) -> None:
    one, two = (shared(connect(server.url), new_id) for _ in range(2))
    one.serve("a", 70.0)
    one.step_offset("a", 1.0)
    await let_in(one, "a", TWO_AT_ONCE)
    two.served("a")
    await meet(one, two)
    two.serve("a", 5.0)
    await meet(one, two)
    server.stop()
    one.serve("a", 20.0)
    two.serve("a", 4.0)
    for state in (one, two):
        await state.synchronise()
        assert state.outage is not None
    await let_in(two, "a", TWO_AT_ONCE)
    server.start()
    for state in (one, two, one, two):
        state.served("a")
        await state.synchronise()
    assert one.served("a") == two.served("a") == 99.0
    assert one.offset("a") == two.offset("a") == 0.5
    for state in (one, two):
        assert isinstance(await state.admit("a", TWO_AT_ONCE, 0), Refused)
        await state.stop()


async def test_a_server_that_is_back_before_anybody_missed_it_learns_who_runs(
    server: Server, connect: Connect, new_id: Ids
) -> None:
    one, two = (shared(connect(server.url), new_id) for _ in range(2))
    await let_in(one, "a", TWO_AT_ONCE)
    await let_in(one, "a", TWO_AT_ONCE)
    await meet(one, two)
    server.stop()
    server.start()
    for state in (one, one, two, two):
        await state.synchronise()
    assert isinstance(await two.admit("a", TWO_AT_ONCE, 0), Refused)
    for state in (one, two):
        await state.stop()


async def test_a_server_killed_and_started_again_in_mid_use_is_used_again(
    server: Server, connect: Connect, new_id: Ids
) -> None:
    state = shared(connect(server.url), new_id, timings=QUICK)
    await state.start(required=True)
    limits = Limits(rate=Bucket.of(per_s=1000, burst=1000))
    for _ in range(3):
        server.stop()
        while state.outage is None:
            state.serve("a", 1.0)
            (await let_in(state, "a", limits)).end(1)
            await asyncio.sleep(0)
        server.start()
        await until(lambda: state.outage is None)
    served = state.served("a")
    other = shared(connect(server.url), new_id)
    await state.synchronise()
    other.served("a")
    await other.synchronise()
    assert other.served("a") == served
    await state.stop()
    await other.stop()


async def test_a_server_that_stands_still_holds_up_one_decision_and_no_other(
    server: Server, connect: Connect, new_id: Ids
) -> None:
    asked: list[Ask] = []
    store = connect(server.url, 0.05)
    admit = store.admit

    async def counted(ask: Ask) -> Verdict:
        asked.append(ask)
        return await admit(ask)

    store.admit = counted  # type: ignore[method-assign]  # to see who asks
    state = shared(store, new_id, timings=Timings(call_s=0.05))
    await state.synchronise()
    server.pause()
    limits = Limits(rate=Bucket.of(per_s=0.001, burst=100), concurrency=100)
    for _ in range(60):
        await let_in(state, "a", limits)
    assert len(asked) <= 1
    assert state.outage is not None
    server.resume()
    patient = shared(connect(server.url), new_id)
    async with asyncio.timeout(60):
        while state.outage is not None:
            await state.synchronise()
    for _ in range(40):
        await let_in(patient, "a", Limits(concurrency=100))
    assert isinstance(await patient.admit("a", Limits(concurrency=100), 0), Refused)
    await state.stop()
    await patient.stop()
