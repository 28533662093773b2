"""The policy changes while the controller serves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2

from controller.policy import LivePolicy, Policy, PolicyError, load_policy, parse_policy
from controller.service.reload import watch
from controller.service.server import POLICY_HEALTH
from curfew.v1 import admin_pb2
from tests.controller.fake_worker import FakeWorker, Script
from tests.controller.service.harness import KEYS, Door, controller, detail

NEVER_S = 600.0


def text(budget: int, more: str = "") -> str:
    return (
        "apiVersion: curfew/v1\ntenants:\n  - name: analyst\n    key: {env: ANALYST}\n"
        f"    objectives: {{deadline: {budget}s}}\n    budget: {{max: {budget}}}\n{more}"
    )


BAD = text(5, "    mod: think\n    weight: heavy\n")


def put(file: Path, content: str) -> None:
    """Replaces a file as careful editors do: at once, never half written."""
    other = file.with_name("other")
    other.write_text(content)
    other.rename(file)


def remove(file: Path) -> None:
    file.unlink()


class Noted(LivePolicy):
    """Tells what came of each reload."""

    def __init__(self, file: Path, secrets: Path | None = None) -> None:
        self.broken = False
        self.outcomes: asyncio.Queue[bool | Exception] = asyncio.Queue()

        def read() -> Policy:
            if self.broken:
                raise MemoryError
            return load_policy(file, KEYS, secrets)

        super().__init__(read)

    async def reload(self) -> bool:
        try:
            changed = await super().reload()
        except Exception as error:
            self.outcomes.put_nowait(error)
            raise
        self.outcomes.put_nowait(changed)
        return changed

    async def outcome(self, within_s: float = 20.0) -> bool | Exception:
        return await asyncio.wait_for(self.outcomes.get(), within_s)

    @property
    def budget(self) -> int:
        return self.current.tenants["analyst"].budget.max_tokens


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(text(10))
    return path


@asynccontextmanager
async def watched(file: Path, look_s: float) -> AsyncIterator[Noted]:
    """The policy of a file that is watched."""
    policy = Noted(file)
    watching = asyncio.create_task(watch(file, policy, look_s))
    try:
        assert await policy.outcome() is False  # the look at the start finds what was loaded
        yield policy
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching


async def changes_until_noticed(policy: Noted, change: Callable[[int], None]) -> int:
    """Makes changes, numbered, until one is noticed: the first may come before the watch has begun."""
    for number in range(20, 40):
        change(number)
        with contextlib.suppress(TimeoutError):
            assert await policy.outcome(within_s=1.0) is True
            return number
    raise AssertionError("no change was noticed")


async def reload(door: Door) -> admin_pb2.ReloadPolicyResponse:
    return await door.admin.ReloadPolicy(admin_pb2.ReloadPolicyRequest())


async def test_a_file_that_is_replaced_comes_into_force(file: Path) -> None:
    async with watched(file, NEVER_S) as policy:
        number = await changes_until_noticed(policy, lambda number: put(file, text(number)))
        assert policy.budget == number


async def test_a_config_map_that_is_swapped_comes_into_force(tmp_path: Path) -> None:
    """Kubernetes keeps the files in a hidden directory, and renames a link to a new one over `..data`."""

    def swap(number: int) -> None:
        version = tmp_path / f"..version-{number}"
        version.mkdir()
        (version / "policy.yaml").write_text(text(number))
        link = tmp_path / "..data_tmp"
        link.symlink_to(version.name)
        link.rename(tmp_path / "..data")

    swap(10)
    file = tmp_path / "policy.yaml"
    file.symlink_to("..data/policy.yaml")
    async with watched(file, NEVER_S) as policy:
        number = await changes_until_noticed(policy, swap)
        assert policy.budget == number


async def test_keys_in_files_that_change_come_into_force(tmp_path: Path) -> None:
    secrets, file = tmp_path / "secrets", tmp_path / "policy.yaml"
    secrets.mkdir()
    put(secrets / "analyst-key", "old-key")
    file.write_text(text(10).replace("env: ANALYST", "file: analyst-key"))
    policy = Noted(file, secrets)
    watching = asyncio.create_task(watch(file, policy, NEVER_S, secrets))
    try:
        assert await policy.outcome() is False
        number = await changes_until_noticed(policy, lambda n: put(secrets / "analyst-key", f"new-key-{n}"))
        assert policy.current.tenant_of(f"new-key-{number}") is policy.current.tenants["analyst"]
        assert policy.current.tenant_of("old-key") is None
    finally:
        watching.cancel()


async def test_a_change_that_the_directory_does_not_report_is_found_by_looking(tmp_path: Path) -> None:
    elsewhere, here = tmp_path / "elsewhere", tmp_path / "here"
    elsewhere.mkdir()
    here.mkdir()
    real, file = elsewhere / "real.yaml", here / "policy.yaml"
    put(real, text(10))
    file.symlink_to(real)
    async with watched(file, look_s=0.05) as policy:
        put(real, text(200))
        assert await policy.outcome() is True
        assert policy.budget == 200


async def test_a_bad_file_is_logged_once_and_changes_nothing(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched(file, look_s=0.05) as policy:
        version = policy.current.version
        put(file, BAD)
        assert isinstance(await policy.outcome(), PolicyError)
        assert policy.current.version == version
        put(file, text(200))
        assert await policy.outcome() is True
    refused = [record.message for record in caplog.records if "is refused" in record.message]
    assert refused == [
        f"{file} is refused, policy {version} stays in force:\n"
        f"{file}:7:5: tenants[0].mod: unknown key; did you mean mode?\n"
        f"{file}:8:13: tenants[0].weight: 'heavy' is not a weight; write a number above 0, such as 2 or 0.5"
    ]


async def test_a_file_that_goes_and_returns_is_taken_again(file: Path) -> None:
    async with watched(file, look_s=0.05) as policy:
        remove(file)
        assert isinstance(await policy.outcome(), PolicyError)
        put(file, text(200))
        assert await policy.outcome() is True
        assert policy.budget == 200


async def test_what_nobody_foresaw_does_not_end_the_watch(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched(file, look_s=0.05) as policy:
        version = policy.current.version
        policy.broken = True
        put(file, text(100))
        assert isinstance(await policy.outcome(), MemoryError)
        assert policy.current.version == version
        policy.broken = False
        put(file, text(200))
        assert await policy.outcome() is True
        assert policy.budget == 200
    assert f"{file} could not be read, policy {version} stays in force" in caplog.text


async def test_operators_can_reload(file: Path) -> None:
    async with controller([], Noted(file), ready=False) as door:
        same = await reload(door)
        put(file, text(20))
        other = await reload(door)
        shown = await door.admin.GetPolicy(admin_pb2.GetPolicyRequest())
    assert (same.changed, other.changed) == (False, True)
    assert same.policy_version != other.policy_version == shown.policy_version
    assert shown.yaml == text(20)


async def test_a_bad_file_is_refused_with_a_violation_for_each_error(file: Path) -> None:
    async with FakeWorker() as worker, controller([worker.address], Noted(file)) as door:
        put(file, BAD)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await reload(door)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        violations = detail(caught.value, error_details_pb2.BadRequest).field_violations
        assert [(v.field, v.description) for v in violations] == [
            (f"{file}:7:5", "tenants[0].mod: unknown key; did you mean mode?"),
            (
                f"{file}:8:13",
                "tenants[0].weight: 'heavy' is not a weight; write a number above 0, such as 2 or 0.5",
            ),
        ]
        shown = await door.admin.GetPolicy(admin_pb2.GetPolicyRequest())
        assert shown.yaml == text(10)
        assert shown.rejected.startswith(f"{file}:7:5: tenants[0].mod: unknown key")
        await door.becomes(serving=True)
        assert (await door.generate("analyst")).plan.policy_version == shown.policy_version
        put(file, text(20))
        await reload(door)
        assert (await door.admin.GetPolicy(admin_pb2.GetPolicyRequest())).rejected == ""


async def test_a_bad_file_shows_in_the_health_that_operators_ask_for(file: Path) -> None:
    async def health() -> int:
        async with grpc.aio.insecure_channel(door.addresses.admin) as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            return int((await check(health_pb2.HealthCheckRequest(service=POLICY_HEALTH))).status)

    async with controller(["127.0.0.1:9"], Noted(file), ready=False) as door:
        assert await health() == health_pb2.HealthCheckResponse.SERVING
        put(file, BAD)
        with pytest.raises(grpc.aio.AioRpcError):
            await reload(door)
        assert await health() == health_pb2.HealthCheckResponse.NOT_SERVING
        put(file, text(11))
        await reload(door)
        assert await health() == health_pb2.HealthCheckResponse.SERVING


async def test_a_running_request_keeps_the_policy_it_began_with(file: Path) -> None:
    async with (
        FakeWorker(Script(pause_after=5)) as worker,
        controller([worker.address], Noted(file)) as door,
    ):
        request = asyncio.create_task(door.generate("analyst"))
        await asyncio.wait_for(worker.paused.wait(), 10)
        put(file, text(15))
        version = (await reload(door)).policy_version
        worker.go_on.set()
        before, after = await request, await door.generate("analyst")
    assert before.error is None
    assert before.plan.policy_version != version == after.plan.policy_version
    deadlines = [answer.completion.objectives[0].promised.seconds for answer in (before, after)]
    assert deadlines == [10, 15]


async def test_tenants_come_and_go(file: Path) -> None:
    support = "  - name: support\n    key: {env: SUPPORT}\n"
    async with FakeWorker() as worker, controller([worker.address], Noted(file)) as door:
        unknown = await door.generate("support")
        put(file, text(10, support))
        await reload(door)
        known = await door.generate("support")
        standings = (await door.admin.ListTenantStandings(admin_pb2.ListTenantStandingsRequest())).standings
        put(file, text(10))
        await reload(door)
        gone = await door.generate("support")
    assert known.error is None
    assert [(s.tenant, s.requests) for s in standings] == [("analyst", 0), ("support", 1)]
    for answer in (unknown, gone):
        assert answer.error is not None
        assert answer.error.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_no_request_is_dropped_while_the_policy_changes(file: Path) -> None:
    texts = [text(10), text(20), BAD]
    budgets = {parse_policy(t, "policy.yaml", KEYS).version: b for t, b in zip(texts, (10, 20), strict=False)}
    script = Script(step_s=0.0)
    async with FakeWorker(script, slots=8) as worker, controller([worker.address], Noted(file)) as door:

        async def caller() -> list[tuple[str, int]]:
            plans = []
            for _ in range(12):
                answer = await door.generate("analyst")
                assert answer.error is None
                assert answer.completion.usage.output_tokens > 0
                plans.append((answer.plan.policy_version, answer.plan.budget.reasoning_tokens))
            return plans

        callers = asyncio.gather(*(caller() for _ in range(8)))
        reloads = 0
        while not callers.done():
            put(file, texts[reloads % 3])
            with contextlib.suppress(grpc.aio.AioRpcError):
                await reload(door)
            reloads += 1
        plans = [plan for plans in await callers for plan in plans]
    assert len(plans) == 96
    assert reloads > 3
    assert {version for version, _ in plans} == set(budgets)
    for version, budget in plans:
        assert budget == budgets[version]


def test_a_policy_that_cannot_be_loaded_is_none() -> None:
    def read() -> Policy:
        return parse_policy(BAD, "policy.yaml", KEYS)

    with pytest.raises(PolicyError):
        LivePolicy(read)
