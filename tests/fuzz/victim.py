"""The system that is attacked: a real worker and a real controller, with a good caller who must notice
nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2

from curfew import AsyncClient, Sampling
from curfew.processes import Service, start_service
from curfew.v1 import admin_pb2, generation_pb2, reasoning_pb2, registry_pb2, worker_pb2
from curfew.v1.admin_pb2_grpc import AdminServiceStub
from curfew.v1.worker_pb2_grpc import WorkerServiceStub
from tests.fuzz.frames import Door
from tests.fuzz.messages import Method, methods

ROOT = Path(__file__).parents[2]
LOOPBACK = "127.0.0.1:0"
GOOD, BAD = "key-good", "key-bad"
GENERATE = "/curfew.v1.ReasoningService/Generate"


@dataclass(frozen=True, slots=True)
class Vitals:
    """What a process holds."""

    resident_mib: float
    descriptors: int
    threads: int

    @classmethod
    def of(cls, service: Service) -> Vitals:
        """Now."""
        proc = Path(f"/proc/{service.process.pid}")
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        resident_kib = int(status["VmRSS"].split()[0])
        return cls(resident_kib / 1024, len(list((proc / "fd").iterdir())), int(status["Threads"]))


@dataclass(slots=True)
class Answers:
    """How a good caller fared. latencies_s: of the answered."""

    latencies_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Victim:
    """The running system. logs: what the worker and the controller have written on standard error."""

    worker: Service
    controller: Service
    logs: tuple[Path, ...]

    @property
    def callers(self) -> str:
        """Address of the controller's door for callers."""
        return self.controller.addresses["listen"]

    @property
    def operators(self) -> str:
        """Address of the controller's door for operators."""
        return self.controller.addresses["admin"]

    @property
    def engine(self) -> str:
        """Address of the worker."""
        return self.worker.addresses["listen"]

    @property
    def services(self) -> tuple[Service, Service]:
        """Both processes."""
        return self.worker, self.controller

    def methods(self) -> list[Method]:
        """Every method of every service, with a request that it takes."""
        asked = [generation_pb2.Message(role=generation_pb2.ROLE_USER, content="What is 12 + 37?")]
        generate = reasoning_pb2.GenerateRequest(messages=asked)
        callers = {
            "Generate": generate,
            "Plan": reasoning_pb2.PlanRequest(request=generate),
            "ReportOutcome": reasoning_pb2.ReportOutcomeRequest(request_id="none", score=1),
        }
        work = worker_pb2.WorkerServiceGenerateRequest(
            request_id="fuzz",
            messages=asked,
            mode=generation_pb2.MODE_THINK,
            budget=generation_pb2.Budget(reasoning_tokens=20, answer_tokens=5),
        )
        adjust = worker_pb2.AdjustBudgetRequest(request_id="none", reasoning_tokens=5)
        key = (("authorization", f"Bearer {BAD}"),)
        found = [
            *methods(Door(self.callers, "", b"", key), "curfew.v1.ReasoningService", callers),
            *methods(Door(self.operators, "", b""), "curfew.v1.AdminService", {}),
            *methods(
                Door(self.operators, "", b""),
                "curfew.v1.RegistryService",
                {"Announce": registry_pb2.AnnounceRequest(address="127.0.0.1:1", instance="none")},
            ),
            *methods(
                Door(self.engine, "", b""),
                "curfew.v1.WorkerService",
                {"Generate": work, "AdjustBudget": adjust},
            ),
        ]
        for address in (self.callers, self.operators, self.engine):
            found += methods(Door(address, "", b""), "grpc.health.v1.Health", {})
        # A watch has no end by itself.
        return [method for method in found if not method.door.method.endswith("/Watch")]

    def doors(self) -> list[Door]:
        """One method of each of the three servers, with a request that it takes."""
        names = (GENERATE, "/curfew.v1.AdminService/GetStatus", "/curfew.v1.WorkerService/Generate")
        by_name = {method.door.method: method for method in self.methods()}
        return [replace(by_name[name].door, message=by_name[name].base.SerializeToString()) for name in names]

    def http_doors(self) -> list[Door]:
        """The controller's door for callers over HTTP, and its metrics."""
        key = (("authorization", f"Bearer {BAD}"),)
        places = (("http", "/v1/chat/completions"), ("metrics", "/metrics"))
        return [Door(self.controller.addresses[name], path, b"", key) for name, path in places]

    @asynccontextmanager
    async def good_caller(self, every_s: float = 0.05) -> AsyncIterator[Answers]:
        """Asks steadily, one question after the other, as long as the context lasts."""
        answers = Answers()
        async with AsyncClient(self.callers, key=GOOD) as client:
            asking = asyncio.create_task(_ask(client, answers, every_s))
            try:
                yield answers
            finally:
                asking.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asking

    async def healthy(self) -> bool:
        """Whether each of the three servers says that it serves."""
        return all([await _serves(address) for address in (self.callers, self.operators, self.engine)])

    async def at_rest(self, within_s: float) -> bool:
        """Waits until nobody's request is left anywhere, at most so long. Returns whether none is."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while await self._busy():  # noqa: ASYNC110  # nothing tells
                    await asyncio.sleep(0.05)
                return True
        return False

    async def _busy(self) -> bool:
        async with grpc.aio.insecure_channel(self.operators) as channel:
            standings = await AdminServiceStub(channel).ListTenantStandings(
                admin_pb2.ListTenantStandingsRequest()
            )
        async with grpc.aio.insecure_channel(self.engine) as channel:
            load = (await WorkerServiceStub(channel).DescribeWorker(worker_pb2.DescribeWorkerRequest())).load
        return any(each.in_flight for each in standings.standings) or load.running > 0 or load.waiting > 0

    def complaints(self) -> list[str]:
        """What the logs tell of that was not foreseen. A traceback without a line of Curfew's is gRPC's or
        uvicorn's, of a caller who has left or whose request broke off.
        """
        found = []
        for log in self.logs:
            text = log.read_text(errors="replace")
            found += [line for line in text.splitlines() if "unforeseen" in line or "CRITICAL" in line]
            traces = re.findall(r"^Traceback.*\n(?:[ \t].*\n)+.*$", text, re.MULTILINE)
            ours = re.compile(rf'File "{re.escape(str(ROOT))}/(?:controller|curfew|kernels|worker)/')
            found += [trace for trace in traces if ours.search(trace)]
        return found


async def _ask(client: AsyncClient, answers: Answers, every_s: float) -> None:
    while True:
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(30):
                answer = await client.ask("What is 12 + 37 + 45?", sampling=Sampling(temperature=0.0))
            if answer.answer == "94":
                answers.latencies_s.append(time.monotonic() - began_s)
            else:
                answers.failures.append(f"answered {answer.answer!r}")
        except Exception as error:
            answers.failures.append(f"{type(error).__name__}: {error}")
        await asyncio.sleep(every_s)


async def _serves(address: str) -> bool:
    async with grpc.aio.insecure_channel(address) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        reply: health_pb2.HealthCheckResponse = await check(health_pb2.HealthCheckRequest(), timeout=5)
    return reply.status == health_pb2.HealthCheckResponse.SERVING


@asynccontextmanager
async def running_victim(directory: Path) -> AsyncIterator[Victim]:
    """Starts both services, their logs in `directory`; stops what is left of them."""
    logs = tuple(directory / f"{name}.log" for name in ("worker", "controller"))
    policy = directory / "policy.yaml"
    policy.write_text(_policy())
    async with AsyncExitStack() as stack:
        worker_log, controller_log = (stack.enter_context(log.open("wb")) for log in logs)
        model = str(ROOT / "demo" / "model")
        worker = await start_service("worker", ["--model", model, "--listen", LOOPBACK], log=worker_log)
        stack.push_async_callback(worker.stop)
        doors = [word for name in ("listen", "admin", "http", "metrics") for word in (f"--{name}", LOOPBACK)]
        doors += ["--worker", worker.addresses["listen"]]
        controller = await start_service("controller", ["--policy", str(policy), *doors], log=controller_log)
        stack.push_async_callback(controller.stop)
        yield Victim(worker, controller, logs)


def _policy() -> str:
    good, bad = (f"sha256:{hashlib.sha256(key.encode()).hexdigest()}" for key in (GOOD, BAD))
    return f"""\
apiVersion: curfew/v1
defaults:
  budget: {{max: 200, grace: 12, answer: 12}}
  otherwise: best_effort
tenants:
  - name: good
    keys: [{good}]
    objectives: {{deadline: 20s, share: p95}}
  - name: bad
    keys: [{bad}]
    objectives: {{deadline: 20s, share: p50}}
    budget: {{max: 16, grace: 0, answer: 4}}
"""
