"""A worker's engine as a model: the scheduler's rules, without a network.

Time is computed, not passed. Nothing changes in a batch between two tokens at which something happens, so
all steps up to the next such token are one event: the cost of a simulation is that of what happens in it.
What the model leaves out: prefixes that are kept for later prompts, several samples of one prompt.
"""

from __future__ import annotations

import heapq
import itertools
import math
from bisect import insort
from collections.abc import Callable
from random import Random
from typing import Protocol

from controller.planning.speed import Load
from controller.simulation.job import Done, Job
from controller.simulation.speed import NOISE_STEPS, WorkerModel

LOAD_EVERY_S = 0.1
"""A worker tells its load at most so often on a stream, beside the first and the last event."""

At = Callable[[float, Callable[[float], None]], None]
"""Has something happen at a time of the simulation."""


class Listener(Protocol):
    """Hears what a worker's streams tell, at the time at which it leaves the engine."""

    def started(self, job: Job, load: Load, now_s: float) -> None:
        """Its prompt's computation began."""

    def reasoned(self, tokens: list[tuple[Job, int]], load: Load, now_s: float) -> None:
        """Jobs that reason have so many reasoning tokens; none of them has, where the load alone is told."""

    def answered(self, job: Job, now_s: float) -> None:
        """The first token of its answer."""

    def finished(self, job: Job, done: Done, load: Load, now_s: float) -> None:
        """It is over."""


class QueueFullError(Exception):
    """Too many wait."""


class SimulatedWorker:
    """One worker. Whoever owns it tells it of requests and adjustments as they reach it, in order of time."""

    def __init__(self, model: WorkerModel, at: At, listener: Listener, rng: Random) -> None:
        self.model = model
        self._at, self._listener, self._rng = at, listener, rng
        self._inbox: list[Callable[[], None]] = []
        self._waiting: list[Job] = []
        self._prefilling: list[Job] = []
        self._decoding: dict[Job, None] = {}
        self._reasoning: dict[Job, None] = {}
        """Of those that decode, in the order in which they began."""
        self._free_slots, self._free_pages = model.slots, model.pages
        self._waiting_tokens = 0
        self._due: list[tuple[int, int, Job]] = []
        self._until: list[tuple[float, int, Job]] = []
        self._number = itertools.count()
        self._step = 0
        """Steps done."""
        self._partners = 0
        """Sum of the sequences in them."""
        self._context_tokens = 0
        """Of all that decode."""
        self._closing_tokens = 0
        """To be fed with the next step."""
        self._noise, self._noise_end = 1.0, 0
        self._told_s = 0.0
        self._decode_step_s: float | None = None
        # The steps under way: from when, how long each, how many, what they compute of prompts.
        self._began_s = 0.0
        self._step_s = 0.0
        self._steps = 0
        self._pieces: list[tuple[Job, int]] = []
        self._plan_number = 0

    # What reaches it.

    def submit(self, job: Job, now_s: float) -> None:
        """Takes a request. Raises QueueFullError."""
        if len(self._waiting) >= self.model.queue:
            raise QueueFullError
        job.received_s = now_s
        job.urgency = (job.grant.priority, job.grant.deadline_s, now_s)
        self._waiting_tokens += job.pending
        insort(self._waiting, job, key=_urgency)
        self._wake(now_s)

    def adjust(self, job: Job, budget_tokens: int | None, reason_until_s: float | None, now_s: float) -> None:
        """Changes a running request's limits, from the next step on."""

        def change() -> None:
            job.adjust(budget_tokens, reason_until_s, self._step)
            if job in self._decoding:
                self._watch(job)

        self._inbox.append(change)
        self._wake(now_s)

    def cancel(self, job: Job, now_s: float) -> None:
        """Ends a request, before the next step."""

        def end() -> None:
            if job in self._decoding or job in self._prefilling:
                self._release(job)
            elif job in self._waiting:
                self._waiting.remove(job)
                self._waiting_tokens -= job.pending

        self._inbox.append(end)
        self._wake(now_s)

    @property
    def load(self) -> Load:
        """How busy it is."""
        backlog = self._waiting_tokens + sum(job.pending - job.computed for job in self._prefilling)
        running = self.model.slots - self._free_slots
        return Load(running, len(self._waiting), backlog, self._free_slots)

    @property
    def decode_step_s(self) -> float | None:
        """Time of its last decode steps; None before the first."""
        return self._decode_step_s

    # Steps.

    def _wake(self, now_s: float) -> None:
        """Has it look at what came, once the step under way is done."""
        if not self._steps:
            self._plan(now_s)
            return
        done = max(1, math.ceil((now_s - self._began_s) / self._step_s - 1e-9))
        if done < self._steps:
            self._steps = done
            self._schedule()

    def _schedule(self) -> None:
        self._plan_number += 1
        number = self._plan_number
        end_s = self._began_s + self._steps * self._step_s
        self._at(end_s, lambda now_s: self._end(now_s) if number == self._plan_number else None)

    def _plan(self, now_s: float) -> None:
        """Begins the next steps, as many as are alike."""
        inbox, self._inbox = self._inbox, []
        for change in inbox:
            change()
        self._admit(now_s)
        self._steps = 0
        if not (self._decoding or self._prefilling):
            return
        if self._step >= self._noise_end:
            self._noise = self._rng.choice(self.model.engine.step_ratios)
            self._noise_end = self._step + NOISE_STEPS
        model, batch = self.model, len(self._decoding)
        self._pieces = self._next_pieces()
        fed = sum(count for _, count in self._pieces) + self._closing_tokens
        self._closing_tokens = 0
        self._began_s = now_s
        self._step_s = model.step_s(batch, self._context_tokens, fed, self._noise)
        self._steps = 1 if fed else self._alike(now_s)
        self._schedule()

    def _alike(self, now_s: float) -> int:
        """Steps until something happens."""
        due, decoding = self._due, self._decoding
        while due and (due[0][2] not in decoding or due[0][2].due != due[0][0]):
            heapq.heappop(due)
        steps = min(due[0][0], self._noise_end) - self._step
        steps = min(steps, math.ceil((self._told_s + LOAD_EVERY_S - now_s) / self._step_s))
        until = self._until
        while until and not self._may_strike(until[0]):
            heapq.heappop(until)
        if until:
            steps = min(steps, math.ceil((until[0][0] - now_s) / self._step_s))
        return max(1, steps)

    def _end(self, now_s: float) -> None:
        """The steps under way are done."""
        steps, fed = self._steps, self._pieces
        decoding = len(self._decoding)
        if not fed and steps > 0:
            self._decode_step_s = self._step_s
        self._step += steps
        begun = self._advance_pieces(fed)
        self._partners += steps * (decoding + len(begun))
        self._context_tokens += steps * decoding
        for job in begun:
            self._begin(job, decoding + len(begun), now_s)
        self._happen(now_s)
        self._strike(now_s)
        if self._step >= self._noise_end or now_s - self._told_s >= LOAD_EVERY_S:
            self._tell(now_s)
        self._plan(now_s)

    def _happen(self, now_s: float) -> None:
        """What is due with this step's tokens."""
        due, step = self._due, self._step
        while due and due[0][0] <= step:
            when, _, job = heapq.heappop(due)
            if job not in self._decoding or job.due != when:
                continue
            if not job.answering:
                del self._reasoning[job]
                forced = job.close(step, self.model.engine.closing_tokens)
                self._closing_tokens += forced
                self._context_tokens += forced
                self._watch(job)
            elif job.first_answer_s is None:
                job.begin_answer(step, now_s)
                self._listener.answered(job, now_s)
                self._watch(job)
            else:
                self._finish(job, now_s)

    def _finish(self, job: Job, now_s: float) -> None:
        self._release(job)
        done = job.finish(self._step, self._partners, now_s)
        self._listener.finished(job, done, self.load, now_s)

    def _strike(self, now_s: float) -> None:
        until = self._until
        struck = False
        while until and (until[0][0] <= now_s or not self._may_strike(until[0])):
            entry = heapq.heappop(until)
            if self._may_strike(entry):
                job = entry[2]
                job.strike(self._step)
                if job.struck:
                    self._watch(job)
                    struck = True
        if struck:
            self._happen(now_s)

    def _may_strike(self, entry: tuple[float, int, Job]) -> bool:
        until_s, _, job = entry
        return job in self._reasoning and not job.struck and job.reason_until_s == until_s

    def _watch(self, job: Job) -> None:
        """Notes when something will happen to a job that decodes."""
        number = next(self._number)
        heapq.heappush(self._due, (job.due, number, job))
        if not job.answering and not job.struck and job.reason_until_s < math.inf:
            heapq.heappush(self._until, (job.reason_until_s, number, job))

    def _tell(self, now_s: float) -> None:
        self._told_s = now_s
        step = self._step
        self._listener.reasoned([(job, job.tokens(step)) for job in self._reasoning], self.load, now_s)

    # Admission, as in the worker's scheduler: in the order of urgency; the first that does not fit holds up
    # those behind it; lower classes give way.

    def _admit(self, now_s: float) -> None:
        while self._waiting:
            job = self._waiting[0]
            pages = -(-(job.nature.prompt_tokens + job.max_output_tokens) // self.model.page_tokens)
            if not self._make_room(job, pages):
                return
            self._waiting.pop(0)
            self._waiting_tokens -= job.pending
            self._free_slots -= 1
            self._free_pages -= pages
            job.pages = pages
            insort(self._prefilling, job, key=_urgency)
            if job.admitted_s is None:
                job.admitted_s = now_s
                self._listener.started(job, self.load, now_s)

    def _make_room(self, job: Job, pages: int) -> bool:
        if self._free_slots and self._free_pages >= pages:
            return True
        victims = [v for v in (*self._prefilling, *self._decoding) if v.grant.priority > job.grant.priority]
        if not victims or self._free_pages + sum(victim.pages for victim in victims) < pages:
            return False
        victims.sort(key=_urgency)
        while not self._free_slots or self._free_pages < pages:
            victim = victims.pop()
            self._release(victim)
            victim.preempt(self._step, self._partners)
            self._waiting_tokens += victim.pending
            insort(self._waiting, victim, key=_urgency)
        return True

    def _release(self, job: Job) -> None:
        if job.prefilling:
            self._prefilling.remove(job)
        else:
            del self._decoding[job]
            self._reasoning.pop(job, None)
            self._context_tokens -= job.context_tokens(self._step)
        self._free_slots += 1
        self._free_pages += job.pages

    # Prefill: pieces share a budget of tokens, the most urgent first.

    def _next_pieces(self) -> list[tuple[Job, int]]:
        engine = self.model.engine
        budget = engine.idle_step_tokens
        if self._decoding:
            share = 1 + max(len(self._prefilling) - 1, 0) / len(self._decoding)
            budget = min(int(engine.step_tokens * share), max(engine.step_tokens, budget))
        budget = max(budget, engine.chunk_tokens)
        pieces = []
        for job in self._prefilling:
            reach = job.computed + budget
            end = job.pending if reach >= job.pending else reach - reach % engine.chunk_tokens
            count = end - job.computed
            if count > 0:
                pieces.append((job, count))
                budget -= count
        return pieces

    def _advance_pieces(self, pieces: list[tuple[Job, int]]) -> list[Job]:
        begun = []
        for job, count in pieces:
            job.computed += count
            if job.computed >= job.pending and job in self._prefilling:
                self._prefilling.remove(job)
                begun.append(job)
        return begun

    def _begin(self, job: Job, partners: int, now_s: float) -> None:
        """Its prompt is computed, and its first token sampled."""
        job.begin(self._step, self._partners - partners)
        self._decoding[job] = None
        self._context_tokens += job.context_tokens(self._step)
        if not job.answering:
            self._reasoning[job] = None
        if job.first_token_s is None:
            job.first_token_s = now_s
            if not job.answering:
                self._listener.reasoned([(job, job.tokens(self._step))], self.load, now_s)
        self._watch(job)


def _urgency(job: Job) -> tuple[int, float, float]:
    return job.urgency
