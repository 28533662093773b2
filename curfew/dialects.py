"""What each kind of server takes beyond OpenAI's own fields: a thinking budget, a thinking switch, running
counts.

Sources: the servers' own references (vLLM "Reasoning outputs", SGLang "Thinking budget", NIM "Thinking budget
control", llama.cpp `tools/server/README.md`, LiteLLM "Reasoning content").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Dialect:
    """How to talk to one kind of server.

    budget: fields that end reasoning after so many tokens; None where it has none. overshoot_tokens,
    overshoot_percent: by how much it is known to miss it. thinking: fields that switch reasoning on or off
    in its chat template. counting: fields that ask for token counts; counts: whether they then come with
    every piece of text, not at the end alone. sampling: its names of what OpenAI's API has no field for.
    prompt_ids: whether /completions takes token ids, so that no text can be read as a special token.
    prefill: fields with which a last turn of the assistant is continued; None where that is not possible.
    at_least: fields that keep an answer from ending before so many tokens. health_path: what tells whether
    it is there, from the server's root.
    """

    name: str
    budget: Callable[[int], Json] | None = None
    overshoot_tokens: int = 0
    overshoot_percent: int = 0
    thinking: Callable[[bool], Json] = lambda on: {"chat_template_kwargs": {"enable_thinking": on}}
    counting: Json = field(default_factory=dict)
    counts: bool = False
    sampling: Mapping[str, str] = field(default_factory=dict)
    prompt_ids: bool = False
    prefill: Json | None = None
    at_least: Callable[[int], Json] = lambda tokens: {}
    health_path: str = "/health"

    def sent_budget(self, budget: int, grace: int) -> int:
        """What to ask of the server, so that it ends reasoning before it is ended here, at budget + grace."""
        least = (budget + grace - 1 - self.overshoot_tokens) * 100 // (100 + self.overshoot_percent)
        return max(0, min(budget, least))


_RUNNING_USAGE: Json = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
_CONTINUE: Json = {"continue_final_message": True, "add_generation_prompt": False}
_VLLM_SAMPLING = {"top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repetition_penalty"}


def _budget_tokens(tokens: int) -> Json:
    return {"thinking": {"type": "enabled", "budget_tokens": tokens}}


def _enabled(on: bool) -> Json:
    return {} if on else {"thinking": {"type": "disabled"}}


PLAIN = Dialect("plain", thinking=lambda on: {})
DIALECTS = {
    dialect.name: dialect
    for dialect in (
        Dialect(
            "vllm",
            budget=lambda tokens: {"thinking_token_budget": tokens},
            counting=_RUNNING_USAGE,
            counts=True,
            sampling=_VLLM_SAMPLING,
            prompt_ids=True,
            prefill=_CONTINUE,
            at_least=lambda tokens: {"min_tokens": tokens},
        ),
        Dialect(
            "sglang",
            budget=lambda tokens: {"custom_params": {"thinking_budget": tokens}},
            overshoot_tokens=1,
            counting=_RUNNING_USAGE,
            counts=True,
            sampling=_VLLM_SAMPLING,
            prompt_ids=True,
            prefill=_CONTINUE,
            at_least=lambda tokens: {"min_tokens": tokens},
        ),
        Dialect(
            "nim",
            budget=lambda tokens: {"nvext": {"max_thinking_tokens": tokens}},
            overshoot_percent=10,
            counting=_RUNNING_USAGE,
            counts=True,
            sampling=_VLLM_SAMPLING,
            prefill=_CONTINUE,
            at_least=lambda tokens: {"min_tokens": tokens},
            health_path="/v1/health/ready",
        ),
        Dialect(
            "llama.cpp",
            budget=lambda tokens: {"thinking_budget_tokens": tokens},
            counting={"timings_per_token": True, "stream_options": {"include_usage": True}},
            counts=True,
            sampling={"top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repeat_penalty"},
            prompt_ids=True,
            # It continues a last turn of the assistant by itself, unless thinking is on.
            prefill={},
        ),
        Dialect(
            "litellm",
            budget=_budget_tokens,
            thinking=_enabled,
            counting={"stream_options": {"include_usage": True}},
            health_path="/health/liveliness",
        ),
        Dialect(
            "curfew",
            budget=_budget_tokens,
            thinking=_enabled,
            counting={"stream_options": {"include_usage": True}},
        ),
        PLAIN,
    )
}
