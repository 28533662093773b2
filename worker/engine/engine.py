"""Continuous batching: one step after another, each for all sequences that run.

One thread owns an engine. A request's life: `submit` queues it, steps bring its events, it ends with Finished
or Failed for every sample, or with `cancel` and no further event.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worker.engine.budget import BudgetMachine, TextFormat
from worker.engine.cache import PagePool, SlotPool
from worker.engine.events import Event, Failed, FailureKind, Finished, Load, Output, Piece, Started, Timings
from worker.engine.generation import Ban, FinishReason, Limits, Observation, Phase
from worker.engine.meter import Meter
from worker.engine.prefix import PrefixCache
from worker.engine.runner import Runner
from worker.engine.sampling import Choice, Draw, choose
from worker.engine.scheduler import Scheduler, SchedulerSettings
from worker.engine.sequence import Request, Sequence
from worker.engine.text import silent_tokens
from worker.model.chat import Chat


class RefusedError(Exception):
    """A request was not taken; nothing of it remains. The message holds the numbers."""


class TooLargeError(RefusedError):
    """It can never fit this engine."""


class QueueFullError(RefusedError):
    """Too many wait."""


class DuplicateError(RefusedError):
    """Its id is in use."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Sizes of an engine.

    slots: sequences that run together. pages, page_tokens: pool of keys and values. step_tokens,
    idle_step_tokens: tokens of a step while something decodes, and while nothing does. queue: requests that
    may wait. prefix_cache: whether to keep checkpoints of shared prompts. max_sequence_tokens: of one
    sequence, prompt and output.
    """

    slots: int
    pages: int
    page_tokens: int
    step_tokens: int
    idle_step_tokens: int
    queue: int
    max_sequence_tokens: int
    prefix_cache: bool = True


class Engine:
    """Runs requests on one device."""

    def __init__(
        self, runner: Runner, chat: Chat, settings: EngineSettings, clock: Callable[[], float]
    ) -> None:
        """clock: monotonic, in seconds."""
        self.settings = settings
        self._runner, self._chat, self._clock = runner, chat, clock
        self._slots = SlotPool(settings.slots)
        self._pages = PagePool(settings.pages, settings.page_tokens)
        chunk, vocabulary = runner.network.config.chunk_size, runner.network.config.vocab_size
        self._prefixes = PrefixCache(
            alignment=math.lcm(chunk, settings.page_tokens) if settings.prefix_cache else None,
            slot_bytes=runner.pools.slot_bytes,
            page_bytes=runner.pools.page_bytes,
        )
        self._scheduler = Scheduler(
            SchedulerSettings(settings.step_tokens, settings.idle_step_tokens, chunk, settings.queue),
            self._slots,
            self._pages,
            self._prefixes,
            runner.pools,
        )
        self._requests: dict[str, list[Sequence]] = {}
        """The unfinished samples of each request."""
        self._meter = Meter()
        self._outbox: list[Event] = []
        """Events of requests that were over when they came."""
        # Ids beyond the tokenizer's are padding of the vocabulary: they stand for nothing.
        self._token_bytes = [*chat.token_bytes, *[b""] * (vocabulary - len(chat.token_bytes))]
        device = runner.network.device
        ends = [i for i in sorted(chat.end_ids) if i < vocabulary]
        silent = silent_tokens(self._token_bytes, chat.special_ids | chat.end_ids)
        self._banned: dict[Ban, Tensor | None] = {
            Ban.NONE: None,
            Ban.END_OF_TEXT: torch.tensor(ends, device=device),
            Ban.SILENT: torch.tensor(sorted(silent), device=device),
        }

    def submit(self, request: Request) -> None:
        """Queues a request. Raises RefusedError, or ValueError for limits that leave no room for an answer
        and for tokens to resume from that no engine makes.
        """
        if request.request_id in self._requests:
            raise DuplicateError(f"request {request.request_id!r} is running already")
        self._check_size(request)
        if len(self._scheduler.waiting) >= self.settings.queue:
            raise QueueFullError(f"{len(self._scheduler.waiting)} requests wait already")
        group = [self._sequence(request, sample) for sample in range(request.samples)]
        for sample in group[1:]:
            sample.fork_of = group[0]
        self._requests[request.request_id] = list(group)
        self._scheduler.add(group)
        if request.resume:
            self._outbox += self._catch_up(group[0], self._clock())

    def cancel(self, request_id: str) -> None:
        """Ends a request at once and frees what it holds. An unknown one is over already."""
        for sequence in self._requests.pop(request_id, []):
            self._scheduler.finish(sequence)

    def adjust(
        self, request_id: str, reasoning_tokens: int | None, reason_until_s: float | None
    ) -> Limits | None:
        """Changes a running request's limits; returns its first sample's in force, None if it is over."""
        found = self._requests.get(request_id)
        if not found:
            return None
        first, *_ = [s.machine.adjust(reasoning_tokens, reason_until_s) for s in found]
        return first

    def reasoning_tokens(self, request_id: str) -> int:
        """The most reasoning tokens that a sample of a request has used; 0 if it is over."""
        return max((s.machine.reasoning_tokens for s in self._requests.get(request_id, [])), default=0)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._requests

    def load(self) -> Load:
        """How busy the engine is."""
        return Load(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            backlog_tokens=self._scheduler.backlog_tokens,
            free_slots=self._slots.free,
            free_pages=self._pages.free,
            step_s=self._meter.step_s,
            tokens_per_s=self._meter.tokens_per_s(self._clock()),
        )

    def check_integrity(self) -> None:
        """Raises CacheError unless every slot and page is accounted for."""
        self._scheduler.check_integrity()

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Computes one step. A failure of the device is raised, and leaves the engine unusable."""
        began_s = self._clock()
        events, self._outbox = self._outbox, []
        plan = self._scheduler.plan(began_s)
        events += [_started(s, began_s) for s in plan.admitted if not s.preemptions and not s.sample]
        if not plan.works:
            return events
        works, logits = self._runner.run(plan.works)
        ready: list[tuple[Sequence, int]] = []
        for row, work in enumerate(works):
            sequence = work.sequence
            sequence.computed += work.count
            if sequence.computed == sequence.checkpoint:
                self._scheduler.keep_prefix(sequence)
            if not sequence.pending:
                ready.append((sequence, row))
                ready += [(child, row) for child in self._fork_samples(sequence)]
        choices = self._choose(logits, ready) if ready else []
        now_s = self._clock()
        for (sequence, _), choice in zip(ready, choices, strict=True):
            sequence.decode_steps += 1
            sequence.decode_partners += len(ready)
            events += self._advance(sequence, choice, now_s)
        self._meter.record(began_s, now_s, len(ready), all(work.count == 1 for work in works))
        return events

    # A request's beginning.

    def _check_size(self, request: Request) -> None:
        settings, tokens = self.settings, request.max_tokens
        if tokens > settings.max_sequence_tokens:
            raise TooLargeError(
                f"prompt {len(request.prompt.ids)} + output {request.limits.max_output_tokens}"
                f" = {tokens} tokens exceed the {settings.max_sequence_tokens} of a sequence"
            )
        needed = self._pages.needed(tokens) * request.samples
        if needed > settings.pages:
            raise TooLargeError(f"{needed} pages are needed, and there are {settings.pages}")
        if request.samples > settings.slots:
            raise TooLargeError(
                f"{request.samples} samples need as many slots, and there are {settings.slots}"
            )

    def _sequence(self, request: Request, sample: int) -> Sequence:
        text_format = TextFormat(self._token_bytes, self._chat.end_ids, request.closing)
        machine = BudgetMachine.resume(request.limits, text_format, request.resume, stop=request.stop)
        generated = [token for run in request.resume for token in run.token_ids]
        sampling = replace(request.sampling, seed=request.sampling.seed + sample)
        return Sequence(request, sample, machine, sampling, [*request.prompt.ids, *generated])

    def _catch_up(self, sequence: Sequence, now_s: float) -> list[Event]:
        """What follows at once for a resumed sequence: it may be over, or a limit may be due."""
        machine = sequence.machine
        if machine.finish_reason is not None:
            return [self._finish(sequence, machine.finish_reason, now_s)]
        return self._observed(sequence, machine.check(now_s), None, now_s)

    # A sequence's next token.

    def _fork_samples(self, parent: Sequence) -> list[Sequence]:
        """Lets the other samples of a request go on from the prompt that its first one has computed."""
        if parent.request.samples == 1:
            return []
        children = [s for s in self._requests[parent.request.request_id] if s.fork_of is parent]
        for child in children:
            self._scheduler.fork(parent, child)
        return children

    def _choose(self, logits: Tensor, ready: list[tuple[Sequence, int]]) -> list[Choice]:
        rows = [row for _, row in ready]
        if rows != list(range(len(logits))):
            logits = logits[rows]
        return choose(logits, [self._draw(sequence) for sequence, _ in ready])

    def _draw(self, sequence: Sequence) -> Draw:
        if sequence.sampling.repetition_penalty != 1.0:
            sequence.see(self._runner.network.config.vocab_size, self._runner.network.device)
        banned = self._banned[sequence.machine.ban]
        return Draw(sequence.sampling, len(sequence.tokens), banned, sequence.seen)

    def _advance(self, sequence: Sequence, choice: Choice, now_s: float) -> list[Event]:
        """Takes the chosen token into the sequence. What goes wrong here is this request's own failure."""
        try:
            observation = sequence.machine.observe(choice.token_id, now_s)
            return self._observed(sequence, observation, choice, now_s)
        except Exception as error:  # the boundary between one request and all others
            request_id = sequence.request.request_id
            self.cancel(request_id)
            return [Failed(request_id, FailureKind.REQUEST, f"{type(error).__name__}: {error}")]

    def _observed(
        self, sequence: Sequence, observation: Observation, choice: Choice | None, now_s: float
    ) -> list[Event]:
        if sequence.first_token_s is None:
            sequence.first_token_s = now_s
        pieces = [Piece(phase, (), text) for phase, text in observation.text]
        if observation.phase is not None and choice is not None:
            sequence.tokens.append(choice.token_id)
            logprobs = () if choice.logprobs is None else (choice.logprobs,)
            # The token belongs to its own phase, also when it completes text of the next.
            own = pieces.pop(0).text if pieces and pieces[0].phase is observation.phase else ""
            pieces.insert(0, Piece(observation.phase, (choice.token_id,), own, logprobs))
        if observation.force:
            sequence.tokens += observation.force
            pieces.append(Piece(Phase.FORCED, observation.force, ""))
        if sequence.first_answer_s is None and any(p.phase is Phase.ANSWER and p.text for p in pieces):
            sequence.first_answer_s = now_s
        events: list[Event] = []
        if pieces:
            events.append(Output(sequence.request.request_id, sequence.sample, tuple(pieces)))
        if observation.finish is not None:
            events.append(self._finish(sequence, observation.finish, now_s))
        return events

    def _finish(self, sequence: Sequence, reason: FinishReason, now_s: float) -> Finished:
        self._scheduler.finish(sequence)
        request, machine = sequence.request, sequence.machine
        samples = self._requests[request.request_id]
        samples.remove(sequence)
        if not samples:
            del self._requests[request.request_id]
        assert machine.reasoning_end is not None  # a finished machine says how its reasoning ended
        return Finished(
            request_id=request.request_id,
            sample=sequence.sample,
            reason=reason,
            reasoning_end=machine.reasoning_end,
            prompt_tokens=len(request.prompt.ids),
            cached_tokens=sequence.cached_tokens,
            reasoning_tokens=machine.reasoning_tokens,
            forced_tokens=machine.forced_tokens,
            answer_tokens=machine.answer_tokens,
            reopened=machine.reopened,
            preemptions=sequence.preemptions,
            timings=_timings(sequence, now_s),
        )


def _started(sequence: Sequence, now_s: float) -> Started:
    request = sequence.request
    return Started(
        request.request_id, len(request.prompt.ids), sequence.cached_tokens, now_s - request.received_s
    )


def _timings(sequence: Sequence, now_s: float) -> Timings:
    received_s = sequence.request.received_s
    started_s = now_s if sequence.started_s is None else sequence.started_s
    first_s = now_s if sequence.first_token_s is None else sequence.first_token_s
    answer_s = sequence.first_answer_s
    return Timings(
        queue_s=started_s - received_s,
        prefill_s=first_s - started_s,
        first_token_s=first_s - received_s,
        first_answer_s=None if answer_s is None else answer_s - received_s,
        total_s=now_s - received_s,
        decode_steps=sequence.decode_steps,
        mean_batch_size=sequence.decode_partners / sequence.decode_steps if sequence.decode_steps else 1.0,
    )
