"""What a request asks of an upstream server: read from the contract's message, and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from curfew.dialects import Dialect, Json
from curfew.v1 import generation_pb2, worker_pb2
from worker.engine.closing import DEFAULT_CLOSING_TEXT, Closing
from worker.engine.generation import Limits
from worker.model.chat import Chat, Turn
from worker.service.checks import (
    MAX_CLOSING_TEXT,
    SamplingNumbers,
    Violations,
    check_ranges,
    conversation,
    optional_seconds,
    sampling_numbers,
)
from worker.upstream.script import ChatScript, Script, TextScript, chat_messages

BYTES = [bytes([number]) for number in range(256)]
"""What stands for tokens where those of the model are not known."""


@dataclass(frozen=True, slots=True)
class Wish:
    """One request. Times are on the worker's clock, in seconds. prompt_tokens: as good as is known before the
    server has counted.
    """

    request_id: str
    script: Script
    limits: Limits
    closing: Closing
    sampling: SamplingNumbers
    stop: tuple[str, ...]
    priority: int
    deadline_s: float
    received_s: float
    prompt_tokens: int

    @property
    def urgency(self) -> tuple[int, float, float]:
        """Sorts requests: priority, then deadline, then arrival."""
        return self.priority, self.deadline_s, self.received_s


@dataclass(frozen=True, slots=True)
class WishReader:
    """Reads requests for one server. chat: the model's own format, with which reasoning is ended by
    continuing; None leaves it to the server's own thinking budget. bytes_per_token: for estimates of prompts.
    """

    dialect: Dialect
    model: str
    chat: Chat | None
    bytes_per_token: float
    switch_in_system: bool = False

    @property
    def table(self) -> Sequence[bytes]:
        """What the tokens of closing texts stand for."""
        return BYTES if self.chat is None else self.chat.token_bytes

    def read(
        self, message: worker_pb2.WorkerServiceGenerateRequest, *, random_seed: int, now_s: float
    ) -> Wish:
        """The request. Raises RpcError INVALID_ARGUMENT with every violation, also of what a server cannot
        do.
        """
        wrong = Violations()
        check_ranges(message, wrong)
        budget, think = message.budget, message.budget.reasoning_tokens > 0
        until_s = optional_seconds(budget, "reason_until", "budget.reason_until", wrong)
        deadline_s = optional_seconds(message, "deadline", "deadline", wrong)
        sampling = sampling_numbers(message.sampling, think, random_seed, wrong)
        turns = conversation(message.messages, wrong)
        closing = self._closing(message.closing_text, wrong)
        self._check_server(message, sampling, wrong)
        wrong.raise_if_any()
        reasoning, grace = budget.reasoning_tokens, budget.grace_tokens if think else 0
        # A server that ends reasoning by itself does so before the machine would.
        machine_reasoning, machine_grace = (reasoning, grace) if self.chat else (reasoning + grace, 0)
        limits = Limits(
            reasoning_tokens=machine_reasoning if think else 0,
            grace_tokens=machine_grace,
            max_output_tokens=reasoning + grace + closing.longest * think + budget.answer_tokens,
            answer_tokens=budget.answer_tokens,
            reason_until_s=now_s + until_s,
        )
        common: Json = {"model": self.model} | sampling_fields(sampling, self.dialect)
        server_budget = self.dialect.sent_budget(reasoning, grace) if think else None
        script = self._script(turns, common, limits, server_budget)
        text_bytes = sum(len(turn.text.encode()) for turn in turns)
        return Wish(
            request_id=message.request_id,
            script=script,
            limits=limits,
            closing=closing,
            sampling=sampling,
            stop=tuple(message.sampling.stop),
            priority=message.priority,
            deadline_s=now_s + deadline_s,
            received_s=now_s,
            prompt_tokens=script.prompt_tokens or max(1, round(text_bytes / self.bytes_per_token)),
        )

    def _script(
        self, turns: Sequence[Turn], common: Json, limits: Limits, server_budget: int | None
    ) -> Script:
        think = server_budget is not None
        if self.chat is not None:
            prompt = self.chat.prompt(turns, think=think)
            return TextScript(self.chat, self.dialect, common, limits, prompt.ids)
        messages = chat_messages(turns, think=think, switch_in_system=self.switch_in_system)
        return ChatScript(self.dialect, common, limits, messages, server_budget)

    def _closing(self, text: str, wrong: Violations) -> Closing:
        if len(text) > MAX_CLOSING_TEXT:
            wrong.check(False, "closing_text", f"at most {MAX_CLOSING_TEXT} characters, {len(text)} given")
            text = ""
        encode = str.encode if self.chat is None else self.chat.encode
        try:
            return Closing(encode, self.table, text or DEFAULT_CLOSING_TEXT)
        except ValueError as error:
            wrong.check(False, "closing_text", str(error))
            return Closing(encode, self.table)

    def _check_server(
        self, message: worker_pb2.WorkerServiceGenerateRequest, sampling: SamplingNumbers, wrong: Violations
    ) -> None:
        """What the contract has, but this server has not."""
        for name, given in (
            ("resume", bool(message.resume)),
            ("probe", message.HasField("probe")),
            ("tools", bool(message.tools)),
            ("answer_format", message.HasField("answer_format")),
            ("sampling.top_logprobs", message.sampling.HasField("top_logprobs")),
            ("samples", message.samples > 1),
        ):
            wrong.check(not given, name, "a worker in front of another server does not take it")
        for index, turn in enumerate(message.messages):
            told = turn.role == generation_pb2.ROLE_TOOL or turn.tool_calls or turn.tool_call_id
            field = f"messages[{index}]"
            wrong.check(not told, field, "a worker in front of another server takes no calls of tools")
        for name, number in _beyond_openai(sampling).items():
            wrong.check(
                name in self.dialect.sampling,
                f"sampling.{name}",
                f"a server of kind {self.dialect.name} does not take it, is {number:g}",
            )
        if self.chat is None or self.dialect.prompt_ids:
            return
        # A prompt that goes as text is read by the server's tokenizer, which takes these for what they spell.
        names = self.chat.special_names.values()
        for index, turn in enumerate(message.messages):
            found = next((name for name in names if name in turn.content), None)
            wrong.check(
                found is None, f"messages[{index}].content", f"must not hold the special token {found}"
            )


def sampling_fields(sampling: SamplingNumbers, dialect: Dialect) -> Json:
    """The numbers as the server takes them."""
    fields: Json = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        # Servers take 32 bits, some of them with a sign.
        "seed": sampling.seed % (1 << 31),
    }
    beyond = _beyond_openai(sampling).items()
    return fields | {dialect.sampling[name]: value for name, value in beyond if name in dialect.sampling}


def _beyond_openai(sampling: SamplingNumbers) -> dict[str, float]:
    """What OpenAI's API has no field for, where it is not off."""
    numbers = {
        "top_k": (sampling.top_k, 0),
        "min_p": (sampling.min_p, 0.0),
        "repetition_penalty": (sampling.repetition_penalty, 1.0),
    }
    return {name: value for name, (value, off) in numbers.items() if value != off}
