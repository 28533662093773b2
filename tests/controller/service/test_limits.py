"""Limits through the door, and the store that counts them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
from google.rpc import error_details_pb2

from curfew.rpc.durations import seconds
from tests.controller.fake_worker import FakeWorker, Script
from tests.controller.service.harness import POLICY, controller, detail
from tests.controller.service.test_process import policy_file, running, start
from tests.controller.state.servers import free_port, serving


def limited(limits: str) -> str:
    return POLICY.replace("  - name: analyst\n", f"  - name: analyst\n    limits: {{{limits}}}\n")


async def test_what_comes_past_a_limit_never_reaches_a_worker() -> None:
    policy = limited("rate: 2/h, burst: 2")
    async with FakeWorker() as worker, controller([worker.address], policy) as door:
        answers = [await door.generate("analyst") for _ in range(3)]
        assert [answer.error for answer in answers[:2]] == [None, None]
        error = answers[2].error
        assert error is not None
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert 1700 < seconds(detail(error, error_details_pb2.RetryInfo).retry_delay) <= 1800
        (violation,) = detail(error, error_details_pb2.QuotaFailure).violations
        assert violation.subject == "tenant:analyst"
        assert (await door.generate("support")).error is None
        assert len(worker.requests) == 3


async def test_a_place_is_free_when_its_request_ends_and_when_its_caller_leaves() -> None:
    policy, script = limited("concurrency: 1"), Script(pause_after=3)
    async with FakeWorker(script) as worker, controller([worker.address], policy) as door:
        call = door.call("analyst")
        await asyncio.wait_for(worker.paused.wait(), 20)
        refused = (await door.generate("analyst")).error
        assert refused is not None
        assert "limits.concurrency of tenant analyst is reached: 1 at once" in str(refused.details())
        call.cancel()
        await asyncio.wait_for(worker.idle.wait(), 20)
        script.pause_after = None
        for _ in range(3):
            assert (await door.generate("analyst")).error is None


async def test_tokens_are_counted_as_they_were_used() -> None:
    policy, script = limited("tokens: 100/h"), Script(reasoning=90)
    async with FakeWorker(script) as worker, controller([worker.address], policy) as door:
        assert (await door.generate("analyst")).error is None
        async with asyncio.timeout(20):
            while (error := (await door.generate("analyst")).error) is None:
                pass
        assert "limits.tokens of tenant analyst is reached: 100/h" in str(error.details())


async def test_controllers_with_one_store_count_together(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        async with FakeWorker() as worker:
            state = ("--state", server.url)
            async with (
                running(worker, tmp_path, *state) as (_, one),
                running(worker, tmp_path, *state) as (_, two),
            ):
                assert (await one.generate("analyst")).error is None
                assert (await two.generate("analyst")).error is None
            assert b"curfew:{fleet}:controllers" in server.command("KEYS", "*")


async def test_a_store_that_is_not_there_is_one_line_and_code_2(tmp_path: Path) -> None:
    url = f"redis://127.0.0.1:{free_port()}"
    arguments = ("--policy", policy_file(tmp_path), "--worker", "127.0.0.1:1", "--listen", "127.0.0.1:0")
    process = await start(*arguments, "--admin", "127.0.0.1:0", "--state", url)
    _, said = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 2
    last = said.decode().splitlines()[-1]
    assert last.startswith("curfew controller: --state: ")
    process = await start(*arguments, "--admin", "127.0.0.1:0", "--state", "localhost")
    _, said = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 2
    assert said.decode().startswith("curfew controller: --state: not the URL of a store; write redis://")


async def test_a_store_that_is_optional_need_not_be_there(tmp_path: Path) -> None:
    state = ("--state", f"redis://127.0.0.1:{free_port()}", "--state-optional")
    async with FakeWorker() as worker, running(worker, tmp_path, *state) as (_, door):
        assert (await door.generate("analyst")).error is None
