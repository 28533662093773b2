"""Replays a trace against the real system: real processes, demo problems, an open loop.

Not a benchmark by itself. Arrivals come when the trace says, whatever became of those before; each is a
problem of the demo whose reasoning is about as long as the trace's. The trace's lengths must be scaled to
what the demo's problems have (`DEMO_REASONING`); its prompts' lengths are not kept: a problem's prompt is
what it is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import IO, TYPE_CHECKING

import grpc

from controller.simulation.trace import Trace
from curfew.processes import start_service
from curfew.v1 import generation_pb2, reasoning_pb2
from curfew.v1.reasoning_pb2_grpc import ReasoningServiceStub
from demo.problems import MAX_NUMBERS, MIN_NUMBERS, Problem, draw, is_right

if TYPE_CHECKING:
    from curfew.v1.reasoning_pb2_grpc import ReasoningServiceAsyncStub

DEMO = Path(__file__).parents[1] / "demo"
DEMO_REASONING = (12, 122)
"""Reasoning tokens of the demo's problems, about: of two numbers, of twelve."""
CLOSING_TOKENS = 3
"""Of a reasoning that ends by itself, counted with it."""
CANDIDATES = 3
"""Problems of each size among which the one of the best length is taken."""


@dataclass(frozen=True, slots=True)
class Item:
    """A request to be sent. arrival_s: from the beginning. tenant: of the policy."""

    arrival_s: float
    tenant: str
    problem: Problem


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of an item, on the caller's clock. What is None did not come.

    sent_s: when it was sent, from the beginning; later than its arrival where this process was late.
    latency_s: to the end of the stream, or to the error. code: OK, or the error's.
    """

    item: Item
    sent_s: float
    latency_s: float
    code: grpc.StatusCode
    answer: str
    plan: reasoning_pb2.Plan | None
    completion: reasoning_pb2.Completion | None

    @property
    def right(self) -> bool:
        """Whether the answer is the sum."""
        return self.completion is not None and is_right(self.item.problem, self.answer)

    @property
    def kept(self) -> bool:
        """Whether it was answered and the controller says that every promise was kept."""
        return self.completion is not None and all(result.kept for result in self.completion.objectives)

    def within(self, deadline_s: float) -> bool:
        """Whether it was answered in so much time, by the caller's clock."""
        return self.completion is not None and self.latency_s <= deadline_s

    @property
    def reasoning_tokens(self) -> int:
        """Reasoning tokens used; 0 without an answer."""
        return 0 if self.completion is None else self.completion.usage.reasoning_tokens


def reasoning_length(problem: Problem) -> int:
    """Tokens of a problem's reasoning when nobody ends it: a character each, and ` + ` and ` = ` are one."""
    return sum(len(line.replace(" ", "")) + 1 for line in problem.reasoning) + CLOSING_TOKENS


def problem_like(reasoning_tokens: int, random: Random) -> Problem:
    """A problem whose reasoning is about so long, as far as problems go."""
    candidates = [draw(random, n) for n in range(MIN_NUMBERS, MAX_NUMBERS + 1) for _ in range(CANDIDATES)]
    return min(candidates, key=lambda problem: abs(reasoning_length(problem) - reasoning_tokens))


def items_of(trace: Trace, tenant_of: Callable[[str, float], str], seed: int) -> list[Item]:
    """The items of a trace. tenant_of: the policy's tenant for the trace's and a number in [0, 1)."""
    random = Random(f"curfew-replay-{seed}")
    return [
        Item(
            arrival.arrival_s,
            tenant_of(arrival.tenant, random.random()),
            problem_like(arrival.reasoning_tokens, random),
        )
        for arrival in trace.arrivals
    ]


async def replay(
    address: str,
    keys: Mapping[str, str],
    items: Sequence[Item],
    *,
    timeout_s: float | None = None,
    progress: Callable[[int], None] = lambda done: None,
    report: bool = False,
) -> list[Reply]:
    """Sends every item at its time, once, and returns the replies in the items' order.

    keys: API keys by tenant. timeout_s: of a call; None for no limit. progress: told how many have ended.
    report: whether the controller is told if answers were right.
    """
    done = 0
    async with grpc.aio.insecure_channel(address) as channel:
        stub = ReasoningServiceStub(channel)
        await channel.channel_ready()
        began_s = time.monotonic()

        async def one(item: Item) -> Reply:
            nonlocal done
            await asyncio.sleep(began_s + item.arrival_s - time.monotonic())
            reply = await _send(stub, keys[item.tenant], item, began_s, timeout_s)
            done += 1
            progress(done)
            if report and reply.plan is not None and reply.completion is not None:
                outcome = reasoning_pb2.ReportOutcomeRequest(
                    request_id=reply.plan.request_id, score=float(reply.right)
                )
                await stub.ReportOutcome(outcome, metadata=_authorization(keys[item.tenant]))
            return reply

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in items]
    return [task.result() for task in tasks]


def _authorization(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


async def _send(
    stub: ReasoningServiceAsyncStub, key: str, item: Item, began_s: float, timeout_s: float | None
) -> Reply:
    question = generation_pb2.Message(role=generation_pb2.ROLE_USER, content=item.problem.question)
    request = reasoning_pb2.GenerateRequest(messages=[question])
    plan, completion, answer, code = None, None, [], grpc.StatusCode.OK
    sent_s = time.monotonic()
    call = stub.Generate(request, metadata=_authorization(key), timeout=timeout_s)
    try:
        async for event in call:
            if event.HasField("delta"):
                if event.delta.phase == generation_pb2.PHASE_ANSWER:
                    answer.append(event.delta.text)
            elif event.HasField("plan"):
                plan = event.plan
            elif event.HasField("completion"):
                completion = event.completion
    except grpc.aio.AioRpcError as error:
        code = error.code()
    finally:
        call.cancel()
    now_s = time.monotonic()
    return Reply(item, sent_s - began_s, now_s - sent_s, code, "".join(answer), plan, completion)


@asynccontextmanager
async def serving(
    policy: Path,
    *,
    workers: int = 1,
    worker_arguments: Sequence[str] = (),
    controller_arguments: Sequence[str] = (),
    model: Path = DEMO / "model",
    log: IO[bytes] | None = None,
) -> AsyncIterator[tuple[str, list[str]]]:
    """Runs workers and a controller as processes; yields the controller's address and the workers'.

    log: where their standard error goes; None leaves it on this process's. Raises ServiceError.
    """
    async with AsyncExitStack() as stack:
        addresses = []
        for _ in range(workers):
            arguments = ["--model", str(model), "--listen", "127.0.0.1:0", *worker_arguments]
            worker = await start_service("worker", arguments, log=log)
            stack.push_async_callback(worker.stop)
            addresses.append(worker.addresses["listen"])
        known = [argument for address in addresses for argument in ("--worker", address)]
        arguments = ["--policy", str(policy), *known, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
        controller = await start_service("controller", [*arguments, *controller_arguments], log=log)
        stack.push_async_callback(controller.stop)
        yield controller.addresses["listen"], addresses
