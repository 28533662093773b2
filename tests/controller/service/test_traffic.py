"""Real traffic on a real controller, recorded and read again as a trace."""

from __future__ import annotations

import asyncio
import csv
import time
from pathlib import Path

import pytest

from controller.planning.decision import Mode
from controller.service.recording import Recorder
from controller.simulation.trace import Arrival, Outcome, ReasoningEnd, read_trace
from curfew.rpc.durations import duration
from curfew.v1 import admin_pb2, generation_pb2, reasoning_pb2
from tests.controller.fake_worker import FakeWorker, Script
from tests.controller.service.harness import POLICY, Door, ask, controller

SECRET = "the caller's own words"


def recorder(directory: Path) -> Recorder:
    return Recorder(directory, time.monotonic, time.time)


def only_file(directory: Path) -> Path:
    (file,) = directory.iterdir()
    return file


def recorded(directory: Path) -> tuple[list[Arrival], list[dict[str, str]]]:
    """The one file there, as a trace and as it is."""
    file = only_file(directory)
    with file.open(newline="") as text:
        return list(read_trace(file).arrivals), list(csv.DictReader(text))


async def recording(door: Door) -> admin_pb2.RecordingStatus:
    return (await door.admin.GetStatus(admin_pb2.GetStatusRequest())).recording


async def test_an_answered_request_is_recorded_with_its_plan_and_what_came(tmp_path: Path) -> None:
    request = ask(SECRET, labels={"task": "triage", "user": "jo"})
    request.wishes.CopyFrom(reasoning_pb2.Wishes(mode=generation_pb2.MODE_THINK, deadline=duration(7.5)))
    async with (
        FakeWorker(Script(reasoning=10)) as worker,
        controller(
            [worker.address], recorder=recorder(tmp_path), recorded_labels=frozenset({"task"})
        ) as door,
    ):
        answer = await door.generate("analyst", request)
    ((arrival,), (row,)) = recorded(tmp_path)
    usage = answer.completion.usage
    assert (arrival.tenant, arrival.outcome, arrival.kept) == ("analyst", Outcome.ANSWERED, True)
    assert arrival.input_tokens == usage.prompt_tokens
    assert (arrival.reasoning_tokens, arrival.answer_tokens) == (10, usage.answer_tokens)
    assert arrival.wants == (10, True)
    assert (arrival.mode, arrival.deadline_s, arrival.labels) == (Mode.THINK, 7.5, {"task": "triage"})
    assert arrival.latency_s == pytest.approx(answer.completion.latency.ToNanoseconds() * 1e-9, abs=2e-6)
    assert row["worker"] == worker.address
    assert (row["rule"], row["policy"]) == (answer.plan.rule, answer.plan.policy_version)
    assert (row["plan_mode"], row["promised_s"], row["price"]) == ("think", "7.5", "0")
    assert int(row["budget_tokens"]) == answer.plan.budget.reasoning_tokens
    assert row["arrived_at"].startswith(time.strftime("%Y-%m-%dT", time.gmtime()))


async def test_no_content_and_no_label_that_was_not_asked_for_is_recorded(tmp_path: Path) -> None:
    async with (
        FakeWorker(Script(answer="words of wisdom")) as worker,
        controller([worker.address], recorder=recorder(tmp_path)) as door,
    ):
        await door.generate("analyst", ask(SECRET, labels={"user": "jo"}))
    text = only_file(tmp_path).read_text()
    assert text.count("analyst") == 1
    for word in ("words", "wisdom", "own", "user", "jo"):
        assert word not in text


async def test_reasoning_that_was_cut_is_told_from_what_stopped_by_itself(tmp_path: Path) -> None:
    async with (
        FakeWorker(Script(reasoning=1000)) as worker,
        controller([worker.address], recorder=recorder(tmp_path)) as door,
    ):
        await door.generate("analyst")
    ((arrival,), _) = recorded(tmp_path)
    assert arrival.reasoning_end is ReasoningEnd.BUDGET
    assert not arrival.wants[1]


async def test_refusals_failures_and_callers_who_leave_are_recorded_as_such(tmp_path: Path) -> None:
    script = Script(reasoning=30, pause_after=5)
    async with (
        FakeWorker(script) as worker,
        controller([worker.address], recorder=recorder(tmp_path)) as door,
    ):
        await door.generate("impossible")
        call = door.call("analyst")
        await anext(aiter(call))  # the plan
        await asyncio.wait_for(worker.paused.wait(), 10)
        async for event in call:
            if event.delta.token_ids[-1] == 104:
                break
        call.cancel()
        worker.go_on.set()
        await asyncio.wait_for(worker.idle.wait(), 10)
        script.pause_after, script.fail_after = None, 3
        await door.generate("support")
    arrivals, rows = recorded(tmp_path)
    by_tenant = {arrival.tenant: arrival for arrival in arrivals}
    outcomes = {name: arrival.outcome for name, arrival in by_tenant.items()}
    assert outcomes == {
        "impossible": Outcome.REFUSED,
        "analyst": Outcome.LEFT,
        "support": Outcome.FAILED,
    }
    left = by_tenant["analyst"]
    assert (left.reasoning_tokens, left.reasoning_end) == (5, ReasoningEnd.CANCELLED)
    refused = next(row for row in rows if row["tenant"] == "impossible")
    assert (refused["reasoning_end"], refused["worker"], refused["budget_tokens"]) == ("none", "", "")
    assert all(arrival.kept is None for arrival in arrivals)


async def test_what_a_limit_turns_away_is_recorded_as_rejected(tmp_path: Path) -> None:
    policy = POLICY.replace(
        "    key: {env: ANALYST}\n", "    key: {env: ANALYST}\n    limits: {concurrency: 1}\n"
    )
    async with (
        FakeWorker(Script(pause_after=2)) as worker,
        controller([worker.address], policy, recorder=recorder(tmp_path)) as door,
    ):
        first = asyncio.create_task(door.generate("analyst"))
        await asyncio.wait_for(worker.paused.wait(), 10)
        assert (await door.generate("analyst")).error is not None
        worker.go_on.set()
        assert (await first).error is None
    outcomes = [arrival.outcome for arrival in recorded(tmp_path)[0]]
    assert outcomes == [Outcome.ANSWERED, Outcome.REJECTED]


async def test_operators_see_the_recording(tmp_path: Path) -> None:
    async with (
        FakeWorker() as worker,
        controller([worker.address], recorder=recorder(tmp_path)) as door,
    ):
        await door.generate("analyst")
        while (told := await recording(door)).written == 0:
            pass
        assert (told.written, told.lost, told.failure) == (1, 0, "")
        assert Path(told.file).parent == tmp_path


async def test_requests_under_load_are_each_recorded_once(tmp_path: Path) -> None:
    async with (
        FakeWorker(Script(step_s=0.0), slots=8) as worker,
        controller([worker.address], recorder=recorder(tmp_path)) as door,
    ):
        answers = await asyncio.gather(*(door.generate("analyst") for _ in range(60)))
    arrivals, rows = recorded(tmp_path)
    assert len(rows) == len(answers) == 60
    latencies = sorted(a.completion.latency.ToNanoseconds() / 1e9 for a in answers if a.error is None)
    assert sorted(a.latency_s or 0 for a in arrivals if a.outcome is Outcome.ANSWERED) == pytest.approx(
        latencies, abs=2e-6
    )
