"""What is known of one worker: its limits, its load, its speed, and whether it can be chosen."""

from __future__ import annotations

from dataclasses import dataclass

from controller import wire
from controller.fleet.abilities import UNTOLD, abilities
from controller.fleet.members import Member
from controller.fleet.outlook import Outlook
from controller.planning.needs import Ability, Needs
from controller.planning.speed import DecodeCurve, Load, Observation, SpeedEstimate, SpeedModel
from curfew.v1 import worker_pb2

SLOW_START_S = 10.0
LEAST_TRUST = 0.1


@dataclass(frozen=True, slots=True)
class Limits:
    """What a worker said about itself that plans depend on.

    max_sequence_tokens: prompt and output of one request. slots: sequences that run together.
    bytes_per_token: of English text. abilities: what it can do.
    """

    model: str
    max_sequence_tokens: int
    slots: int
    bytes_per_token: float
    abilities: frozenset[Ability] = UNTOLD


class Worker:
    """A worker as this controller knows it. Pure state: what it is told arrives through
    `controller.fleet.link`.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.heard_s = 0.0
        """When it last said anything."""
        self.healthy = False
        """Its health service's word."""
        self.member: Member | None = Member(frozenset())
        """As what it is named; None when no source names it."""
        self.lost = True
        """It does not answer."""
        self.came_s = 0.0
        """When it came, or came back."""
        self.ejected_until_s: float | None = None
        """Until when it is kept from new requests; None when it is not."""
        self.pace: float | None = None
        """What its steps take over what it measured at its start; None before some were seen."""
        self.lone_step_s = 0.0
        """What a step of one sequence takes, by what it measured and its pace."""
        self.licence = ""
        """The name of its model's; empty when it does not tell."""
        self._limits: Limits | None = None
        self._speed_message = worker_pb2.WorkerSpeed()
        self._speed: SpeedModel | None = None
        self._load = Load(0, 0, 0, 0)
        self.reported = worker_pb2.WorkerLoad()
        """The load as it last told it."""
        self._own_requests = 0
        self._sent_since = 0
        self._own_unstarted_tokens = 0

    @property
    def available(self) -> bool:
        """Whether requests may be sent to it."""
        member = self.member
        return (
            self.healthy
            and not self.lost
            and self.ejected_until_s is None
            and member is not None
            and not member.draining
        )

    @property
    def trust(self) -> float:
        """Range (0, 1]. A worker that has just come is cold and untried, and looks idle to all controllers at
        once: it gets its full part after `SLOW_START_S`.
        """
        age_s = self.heard_s - self.came_s
        return 1.0 if age_s >= SLOW_START_S else max(LEAST_TRUST, age_s / SLOW_START_S)

    @property
    def own_requests(self) -> int:
        """Requests of this controller's that are there."""
        return self._own_requests

    @property
    def described(self) -> bool:
        """Whether it has ever told its limits."""
        return self._limits is not None

    @property
    def limits(self) -> Limits:
        """Only of a worker that has been described."""
        if self._limits is None:
            raise LookupError(f"worker {self.address} has not been described")
        return self._limits

    @property
    def _known_speed(self) -> SpeedModel:
        if self._speed is None:
            raise LookupError(f"worker {self.address} has not been described")
        return self._speed

    def can(self, needs: Needs) -> bool:
        """Whether it is what a request needs, available or not."""
        limits = self._limits
        return (
            limits is not None and needs.abilities <= limits.abilities and needs.model in (None, limits.model)
        )

    @property
    def load(self) -> Load:
        """Its load as last reported, and what this controller has sent since, or all that it has there where
        that is more: a report does not know what is still under way to the worker.
        """
        reported = self._load
        unknown = max(self._sent_since, self._own_requests - reported.running - reported.waiting)
        started = min(unknown, reported.free_slots)
        return Load(
            reported.running + started,
            reported.waiting + unknown - started,
            max(reported.prefill_backlog_tokens, self._own_unstarted_tokens),
            reported.free_slots - started,
        )

    def lose(self) -> None:
        """Notes that it cannot be reached."""
        self.lost = True

    def take_description(self, message: worker_pb2.DescribeWorkerResponse, now_s: float) -> None:
        """Takes its description. What was learnt of its speed stays, unless the description is of another
        worker.

        Raises ValueError for a description that no plan can be made with; the worker is then lost.
        """
        self.heard_s = now_s
        self.licence = message.licence.name
        limits = Limits(
            message.model,
            message.limits.max_sequence_tokens,
            message.limits.slots,
            message.bytes_per_token,
            abilities(message),
        )
        if self._speed is None or limits != self._limits or message.speed != self._speed_message:
            self.lost = True
            self._speed = _speed_model(message)
            self._limits = limits
            self._speed_message = message.speed
        if self.lost:
            self.lost, self.came_s = False, now_s
        self.take_load(message.load, now_s)
        self._speed.learn_step(self._load, wire.seconds(message.load.step), now_s)
        self.pace = self._speed.pace(now_s)
        self.lone_step_s = self._speed.lone_step_s * (self.pace or 1.0)

    def take_load(self, message: worker_pb2.WorkerLoad, now_s: float) -> None:
        """Takes its load."""
        self.heard_s = now_s
        self._sent_since = 0
        self.reported = message
        self._load = Load(
            message.running, message.waiting, message.prefill_backlog_tokens, message.free_slots
        )

    def note_sent(self, prompt_tokens: int) -> None:
        """Counts a request of this controller's; `prompt_tokens` as estimated."""
        self._own_requests += 1
        self._sent_since += 1
        self._own_unstarted_tokens += prompt_tokens

    def note_started(self, prompt_tokens: int) -> None:
        """The prompt of one of them, counted with so many tokens, is no longer waiting."""
        self._own_unstarted_tokens -= prompt_tokens

    def note_ended(self) -> None:
        """One of them that was started is over."""
        self._own_requests -= 1
        self._sent_since = max(0, self._sent_since - 1)

    def learn(self, expected: SpeedEstimate, seen: Observation, now_s: float) -> None:
        """Learns from a request that ended."""
        if self._speed is not None:
            self._speed.learn(expected, seen, now_s)

    def estimate(self, prompt_tokens: int, now_s: float) -> SpeedEstimate:
        """What a request sent now may expect. Only of a worker that has been described."""
        return self._known_speed.estimate(self.load, prompt_tokens, now_s)

    def idle_estimate(self, prompt_tokens: int, now_s: float) -> SpeedEstimate:
        """What it might expect if there were no others. Only of a worker that has been described."""
        return self._known_speed.idle_estimate(prompt_tokens, now_s)

    def has_room(self, ahead: float) -> bool:
        """Whether it has a slot for one more, or has fewer waiting than this part of its slots, or 1. Only of
        a worker that has been described.
        """
        load = self.load
        return load.free_slots > load.waiting or load.waiting - load.free_slots < max(
            1, int(ahead * self.limits.slots)
        )

    def outlook(self, load: Load) -> Outlook:
        """What a request sent now has before it, at the load of now. Only of a worker that has been
        described.
        """
        speed = self._known_speed
        return Outlook(
            load.free_slots <= load.waiting,
            load.running + load.waiting,
            speed.wait_s(load),
            speed.prefill_s_per_token,
            speed.measured_step_s(load) * (self.pace or 1.0),
            1 / self.trust,
        )


def _speed_model(message: worker_pb2.DescribeWorkerResponse) -> SpeedModel:
    if message.limits.slots < 1 or message.limits.max_sequence_tokens < 1:
        raise ValueError("it has no slots or no room for a sequence")
    if message.speed.prefill_tokens_per_s <= 0 or message.bytes_per_token <= 0:
        raise ValueError("it gives no prefill speed or no bytes per token")
    points = [(point.batch_size, wire.seconds(point.step)) for point in message.speed.decode]
    return SpeedModel(DecodeCurve.through(points), message.speed.prefill_tokens_per_s, message.limits.slots)
