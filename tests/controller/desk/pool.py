"""A roster of described workers, tenants and requests for them."""

from dataclasses import replace

from controller import wire
from controller.desk import Desk, Done, Flight, Tenants, Ticket
from controller.fleet import Roster, Worker
from controller.planning.decision import Ask, Refusal
from controller.planning.lengths import LengthEstimate
from controller.planning.options import Increment
from controller.planning.planner import Prospect
from controller.policy import (
    BudgetRange,
    Grace,
    ModePolicy,
    Objectives,
    Otherwise,
    Quality,
    QualityCurve,
    TenantPolicy,
)
from curfew.v1 import worker_pb2

CURVE = QualityCurve.through([(0, 0.3), (40, 0.6), (100, 0.9)])
SLOTS = 4
POLICY = TenantPolicy(
    name="a",
    rule="tenants[0]",
    version="0123456789ab",
    objectives=Objectives(share=0.9, deadline_s=2.0),
    mode=ModePolicy.AUTO,
    budget=BudgetRange(min_tokens=0, max_tokens=200, grace=Grace(), answer_tokens=10),
    quality=Quality(CURVE),
    weight=1.0,
    priority=3,
    otherwise=Otherwise.REFUSE,
)
ASK = Ask(prompt_tokens=50, most_prompt_tokens=60)


def policy(name: str = "a", deadline_s: float | None = 2.0, **changes: object) -> TenantPolicy:
    objectives = Objectives(share=0.9, deadline_s=deadline_s)
    return replace(POLICY, name=name, objectives=objectives, **changes)  # type: ignore[arg-type]  # of any field


def worker(address: str = "w:1", slots: int = SLOTS) -> Worker:
    known = Worker(address)
    known.healthy = True
    known.take_description(
        worker_pb2.DescribeWorkerResponse(
            model="m",
            limits=worker_pb2.WorkerLimits(max_sequence_tokens=1000, slots=slots),
            speed=worker_pb2.WorkerSpeed(
                decode=[
                    worker_pb2.DecodeSpeed(batch_size=1, step=wire.duration(0.002)),
                    worker_pb2.DecodeSpeed(batch_size=slots, step=wire.duration(0.004)),
                ],
                prefill_tokens_per_s=10_000,
            ),
            load=worker_pb2.WorkerLoad(free_slots=slots),
            bytes_per_token=4.0,
        ),
        now_s=0.0,
    )
    return known


def menu(tenant: TenantPolicy) -> tuple[Increment, ...]:
    """What a request of a tenant asks for."""
    speed = worker().estimate(ASK.prompt_tokens, 0.0)
    return Prospect.of(ASK, tenant, LengthEstimate(), speed, 1000).menu()


class Pool:
    """A desk over workers that report nothing by themselves."""

    def __init__(self, workers: int = 1, slots: int = SLOTS) -> None:
        self.roster = Roster([worker(f"w:{number}", slots) for number in range(workers)])
        self.tenants = Tenants()
        self.desk = Desk(self.roster, self.tenants, spread=lambda: 0.0)

    def arrive(self, tenant: TenantPolicy, now_s: float, ask: Ask = ASK) -> Ticket | Refusal:
        return self.desk.arrive(ask, tenant, now_s)

    def fly(self, tenant: TenantPolicy, now_s: float, ask: Ask = ASK) -> Flight:
        """A request that is given a place at once."""
        ticket = self.desk.arrive(ask, tenant, now_s)
        verdicts = dict(self.desk.decide(now_s))
        assert isinstance(ticket, Ticket)
        flight = verdicts[ticket]
        assert isinstance(flight, Flight)
        return flight


def done(reasoning_tokens: int = 20, total_s: float = 0.1, *, stopped: bool | None = True) -> Done:
    return Done(
        prompt_tokens=50,
        output_tokens=reasoning_tokens + 6,
        reasoning_tokens=reasoning_tokens,
        answer_tokens=5,
        stopped=stopped,
        queue_s=0.0,
        first_token_s=0.01,
        total_s=total_s,
        decode_steps=reasoning_tokens + 5,
        mean_batch_size=1.0,
    )
