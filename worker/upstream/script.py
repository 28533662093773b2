"""How one conversation is put to a server, and how it goes on after its reasoning was ended.

`TextScript` writes the model's own chat format and has it completed as text, so that it can go on anywhere.
`ChatScript` leaves the format to the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from curfew.dialects import Dialect, Json
from worker.engine.generation import Limits
from worker.engine.text import Tag
from worker.model.chat import Chat, Role, Turn
from worker.upstream.client import CHAT_PATH, COMPLETIONS_PATH

_ROLES = {Role.SYSTEM: "system", Role.USER: "user", Role.ASSISTANT: "assistant"}
_END_BIAS = -100
_LIVELY = 1.0
"""Temperature at which a model that ended its answer before it began is asked to begin it."""


@dataclass(frozen=True, slots=True)
class Leg:
    """One request to the server. whole: it may bring all that is left of the output. separated: the server
    tells reasoning apart from the answer by itself.
    """

    path: str
    body: Json
    whole: bool
    separated: bool


class Script(Protocol):
    """A conversation."""

    @property
    def prompt_tokens(self) -> int | None:
        """Exactly; None when only the server knows."""

    @property
    def server_budget(self) -> int | None:
        """Reasoning tokens after which the server is told to end reasoning; None when it is not."""

    @property
    def continues(self) -> bool:
        """Whether `go_on` really goes on; else it begins the answer anew."""

    def begin(self) -> Leg:
        """The first request."""

    def go_on(self, written: str, max_tokens: int, *, lively: bool) -> Leg:
        """The request for what follows `written`, which holds the tags too. lively: it should not end at
        once.
        """


@dataclass(frozen=True, slots=True)
class TextScript:
    """In the model's own chat format. common: fields of every request. prompt: its tokens."""

    chat: Chat
    dialect: Dialect
    common: Json
    limits: Limits
    prompt: Sequence[int]

    @property
    def prompt_tokens(self) -> int | None:
        """Its own count: the format is known."""
        return len(self.prompt)

    @property
    def server_budget(self) -> int | None:
        """The end of the first request is the budget."""
        return None

    @property
    def continues(self) -> bool:
        """Text can be completed anywhere."""
        return True

    def begin(self) -> Leg:
        """Reasoning, and whatever of the answer comes before budget and grace are used up."""
        limits = self.limits
        reasoning = limits.reasoning_tokens + limits.grace_tokens if limits.reasoning_tokens else 0
        return self._leg("", reasoning or limits.answer_tokens, whole=not reasoning)

    def go_on(self, written: str, max_tokens: int, *, lively: bool) -> Leg:
        """The rest."""
        leg = self._leg(written, max_tokens, whole=not lively)
        if lively:
            bias = {str(number): _END_BIAS for number in sorted(self.chat.end_ids)}
            leg.body.update(temperature=_LIVELY, logit_bias=bias)
        return leg

    def _leg(self, written: str, max_tokens: int, *, whole: bool) -> Leg:
        ids = [*self.prompt, *self.chat.encode(written)]
        prompt = ids if self.dialect.prompt_ids else self._spelled(ids)
        body = self.common | self.dialect.counting | {"prompt": prompt, "max_tokens": max_tokens}
        return Leg(COMPLETIONS_PATH, body, whole, separated=False)

    def _spelled(self, ids: Sequence[int]) -> str:
        names, table = self.chat.special_names, self.chat.token_bytes
        return b"".join(names[i].encode() if i in names else table[i] for i in ids).decode()


@dataclass(frozen=True, slots=True)
class ChatScript:
    """In the server's own chat format, with its own thinking budget. messages: as OpenAI's API has them."""

    dialect: Dialect
    common: Json
    limits: Limits
    messages: tuple[Json, ...]
    server_budget: int | None

    @property
    def prompt_tokens(self) -> int | None:
        """Only the server knows."""
        return None

    @property
    def continues(self) -> bool:
        """Where a last turn of the assistant is."""
        return self.dialect.prefill is not None

    def begin(self) -> Leg:
        """All of it."""
        think = self.server_budget is not None
        body = self.dialect.thinking(think)
        if self.server_budget is not None and self.dialect.budget is not None:
            body = body | self.dialect.budget(self.server_budget)
        return self._leg(self.messages, self.limits.max_output_tokens, body, separated=think)

    def go_on(self, written: str, max_tokens: int, *, lively: bool) -> Leg:
        """The rest: a last turn of the assistant is continued, or, where that is not possible, the question
        is asked again without thinking.
        """
        messages, body = self.messages, self.dialect.thinking(False)
        if self.dialect.prefill is not None:
            opening = "" if self.server_budget is None else f"{Tag.OPEN.value}\n"
            messages = (*messages, {"role": "assistant", "content": opening + written})
            body = body | self.dialect.prefill
        if lively:
            body = body | {"temperature": _LIVELY} | self.dialect.at_least(max_tokens)
        return self._leg(messages, max_tokens, body, separated=False, whole=not lively)

    def _leg(
        self, messages: Sequence[Json], max_tokens: int, body: Json, *, separated: bool, whole: bool = True
    ) -> Leg:
        whole_body = self.common | self.dialect.counting | body
        whole_body |= {"messages": list(messages), "max_tokens": max_tokens}
        return Leg(CHAT_PATH, whole_body, whole, separated)


def chat_messages(turns: Sequence[Turn], *, think: bool, switch_in_system: bool) -> tuple[Json, ...]:
    """Turns as OpenAI's API has them. switch_in_system: the model is told in its system text whether to
    think.
    """
    if switch_in_system:
        given = turns[0].text if turns[0].role is Role.SYSTEM else ""
        rest = turns[1:] if turns[0].role is Role.SYSTEM else turns
        turns = [Turn(Role.SYSTEM, f"{given}\n{'/think' if think else '/no_think'}".strip()), *rest]
    return tuple(
        {
            "role": _ROLES[turn.role],
            "content": turn.text.rpartition(Tag.CLOSE.value)[2] if turn.role is Role.ASSISTANT else turn.text,
        }
        for turn in turns
    )
