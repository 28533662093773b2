"""The spans of a request in the worker: its own, and queue, prefill, reasoning, cut and answer below it."""

from __future__ import annotations

from collections.abc import Callable

from curfew.rpc.durations import seconds
from curfew.telemetry.tracing import Trace
from curfew.v1 import generation_pb2, worker_pb2
from worker.telemetry.totals import reasoning_end

NAME = "curfew.v1.WorkerService/Generate"


class RequestSpans:
    """Notes when reasoning was struck, which no timing tells, and builds the spans once a request is over.

    Of several samples, the first that is complete is the one that is told of.
    """

    def __init__(self, request_id: str, trace: Trace, clock: Callable[[], float]) -> None:
        self._request_id, self._trace, self._clock = request_id, trace, clock
        self._received_s = clock() if trace.recorded else 0.0
        self._struck_s: float | None = None
        self._completion: worker_pb2.WorkerCompletion | None = None

    def take(self, response: worker_pb2.WorkerServiceGenerateResponse) -> None:
        """A response is sent."""
        if self._struck_s is None and response.HasField("strike"):
            self._struck_s = self._clock()
        if self._completion is None and response.HasField("completion"):
            self._completion = response.completion

    def end(self, outcome: str) -> None:
        """The request is over: completed, refused, failed or cancelled."""
        trace, completion = self._trace, self._completion
        told: dict[str, str | bool | int | float] = {
            "rpc.system.name": "grpc",
            "rpc.method": NAME,
            "gen_ai.response.id": self._request_id,
            "curfew.outcome": outcome,
        }
        if completion is not None:
            self._parts(completion)
            usage, timings = completion.usage, completion.timings
            told |= {
                "gen_ai.usage.input_tokens": usage.prompt_tokens,
                "gen_ai.usage.cache_read.input_tokens": usage.cached_prompt_tokens,
                "gen_ai.usage.output_tokens": usage.output_tokens,
                "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
                "curfew.forced_tokens": usage.forced_tokens,
                "curfew.probe_tokens": usage.probe_tokens,
                "curfew.reasoning_end": reasoning_end(completion),
                "curfew.decode_steps": timings.decode_steps,
                "curfew.mean_batch_size": timings.mean_batch_size,
            }
        trace.end(NAME, self._clock(), told, outcome if outcome in ("failed", "refused") else "")

    def _parts(self, completion: worker_pb2.WorkerCompletion) -> None:
        timings, usage, span = completion.timings, completion.usage, self._trace.span
        received_s = self._received_s
        started_s, first_s = received_s + seconds(timings.queue), received_s + seconds(timings.first_token)
        ended_s = received_s + seconds(timings.total)
        answered = timings.HasField("first_answer_token")
        answer_s = received_s + seconds(timings.first_answer_token) if answered else ended_s
        span("queue", received_s, started_s)
        span("prefill", started_s, first_s)
        if usage.reasoning_tokens:
            struck_s = answer_s
            if (
                self._struck_s is not None
                and completion.reasoning_end != generation_pb2.REASONING_END_NATURAL
            ):
                struck_s = min(max(self._struck_s, first_s), answer_s)
                span("cut", struck_s, answer_s, {"curfew.reasoning_end": reasoning_end(completion)})
            span("reasoning", first_s, struck_s, {"curfew.tokens": usage.reasoning_tokens})
        if answered:
            span("answer", answer_s, ended_s, {"curfew.tokens": usage.answer_tokens})
