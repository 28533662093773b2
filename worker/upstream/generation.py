"""One request's way through a server: as many HTTP requests as it takes, one stream of events.

What arrives is counted and judged by the engine's own budget machine: a piece of text is to it a token of a
vocabulary that grows as the text comes. So the same code that ends reasoning in the engine ends it here, only
that "feed the closing text" means: close the stream, and continue in a further request.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Protocol, overload

import grpc

from curfew.rpc.errors import RpcError, reason
from worker.engine.budget import BudgetMachine, TextFormat
from worker.engine.events import Event, Finished, Output, Piece, Started, Timings
from worker.engine.generation import Ban, FinishReason, Limits, Observation, Phase, ReasoningEnd
from worker.engine.text import Tag
from worker.upstream.client import Chunk, Upstream, Usage, unavailable
from worker.upstream.script import Leg
from worker.upstream.wish import Wish

_END = -1
"""Stands for the model's end of text, which is no text."""
_MOST_LEGS = 8
_LIVELY_TOKENS = 4
_MOST_LIVELY = 2


class Pace(Protocol):
    """Learns what arrives, and knows how many requests share the server."""

    @property
    def running(self) -> int:
        """Requests that run, this one included."""

    def note(self, tokens: int, gap_s: float | None, now_s: float) -> None:
        """So many tokens have come, gap_s after those before them; None for the first."""


class Generation:
    """Runs one request. To be run once."""

    def __init__(
        self,
        wish: Wish,
        server: Upstream,
        table: Sequence[bytes],
        bytes_per_token: float | None,
        pace: Pace,
        deliver: Callable[[Event], None],
        clock: Callable[[], float],
    ) -> None:
        """table: what the tokens of the closing text stand for. bytes_per_token: where those tokens are
        bytes, how many make a token of the model.
        """
        self._wish, self._script, self._server = wish, wish.script, server
        self._pace, self._deliver, self._clock = pace, deliver, clock
        self._bytes_per_token = bytes_per_token
        self._vocabulary = _Vocabulary(table)
        self._empty = self._vocabulary.id_of("")
        text_format = TextFormat(self._vocabulary, frozenset({_END}), wish.closing)
        self._machine = BudgetMachine(wish.limits, text_format, stop=wish.stop)
        self._written = ""
        """All that stands after the prompt, tags included."""
        self._prompt_tokens = wish.script.prompt_tokens
        self._cached_tokens = 0
        self._started = False
        self._began_s = 0.0
        self._first_s: float | None = None
        self._first_answer_s: float | None = None
        self._last_s: float | None = None
        self._steps = 0
        self._batch_sum = 0

    @property
    def reasoning_tokens(self) -> int:
        """Used so far."""
        return self._machine.reasoning_tokens

    def adjust(self, reasoning_tokens: int | None, reason_until_s: float | None) -> Limits:
        """Changes limits of a reasoning under way; they are looked at with the next token. A budget does not
        rise above the first one: the server was told to end there.
        """
        return self._machine.adjust(reasoning_tokens, reason_until_s)

    async def run(self) -> None:
        """Delivers what comes, up to Finished. Raises RpcError."""
        machine = self._machine
        self._began_s = self._clock()
        if self._prompt_tokens is not None:
            self._start()
        lively = 0
        leg = self._script.begin()
        if self._act(machine.check(self._began_s)):  # the time for reasoning passed while it waited
            leg = self._rest()
        for _ in range(_MOST_LEGS):
            finish = await self._read(leg)
            if machine.finish_reason is not None:
                break
            if finish == "length" and machine.phase is Phase.REASONING:
                self._use_up()
            elif finish == "length" and leg.whole:
                self._end(FinishReason.LENGTH)
                return
            elif finish not in (None, "length"):
                if machine.phase is Phase.ANSWER and not self._visible:
                    if lively == _MOST_LIVELY:
                        break
                    lively += 1
                    leg = self._script.go_on(self._written, min(_LIVELY_TOKENS, self._left), lively=True)
                    continue
                self._act(machine.observe(_END, self._clock()))
                if machine.finish_reason is not None:
                    break
            if self._visible and not self._script.continues:
                self._end(FinishReason.STOP)
                return
            leg = self._rest()
        if machine.finish_reason is None or not self._visible:
            raise _no_answer()
        self._finish(machine.finish_reason)

    @property
    def _visible(self) -> bool:
        """Whether there is an answer."""
        return self._machine.phase is Phase.ANSWER and self._machine.ban is Ban.NONE

    def _end(self, finish_reason: FinishReason) -> None:
        """Ends it where the server has."""
        if not self._visible:
            raise _no_answer()
        self._act(self._machine.cancel())
        self._finish(finish_reason)

    @property
    def _left(self) -> int:
        return self._machine.limits.max_output_tokens - self._machine.output_tokens

    def _rest(self) -> Leg:
        return self._script.go_on(self._written, self._left, lively=False)

    async def _read(self, leg: Leg) -> str | None:
        """Reads one request's stream. Returns why the server ended it; None when it was cut here."""
        finish: str | None = None
        usage: Usage | None = None
        counted = 0
        async with aclosing(self._server.stream(leg.path, leg.body)) as chunks:
            async for chunk in chunks:
                usage, finish = chunk.usage or usage, chunk.finish or finish
                if not self._started:
                    self._count_prompt(chunk.usage)
                    self._start()
                if not chunk.reasoning and not chunk.text:
                    continue
                # Running counts may come with less than every chunk; text without a token there is not.
                tokens = max(1, (chunk.output_tokens or 0) - counted)
                counted += tokens
                if self._take(chunk, leg, tokens):
                    return None
        if finish is None:
            raise unavailable("ended a stream without a reason")
        if usage is not None:
            if self._prompt_tokens is None:
                self._count_prompt(usage)
            # The end of text is a token to the server, but none of the output.
            missing = usage.output_tokens - counted - (finish != "length")
            if any(self._pad() for _ in range(missing)):
                return None
        return finish

    def _take(self, chunk: Chunk, leg: Leg, tokens: int) -> bool:
        """Takes a chunk. Returns whether the stream is to be closed."""
        machine = self._machine
        self._note(tokens)
        if not leg.separated:
            return self._feed(chunk.reasoning + chunk.text, tokens)
        if chunk.reasoning:
            if machine.phase is Phase.REASONING:
                return self._feed(chunk.reasoning, tokens)
            return self._feed(Tag.OPEN.value, tokens)
        if machine.phase is Phase.REASONING:
            self._close()
        return self._feed(chunk.text, tokens)

    def _close(self) -> None:
        """The server has ended the reasoning, and does not show how."""
        machine, budget = self._machine, self._script.server_budget
        if budget is not None and machine.reasoning_tokens >= budget:
            self._act(machine.settle(ReasoningEnd.BUDGET))
        else:
            self._feed(f"{Tag.CLOSE.value}\n\n", 1)

    def _use_up(self) -> None:
        """The server ended a request at its token limit, in reasoning: so many tokens there are."""
        while self._machine.phase is Phase.REASONING:
            self._pad()

    def _pad(self) -> bool:
        """Counts a token of which nothing was seen: like none before, so that many of them are no loop."""
        return self._act(self._machine.observe(self._vocabulary.blank(), self._clock()))

    def _feed(self, text: str, tokens: int) -> bool:
        """Hands text of so many tokens to the machine. Returns whether the stream is to be closed."""
        now_s = self._clock()
        for _ in range(tokens - 1):
            if self._act(self._machine.observe(self._empty, now_s)):
                return True
        self._written += text
        return self._act(self._machine.observe(self._vocabulary.id_of(text), now_s))

    def _act(self, observation: Observation) -> bool:
        """Passes on what follows from a token. Returns whether that is the end of the server's stream."""
        pieces = [
            Piece(phase, (), text, token_count=phase is observation.phase) for phase, text in observation.text
        ]
        if observation.phase is not None and not any(piece.token_count for piece in pieces):
            pieces.append(Piece(observation.phase, (), "", token_count=1))
        if any(piece.phase is Phase.ANSWER for piece in pieces) and self._first_answer_s is None:
            self._first_answer_s = self._clock() - self._wish.received_s
        if observation.force:
            closing = b"".join(self._vocabulary[number] for number in observation.force)
            self._written += closing.decode()
            pieces.append(Piece(Phase.FORCED, (), "", token_count=self._forced(len(observation.force))))
        if pieces:
            self._deliver(Output(self._wish.request_id, 0, tuple(pieces), None))
        return bool(observation.force) or observation.finish is not None

    def _forced(self, tokens: int) -> int:
        """Tokens of a closing text; where its own are bytes, about how many the model has for it."""
        return tokens if self._bytes_per_token is None else math.ceil(tokens / self._bytes_per_token)

    def _count_prompt(self, usage: Usage | None) -> None:
        if usage is not None:
            self._prompt_tokens, self._cached_tokens = usage.prompt_tokens, usage.cached_tokens

    def _start(self) -> None:
        self._started = True
        prompt_tokens = self._wish.prompt_tokens if self._prompt_tokens is None else self._prompt_tokens
        self._deliver(
            Started(
                self._wish.request_id,
                prompt_tokens,
                self._cached_tokens,
                self._began_s - self._wish.received_s,
            )
        )

    def _note(self, tokens: int) -> None:
        now_s = self._clock()
        gap_s = None if self._last_s is None else now_s - self._last_s
        self._pace.note(tokens, gap_s, now_s)
        self._last_s = now_s
        if self._first_s is None:
            self._first_s = now_s - self._wish.received_s
            return
        self._steps += tokens
        self._batch_sum += tokens * self._pace.running

    def _finish(self, finish_reason: FinishReason) -> None:
        wish, machine = self._wish, self._machine
        total_s = self._clock() - wish.received_s
        queue_s = self._began_s - wish.received_s
        first_s = total_s if self._first_s is None else self._first_s
        assert machine.reasoning_end is not None
        self._deliver(
            Finished(
                request_id=wish.request_id,
                sample=0,
                reason=finish_reason,
                reasoning_end=machine.reasoning_end,
                prompt_tokens=wish.prompt_tokens if self._prompt_tokens is None else self._prompt_tokens,
                cached_tokens=self._cached_tokens,
                reasoning_tokens=machine.reasoning_tokens,
                forced_tokens=self._forced(machine.forced_tokens),
                answer_tokens=machine.answer_tokens,
                reopened=machine.reopened,
                preemptions=0,
                timings=Timings(
                    queue_s=queue_s,
                    prefill_s=first_s - queue_s,
                    first_token_s=first_s,
                    first_answer_s=self._first_answer_s,
                    total_s=total_s,
                    decode_steps=self._steps,
                    mean_batch_size=self._batch_sum / self._steps if self._steps else 1.0,
                ),
            )
        )


def _no_answer() -> RpcError:
    return RpcError(
        grpc.StatusCode.INTERNAL, "the upstream server gave no answer", reason("UPSTREAM_NO_ANSWER")
    )


class _Vocabulary(Sequence[bytes]):
    """The closing text's tokens, and behind them every piece of text that has come."""

    def __init__(self, table: Sequence[bytes]) -> None:
        self._table, self._pieces = table, list[bytes]()
        self._ids: dict[str, int] = {}

    def id_of(self, text: str) -> int:
        """The id of a piece; equal pieces have the same."""
        number = self._ids.get(text)
        if number is None:
            number = self._ids[text] = len(self)
            self._pieces.append(text.encode())
        return number

    def blank(self) -> int:
        """A new id that stands for nothing."""
        self._pieces.append(b"")
        return len(self) - 1

    def __len__(self) -> int:
        return len(self._table) + len(self._pieces)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | Sequence[bytes]:
        assert isinstance(index, int)
        known = len(self._table)
        return self._table[index] if index < known else self._pieces[index - known]
