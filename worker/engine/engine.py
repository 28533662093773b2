"""Continuous batching: one step after another, each for all sequences that run.

One thread owns an engine. A request's life: `submit` queues it, steps bring its events (Started first), it
ends with Finished for every sample, or with one Failed, or with `cancel` and no further event.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.transfer import send_numbers
from worker.engine.answer_form import Matcher
from worker.engine.budget import BudgetMachine, TextFormat
from worker.engine.cache import PagePool, SlotPool
from worker.engine.events import Event, Failed, FailureKind, Finished, Load, Output, Piece, Started, Timings
from worker.engine.generation import Ban, FinishReason, Limits, Observation, Phase
from worker.engine.meter import Meter
from worker.engine.prefix import PrefixCache
from worker.engine.probes import ProbeLog
from worker.engine.refusals import DuplicateError, QueueFullError, TooLargeError
from worker.engine.runner import Runner
from worker.engine.sampling import Choice, Draw, choose
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Request, Sequence
from worker.engine.text import silent_tokens, trailing_tokens
from worker.model.chat import Chat, Prompt

# After every request, so that whoever waits for room takes a probe's.
_PROBE_PRIORITY = sys.maxsize
# Stands for a sample's number: probed requests have one, which is 0.
_PROBE = 1


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Sizes of an engine.

    slots: sequences that run together. checkpoints: states of shared prompts that are kept; 0 for none.
    pages, page_tokens: pool of keys and values. step_tokens, idle_step_tokens: prefill tokens of a step while
    something decodes, and while nothing does; at least a chunk of the scan is computed. queue: requests that
    may wait. max_sequence_tokens: of one sequence, prompt and output. least_step_s: a step takes at least so
    long, in seconds, so that a fast device can rehearse the speed of a slower one.
    """

    slots: int
    checkpoints: int
    pages: int
    page_tokens: int
    step_tokens: int
    idle_step_tokens: int
    queue: int
    max_sequence_tokens: int
    least_step_s: float = 0.0


class Engine:
    """Runs requests on one device."""

    def __init__(
        self,
        runner: Runner,
        chat: Chat,
        settings: EngineSettings,
        clock: Callable[[], float],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """runner: its pools hold slots + checkpoints, and the pages. clock: monotonic, in seconds."""
        self.settings = settings
        self._runner, self._chat, self._clock, self._sleep = runner, chat, clock, sleep
        config, device, pools = runner.network.config, runner.network.device, runner.pools
        everything = settings.slots + settings.checkpoints
        self._slots = SlotPool(range(settings.slots))
        self._pages = PagePool(settings.pages, settings.page_tokens)
        self._prefixes = PrefixCache(
            SlotPool(range(settings.slots, everything)), self._pages, pools, config.chunk_size
        )
        self._scheduler = Scheduler(
            self._slots,
            self._pages,
            self._prefixes,
            pools,
            chunk=config.chunk_size,
            step_tokens=settings.step_tokens,
            idle_step_tokens=settings.idle_step_tokens,
        )
        self._requests: dict[str, list[Sequence]] = {}
        """The unfinished samples of each request."""
        self._probes: list[Sequence] = []
        """Those that answer."""
        self._meter = Meter()
        # Ids beyond the tokenizer's are padding of the vocabulary: they stand for nothing.
        padding = config.vocab_size - len(chat.token_bytes)
        self._token_bytes = [*chat.token_bytes, *[b""] * padding]
        ends = [i for i in sorted(chat.end_ids) if i < config.vocab_size]
        silent = silent_tokens(self._token_bytes, chat.special_ids | chat.end_ids)
        self._ban_ids = {
            Ban.NONE: None,
            Ban.END_OF_TEXT: torch.tensor(ends, dtype=torch.long),
            Ban.SILENT: torch.tensor(sorted(silent), dtype=torch.long),
        }
        self._banned = {ban: None if ids is None else ids.to(device) for ban, ids in self._ban_ids.items()}
        self._trailing = {
            under_way: torch.tensor(sorted(ids), dtype=torch.long, device=device) if ids else None
            for under_way, ids in trailing_tokens(self._token_bytes).items()
        }
        """Banned where `</think>` is under way, by its beginning, if the answer has a grammar."""

    def submit(self, request: Request) -> None:
        """Queues a request. Raises RefusedError, or ValueError for limits that leave no room for an answer,
        for tokens that the model does not have, and for tokens to resume from that no engine makes.
        """
        if request.request_id in self._requests:
            raise DuplicateError(f"request {request.request_id!r} is running already")
        self._check(request)
        waiting = len(self._scheduler.waiting)
        if waiting >= self.settings.queue:
            raise QueueFullError(
                f"{waiting} requests wait, and {self.settings.queue} may",
                waiting=waiting,
                queue=self.settings.queue,
            )
        samples = [self._sequence(request, sample) for sample in range(request.samples)]
        self._requests[request.request_id] = samples
        samples[0].children = samples[1:]
        self._scheduler.add(samples[0])

    def cancel(self, request_id: str) -> None:
        """Ends a request at once and frees what it holds. An unknown one is over already."""
        for sequence in self._requests.pop(request_id, []):
            self._end_probe(sequence)
            self._scheduler.finish(sequence)

    def adjust(
        self, request_id: str, reasoning_tokens: int | None, reason_until_s: float | None
    ) -> Limits | None:
        """Changes a running request's limits; returns its first sample's in force, None if it is over.

        See `BudgetMachine.adjust`, also for the ValueError: what was reserved at admission bounds a budget
        from above. A time limit strikes when a token is sampled, and when a sequence is admitted.
        """
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
            running=self._scheduler.running,
            waiting=len(self._scheduler.waiting),
            backlog_tokens=self._scheduler.backlog_tokens,
            free_slots=self._slots.free,
            free_pages=self._pages.free + self._prefixes.evictable_pages,
            step_s=self._meter.step_s,
            tokens_per_s=self._meter.tokens_per_s(self._clock()),
        )

    def check_integrity(self) -> None:
        """Raises CacheError unless every slot and page is accounted for."""
        self._scheduler.check_integrity()

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Computes one step; where requests begin it only tells that, and the next call computes.

        A failure of the device is raised, and leaves the engine unusable.
        """
        began_s = self._clock()
        admitted = self._scheduler.admit(began_s)
        self._end_preempted_probes()
        events = [event for sequence in admitted for event in self._begin(sequence, began_s)]
        plan = self._scheduler.plan()
        if events or not (plan.decodes or plan.pieces):
            return events
        logits = self._runner.run(plan)
        ready = self._scheduler.advance(plan)
        choices = self._choose(logits, ready)
        now_s = self._clock()
        spare_s = began_s + self.settings.least_step_s - now_s
        if spare_s > 0:
            self._sleep(spare_s)
            now_s = self._clock()
        chosen = [(sequence, choice) for (_, sequence), choice in zip(ready, choices, strict=True)]
        # Probes last: what they find out ends a reasoning behind its newest token.
        for sequence, choice in sorted(chosen, key=lambda pair: pair[0].original is not None):
            sequence.decode_steps += 1
            sequence.decode_partners += len(ready)
            events += self._observe(sequence, choice, now_s)
        self._meter.record(began_s, now_s, len(ready), decoding=not plan.pieces)
        return events

    # A request's beginning.

    def _check(self, request: Request) -> None:
        settings, tokens, prompt_tokens = self.settings, request.max_tokens, len(request.prompt.ids)
        if tokens > settings.max_sequence_tokens:
            raise TooLargeError(
                f"prompt {prompt_tokens} + output {request.limits.reserved_output_tokens}"
                f" = {tokens} tokens exceed the {settings.max_sequence_tokens} of a sequence",
                prompt_tokens=prompt_tokens,
                max_output_tokens=request.limits.reserved_output_tokens,
                max_sequence_tokens=settings.max_sequence_tokens,
            )
        if request.samples < 1 or (request.samples > 1 and (request.resume or request.probe)):
            raise ValueError(f"samples must be at least 1, and 1 to resume or probe: {request.samples}")
        slots, pages = self._scheduler.slots_and_pages(prompt_tokens, tokens, request.samples)
        if slots > settings.slots:
            raise TooLargeError(
                f"{slots} samples need as many slots, and there are {settings.slots}",
                needed_slots=slots,
                slots=settings.slots,
            )
        if pages > settings.pages:
            raise TooLargeError(
                f"{pages} pages are needed, and there are {settings.pages}",
                needed_pages=pages,
                pages=settings.pages,
            )
        vocabulary = range(len(self._token_bytes))
        for ids in (request.prompt.ids, *(run.token_ids for run in request.resume)):
            if ids and not (min(ids) in vocabulary and max(ids) in vocabulary):
                raise ValueError(f"token ids must be below {len(vocabulary)}: {min(ids)} to {max(ids)}")
        if not request.prompt.ids:
            raise ValueError("a prompt must have a token")

    def _sequence(self, request: Request, sample: int) -> Sequence:
        text_format = TextFormat(self._token_bytes, self._chat.end_ids, request.closing)
        machine = BudgetMachine.resume(
            request.limits,
            text_format,
            request.resume,
            strike=request.strike,
            stop=request.stop,
            form=request.form,
        )
        generated = [token for run in request.resume for token in run.token_ids]
        sampling = replace(request.sampling, seed=request.sampling.seed + sample)
        sequence = Sequence(request, sample, machine, sampling, [*request.prompt.ids, *generated])
        if request.probe is not None:
            sequence.probe_log = ProbeLog(request.probe, machine.reasoning_tokens)
        return sequence

    def _begin(self, sequence: Sequence, now_s: float) -> list[Event]:
        """What follows from a sequence's admission: one that is resumed may be over, a limit may be due."""
        if sequence.slot is None:  # a probe, which was preempted
            return []
        events: list[Event] = [] if sequence.preemptions else [_started(sequence, now_s)]
        for sample in (sequence, *sequence.children):
            events += self._observe(sample, None, now_s)
        return events

    # A sequence's next token.

    def _choose(self, logits: Tensor, ready: list[tuple[int, Sequence]]) -> list[Choice]:
        if not ready:
            return []
        rows = [row for row, _ in ready]
        if rows != list(range(len(logits))):
            logits = logits.index_select(0, send_numbers(rows, logits.device))
        draws = [self._draw(sequence) for _, sequence in ready]
        return choose(logits, draws, self._runner.network.sample)

    def _draw(self, sequence: Sequence) -> Draw:
        sampling, seen = sequence.sampling, None
        if sampling.repetition_penalty != 1.0:
            seen = sequence.see(self._runner.network.config.vocab_size, self._runner.network.device)
        machine, position = sequence.machine, len(sequence.tokens)
        if machine.matcher is None:
            return Draw(sampling, position, self._banned[machine.ban], seen)
        if machine.phase is Phase.REASONING:
            return Draw(sampling, position, self._trailing[machine.close_under_way], seen)
        return Draw(sampling, position, None, seen, self._allowed(machine.matcher, machine.ban))

    def _allowed(self, matcher: Matcher, ban: Ban) -> Tensor:
        """Where a ban would leave nothing of what a grammar allows, the grammar counts."""
        allowed, banned = matcher.allowed(), self._ban_ids[ban]
        if banned is None:
            return allowed
        rest = allowed.clone()
        rest[banned] = False
        return rest if rest.any() else allowed

    def _observe(self, sequence: Sequence, choice: Choice | None, now_s: float) -> list[Event]:
        """Takes the token chosen for a sequence; without one, lets limits strike that are due.

        What goes wrong here is this request's own failure.
        """
        if sequence.slot is None:  # ended meanwhile, by another sample's failure or with its original
            return []
        machine = sequence.machine
        try:
            if choice is not None and sequence.original is not None:
                return self._observe_probe(sequence, sequence.original, choice, now_s)
            if choice is not None:
                events = self._follow(sequence, machine.observe(choice.token_id, now_s), choice, now_s)
                self._probe_if_due(sequence)
                return events
            if machine.finish_reason is not None:
                return [self._finish(sequence, machine.finish_reason, now_s)]
            return self._follow(sequence, machine.check(now_s), None, now_s)
        except Exception as error:  # the boundary between one request and all others
            request_id = sequence.request.request_id
            self.cancel(request_id)
            return [Failed(request_id, FailureKind.REQUEST, f"{type(error).__name__}: {error}")]

    def _follow(
        self, sequence: Sequence, observation: Observation, choice: Choice | None, now_s: float
    ) -> list[Event]:
        """Does what an observation says."""
        text, calls, pieces = observation.text, observation.calls, list[Piece]()
        if sequence.first_answer_s is None and ((text and text[-1][0] is Phase.ANSWER) or calls):
            sequence.first_answer_s = now_s
        if choice is not None and sequence.first_token_s is None:
            sequence.first_token_s = now_s
        if choice is not None and observation.phase is not None:
            sequence.tokens.append(choice.token_id)
            logprobs = () if choice.logprobs is None else (choice.logprobs,)
            own, own_calls = "", calls if observation.phase is Phase.ANSWER else ()
            if text and text[0][0] is observation.phase:
                # The token belongs to its own phase, also when it completes text of the next.
                own, text = text[0][1], text[1:]
            pieces.append(Piece(observation.phase, (choice.token_id,), own, logprobs, calls=own_calls))
            calls = calls[len(own_calls) :]
        pieces += [Piece(phase, (), shown) for phase, shown in text]
        if calls:
            pieces.append(Piece(Phase.ANSWER, (), "", calls=calls))
        if observation.force:
            sequence.tokens += observation.force
            pieces.append(Piece(Phase.FORCED, observation.force, ""))
        events: list[Event] = []
        if pieces:
            request_id, strike = sequence.request.request_id, sequence.machine.strike
            events.append(Output(request_id, sequence.sample, tuple(pieces), strike))
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
        log = sequence.probe_log
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
            probes=0 if log is None else log.begun,
            skipped_probes=0 if log is None else log.skipped,
            probe_tokens=0 if log is None else log.tokens,
            malformed=tuple(machine.malformed),
        )

    # Answer probes. Each is a sequence beside its original, of the same request, that nobody is told of: its
    # prompt is all that the original has, and the closing text.

    def _probe_if_due(self, original: Sequence) -> None:
        """Begins a probe where a checkpoint is reached and there is room, with nobody waiting for it."""
        log, machine = original.probe_log, original.machine
        if log is None:
            return
        if machine.phase is not Phase.REASONING or machine.strike is not None:
            self._end_probe(original)  # it comes too late
            return
        if not log.due(machine.reasoning_tokens, at_boundary=machine.at_boundary):
            return
        closing = machine.closing
        answer_tokens = min(log.rule.answer_tokens, machine.limits.answer_tokens)
        request = replace(
            original.request,
            prompt=Prompt((*original.tokens, *closing), 0),
            limits=Limits(0, 0, max_output_tokens=answer_tokens, answer_tokens=answer_tokens),
            sampling=replace(original.sampling, temperature=0.0, logprobs=None),
            priority=_PROBE_PRIORITY,
            resume=(),
            strike=None,
            probe=None,
        )
        probe = self._sequence(request, _PROBE)
        if original.probe or self._scheduler.waiting or not self._scheduler.fork(original, probe):
            log.skipped += 1
            return
        log.begun += 1
        log.tokens += len(closing)
        probe.original, original.probe = original, probe
        self._probes.append(probe)

    def _observe_probe(
        self, probe: Sequence, original: Sequence, choice: Choice, now_s: float
    ) -> list[Event]:
        """Takes the token chosen for a probe; a stable answer ends the original's reasoning."""
        log = original.probe_log
        assert log is not None
        try:
            observation = probe.machine.observe(choice.token_id, now_s)
        except ValueError:  # its form could not be kept, which is no fault of the original's
            self._end_probe(original)
            return []
        probe.answer += "".join(text for _, text in observation.text)
        probe.answer += "".join(f"{call.name} {call.arguments}" for call in observation.calls)
        if observation.phase is not None:
            probe.tokens += [choice.token_id, *observation.force]
            log.tokens += 1 + len(observation.force)
        if observation.finish is None:
            return []
        self._end_probe(original)
        if not log.stable(probe.answer):
            return []
        return self._follow(original, original.machine.settle(), None, now_s)

    def _end_probe(self, original: Sequence) -> None:
        if original.probe is not None:
            self._scheduler.finish(original.probe)
            self._probes.remove(original.probe)
            original.probe = None

    def _end_preempted_probes(self) -> None:
        """A probe is not worth a second prefill, and does not go on without its original."""
        for original in [probe.original for probe in self._probes if probe.original is not None]:
            if original.prefilling or (original.probe is not None and original.probe.preemptions):
                self._end_probe(original)


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
