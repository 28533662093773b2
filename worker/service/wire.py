"""Between the contracts' messages and the engine's values."""

from __future__ import annotations

import math
from collections.abc import Iterator

from google.protobuf.duration_pb2 import Duration

from curfew.rpc.errors import invalid
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import worker_pb2
from worker.engine.closing import Closing
from worker.engine.events import Finished, Load, Piece
from worker.engine.generation import FinishReason, Limits, Phase, ReasoningEnd, TokenRun
from worker.engine.sampling import Sampling, TokenLogprobs
from worker.engine.sequence import Request
from worker.model.chat import Chat, Role, Turn

MAX_ID, MAX_STOPS, MAX_STOP, MAX_LOGPROBS, MAX_SAMPLES, MAX_PRIORITY = 128, 16, 64, 20, 16, 7

_ROLES = {pb.ROLE_SYSTEM: Role.SYSTEM, pb.ROLE_USER: Role.USER, pb.ROLE_ASSISTANT: Role.ASSISTANT}
_PHASES = {
    Phase.REASONING: pb.PHASE_REASONING,
    Phase.FORCED: pb.PHASE_FORCED,
    Phase.ANSWER: pb.PHASE_ANSWER,
}
_PHASE_OF = {number: phase for phase, number in _PHASES.items()}
_FINISH_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}
_REASONING_ENDS = {
    ReasoningEnd.NONE: pb.REASONING_END_NONE,
    ReasoningEnd.NATURAL: pb.REASONING_END_NATURAL,
    ReasoningEnd.BUDGET: pb.REASONING_END_BUDGET,
    ReasoningEnd.DEADLINE: pb.REASONING_END_DEADLINE,
    ReasoningEnd.LOOP: pb.REASONING_END_LOOP,
    ReasoningEnd.CANCELLED: pb.REASONING_END_CANCELLED,
}


class _Violations:
    """Collects what is wrong with a message."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []

    def check(self, holds: bool, field: str, text: str) -> None:
        if not holds:
            self.found.append((field, text))


def parse_request(
    message: worker_pb2.WorkerServiceGenerateRequest,
    chat: Chat,
    closing: Closing,
    *,
    random_seed: int,
    now_s: float,
) -> Request:
    """Reads a request. random_seed: in force when the request has none. Raises RpcError INVALID_ARGUMENT with
    every violation.
    """
    wrong = _Violations()
    wrong.check(
        0 < len(message.request_id) <= MAX_ID,
        "request_id",
        f"must have 1 to {MAX_ID} characters, has {len(message.request_id)}",
    )
    wrong.check(
        message.mode in (pb.MODE_THINK, pb.MODE_NO_THINK), "mode", "must be MODE_THINK or MODE_NO_THINK"
    )
    budget = message.budget
    if message.mode == pb.MODE_NO_THINK:
        wrong.check(
            not budget.reasoning_tokens,
            "budget.reasoning_tokens",
            f"must be 0 without thinking, is {budget.reasoning_tokens}",
        )
    wrong.check(budget.answer_tokens > 0, "budget.answer_tokens", "must be at least 1, is 0")
    wrong.check(
        message.priority <= MAX_PRIORITY, "priority", f"must be 0 to {MAX_PRIORITY}, is {message.priority}"
    )
    samples = message.samples or 1
    wrong.check(samples <= MAX_SAMPLES, "samples", f"must be 0 to {MAX_SAMPLES}, is {samples}")
    wrong.check(samples == 1 or not message.resume, "samples", f"must be 1 with resume, is {samples}")
    for number, run in enumerate(message.resume):
        wrong.check(run.phase in _PHASE_OF, f"resume[{number}].phase", "must be set")
    think = budget.reasoning_tokens > 0
    sampling = _sampling(message.sampling, think, random_seed, wrong)
    turns = list(_turns(message, wrong))
    if message.closing_text:
        try:
            closing = Closing(chat.encode, chat.token_bytes, message.closing_text)
        except ValueError as error:
            wrong.check(False, "closing_text", str(error))
    if wrong.found:
        raise invalid(wrong.found)
    try:
        # Thinking with a budget of 0 is no thinking: the prompt then closes it.
        prompt = chat.prompt(turns, think=think)
    except ValueError as error:
        raise invalid([("messages", str(error))]) from None
    reserve = closing.longest if think else 0
    most = budget.reasoning_tokens + budget.grace_tokens + reserve + budget.answer_tokens
    until_s = seconds(budget.reason_until) if budget.HasField("reason_until") else math.inf
    deadline_s = seconds(message.deadline) if message.HasField("deadline") else math.inf
    return Request(
        request_id=message.request_id,
        prompt=prompt,
        limits=Limits(
            reasoning_tokens=budget.reasoning_tokens,
            grace_tokens=budget.grace_tokens,
            max_output_tokens=most,
            answer_tokens=budget.answer_tokens,
            reason_until_s=now_s + until_s,
        ),
        closing=closing,
        sampling=sampling,
        received_s=now_s,
        priority=message.priority,
        deadline_s=now_s + deadline_s,
        stop=tuple(message.sampling.stop),
        samples=samples,
        resume=tuple(TokenRun(_PHASE_OF[run.phase], tuple(run.token_ids)) for run in message.resume),
    )


def _sampling(message: pb.SamplingParams, think: bool, random_seed: int, wrong: _Violations) -> Sampling:
    def number(name: str, default: float, low: float, high: float, *, above: bool = False) -> float:
        value = float(getattr(message, name)) if message.HasField(name) else default  # type: ignore[arg-type]
        holds = (low < value if above else low <= value) and value <= high
        border = "above" if above else "at least"
        wrong.check(holds, f"sampling.{name}", f"must be {border} {low:g} and at most {high:g}, is {value:g}")
        return value

    sampling = Sampling(
        temperature=number("temperature", 0.6 if think else 0.0, 0.0, 2.0),
        top_p=number("top_p", 0.95 if think else 1.0, 0.0, 1.0, above=True),
        top_k=message.top_k,
        min_p=number("min_p", 0.0, 0.0, 1.0),
        repetition_penalty=number("repetition_penalty", 1.0, 1.0, 2.0),
        seed=message.seed if message.HasField("seed") else random_seed,
        logprobs=message.top_logprobs if message.HasField("top_logprobs") else None,
    )
    wrong.check(
        message.top_logprobs <= MAX_LOGPROBS,
        "sampling.top_logprobs",
        f"must be 0 to {MAX_LOGPROBS}, is {message.top_logprobs}",
    )
    wrong.check(
        len(message.stop) <= MAX_STOPS,
        "sampling.stop",
        f"at most {MAX_STOPS} strings, {len(message.stop)} given",
    )
    for index, stop in enumerate(message.stop):
        wrong.check(
            0 < len(stop) <= MAX_STOP,
            f"sampling.stop[{index}]",
            f"must have 1 to {MAX_STOP} characters, has {len(stop)}",
        )
    return sampling


def _turns(message: worker_pb2.WorkerServiceGenerateRequest, wrong: _Violations) -> Iterator[Turn]:
    wrong.check(bool(message.messages), "messages", "at least one is needed")
    for number, turn in enumerate(message.messages):
        role = _ROLES.get(turn.role)
        wrong.check(role is not None, f"messages[{number}].role", f"must be a known role, is {turn.role}")
        if role is not None:
            yield Turn(role, turn.content)


def delta(piece: Piece) -> pb.Delta:
    """A piece as a delta."""
    return pb.Delta(
        phase=_PHASES[piece.phase],
        text=piece.text,
        token_ids=piece.token_ids,
        logprobs=[_logprobs(report) for report in piece.logprobs],
    )


def _logprobs(report: TokenLogprobs) -> pb.TokenLogprobs:
    return pb.TokenLogprobs(
        chosen=report.chosen,
        top=[pb.TokenLogprob(token_id=token, logprob=value) for token, value in report.top],
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
    )


def load_message(load: Load) -> worker_pb2.WorkerLoad:
    """The load."""
    return worker_pb2.WorkerLoad(
        running=load.running,
        waiting=load.waiting,
        prefill_backlog_tokens=load.backlog_tokens,
        free_slots=load.free_slots,
        free_pages=load.free_pages,
        step=None if load.step_s is None else duration(load.step_s),
        tokens_per_s=load.tokens_per_s,
    )


def duration(seconds: float) -> Duration:
    """Seconds as a duration, to the microsecond."""
    micros = round(seconds * 1e6)
    return Duration(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1000)


def seconds(value: Duration) -> float:
    """A duration in seconds."""
    return value.seconds + value.nanos / 1e9
