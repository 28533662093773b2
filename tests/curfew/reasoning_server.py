"""A real server of ReasoningService that does what the question asks for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc

from curfew.rpc.durations import duration
from curfew.rpc.errors import RpcError
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import reasoning_pb2
from curfew.v1.reasoning_pb2_grpc import ReasoningServiceServicer, add_ReasoningServiceServicer_to_server

Response = reasoning_pb2.GenerateResponse

PLAN = reasoning_pb2.Plan(
    request_id="r1",
    policy_version="v1",
    tenant="support",
    rule="tenants[0]",
    mode=pb.MODE_THINK,
    budget=pb.Budget(reasoning_tokens=40, grace_tokens=4, answer_tokens=12, reason_until=duration(0.5)),
    deadline=duration(0.8),
    target_share=0.95,
    predicted_latency=duration(0.6),
    promised_probability=0.96,
    why="it fits",
    worker="w:1",
)
COMPLETION = reasoning_pb2.Completion(
    finish_reason=pb.FINISH_REASON_STOP,
    reasoning_end=pb.REASONING_END_BUDGET,
    usage=pb.TokenUsage(
        prompt_tokens=9, output_tokens=7, reasoning_tokens=3, forced_tokens=2, answer_tokens=2
    ),
    timings=pb.Timings(first_token=duration(0.01), total=duration(0.5)),
    latency=duration(0.512),
    objectives=[
        reasoning_pb2.ObjectiveResult(
            objective=reasoning_pb2.OBJECTIVE_DEADLINE,
            promised=duration(0.8),
            actual=duration(0.512),
            kept=True,
        )
    ],
    adjustments=1,
)


def delta(phase: pb.Phase.ValueType, text: str, tokens: int = 1) -> Response:
    """A piece of output."""
    return Response(delta=pb.Delta(phase=phase, text=text, token_ids=range(tokens)))


ADJUSTMENT = reasoning_pb2.BudgetAdjustment(budget=pb.Budget(reasoning_tokens=20), why="it goes slowly")
WHOLE = [
    Response(plan=PLAN),
    delta(pb.PHASE_REASONING, "1 + 2"),
    Response(adjustment=ADJUSTMENT),
    delta(pb.PHASE_REASONING, " = 3", 2),
    delta(pb.PHASE_FORCED, "", 2),
    delta(pb.PHASE_ANSWER, "1"),
    delta(pb.PHASE_ANSWER, "0"),
    Response(completion=COMPLETION),
]


def call(index: int, call_id: str = "", name: str = "", arguments: str = "") -> Response:
    """A piece of a call of a tool."""
    piece = pb.ToolCallDelta(index=index, id=call_id, name=name, arguments_json=arguments)
    return Response(delta=pb.Delta(phase=pb.PHASE_ANSWER, token_ids=[1], tool_calls=[piece]))


MALFORMED = pb.MalformedToolCall(index=1, text='{"na', why="the answer ends before the call does")
CALLING = [
    Response(plan=PLAN),
    delta(pb.PHASE_ANSWER, "I add."),
    call(0, "call_1", "add", '{"numbers"'),
    call(0, arguments=": [1, 2]}"),
    call(1, "call_2", "now", "{"),
    Response(
        completion=reasoning_pb2.Completion(
            finish_reason=pb.FINISH_REASON_TOOL_CALLS, malformed_tool_calls=[MALFORMED]
        )
    ),
]


@dataclass(slots=True)
class Seen:
    """One call."""

    request: reasoning_pb2.GenerateRequest
    key: str | bytes
    remaining_s: float | None


@dataclass
class Scripted(ReasoningServiceServicer):
    """Refuses, and breaks off after some answer, as often as it was told to; then does what the last turn
    says.
    """

    calls: list[Seen] = field(default_factory=list)
    refusals: list[RpcError] = field(default_factory=list)
    breaks: list[RpcError] = field(default_factory=list)
    scores: list[tuple[str, float]] = field(default_factory=list)
    asked: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)

    def Generate(
        self, request: reasoning_pb2.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[Response]:
        self._note(request, context)
        if self.breaks:
            yield from WHOLE[:6]
            _abort(context, self.breaks.pop(0))
        match request.messages[-1].content:
            case "endless":
                context.add_callback(self.left.set)
                yield Response(plan=PLAN)
                while context.is_active():
                    yield delta(pb.PHASE_ANSWER, "x")
            case "silent":
                context.add_callback(self.left.set)
                yield Response(plan=PLAN)
                self.left.wait()
            case "lost":
                yield Response(plan=PLAN)
                _abort(context, RpcError(grpc.StatusCode.UNAVAILABLE, "lost"))
            case "incomplete":
                yield Response(plan=PLAN)
            case "calls":
                yield from CALLING
            case "newer":
                yield Response()
                yield delta(pb.Phase.ValueType(99), "?")
                yield from WHOLE
            case _:
                yield from WHOLE

    def Plan(
        self, request: reasoning_pb2.PlanRequest, context: grpc.ServicerContext
    ) -> reasoning_pb2.PlanResponse:
        self._note(request.request, context)
        return reasoning_pb2.PlanResponse(plan=PLAN)

    def ReportOutcome(
        self, request: reasoning_pb2.ReportOutcomeRequest, context: grpc.ServicerContext
    ) -> reasoning_pb2.ReportOutcomeResponse:
        self._note(reasoning_pb2.GenerateRequest(), context)
        self.scores.append((request.request_id, request.score))
        return reasoning_pb2.ReportOutcomeResponse()

    def _note(self, request: reasoning_pb2.GenerateRequest, context: grpc.ServicerContext) -> None:
        key = dict(context.invocation_metadata())["authorization"]
        self.calls.append(Seen(request, key, context.time_remaining()))
        self.asked.set()
        if self.refusals:
            _abort(context, self.refusals.pop(0))


def _abort(context: grpc.ServicerContext, error: RpcError) -> None:
    context.set_trailing_metadata((("grpc-status-details-bin", error.status_bytes()),))
    context.abort(error.code, error.message)


@contextmanager
def serving(credentials: grpc.ServerCredentials | None = None) -> Iterator[tuple[Scripted, str]]:
    """The servicer, and the address at which it serves."""
    servicer = Scripted()
    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool)
        add_ReasoningServiceServicer_to_server(servicer, server)
        if credentials is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        try:
            yield servicer, f"127.0.0.1:{port}"
        finally:
            servicer.left.set()
            server.stop(0).wait()
