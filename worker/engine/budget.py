"""The reasoning budget of one sequence, exactly: when reasoning ends, how, and what is shown of it.

The engine calls `observe` for every token that it samples, in order, and acts on the observation: it passes
the text on, feeds the forced tokens, or ends the sequence. Before each sampling it applies `ban`. Nothing
here reads a clock, draws a number or knows a tensor.

Of the tokens of a step (speculative decoding gives several) the engine drops those after an observation with
`force` or `finish`, and those that were sampled under another `ban` than the one now in force.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from worker.engine.answer_form import FREE_FORM, AnswerForm
from worker.engine.closing import Closing, at_boundary
from worker.engine.generation import (
    Ban,
    CallPiece,
    FinishReason,
    Limits,
    MalformedCall,
    Observation,
    Phase,
    ReasoningEnd,
    Strike,
    TokenRun,
)
from worker.engine.loops import DEFAULT_LOOP_RULE, LoopDetector, LoopRule
from worker.engine.text import AnswerScanner, Tag, TagScanner, TokenText
from worker.engine.tool_calls import Found, ToolCallScanner

# After so many answer tokens, or with so few left, an answer without visible text must show some. The first
# lets a model begin with line ends and a character of four single-byte tokens.
_SILENT_AT_MOST = 8
_VISIBLE_WITHIN = 4

# Characters of reasoning kept to find a sentence's end in.
_TAIL = 32


@dataclass(frozen=True, slots=True)
class TextFormat:
    """What the machine must know of a model; built once and shared by all sequences."""

    token_bytes: Sequence[bytes]
    """See `TokenText`."""
    end_of_text: frozenset[int]
    closing: Closing


class BudgetMachine:
    """Follows one sequence from its prompt's end to its own.

    For reading only: `limits` in force; `phase` (REASONING or ANSWER) of the next token to be sampled;
    `strike`, None until something strikes; `reasoning_end`, None while the model reasons; `reopened`, whether
    the model wrote `<think>` in its answer; `finish_reason`, None until the finish; `malformed`, what the
    answer wrote as calls of tools that are none; `matcher`, of an answer with a grammar, which belongs to the
    machine; and the counts of tokens in the sequence.
    """

    __slots__ = (
        "_answer", "_answer_text", "_call_pieces", "_calls", "_form", "_format", "_loops", "_reasoning_text",
        "_reopening", "_tags", "_tail", "_text", "answer_tokens", "finish_reason", "forced_tokens", "limits",
        "malformed", "matcher", "phase", "reasoning_end", "reasoning_tokens", "reopened", "strike",
    )  # fmt: skip

    def __init__(
        self,
        limits: Limits,
        text_format: TextFormat,
        *,
        stop: Sequence[str] = (),
        form: AnswerForm = FREE_FORM,
        loop_rule: LoopRule | None = DEFAULT_LOOP_RULE,
    ) -> None:
        """Raises ValueError where `limits` do not leave room for an answer, or a stop string is empty."""
        closing_tokens = text_format.closing.longest
        if limits.required_output_tokens(closing_tokens) > limits.max_output_tokens:
            raise ValueError(
                f"max_output_tokens {limits.max_output_tokens} must cover"
                f" reasoning {limits.reasoning_tokens} + grace {limits.grace_tokens}"
                f" + closing text {closing_tokens} + answer {limits.answer_tokens}"
            )
        self._format = text_format
        self._text = TokenText(text_format.token_bytes)
        self._tags = TagScanner()
        self._form = form
        self._calls = ToolCallScanner(form.tools, form.most_calls)
        self._answer = AnswerScanner(stop)
        self._loops = LoopDetector(loop_rule) if loop_rule else None
        self._tail = ""
        self._reasoning_text = ""  # to be shown with this observation
        self._answer_text = ""  # the same
        self._call_pieces: list[CallPiece] = []  # the same
        self._reopening = False  # a first `<think>` in the answer wants its close

        self.limits = limits
        self.phase = Phase.REASONING if limits.reasoning_tokens else Phase.ANSWER
        self.strike: Strike | None = None
        self.reasoning_end: ReasoningEnd | None = None if limits.reasoning_tokens else ReasoningEnd.NONE
        self.reopened = False
        self.finish_reason: FinishReason | None = None
        self.malformed: list[MalformedCall] = []
        self.matcher = form.grammar.matcher() if form.grammar is not None else None
        self.reasoning_tokens = 0
        self.forced_tokens = 0
        self.answer_tokens = 0

    @classmethod
    def resume(
        cls,
        limits: Limits,
        text_format: TextFormat,
        runs: Iterable[TokenRun],
        *,
        strike: Strike | None = None,
        stop: Sequence[str] = (),
        form: AnswerForm = FREE_FORM,
        loop_rule: LoopRule | None = DEFAULT_LOOP_RULE,
    ) -> Self:
        """The machine of a sequence that already has the tokens of `runs`, with all of their text shown.

        `limits` and `strike` are those of the machine that stopped; without `strike`, one by budget or loop
        is found again, one by deadline is not. Call `check` before sampling: a limit may be due. Raises
        ValueError for runs that no machine makes.
        """
        machine = cls(limits, text_format, stop=stop, form=form, loop_rule=loop_rule)
        for run in runs:
            machine._replay(run, strike)
        machine.strike = strike or machine.strike
        if machine.output_tokens > limits.max_output_tokens:
            raise ValueError(f"{machine.output_tokens} tokens exceed {limits}")
        if machine.output_tokens == limits.max_output_tokens and machine.finish_reason is None:
            machine._finish(FinishReason.LENGTH)
        machine._reasoning_text = machine._answer_text = ""  # was shown before
        machine._call_pieces.clear()
        return machine

    @property
    def output_tokens(self) -> int:
        """Reasoning, forced and answer tokens together."""
        return self.reasoning_tokens + self.forced_tokens + self.answer_tokens

    @property
    def ban(self) -> Ban:
        """What the next sampling must leave out."""
        if self.phase is Phase.REASONING or self._begun:
            return Ban.NONE
        remaining = self.limits.max_output_tokens - self.output_tokens
        if self.answer_tokens >= _SILENT_AT_MOST or remaining <= _VISIBLE_WITHIN:
            return Ban.SILENT
        return Ban.END_OF_TEXT

    def observe(self, token_id: int, now_s: float) -> Observation:
        """Takes the token that was sampled next, at `now_s`.

        Raises ValueError for an end of text that `ban` excluded, RuntimeError after the finish.
        """
        self._require_running()
        if token_id in self._format.end_of_text:
            return self._observe_end_of_text(token_id)
        phase = self.phase
        force: tuple[int, ...] = ()
        self._count_and_read(token_id)
        if self.phase is Phase.REASONING:
            self._look_for_strike(token_id, now_s)
            force = self._end_if_due()
        elif self.finish_reason is None:
            force = self._return_to_answer()
            if self.output_tokens == self.limits.max_output_tokens:
                self._finish(FinishReason.LENGTH)
        return self._observation(phase, force)

    def check(self, now_s: float) -> Observation:
        """Lets a limit strike without a token: before the first one, after `resume`, or at any time."""
        self._require_running()
        force: tuple[int, ...] = ()
        if self.phase is Phase.REASONING:
            self._look_for_strike(None, now_s)
            force = self._end_if_due()
        return self._observation(None, force)

    def settle(self, reason: ReasoningEnd = ReasoningEnd.STABLE) -> Observation:
        """Ends a reasoning as if its budget were used up. reason: why; by default, its answer is known to be
        stable.
        """
        self._require_running()
        force: tuple[int, ...] = ()
        if self.phase is Phase.REASONING and self.strike is None:
            self.strike = Strike(reason, self.reasoning_tokens)
            force = self._end_if_due()
        return self._observation(None, force)

    @property
    def _begun(self) -> bool:
        """Whether the answer is not empty, however it goes on."""
        return self._answer.visible or self._calls.begun

    @property
    def at_boundary(self) -> bool:
        """Whether the reasoning stands where it may be cut: after a line or a sentence."""
        return at_boundary(self._tail) and not self._text.mid_character

    @property
    def closing(self) -> tuple[int, ...]:
        """Tokens that end the reasoning if it ends here."""
        under_way, closing = self.close_under_way, self._format.closing
        return closing.rest(under_way) if under_way else closing.end(self._tail)

    def adjust(self, reasoning_tokens: int | None = None, reason_until_s: float | None = None) -> Limits:
        """Changes limits of a reasoning under way; returns those really in force. None leaves one as it is.

        `reasoning_tokens` is bounded from below by one more than are used, so that the next token is the last
        before the grace, and from above by what `max_output_tokens` and the reserve cover. `math.inf` lifts
        `reason_until_s`. Extending the limit that has struck takes the strike back; nothing else moves a
        grace that has begun. Raises ValueError for a negative budget or a time that is no number.
        """
        if reasoning_tokens is not None and reasoning_tokens < 0:
            raise ValueError(f"reasoning_tokens must be >= 0: {reasoning_tokens}")
        if self.phase is not Phase.REASONING or self.finish_reason is not None:
            return self.limits
        used, old, new = self.reasoning_tokens, self.limits, self.limits
        if reasoning_tokens is not None:
            spare = old.max_output_tokens - old.required_output_tokens(self._format.closing.longest)
            budget = min(reasoning_tokens, old.reasoning_tokens + spare + old.reserve_tokens)
            if used < max(old.reasoning_tokens, budget):
                drawn = max(0, budget - old.reasoning_tokens - spare)
                new = replace(
                    new,
                    reasoning_tokens=max(budget, used + 1),
                    max_output_tokens=old.max_output_tokens + drawn,
                    reserve_tokens=old.reserve_tokens - drawn,
                )
        if reason_until_s is not None:
            new = replace(new, reason_until_s=reason_until_s)
        if self.strike is not None and (
            (self.strike.reason is ReasoningEnd.BUDGET and new.reasoning_tokens > old.reasoning_tokens)
            or (self.strike.reason is ReasoningEnd.DEADLINE and new.reason_until_s > old.reason_until_s)
        ):
            self.strike = None
        self.limits = new
        return new

    def cancel(self) -> Observation:
        """Ends the sequence from outside; shows what was held back. Raises RuntimeError after the finish."""
        self._require_running()
        if self.phase is Phase.REASONING:
            self.reasoning_end = ReasoningEnd.CANCELLED
        self._finish(FinishReason.CANCELLED)
        return self._observation(None)

    def _require_running(self) -> None:
        if self.finish_reason is not None:
            raise RuntimeError(f"the sequence is finished: {self.finish_reason.name}")

    def _observe_end_of_text(self, token_id: int) -> Observation:
        """The token itself does not enter the sequence."""
        if self.phase is Phase.REASONING:
            self.strike = Strike(ReasoningEnd.NATURAL, self.reasoning_tokens)
            return self._observation(None, self._end_if_due())
        if not self._begun:
            raise ValueError(
                f"end of text (token {token_id}) was sampled though it is banned: {self.ban.name}"
            )
        if self.matcher is not None:
            self.matcher.end()
        self._finish(self._ended)
        return self._observation(None)

    def _observation(self, phase: Phase | None, force: tuple[int, ...] = ()) -> Observation:
        """Hands out the text that has come together."""
        text: tuple[tuple[Phase, str], ...] = ()
        if self._reasoning_text:
            text = ((Phase.REASONING, self._reasoning_text),)
            self._reasoning_text = ""
        if self._answer_text:
            text += ((Phase.ANSWER, self._answer_text),)
            self._answer_text = ""
        calls = tuple(self._call_pieces)
        self._call_pieces.clear()
        return Observation(phase, text, force, self.finish_reason, calls)

    # Limits and closes.

    def _look_for_strike(self, token_id: int | None, now_s: float) -> None:
        """Sets `strike` where a limit is reached, with `token_id` the newest of the reasoning."""
        limits, used = self.limits, self.reasoning_tokens
        if token_id is not None and self._loops is not None and self._loops.observe(token_id):
            self.strike = Strike(ReasoningEnd.LOOP, used)
        elif self.strike is None:
            if used >= limits.reasoning_tokens:
                self.strike = Strike(ReasoningEnd.BUDGET, used)
            elif now_s >= limits.reason_until_s:
                self.strike = Strike(ReasoningEnd.DEADLINE, used)

    def _end_if_due(self) -> tuple[int, ...]:
        """Ends a struck reasoning: at a boundary, in a close under way, or with the grace's last token."""
        strike, limits = self.strike, self.limits
        if strike is None:
            return ()
        last = min(strike.reasoning_tokens, limits.reasoning_tokens) + limits.grace_tokens
        if not (
            self.reasoning_tokens >= last
            or strike.reason in (ReasoningEnd.LOOP, ReasoningEnd.NATURAL)
            or self.close_under_way
            or self.at_boundary
        ):
            return ()
        force = self.closing
        self._force(force)
        self._leave_reasoning(strike.reason)
        return force

    @property
    def close_under_way(self) -> str:
        """The proper prefix of `</think>` that the reasoning ends with, or an empty string."""
        return "" if self._text.mid_character else self._tags.close_under_way

    def _leave_reasoning(self, reason: ReasoningEnd) -> None:
        self.phase = Phase.ANSWER
        self.reasoning_end = reason

    def _return_to_answer(self) -> tuple[int, ...]:
        """Closes what the first `<think>` of an answer has opened, if an answer still fits behind it."""
        if not self._reopening:
            return ()
        self._reopening = False
        force = self._format.closing.rest(self.close_under_way)
        if self.output_tokens + len(force) >= self.limits.max_output_tokens:
            return ()
        self._force(force)
        return force

    def _force(self, token_ids: Sequence[int]) -> None:
        """Counts closing text. It is not shown, and the tag's beginning that it may complete is dropped."""
        self._read(self._text.flush())
        self._tags.flush()
        self.forced_tokens += len(token_ids)
        self._follow(token_ids)

    def _follow(self, token_ids: Sequence[int]) -> None:
        """Lets an answer's matcher follow."""
        if self.matcher is not None and self.phase is Phase.ANSWER:
            self.matcher.accept(token_ids)

    # Text.

    def _count_and_read(self, token_id: int) -> None:
        self._follow((token_id,))
        if self.phase is Phase.REASONING:
            self.reasoning_tokens += 1
        else:
            self.answer_tokens += 1
        self._read(self._text.push(token_id))

    def _read(self, text: str) -> None:
        if text and self.phase is Phase.REASONING:
            self._tail = (self._tail + text)[-_TAIL:]
            text = self._read_reasoning(text)
        if text:
            self._read_answer(text)

    def _read_reasoning(self, text: str) -> str:
        """Returns what comes behind the close."""
        while text and self.phase is Phase.REASONING:
            shown, tag, text = self._tags.push(text)
            self._reasoning_text += shown
            if tag is Tag.CLOSE:
                self._leave_reasoning(ReasoningEnd.NATURAL)
        return text

    def _read_answer(self, text: str) -> None:
        if self._form.is_json and self._answer.visible:
            # Whatever stands in JSON is data.
            self._show(text)
            return
        self._take(self._calls.push(text))

    def _take(self, found: Iterable[Found]) -> None:
        for piece in found:
            if self.finish_reason is not None:
                return
            if isinstance(piece, CallPiece):
                self._call_pieces.append(piece)
            elif isinstance(piece, MalformedCall):
                self.malformed.append(piece)
            elif self._form.is_json:
                self._show(piece)
            else:
                self._read_text(piece)

    def _read_text(self, text: str) -> None:
        """Text of an answer that is neither a call nor JSON."""
        while text:
            shown, tag, text = self._tags.push(text)
            self._show(shown)
            if tag is Tag.CLOSE:
                self._reopening = False
            elif tag is Tag.OPEN and not self.reopened:
                self.reopened = self._reopening = True

    def _show(self, text: str) -> None:
        if self.finish_reason is None:
            text, stopped = self._answer.push(text)
            self._answer_text += text
            if stopped:
                self.finish_reason = self._ended

    @property
    def _ended(self) -> FinishReason:
        """Of an answer that has come to its end."""
        return FinishReason.TOOL_CALLS if self._calls.calls else FinishReason.STOP

    def _finish(self, reason: FinishReason) -> None:
        """Shows what is held back; a stop string that this completes is the reason all the same."""
        self._read(self._text.flush())
        if self.phase is Phase.REASONING:
            self._reasoning_text += self._tags.flush()
        else:
            self._take(self._calls.flush())
            self._show(self._tags.flush())
        if self.finish_reason is None:
            self.finish_reason = reason
            self._answer_text += self._answer.flush()

    # Resuming.

    def _replay(self, run: TokenRun, strike: Strike | None) -> None:
        """Takes a run as when its tokens were sampled, but with the decisions that were made then."""
        if run.phase is Phase.FORCED:
            self._replay_close(run, strike)
            return
        for token_id in run.token_ids:
            self._require_running()
            if self.phase is not run.phase or token_id in self._format.end_of_text:
                raise ValueError(f"token {self.output_tokens}, {token_id}, cannot be {run.phase.name}")
            self._count_and_read(token_id)
            self._reopening = False
            if self.phase is Phase.REASONING:
                self._look_for_strike(token_id, now_s=-math.inf)

    def _replay_close(self, run: TokenRun, strike: Strike | None) -> None:
        closing = b"".join(self._format.token_bytes[token_id] for token_id in run.token_ids)
        if Tag.CLOSE.value.encode() not in self.close_under_way.encode() + closing:
            raise ValueError(f"FORCED tokens that close nothing: {closing!r}")
        self._force(run.token_ids)
        if self.phase is Phase.REASONING:
            strike = strike or self.strike
            self._leave_reasoning(strike.reason if strike else ReasoningEnd.NATURAL)
