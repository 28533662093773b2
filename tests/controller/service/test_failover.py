"""A worker is lost in mid-stream, and another goes on."""

import grpc
import pytest

from curfew.rpc.errors import RpcError
from curfew.v1 import generation_pb2 as pb
from tests.controller.fake_worker import FakeWorker, Script
from tests.controller.service.harness import Answer, ask, controller

REASONING, ANSWER_WORDS = 6, 3
LOSSES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN)


def stream(answer: Answer) -> list[tuple[str, list[int]]]:
    """All that the caller saw of the output, by phase."""
    phases = (pb.PHASE_REASONING, pb.PHASE_FORCED, pb.PHASE_ANSWER)
    return [(answer.text(phase), answer.token_ids(phase)) for phase in phases]


@pytest.mark.parametrize("lost_after", range(REASONING + ANSWER_WORDS))
async def test_a_stream_is_unbroken_wherever_its_worker_is_lost(lost_after: int) -> None:
    code = LOSSES[lost_after % len(LOSSES)]
    scripts = [
        Script(reasoning=REASONING, fail_after=lost_after, failure=RpcError(code, "lost")) for _ in range(2)
    ]
    async with (
        FakeWorker(scripts[0]) as one,
        FakeWorker(scripts[1]) as two,
        controller([one.address, two.address]) as door,
    ):
        for each in scripts:
            each.fail_after = None
        whole = await door.generate("analyst")
        for each in scripts:
            each.fail_after = lost_after
        one.requests.clear()
        two.requests.clear()
        # Whichever is asked first loses it; the one that is asked to resume does not.
        for worker in (one, two):
            worker.loses_resumed = False
        answer = await door.generate("analyst")
    assert answer.error is None
    assert stream(answer) == stream(whole)
    assert answer.completion.usage == whole.completion.usage
    (begun,) = [r for w in (one, two) for r in w.requests if "." not in r.request_id]
    (resumed,) = [r for w in (one, two) for r in w.requests if "." in r.request_id]
    assert sum(len(run.token_ids) for run in resumed.resume) == lost_after
    assert resumed.budget.reasoning_tokens == begun.budget.reasoning_tokens
    assert resumed.budget.reason_until.ToNanoseconds() < begun.budget.reason_until.ToNanoseconds()
    assert [attempt.output_tokens for attempt in answer.completion.attempts] == [
        lost_after,
        REASONING + ANSWER_WORDS - lost_after,
    ]
    assert len({attempt.worker for attempt in answer.completion.attempts}) == 2


async def test_a_request_that_loses_every_worker_is_given_up_with_what_was_delivered() -> None:
    async with (
        FakeWorker(Script(fail_after=4)) as one,
        FakeWorker(Script(fail_after=4)) as two,
        controller([one.address, two.address]) as door,
    ):
        answer = await door.generate("analyst", ask())
    assert answer.error is not None
    assert answer.error.code() is grpc.StatusCode.UNAVAILABLE
    assert len(answer.token_ids(pb.PHASE_REASONING)) == 4
    assert len(one.requests) + len(two.requests) == 3
