"""A request, and the sequences that it becomes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernels.transfer import send_numbers
from worker.engine.answer_form import FREE_FORM, AnswerForm
from worker.engine.budget import BudgetMachine
from worker.engine.closing import Closing
from worker.engine.generation import Limits, Strike, TokenRun
from worker.engine.prefix import Key
from worker.engine.probes import ProbeLog, ProbeRule
from worker.engine.sampling import Sampling
from worker.model.chat import Prompt


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be generated. Times are on the engine's clock, in seconds.

    limits: reason_until_s in them is a time on that clock too. priority: lower runs first. deadline_s:
    earliest runs first within a priority. samples: how many sequences to generate from the one prompt; sample
    i has seed + i. resume, strike: tokens generated elsewhere, after which generation goes on (one sample
    only), and what had struck by then. probe: when its reasoning is probed (one sample only). form: of every
    answer to it, those of probes too.
    """

    request_id: str
    prompt: Prompt
    limits: Limits
    closing: Closing
    sampling: Sampling
    received_s: float
    priority: int = 0
    deadline_s: float = math.inf
    stop: tuple[str, ...] = ()
    samples: int = 1
    resume: tuple[TokenRun, ...] = ()
    strike: Strike | None = None
    probe: ProbeRule | None = None
    form: AnswerForm = FREE_FORM

    @property
    def urgency(self) -> tuple[int, float, float]:
        """Sorts requests: priority, then deadline, then arrival."""
        return self.priority, self.deadline_s, self.received_s

    @property
    def max_tokens(self) -> int:
        """Prompt and output tokens that one of its sequences may have."""
        return len(self.prompt.ids) + self.limits.reserved_output_tokens


@dataclass(slots=True, eq=False)
class Sequence:
    """One sample of a request: what the engine has of it, and below what the scheduler has.

    tokens: the prompt and what was generated. seen [vocab]: which tokens it has, where a repetition penalty
    asks for it. Times are on the engine's clock. probe_log: of one whose reasoning is probed; probe: the one
    that answers now. original: of a probe, what it probes; answer: what it has answered.

    computed: how many tokens are in the state slot and the pages; the rest are pending, and when none is, the
    next is sampled. slot, pages: held while it runs, else None and empty. children: samples of the same
    request that wait to be forked from this one when its prompt is computed. prefilling: its pending tokens
    are a prompt, or what is computed again after a preemption. prefix: the part of its prompt that a
    checkpoint may cover. checkpoint: where one is to be made; 0 for nowhere.
    """

    request: Request
    sample: int
    machine: BudgetMachine
    sampling: Sampling
    tokens: list[int]
    cached_tokens: int = 0
    started_s: float | None = None
    first_token_s: float | None = None
    first_answer_s: float | None = None
    decode_steps: int = 0
    decode_partners: int = 0
    seen: Tensor | None = None
    _seen_tokens: int = 0
    probe_log: ProbeLog | None = None
    probe: Sequence | None = None
    original: Sequence | None = None
    answer: str = ""

    computed: int = 0
    slot: int | None = None
    pages: list[int] = field(default_factory=list)
    children: list[Sequence] = field(default_factory=list)
    prefilling: bool = True
    prefix: Key = ()
    checkpoint: int = 0
    preemptions: int = 0

    @property
    def pending(self) -> int:
        """Tokens that must be fed before the next one can be sampled. At least 1 between two steps."""
        return len(self.tokens) - self.computed

    def see(self, vocabulary: int, device: torch.device) -> Tensor:
        """Brings `seen` up to date."""
        if self.seen is None:
            self.seen = torch.zeros(vocabulary, dtype=torch.bool, device=device)
        new = send_numbers(self.tokens[self._seen_tokens :], device)
        self.seen.index_fill_(0, new, True)
        self._seen_tokens = len(self.tokens)
        return self.seen
