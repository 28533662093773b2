"""One request at a simulated worker: where its reasoning ends, and how long its answer is."""

from __future__ import annotations

from dataclasses import dataclass

from controller.simulation.trace import ReasoningEnd


@dataclass(frozen=True, slots=True)
class Nature:
    """What the model would do with a request if nobody limited it; drawn before any plan is made.

    reasoning_tokens: at which it stops to reason by itself. boundary_tokens: from where reasoning is told to
    end to the end of its sentence.
    """

    prompt_tokens: int
    reasoning_tokens: int
    answer_tokens: int
    boundary_tokens: int


@dataclass(frozen=True, slots=True)
class Grant:
    """What a request may use, as the worker is told. Times are the simulation's, infinite for none."""

    budget_tokens: int
    grace_tokens: int
    answer_tokens: int
    reason_until_s: float
    priority: int
    deadline_s: float
    reserve_tokens: int = 0
    """Up to which the budget may be raised; at least the budget."""


@dataclass(frozen=True, slots=True)
class Done:
    """A worker's account of a request. Times are from its receipt, as in the contract's Timings.

    complete: whether the answer came to its own end, and was not cut by the limit of output.
    """

    prompt_tokens: int
    reasoning_tokens: int
    forced_tokens: int
    answer_tokens: int
    reasoning_end: ReasoningEnd
    complete: bool
    queue_s: float
    first_token_s: float
    first_answer_s: float
    total_s: float
    decode_steps: int
    mean_batch_size: float


class Job:
    """A request from its submission to its end.

    A step of the worker samples one token for each sequence that decodes. What happens to a job happens with
    a certain token of its own: reasoning ends with token `cut`, the first of the answer follows, and it is
    over with token `over`. `due` is the worker's step of the next of these.
    """

    __slots__ = (
        "_base", "_began_partners", "_closed", "_most_budget",
        "_partners", "_strike", "admitted_s", "answering",
        "budget_tokens", "computed", "cut", "due", "end", "first_answer_s", "first_token_s", "forced_tokens",
        "grant", "max_output_tokens", "nature", "over", "pages", "pending", "prefilling", "reason_until_s",
        "received_s", "sampled", "urgency",
    )  # fmt: skip

    def __init__(self, nature: Nature, grant: Grant, closing_tokens: int) -> None:
        self.nature, self.grant = nature, grant
        self.budget_tokens, self.reason_until_s = grant.budget_tokens, grant.reason_until_s
        thinking = grant.budget_tokens + grant.grace_tokens + closing_tokens if grant.budget_tokens else 0
        self.max_output_tokens = thinking + grant.answer_tokens
        self._most_budget = max(grant.reserve_tokens, grant.budget_tokens)
        self.received_s = 0.0
        self.urgency: tuple[int, float, float] = (0, 0.0, 0.0)
        self.pages = 0
        """Reserved for it while it runs."""
        self.admitted_s: float | None = None
        self.first_token_s: float | None = None
        self.first_answer_s: float | None = None
        self.prefilling = True
        self.pending = nature.prompt_tokens
        """Tokens to compute before the next is sampled, while it prefills."""
        self.computed = 0
        """Of these."""
        self.sampled = 0
        """Tokens sampled for it before it last began to decode, and at its end."""
        self.answering = False
        self.end = ReasoningEnd.NONE
        self.cut = 0
        self.over = 0
        self.due = 0
        self._base = 0  # step - _base tokens are sampled after a step
        self._partners = 0
        self._began_partners = 0
        self._closed = 0  # token with which reasoning ended
        self.forced_tokens = 0
        self._strike: int | None = None  # token at which its time was up
        if grant.budget_tokens:
            self._set_cut()
        else:
            self._answer(0)

    def tokens(self, step: int) -> int:
        """Sampled after a step, while it decodes: as long as it reasons, its reasoning tokens."""
        return step - self._base

    def context_tokens(self, step: int) -> int:
        """Prompt and output after a step, while it decodes."""
        return self.nature.prompt_tokens + self.tokens(step) + self.forced_tokens

    @property
    def struck(self) -> bool:
        """Whether its time was up, and it has not been given more."""
        return self._strike is not None

    def begin(self, step: int, partners: int) -> None:
        """Its prompt is computed, and this step samples a token for it. partners: of all steps before."""
        self.prefilling = False
        self._base = step - 1 - self.sampled
        self._began_partners = partners
        self._set_due(step)

    def preempt(self, step: int, partners: int) -> None:
        """It loses its place after this step: all of its tokens must be computed again."""
        if not self.prefilling:
            self._leave(step, partners)
        self.prefilling = True
        self.pending = self.nature.prompt_tokens + self.sampled + self.forced_tokens
        self.computed = 0

    def strike(self, step: int) -> None:
        """Its time is up with the token of this step; once its budget is, that makes no difference."""
        if self.tokens(step) < self.budget_tokens:
            self._strike = self.tokens(step)
            self._set_cut()
            self._set_due(step)

    def adjust(self, budget_tokens: int | None, reason_until_s: float | None, step: int) -> None:
        """Changes the limits of a reasoning under way, as the worker's BudgetMachine does."""
        if self.answering:
            return
        used = self.sampled if self.prefilling else self.tokens(step)
        if budget_tokens is not None:
            self.budget_tokens = max(min(budget_tokens, self._most_budget), used + 1)
        if reason_until_s is not None:
            if reason_until_s > self.reason_until_s:
                self._strike = None
            self.reason_until_s = reason_until_s
        self._set_cut()
        if not self.prefilling:
            self._set_due(step + 1)

    def close(self, step: int, closing_tokens: int) -> int:
        """Its reasoning ends with the token of this step; returns how many tokens are forced."""
        used = self.tokens(step)
        if used >= self.nature.reasoning_tokens:
            self.end = ReasoningEnd.NATURAL
        else:
            self.end = ReasoningEnd.BUDGET if self._strike is None else ReasoningEnd.DEADLINE
            self.forced_tokens = closing_tokens
        self._answer(used)
        self._set_due(step)
        return self.forced_tokens

    def begin_answer(self, step: int, now_s: float) -> None:
        """The token of this step is the answer's first."""
        self.first_answer_s = now_s
        self.due = self._base + self.over
        assert self.due >= step

    def finish(self, step: int, partners: int, now_s: float) -> Done:
        """It is over with the token of this step."""
        self._leave(step, partners)
        assert self.admitted_s is not None
        assert self.first_token_s is not None
        assert self.first_answer_s is not None
        answered = min(self.nature.answer_tokens, self._room())
        return Done(
            prompt_tokens=self.nature.prompt_tokens,
            reasoning_tokens=self._closed,
            forced_tokens=self.forced_tokens,
            answer_tokens=answered,
            reasoning_end=self.end,
            complete=answered == self.nature.answer_tokens,
            # Both are sums of steps: they may differ by rounding where they are the same time.
            queue_s=max(0.0, self.admitted_s - self.received_s),
            first_token_s=self.first_token_s - self.received_s,
            first_answer_s=self.first_answer_s - self.received_s,
            total_s=now_s - self.received_s,
            decode_steps=self.sampled,
            mean_batch_size=self._partners / max(1, self.sampled),
        )

    def _leave(self, step: int, partners: int) -> None:
        self.sampled = self.tokens(step)
        self._partners += partners - self._began_partners

    def _set_cut(self) -> None:
        """Where reasoning ends: by itself, or within the grace after the budget or its time is used up."""
        boundary, grace = self.nature.boundary_tokens, self.grant.grace_tokens
        cut = self.budget_tokens + min(grace, boundary)
        if self._strike is not None:
            struck = self._strike
            cut = min(cut, struck + boundary, min(struck, self.budget_tokens) + grace)
        self.cut = max(1, min(cut, self.nature.reasoning_tokens))

    def _set_due(self, step: int) -> None:
        token = self._closed + 1 if self.answering else self.cut
        if self.first_answer_s is not None:
            token = self.over
        self.due = max(step, self._base + token)

    def _answer(self, used: int) -> None:
        self.answering = True
        self._closed = used
        room = self._room()
        # The end of the text takes a step of its own.
        self.over = used + min(self.nature.answer_tokens + 1, room)

    def _room(self) -> int:
        return max(1, self.max_output_tokens - self._closed - self.forced_tokens)
