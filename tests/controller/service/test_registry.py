"""Workers that announce themselves, as a controller's callers and operators see them."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest
from google.rpc import error_details_pb2

from controller.state.memory import MemoryStore
from controller.state.store import StoreError, WorkerRecord
from curfew.v1 import admin_pb2
from curfew.v1.admin_pb2 import WORKER_SOURCE_DNS, WORKER_SOURCE_STATIC
from curfew.v1.registry_pb2 import AnnounceRequest, AnnounceResponse
from curfew.v1.registry_pb2_grpc import RegistryServiceStub
from tests.controller.fake_worker import FakeWorker, Script
from tests.controller.service.harness import Door, controller, detail


async def announce(door: Door, worker: FakeWorker | str, **changes: object) -> AnnounceResponse:
    address = worker if isinstance(worker, str) else worker.address
    request = AnnounceRequest(address=address, instance=address, model="fake", version="1", slots=4)
    for field, value in changes.items():
        setattr(request, field, value)
    async with grpc.aio.insecure_channel(door.addresses.admin) as channel:
        return await RegistryServiceStub(channel).Announce(request, timeout=5)


async def addresses(door: Door) -> list[str]:
    status = await door.admin.GetStatus(admin_pb2.GetStatusRequest())
    return [worker.address for worker in status.workers]


async def sources_of(door: Door, worker: FakeWorker) -> list[admin_pb2.WorkerSource.ValueType]:
    status = await door.admin.GetStatus(admin_pb2.GetStatusRequest())
    (found,) = [each for each in status.workers if each.address == worker.address]
    return list(found.sources)


async def test_a_worker_that_announces_itself_is_used() -> None:
    async with FakeWorker() as worker, controller([], ready=False) as door:
        lease = (await announce(door, worker)).lease
        assert 3 <= lease.seconds <= 10
        await door.becomes(serving=True)
        assert (await door.generate("analyst")).plan.worker == worker.address


async def test_a_worker_that_is_gone_is_forgotten_by_all_controllers_with_the_store() -> None:
    store = MemoryStore(time.monotonic)
    async with (
        FakeWorker() as worker,
        controller([], ready=False, store=store) as one,
        controller([], ready=False, store=store) as two,
    ):
        await announce(one, worker)
        for door in (one, two):
            await door.becomes(serving=True)
        await announce(two, worker, gone=True)
        for door in (one, two):
            await door.becomes(serving=False)
            assert await addresses(door) == []


async def test_a_draining_worker_ends_what_it_has_and_gets_nothing_new() -> None:
    async with (
        FakeWorker(Script(pause_after=3)) as drains,
        FakeWorker() as other,
        controller([], ready=False) as door,
    ):
        await announce(door, drains)
        await door.becomes(serving=True)
        running = asyncio.create_task(door.generate("analyst"))
        await drains.paused.wait()
        await announce(door, drains, draining=True)
        await door.becomes(serving=False)
        await announce(door, other)
        await door.becomes(serving=True)
        assert {(await door.generate("analyst")).plan.worker for _ in range(5)} == {other.address}
        drains.go_on.set()
        answer = await running
    assert answer.error is None
    assert len(answer.completion.attempts) == 1


async def test_a_request_on_a_worker_that_has_left_is_answered_there() -> None:
    async with FakeWorker(Script(pause_after=3)) as worker, controller([], ready=False) as door:
        await announce(door, worker)
        await door.becomes(serving=True)
        running = asyncio.create_task(door.generate("analyst"))
        await worker.paused.wait()
        await announce(door, worker, gone=True)
        await door.becomes(serving=False)
        worker.go_on.set()
        answer = await running
        assert answer.error is None
        while await addresses(door):
            pass  # the link is cleared away in a moment


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("address", "nowhere"),
        ("address", "0.0.0.0:7210"),
        ("address", "[::]:7210"),
        ("address", "host:0"),
        ("address", f"{'h' * 300}:1"),
        ("instance", ""),
        ("instance", "i" * 65),
        ("slots", 0),
    ],
)
async def test_a_bad_announcement_is_refused_by_its_field(field: str, value: str | int) -> None:
    async with controller([], ready=False) as door:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await announce(door, "127.0.0.1:7210", **{field: value})
        assert await addresses(door) == []
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    violations = detail(caught.value, error_details_pb2.BadRequest).field_violations
    assert [violation.field for violation in violations] == [field]


class Away(MemoryStore):
    """A store that takes no announcement."""

    async def announce(self, worker: WorkerRecord, ttl_s: float) -> None:
        raise StoreError("secret")


async def test_while_the_store_is_away_workers_are_told_to_come_again() -> None:
    async with controller([], ready=False, store=Away(time.monotonic)) as door:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await announce(door, "127.0.0.1:7210")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "secret" not in str(caught.value)
    assert detail(caught.value, error_details_pb2.RetryInfo).retry_delay.ToNanoseconds() > 0


async def test_workers_are_found_by_name_and_one_that_two_sources_name_is_one() -> None:
    async with FakeWorker() as worker:
        port = int(worker.address.rpartition(":")[2])
        async with controller([worker.address], workers_dns=("localhost", port)) as door:
            while WORKER_SOURCE_DNS not in (sources := await sources_of(door, worker)):
                pass  # the look-up is under way
            assert sources == [WORKER_SOURCE_STATIC, WORKER_SOURCE_DNS]
            assert (await addresses(door)).count(worker.address) == 1
