"""What is known of a worker."""

import pytest

from controller import wire
from controller.fleet import Roster, Worker
from controller.planning.speed import Load, Observation
from curfew.v1 import worker_pb2


def description(step_s: float = 0.002, running: int = 0) -> worker_pb2.DescribeWorkerResponse:
    return worker_pb2.DescribeWorkerResponse(
        model="m",
        limits=worker_pb2.WorkerLimits(max_sequence_tokens=1000, slots=4),
        speed=worker_pb2.WorkerSpeed(
            decode=[worker_pb2.DecodeSpeed(batch_size=1, step=wire.duration(step_s))],
            prefill_tokens_per_s=10_000,
        ),
        load=worker_pb2.WorkerLoad(running=running, free_slots=4 - running),
        bytes_per_token=4.0,
    )


def worker() -> Worker:
    known = Worker("w:1")
    known.take_description(description(), now_s=1.0)
    known.healthy = True
    return known


def test_a_worker_is_available_once_it_is_described_and_well() -> None:
    unknown = Worker("w:1")
    assert not unknown.available
    unknown.healthy = True
    assert not unknown.available
    unknown.take_description(description(), now_s=1.0)
    assert unknown.available
    unknown.healthy = False
    assert not unknown.available


def test_a_lost_worker_is_available_when_it_is_heard_of_again() -> None:
    known = worker()
    known.lose()
    assert not known.available
    known.take_description(description(), now_s=2.0)
    assert known.available


def test_own_requests_count_where_the_report_does_not_know_of_them() -> None:
    known = worker()
    for _ in range(6):
        known.note_sent(prompt_tokens=100)
    assert known.load == Load(running=4, waiting=2, prefill_backlog_tokens=600, free_slots=0)
    known.take_load(worker_pb2.WorkerLoad(running=3, free_slots=1), now_s=2.0)
    assert known.load == Load(running=4, waiting=2, prefill_backlog_tokens=600, free_slots=0)
    known.take_load(worker_pb2.WorkerLoad(running=4, waiting=5, prefill_backlog_tokens=900), now_s=2.0)
    assert known.load == Load(running=4, waiting=5, prefill_backlog_tokens=900, free_slots=0)


def test_a_request_that_is_over_counts_no_more() -> None:
    known = worker()
    sent = [Roster([known]).send(known, 100) for _ in range(3)]
    sent[0].start()
    assert known.load == Load(running=3, waiting=0, prefill_backlog_tokens=200, free_slots=1)
    for request in sent:
        request.end()
    assert known.load == Load(running=0, waiting=0, prefill_backlog_tokens=0, free_slots=4)


def test_a_restarted_worker_keeps_what_was_learnt_and_another_one_does_not() -> None:
    known = worker()
    seen = Observation(
        prompt_tokens=10,
        start_s=0.004,
        decode_s=0.1,
        decode_steps=50,
        mean_batch_size=1.0,
        service_s=0.1,
    )
    known.learn(known.estimate(10, now_s=1.0), seen, now_s=1.0)
    known.take_description(description(running=2), now_s=2.0)
    assert known.estimate(10, now_s=2.0).step_ratio.values == pytest.approx((1.0,))
    known.take_description(description(step_s=0.004), now_s=3.0)
    assert known.estimate(10, now_s=3.0).step_ratio.values == ()
    assert known.estimate(10, now_s=3.0).step_s == 0.004


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limits": worker_pb2.WorkerLimits(slots=4)}, "no slots or no room"),
        ({"speed": worker_pb2.WorkerSpeed(prefill_tokens_per_s=1)}, "no decode step was measured"),
        ({"bytes_per_token": 0.0}, "no bytes per token"),
    ],
)
def test_a_worker_that_cannot_be_planned_for_is_not_available(
    change: dict[str, object], message: str
) -> None:
    bad = description()
    for name, value in change.items():
        bad.ClearField(name)  # type: ignore[arg-type]  # of any field
        bad.MergeFrom(worker_pb2.DescribeWorkerResponse(**{name: value}))  # type: ignore[arg-type]  # as above
    known = worker()
    with pytest.raises(ValueError, match=message):
        known.take_description(bad, now_s=2.0)
    assert not known.available


def test_the_pace_is_what_steps_take_over_what_the_worker_measured() -> None:
    known = worker()
    assert known.pace is None
    measured_s = known.lone_step_s
    for second in range(10):
        told = description(running=1)
        told.load.step.CopyFrom(wire.duration(3 * measured_s))
        known.take_description(told, now_s=10.0 + second)
    assert known.pace == pytest.approx(3.0)
    assert known.lone_step_s == pytest.approx(3 * measured_s)
