"""What is told when the server behind the worker fails, and what becomes of requests that end early."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial

import grpc
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from curfew.dialects import DIALECTS
from tests.openai_server import Script
from tests.worker.service.serving import refusal
from tests.worker.upstream.harness import ANSWER, REASONING, Answer, ask, fronting
from worker.engine.refusals import QueueFullError
from worker.upstream.wish import WishReader

UNAVAILABLE, EXHAUSTED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("status", "text", "code", "reason"),
    [
        (429, "slow down", EXHAUSTED, "UPSTREAM_FULL"),
        (400, "maximum context length is 4096 tokens", grpc.StatusCode.OUT_OF_RANGE, "REQUEST_TOO_LARGE"),
        (413, "", grpc.StatusCode.OUT_OF_RANGE, "REQUEST_TOO_LARGE"),
        (400, "top_p is odd", grpc.StatusCode.INVALID_ARGUMENT, "UPSTREAM_REFUSED"),
        (422, "unknown field", grpc.StatusCode.INVALID_ARGUMENT, "UPSTREAM_REFUSED"),
        (401, "who are you", UNAVAILABLE, "UPSTREAM_UNAVAILABLE"),
        (404, "no such model", UNAVAILABLE, "UPSTREAM_UNAVAILABLE"),
        (500, "secret", UNAVAILABLE, "UPSTREAM_UNAVAILABLE"),
        (503, "loading", UNAVAILABLE, "UPSTREAM_UNAVAILABLE"),
    ],
)
async def test_refusals_become_statuses_without_the_servers_words(
    status: int, text: str, code: grpc.StatusCode, reason: str
) -> None:
    script = Script(refusal=lambda: JSONResponse({"error": {"message": text}}, status))
    async with fronting(script) as worker:
        refused = await refusal(worker.stub.Generate(ask()))
    assert (refused.code, refused.reason.reason) == (code, reason)
    assert not text or text not in refused.text


@pytest.mark.parametrize("as_date", [False, True])
async def test_when_to_try_again_is_passed_on(as_date: bool) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=600), usegmt=True)
    header, least, most = (later, 500, 600) if as_date else ("7", 7, 7)
    script = Script(refusal=lambda: PlainTextResponse("", 429, {"retry-after": header}))
    async with fronting(script) as worker:
        refused = await refusal(worker.stub.Generate(ask()))
    assert least <= refused.retry.retry_delay.seconds <= most


@pytest.mark.parametrize(("header", "seconds"), [("inf", 3600), ("nan", 0), ("-1", 0), ("soon", 1)])
async def test_an_odd_time_to_try_again_is_still_one(header: str, seconds: int) -> None:
    script = Script(refusal=lambda: PlainTextResponse("", 429, {"retry-after": header}))
    async with fronting(script) as worker:
        refused = await refusal(worker.stub.Generate(ask()))
    assert (refused.code, refused.retry.retry_delay.seconds) == (EXHAUSTED, seconds)


async def test_nobody_there_is_unavailable() -> None:
    async with fronting(url="http://127.0.0.1:1/v1") as worker:
        refused = await refusal(worker.stub.Generate(ask()))
    assert (refused.code, refused.reason.reason) == (UNAVAILABLE, "UPSTREAM_UNAVAILABLE")


@pytest.mark.parametrize("continuation", [False, True])
async def test_a_server_that_dies_in_mid_stream_is_unavailable_after_what_came(continuation: bool) -> None:
    async with fronting(Script(dies_after=5), continuation=continuation) as worker:
        answer = Answer()

        async def read() -> None:
            async for response in worker.stub.Generate(ask()):
                answer.take(response)

        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await read()
    assert failed.value.code() is UNAVAILABLE
    assert answer.text(REASONING).startswith("r0 r1 ")


async def test_an_error_in_the_stream_is_an_error() -> None:
    async with fronting() as worker:
        for text, code in [("engine died", UNAVAILABLE), ("context is full", grpc.StatusCode.OUT_OF_RANGE)]:
            stream = PlainTextResponse(f'data: {{"error": "{text}"}}\n\n', media_type="text/event-stream")
            worker.server.script = Script(refusal=partial(_same, stream))
            assert (await refusal(worker.stub.Generate(ask()))).code is code


def _same(response: Response) -> Response:
    return response


async def test_a_stream_that_ends_without_a_reason_is_an_error() -> None:
    script = Script(refusal=lambda: PlainTextResponse("data: [DONE]\n\n", media_type="text/event-stream"))
    async with fronting(script) as worker:
        assert (await refusal(worker.stub.Generate(ask()))).code is UNAVAILABLE


@pytest.mark.parametrize("chunk", ['{"choices": [7]}', '{"choices": [{"delta": "no"}]}', '{"choices": 7}'])
async def test_a_stream_of_something_else_is_the_servers_fault(chunk: str) -> None:
    stream = PlainTextResponse(f"data: {chunk}\n\n", media_type="text/event-stream")
    async with fronting(Script(refusal=lambda: stream)) as worker:
        assert (await refusal(worker.stub.Generate(ask()))).code is UNAVAILABLE


async def test_who_leaves_frees_the_slot_here_and_at_the_server() -> None:
    async with fronting(Script(pauses_after=3), slots=1) as worker:
        call = worker.stub.Generate(ask("r"))
        async for _ in call:
            if worker.server.paused.is_set():
                break
        call.cancel()
        while (await worker.load()).running:
            pass
        worker.server.script = Script()
        answer = await worker.ask(ask("r", reasoning=100))
        assert answer.text(ANSWER) == "it is 42"
        worker.server.go_on.set()
        await asyncio.to_thread(worker.server.emptied.wait)
        assert worker.server.left == 1


async def test_slots_bound_what_the_server_has_and_the_queue_what_waits() -> None:
    async with fronting(Script(pauses_after=0), slots=2, queue=2) as worker:
        running = [asyncio.create_task(worker.ask(ask(reasoning=100))) for _ in range(4)]
        while (await worker.load()).waiting < 2:
            pass
        load = await worker.load()
        assert (load.running, load.waiting, load.free_slots) == (2, 2, 0)
        assert load.prefill_backlog_tokens > 0
        refused = await refusal(worker.stub.Generate(ask()))
        assert (refused.code, refused.reason.reason) == (EXHAUSTED, "QUEUE_FULL")
        assert refused.retry.HasField("retry_delay")
        worker.server.go_on.set()
        assert {answer.text(ANSWER) for answer in await asyncio.gather(*running)} == {"it is 42"}
        assert worker.server.most_running == 2


async def test_the_most_urgent_runs_first() -> None:
    async with fronting(Script(pauses_after=0), slots=1) as worker:
        first = asyncio.create_task(worker.ask(ask("first")))
        while not (await worker.load()).running:
            pass
        ended: list[str] = []

        async def run(name: str, priority: int) -> None:
            request = ask(name)
            request.priority = priority
            await worker.ask(request)
            ended.append(name)

        later = asyncio.create_task(run("later", 5))
        while (await worker.load()).waiting < 1:
            pass
        sooner = asyncio.create_task(run("sooner", 1))
        while (await worker.load()).waiting < 2:
            pass
        worker.server.go_on.set()
        await asyncio.gather(first, later, sooner)
        assert ended == ["sooner", "later"]


async def test_the_queue_bounds_those_who_come_at_once_too() -> None:
    async with fronting(slots=1, queue=1) as worker:
        reader = WishReader(DIALECTS["vllm"], "scripted", None, 4.0)
        wishes = [reader.read(ask(name), random_seed=0, now_s=0.0) for name in "abc"]
        taken = [await worker.backend.submit(wish) for wish in wishes[:2]]
        with pytest.raises(QueueFullError, match="1 requests are waiting already"):
            await worker.backend.submit(wishes[2])
        for mailbox in taken:
            worker.backend.cancel(mailbox)


async def test_who_leaves_the_line_leaves_nothing_there() -> None:
    async with fronting(Script(pauses_after=0), slots=1) as worker:
        first = asyncio.create_task(worker.ask(ask("first")))
        while not (await worker.load()).running:
            pass
        later = worker.stub.Generate(ask("later"))
        while (await worker.load()).waiting < 1:
            pass
        later.cancel()
        while (await worker.load()).waiting:
            pass
        worker.server.go_on.set()
        await first


async def test_an_id_is_in_use_once() -> None:
    async with fronting(Script(pauses_after=0)) as worker:
        first = asyncio.create_task(worker.ask(ask("r")))
        while not (await worker.load()).running:
            pass
        refused = await refusal(worker.stub.Generate(ask("r")))
        assert (refused.code, refused.reason.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_IN_USE")
        worker.server.go_on.set()
        await first


async def test_what_never_fits_is_refused_before_it_is_sent() -> None:
    async with fronting() as worker:
        refused = await refusal(worker.stub.Generate(ask(reasoning=5000)))
        assert (refused.code, refused.reason.reason) == (grpc.StatusCode.OUT_OF_RANGE, "REQUEST_TOO_LARGE")
        assert not worker.server.bodies
