"""From the contracts' messages to the engine's values: what a caller asks for, checked."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from curfew.v1 import generation_pb2 as pb
from curfew.v1 import worker_pb2
from worker.engine.closing import Closing
from worker.engine.generation import Limits, Phase, ReasoningEnd, Strike, TokenRun
from worker.engine.grammar import Grammars
from worker.engine.probes import ProbeRule
from worker.engine.sampling import Sampling
from worker.engine.sequence import Request
from worker.model.chat import Chat
from worker.service.checks import (
    MAX_CLOSING_TEXT,
    Violations,
    check_ranges,
    conversation,
    optional_seconds,
    sampling_numbers,
    shown_tools,
)
from worker.service.forms import read_form

_PHASES = {
    pb.PHASE_REASONING: Phase.REASONING,
    pb.PHASE_FORCED: Phase.FORCED,
    pb.PHASE_ANSWER: Phase.ANSWER,
}
_STRIKES = {
    pb.REASONING_END_NATURAL: ReasoningEnd.NATURAL,
    pb.REASONING_END_BUDGET: ReasoningEnd.BUDGET,
    pb.REASONING_END_DEADLINE: ReasoningEnd.DEADLINE,
    pb.REASONING_END_LOOP: ReasoningEnd.LOOP,
    pb.REASONING_END_STABLE: ReasoningEnd.STABLE,
}


@dataclass(frozen=True, slots=True)
class RequestReader:
    """Reads requests for one model. closing: what ends reasoning where a request does not say. grammars: None
    where neither tools nor answer formats can be had.
    """

    chat: Chat
    closing: Closing
    grammars: Grammars | None = None

    def read(
        self, message: worker_pb2.WorkerServiceGenerateRequest, *, random_seed: int, now_s: float
    ) -> Request:
        """The request. random_seed: in force when it names none. now_s: its receipt, on the engine's clock.

        Encodes the prompt and compiles the answer's grammar, which take a while when they are long. Raises
        RpcError INVALID_ARGUMENT with every violation.
        """
        wrong = Violations()
        check_ranges(message, wrong)
        budget, think = message.budget, message.budget.reasoning_tokens > 0
        reason_until_s = optional_seconds(message.budget, "reason_until", "budget.reason_until", wrong)
        deadline_s = optional_seconds(message, "deadline", "deadline", wrong)
        numbers = sampling_numbers(message.sampling, think, random_seed, wrong)
        turns = conversation(message.messages, wrong)
        tools = shown_tools(message, wrong)
        resume = _resume(message, wrong)
        closing = self._closing(message.closing_text, wrong)
        strike = _strike(message, wrong)
        probe = _probe(message, wrong)
        reserve = _reserve(message, wrong)
        form = read_form(message, tools, self.grammars, wrong)
        wrong.raise_if_any()
        reasoning = budget.reasoning_tokens + budget.grace_tokens + closing.longest if think else 0
        return Request(
            request_id=message.request_id,
            # Thinking with a budget of 0 is no thinking: the prompt then closes it.
            prompt=self.chat.prompt(turns, think=think, tools=tools),
            limits=Limits(
                reasoning_tokens=budget.reasoning_tokens,
                grace_tokens=budget.grace_tokens,
                max_output_tokens=reasoning + budget.answer_tokens,
                answer_tokens=budget.answer_tokens,
                reason_until_s=now_s + reason_until_s,
                reserve_tokens=reserve,
            ),
            closing=closing,
            sampling=Sampling(**asdict(numbers)),
            received_s=now_s,
            priority=message.priority,
            deadline_s=now_s + deadline_s,
            stop=tuple(message.sampling.stop),
            samples=message.samples or 1,
            resume=resume,
            strike=strike,
            probe=probe,
            form=form,
        )

    def _closing(self, text: str, wrong: Violations) -> Closing:
        if not text:
            return self.closing
        if len(text) > MAX_CLOSING_TEXT:
            wrong.check(False, "closing_text", f"at most {MAX_CLOSING_TEXT} characters, {len(text)} given")
            return self.closing
        try:
            return Closing(self.chat.encode, self.chat.token_bytes, text)
        except ValueError as error:
            wrong.check(False, "closing_text", str(error))
            return self.closing


def _resume(message: worker_pb2.WorkerServiceGenerateRequest, wrong: Violations) -> tuple[TokenRun, ...]:
    runs = []
    for number, run in enumerate(message.resume):
        phase = _PHASES.get(run.phase)
        if phase is None:
            wrong.check(False, f"resume[{number}].phase", f"must be a known phase, is {run.phase}")
        else:
            runs.append(TokenRun(phase, tuple(run.token_ids)))
    return tuple(runs)


def _strike(message: worker_pb2.WorkerServiceGenerateRequest, wrong: Violations) -> Strike | None:
    if not message.HasField("strike"):
        return None
    wrong.check(bool(message.resume), "strike", "is only for a request with resume")
    reason = _STRIKES.get(message.strike.reason)
    if reason is None:
        wrong.check(False, "strike.reason", f"must be one that strikes, is {message.strike.reason}")
        return None
    return Strike(reason, message.strike.reasoning_tokens)


def _probe(message: worker_pb2.WorkerServiceGenerateRequest, wrong: Violations) -> ProbeRule | None:
    if not message.HasField("probe"):
        return None
    rule, samples = message.probe, message.samples
    numbers = {
        "first_reasoning_tokens": (1, rule.first_reasoning_tokens),
        "every_reasoning_tokens": (1, rule.every_reasoning_tokens),
        "stable_answers": (2, rule.stable_answers),
        "answer_tokens": (1, rule.answer_tokens),
    }
    for name, (least, number) in numbers.items():
        wrong.check(number >= least, f"probe.{name}", f"must be at least {least}, is {number}")
    wrong.check(samples <= 1, "samples", f"must be 1 with probe, is {samples}")
    if wrong.found:
        return None
    return ProbeRule(
        first_tokens=rule.first_reasoning_tokens,
        every_tokens=rule.every_reasoning_tokens,
        stable_answers=rule.stable_answers,
        answer_tokens=rule.answer_tokens,
    )


def _reserve(message: worker_pb2.WorkerServiceGenerateRequest, wrong: Violations) -> int:
    """Reasoning tokens to reserve beyond the budget."""
    if not message.HasField("reserve_reasoning_tokens"):
        return 0
    field, reserve, budget = (
        "reserve_reasoning_tokens", message.reserve_reasoning_tokens, message.budget.reasoning_tokens,
    )  # fmt: skip
    wrong.check(
        reserve >= budget, field, f"must be at least the budget's reasoning_tokens, {budget}, is {reserve}"
    )
    wrong.check(budget > 0 or not reserve, field, f"must be 0 without reasoning, is {reserve}")
    return reserve - budget
