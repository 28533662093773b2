"""From the engine's values to the contracts' messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from curfew.rpc.durations import duration
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import worker_pb2
from worker.engine.events import Finished, Load, Piece, Started
from worker.engine.generation import CallPiece, FinishReason, Phase, ReasoningEnd, Strike

if TYPE_CHECKING:  # which needs torch
    from worker.engine.sampling import TokenLogprobs

_PHASES = {
    Phase.REASONING: pb.PHASE_REASONING,
    Phase.FORCED: pb.PHASE_FORCED,
    Phase.ANSWER: pb.PHASE_ANSWER,
}
_FINISH_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.TOOL_CALLS: pb.FINISH_REASON_TOOL_CALLS,
}
_REASONING_ENDS = {
    ReasoningEnd.NONE: pb.REASONING_END_NONE,
    ReasoningEnd.NATURAL: pb.REASONING_END_NATURAL,
    ReasoningEnd.BUDGET: pb.REASONING_END_BUDGET,
    ReasoningEnd.DEADLINE: pb.REASONING_END_DEADLINE,
    ReasoningEnd.LOOP: pb.REASONING_END_LOOP,
    ReasoningEnd.CANCELLED: pb.REASONING_END_CANCELLED,
    ReasoningEnd.STABLE: pb.REASONING_END_STABLE,
}


def started(event: Started, seed: int) -> worker_pb2.GenerationStarted:
    """A beginning."""
    return worker_pb2.GenerationStarted(
        prompt_tokens=event.prompt_tokens, seed=seed, queue=duration(event.queue_s)
    )


def delta(piece: Piece) -> pb.Delta:
    """A piece as a delta."""
    return pb.Delta(
        phase=_PHASES[piece.phase],
        text=piece.text,
        token_ids=piece.token_ids,
        token_count=piece.token_count,
        logprobs=[_logprobs(report) for report in piece.logprobs],
        tool_calls=[_call(call) for call in piece.calls],
    )


def strike(struck: Strike) -> worker_pb2.ReasoningStrike:
    """A strike."""
    return worker_pb2.ReasoningStrike(
        reason=_REASONING_ENDS[struck.reason], reasoning_tokens=struck.reasoning_tokens
    )


def completion(finished: Finished) -> worker_pb2.WorkerCompletion:
    """The accounting of a sample."""
    timings = finished.timings
    output = finished.reasoning_tokens + finished.forced_tokens + finished.answer_tokens
    return worker_pb2.WorkerCompletion(
        finish_reason=_FINISH_REASONS[finished.reason],
        reasoning_end=_REASONING_ENDS[finished.reasoning_end],
        usage=pb.TokenUsage(
            prompt_tokens=finished.prompt_tokens,
            cached_prompt_tokens=finished.cached_tokens,
            output_tokens=output,
            reasoning_tokens=finished.reasoning_tokens,
            forced_tokens=finished.forced_tokens,
            answer_tokens=finished.answer_tokens,
            probe_tokens=finished.probe_tokens,
        ),
        timings=pb.Timings(
            queue=duration(timings.queue_s),
            prefill=duration(timings.prefill_s),
            first_token=duration(timings.first_token_s),
            first_answer_token=None if timings.first_answer_s is None else duration(timings.first_answer_s),
            total=duration(timings.total_s),
            decode_steps=timings.decode_steps,
            mean_batch_size=timings.mean_batch_size,
        ),
        reopened=finished.reopened,
        probes=finished.probes,
        skipped_probes=finished.skipped_probes,
        malformed_tool_calls=[
            pb.MalformedToolCall(index=call.index, text=call.text, why=call.why)
            for call in finished.malformed
        ],
    )


def load(now: Load) -> worker_pb2.WorkerLoad:
    """A load."""
    return worker_pb2.WorkerLoad(
        running=now.running,
        waiting=now.waiting,
        prefill_backlog_tokens=now.backlog_tokens,
        free_slots=now.free_slots,
        free_pages=now.free_pages,
        step=None if now.step_s is None else duration(now.step_s),
        tokens_per_s=now.tokens_per_s,
    )


def _call(piece: CallPiece) -> pb.ToolCallDelta:
    """Its id is unique in the answer; only the controller knows the conversation."""
    call_id = f"call_{piece.index}" if piece.name else ""
    return pb.ToolCallDelta(index=piece.index, id=call_id, name=piece.name, arguments_json=piece.arguments)


def _logprobs(report: TokenLogprobs) -> pb.TokenLogprobs:
    return pb.TokenLogprobs(
        chosen=report.chosen,
        top=[pb.TokenLogprob(token_id=token, logprob=value) for token, value in report.top],
    )
