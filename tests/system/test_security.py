"""The whole system with certificates on every hop, as processes."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from curfew.client import AsyncClient, InvalidRequest, Tls, Unauthenticated
from curfew.processes import Service, start_service
from curfew.rpc.tls import Dialler
from curfew.v1 import worker_pb2
from curfew.v1.worker_pb2_grpc import WorkerServiceStub
from tests.certificates import Authority, Identity
from tests.system.conftest import LONG_SUM, LOOPBACK, MODEL, write_policy

SERVING = health_pb2.HealthCheckResponse.SERVING
CURFEW = str(Path(sys.executable).parent / "curfew")
GRACE_S = 2.0


@dataclass(frozen=True, slots=True)
class Secured:
    """A worker and a controller that found each other by the worker's announcement."""

    worker: Service
    controller: Service
    caller: Identity
    operator: Identity
    log: Path

    @property
    def tls(self) -> Tls:
        """What the caller connects with."""
        return Tls(self.caller.ca, self.caller.cert, self.caller.key)

    @property
    def at_worker(self) -> str:
        return self.worker.addresses["listen"]


def own(identity: Identity, prefix: str) -> list[str]:
    return [f"--{prefix}-cert", str(identity.cert), f"--{prefix}-key", str(identity.key)]


@asynccontextmanager
async def secured(directory: Path, *at_worker: str, log: IO[bytes] | None = None) -> AsyncIterator[Secured]:
    """Every hop encrypted, both sides of each known, operators and announcements with keys too."""
    authority = Authority(directory / "certificates")
    worker, controller, caller, operator = map(
        authority.issue, ("worker.internal", "controller.internal", "support.example", "ops.example")
    )
    operators, workers = directory / "operators", directory / "workers"
    operators.write_text("an-operators-key\n")
    workers.write_text("a-workers-key\n")
    ca = str(authority.ca)
    started: list[Service] = []
    try:
        arguments = ["--policy", str(write_policy(directory / "policy.yaml", 0.005))]
        arguments += ["--listen", LOOPBACK, "--admin", LOOPBACK, "--grace-s", str(GRACE_S)]
        arguments += [*own(controller, "tls"), "--tls-client-ca", ca]
        arguments += ["--admin-tls-client-ca", ca, "--admin-allow", "ops.example"]
        arguments += ["--announce-allow", "worker.internal"]
        arguments += ["--admin-keys", str(operators), "--announce-keys", str(workers)]
        arguments += ["--worker-ca", ca, "--worker-name", "worker.internal", *own(controller, "worker")]
        started.append(await start_service("controller", arguments, log=log))
        admin = started[0].addresses["admin"]
        arguments = ["--model", str(MODEL), "--listen", LOOPBACK, *own(worker, "tls"), "--tls-client-ca", ca]
        arguments += ["--allow", "controller.internal", "--announce", admin, "--announce-ca", ca]
        arguments += ["--announce-secret", str(workers), "--grace-s", str(GRACE_S), *at_worker]
        started.append(await start_service("worker", arguments, log=log))
        yield Secured(started[1], started[0], caller, operator, directory / "log")
    finally:
        for service in started:
            await service.stop()


async def curfew(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(CURFEW, *arguments, stdout=PIPE, stderr=PIPE)
    out, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), errors.decode()


def shown(identity: Identity) -> tuple[str, ...]:
    return ("--ca", str(identity.ca), "--cert", str(identity.cert), "--cert-key", str(identity.key))


async def serving(system: Secured) -> None:
    """Returns once the controller has a worker."""
    async with Dialler(system.tls).open(system.controller.addresses["listen"]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        try:
            async for response in watch:
                if response.status == SERVING:
                    return
        finally:
            watch.cancel()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Secured]:
    """One for the tests that leave it as it was."""
    directory = tmp_path_factory.mktemp("secured")
    with (directory / "log").open("wb") as log:
        async with secured(directory, log=log) as running:
            await serving(running)
            yield running


async def test_every_command_works_with_certificates_and_none_without(system: Secured) -> None:
    listen, admin = system.controller.addresses["listen"], system.controller.addresses["admin"]
    ask = ("ask", "--address", listen, "--key", "key-patient", "--quiet", "What is 12 + 37?")
    assert await curfew(*ask, *shown(system.caller)) == (0, "49\n", "")
    assert (await curfew(*ask, "--ca", str(system.caller.ca)))[0] == 6
    top = ("top", "--once", "--json", "--admin", admin)
    assert (await curfew(*top, *shown(system.operator), "--key", "an-operators-key"))[0] == 0
    for stranger in (
        (*shown(system.operator), "--key", "a-workers-key"),
        (*shown(system.operator), "--key", "key-patient"),
        (*shown(system.caller), "--key", "an-operators-key"),
    ):
        assert (await curfew(*top, *stranger))[0] == 4, stranger


async def test_a_worker_answers_controllers_alone_and_tells_its_models_terms(
    system: Secured, tmp_path: Path
) -> None:
    request = worker_pb2.DescribeWorkerRequest()
    ca = system.caller.ca
    impostor = Authority(tmp_path, "authority").issue("controller.internal")
    for who, code in (
        (system.caller, grpc.StatusCode.PERMISSION_DENIED),
        (impostor, grpc.StatusCode.UNAVAILABLE),
    ):
        async with Dialler(Tls(ca, who.cert, who.key)).open(system.at_worker) as channel:
            call = WorkerServiceStub(channel).DescribeWorker(request, timeout=20)
            assert await call.code() is code
    ours = Tls(ca, ca.with_name("controller.internal.crt"), ca.with_name("controller.internal.key"))
    async with Dialler(ours).open(system.at_worker) as channel:
        told = await WorkerServiceStub(channel).DescribeWorker(request, timeout=20)
    assert told.licence.name == "Apache-2.0"
    # Health is for everybody whose certificate is known: a probe shows the worker's own.
    assert (await curfew("health", system.at_worker, *shown(system.caller)))[0] == 0


async def test_no_log_holds_a_credential_or_a_question(system: Secured) -> None:
    address, question = system.controller.addresses["listen"], "What is 11 + 38?"
    async with AsyncClient(address, key="key-patient", tls=system.tls) as client:
        assert (await client.ask(question)).answer == "49"
        with pytest.raises(InvalidRequest):
            await client.ask(question, labels={"a" * 99: "x"})
    async with AsyncClient(address, key="key-of-a-stranger", tls=system.tls) as client:
        with pytest.raises(Unauthenticated):
            await client.ask(question)
    said = system.log.read_text()
    assert "Apache-2.0" in said
    for secret in (
        "key-patient",
        "key-of-a-stranger",
        "an-operators-key",
        "a-workers-key",
        "11 + 38",
        "PRIVATE",
    ):
        assert secret not in said


async def test_both_end_in_time_however_long_their_callers_want_to_stay(tmp_path: Path) -> None:
    slow = ("--least-step-ms", "100", "--slots", "1")
    async with secured(tmp_path, *slow) as system:
        await serving(system)
        address, clock = system.controller.addresses["listen"], asyncio.get_running_loop().time
        async with (
            AsyncClient(address, key="key-patient", tls=system.tls) as client,
            client.generate(LONG_SUM) as stream,
        ):
            await anext(aiter(stream))
            begun_s = clock()
            for service in (system.controller, system.worker):
                service.process.send_signal(signal.SIGTERM)
            for service in (system.controller, system.worker):
                assert await asyncio.wait_for(service.process.wait(), 20) == 0
            took_s = clock() - begun_s
    # Twice the grace, and what a process takes to be gone on a machine that does much else.
    assert GRACE_S <= took_s < 2 * GRACE_S + 4.0
