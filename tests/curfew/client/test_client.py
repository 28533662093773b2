"""Both clients against a real server."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Unpack

import grpc
import pytest

from curfew import (
    ONCE,
    Adjustment,
    AsyncClient,
    Cancelled,
    Client,
    Code,
    Completion,
    CurfewError,
    DeadlineExceeded,
    Delta,
    Effort,
    InvalidRequest,
    Message,
    Mode,
    Options,
    Overloaded,
    Phase,
    Plan,
    ReasoningEnd,
    Refused,
    Reply,
    Retry,
    Role,
    Sampling,
    Tls,
    Unauthenticated,
    Unavailable,
    timeout_after,
)
from curfew.client.values import Event
from curfew.rpc.durations import seconds
from curfew.rpc.errors import RpcError, invalid, reason, retry_after
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import reasoning_pb2
from tests.curfew.reasoning_server import PLAN, WHOLE, Scripted, serving

NOBODY = "127.0.0.1:1"
QUICK = Retry(attempts=3, first_backoff_s=0.001)


@pytest.fixture
def server() -> Iterator[tuple[Scripted, str]]:
    with serving() as running:
        yield running


class Threads:
    """Asks without asyncio."""

    def read(
        self, address: str | list[str], question: str | list[Message], **options: Unpack[Options]
    ) -> tuple[list[Event], Reply]:
        with (
            Client(address, key="k", retry=QUICK) as client,
            client.generate(question, **options) as stream,
        ):
            return list(stream), stream.reply()

    def ask(self, address: str | list[str], question: str, **options: Unpack[Options]) -> Reply:
        with Client(address, key="k", retry=QUICK) as client:
            return client.ask(question, **options)

    def plan(self, address: str, **options: Unpack[Options]) -> Plan:
        with Client(address, key="k", retry=QUICK) as client:
            return client.plan("q", **options)

    def report(self, address: str) -> None:
        with Client(address, key="k", retry=QUICK) as client:
            client.report_outcome("r1", 0.5)


class Tasks:
    """Asks with asyncio."""

    def read(
        self, address: str | list[str], question: str | list[Message], **options: Unpack[Options]
    ) -> tuple[list[Event], Reply]:
        async def read() -> tuple[list[Event], Reply]:
            async with (
                AsyncClient(address, key="k", retry=QUICK) as client,
                client.generate(question, **options) as stream,
            ):
                return [event async for event in stream], await stream.reply()

        return asyncio.run(read())

    def ask(self, address: str | list[str], question: str, **options: Unpack[Options]) -> Reply:
        async def ask() -> Reply:
            async with AsyncClient(address, key="k", retry=QUICK) as client:
                return await client.ask(question, **options)

        return asyncio.run(ask())

    def plan(self, address: str, **options: Unpack[Options]) -> Plan:
        async def plan() -> Plan:
            async with AsyncClient(address, key="k", retry=QUICK) as client:
                return await client.plan("q", **options)

        return asyncio.run(plan())

    def report(self, address: str) -> None:
        async def report() -> None:
            async with AsyncClient(address, key="k", retry=QUICK) as client:
                await client.report_outcome("r1", 0.5)

        asyncio.run(report())


Twin = Threads | Tasks


@pytest.fixture(params=[Threads, Tasks])
def twin(request: pytest.FixtureRequest) -> Twin:
    made: Callable[[], Twin] = request.param
    return made()


def refuse(
    servicer: Scripted, code: grpc.StatusCode, *, after_s: float | None = None, times: int = 1
) -> None:
    details = () if after_s is None else (retry_after(after_s),)
    servicer.refusals += [RpcError(code, "no", *details)] * times


def test_a_stream_is_a_plan_then_deltas_and_adjustments_then_a_completion(
    twin: Twin, server: tuple[Scripted, str]
) -> None:
    events, reply = twin.read(server[1], "q")
    kinds = [type(event) for event in events]
    assert kinds == [Plan, Delta, Adjustment, Delta, Delta, Delta, Delta, Completion]
    assert [event.phase for event in events if isinstance(event, Delta)] == [
        *(Phase.REASONING, Phase.REASONING, Phase.FORCED, Phase.ANSWER, Phase.ANSWER)
    ]
    assert (reply.reasoning, reply.answer) == ("1 + 2 = 3", "10")
    assert (reply.plan, reply.completion) == (events[0], events[-1])
    assert [adjustment.why for adjustment in reply.adjustments] == ["it goes slowly"]
    assert (reply.plan.mode, reply.plan.deadline_s, reply.plan.budget.reason_until_s) == (
        Mode.THINK,
        0.8,
        0.5,
    )
    assert reply.completion.reasoning_end is ReasoningEnd.BUDGET
    assert reply.completion.reasoning_end.is_cut
    assert (reply.completion.latency_s, reply.completion.kept) == (0.512, True)
    assert (reply.completion.usage.forced_tokens, reply.completion.timings.first_token_s) == (2, 0.01)
    assert reply.plan.raw == PLAN


def test_reasoning_is_read_to_its_end_and_then_the_answer(server: tuple[Scripted, str]) -> None:
    with Client(server[1], key="k") as client, client.generate("q") as stream:
        assert list(stream.reasoning_text()) == ["1 + 2", " = 3"]
        assert stream.plan is not None
        assert list(stream.answer_text()) == ["1", "0"]
        assert stream.reply().reasoning == "1 + 2 = 3"
        assert list(stream) == []


async def test_reasoning_is_read_to_its_end_and_then_the_answer_with_asyncio(
    server: tuple[Scripted, str],
) -> None:
    async with AsyncClient(server[1], key="k") as client, client.generate("q") as stream:
        assert [text async for text in stream.reasoning_text()] == ["1 + 2", " = 3"]
        assert stream.plan is not None
        assert [text async for text in stream.answer_text()] == ["1", "0"]
        assert (await stream.reply()).reasoning == "1 + 2 = 3"
        assert [event async for event in stream] == []


def test_what_is_said_arrives(twin: Twin, server: tuple[Scripted, str]) -> None:
    twin.read(
        server[1],
        [Message(Role.USER, "a"), Message(Role.ASSISTANT, "b"), Message(Role.USER, "c")],
        system="s",
        mode=Mode.NO_THINK,
        max_reasoning_tokens=0,
        max_answer_tokens=5,
        max_output_tokens=50,
        effort=Effort.LOW,
        model="nano",
        sampling=Sampling(temperature=0.0, seed=7, stop=("!",)),
        labels={"task": "triage"},
    )
    (call,) = server[0].calls
    assert call.key == "Bearer k"
    assert [(turn.role, turn.content) for turn in call.request.messages] == [
        *((pb.ROLE_SYSTEM, "s"), (pb.ROLE_USER, "a"), (pb.ROLE_ASSISTANT, "b"), (pb.ROLE_USER, "c"))
    ]
    wishes, sampling = call.request.wishes, call.request.sampling
    assert (wishes.mode, wishes.max_answer_tokens) == (pb.MODE_NO_THINK, 5)
    assert call.request.model == "nano"
    assert (wishes.max_output_tokens, wishes.effort) == (50, reasoning_pb2.EFFORT_LOW)
    assert wishes.HasField("max_reasoning_tokens")
    assert not wishes.HasField("deadline")
    assert sampling == pb.SamplingParams(temperature=0.0, seed=7, stop=["!"])
    assert sampling.HasField("temperature")
    assert dict(call.request.labels) == {"task": "triage"}


def test_a_deadline_is_a_wish_and_a_later_end_of_the_call(twin: Twin, server: tuple[Scripted, str]) -> None:
    twin.read(server[1], "q", deadline_s=4.0)
    (call,) = server[0].calls
    assert seconds(call.request.wishes.deadline) == 4.0
    assert call.remaining_s is not None
    assert 4.0 < call.remaining_s <= timeout_after(4.0) + 0.1  # it is rounded


def test_events_of_a_newer_server_do_no_harm(twin: Twin, server: tuple[Scripted, str]) -> None:
    events, reply = twin.read(server[1], "newer")
    assert isinstance(events[0], Delta)
    assert events[0].phase is Phase.UNKNOWN
    assert len(events) == len(WHOLE) + 1
    assert reply.answer == "10"


def test_a_full_service_is_asked_again_when_it_said_to(twin: Twin, server: tuple[Scripted, str]) -> None:
    refuse(server[0], grpc.StatusCode.RESOURCE_EXHAUSTED, after_s=0.05, times=2)
    begun_s = time.monotonic()
    _, reply = twin.read(server[1], "q", deadline_s=30.0)
    assert time.monotonic() - begun_s >= 0.1
    assert reply.answer == "10"
    deadlines = [seconds(call.request.wishes.deadline) for call in server[0].calls]
    assert len(deadlines) == 3
    assert deadlines[0] == 30.0
    assert deadlines[2] <= 29.9


def test_a_call_that_was_dropped_on_its_way_is_made_again(twin: Twin, server: tuple[Scripted, str]) -> None:
    refuse(server[0], grpc.StatusCode.CANCELLED)
    assert twin.read(server[1], "q")[1].answer == "10"
    refuse(server[0], grpc.StatusCode.CANCELLED)
    assert twin.plan(server[1]).why == "it fits"
    server[0].breaks = [RpcError(grpc.StatusCode.CANCELLED, "dropped")]
    assert twin.ask(server[1], "q").answer == "10"
    assert len(server[0].calls) == 6


def test_what_came_is_never_asked_for_again(twin: Twin, server: tuple[Scripted, str]) -> None:
    with pytest.raises(Unavailable):
        twin.read(server[1], "lost")
    assert len(server[0].calls) == 1


def test_a_reply_begins_anew_at_the_next_address_where_one_is_lost_on_its_way(
    twin: Twin, server: tuple[Scripted, str]
) -> None:
    with serving() as (lost, address):
        lost.breaks = [RpcError(grpc.StatusCode.UNAVAILABLE, "the worker was lost")]
        reply = twin.ask([address, server[1]], "q", deadline_s=30.0)
    assert (reply.reasoning, reply.answer) == ("1 + 2 = 3", "10")
    assert len(reply.adjustments) == 1
    (first,), (second,) = lost.calls, server[0].calls
    assert seconds(second.request.wishes.deadline) < seconds(first.request.wishes.deadline) == 30.0


def test_a_reply_begins_anew_no_sooner_than_it_was_told_to(twin: Twin, server: tuple[Scripted, str]) -> None:
    server[0].breaks = [RpcError(grpc.StatusCode.UNAVAILABLE, "drains", retry_after(0.05))]
    begun_s = time.monotonic()
    assert twin.ask(server[1], "q").answer == "10"
    assert time.monotonic() - begun_s >= 0.05
    server[0].breaks = [RpcError(grpc.StatusCode.UNAVAILABLE, "drains", retry_after(5.0))]
    with pytest.raises(Unavailable):
        twin.ask(server[1], "q", deadline_s=4.0)
    assert len(server[0].calls) == 3


def test_a_reply_that_breaks_off_every_time_is_given_up(twin: Twin, server: tuple[Scripted, str]) -> None:
    with pytest.raises(Unavailable, match="lost"):
        twin.ask(server[1], "lost")
    assert len(server[0].calls) == QUICK.attempts


def test_a_reply_that_breaks_off_for_another_reason_does_not_begin_anew(
    twin: Twin, server: tuple[Scripted, str]
) -> None:
    for code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL):
        server[0].breaks = [RpcError(code, "no", retry_after(0.001))]
        with pytest.raises(CurfewError):
            twin.ask(server[1], "q")
    assert len(server[0].calls) == 2


def test_the_next_address_is_asked_where_one_does_not_answer(
    twin: Twin, server: tuple[Scripted, str]
) -> None:
    _, reply = twin.read([NOBODY, server[1]], "q")
    assert reply.answer == "10"


def test_the_address_that_answered_is_asked_first_from_then_on(server: tuple[Scripted, str]) -> None:
    with serving() as (other, address), Client([address, server[1]], key="k", retry=QUICK) as client:
        refuse(other, grpc.StatusCode.UNAVAILABLE)
        client.ask("q")
        client.ask("q")
        assert (len(other.calls), len(server[0].calls)) == (1, 2)


def test_nobody_anywhere_is_unavailable(twin: Twin) -> None:
    with pytest.raises(Unavailable) as raised:
        twin.read([NOBODY, "127.0.0.1:2"], "q")
    assert raised.value.code is Code.UNAVAILABLE


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RpcError(grpc.StatusCode.UNAUTHENTICATED, "no", reason("API_KEY_UNKNOWN")), Unauthenticated),
        (RpcError(grpc.StatusCode.FAILED_PRECONDITION, "no"), Refused),
        (RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, "no"), Overloaded),
        (RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, "no", retry_after(60)), Overloaded),
        (invalid([("messages", "is empty")]), InvalidRequest),
        (RpcError(grpc.StatusCode.INTERNAL, "no"), CurfewError),
    ],
)
def test_an_error_has_its_type_and_is_not_tried_again(
    twin: Twin, server: tuple[Scripted, str], error: RpcError, kind: type[CurfewError]
) -> None:
    server[0].refusals.append(error)
    with pytest.raises(CurfewError) as raised:
        twin.read(server[1], "q")
    assert type(raised.value) is kind
    assert raised.value.code.name == error.code.name
    assert raised.value.message == error.message
    assert len(server[0].calls) == 1


def test_an_error_says_what_its_details_say(twin: Twin, server: tuple[Scripted, str]) -> None:
    details = (retry_after(60.5), reason("POOL_FULL", waiting=3))
    server[0].refusals = [
        RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", *details),
        invalid([("messages", "is empty")]),
    ]
    with pytest.raises(Overloaded) as full:
        twin.read(server[1], "q")
    assert (full.value.retry_after_s, full.value.reason) == (60.5, "POOL_FULL")
    assert full.value.metadata == {"waiting": "3"}
    assert str(full.value) == "RESOURCE_EXHAUSTED: full (try again in 60.5 s)"
    with pytest.raises(InvalidRequest) as wrong:
        twin.read(server[1], "q")
    (violation,) = wrong.value.violations
    assert (violation.field, violation.description) == ("messages", "is empty")


def test_a_stream_that_ends_without_a_completion_is_an_error(
    twin: Twin, server: tuple[Scripted, str]
) -> None:
    with pytest.raises(CurfewError, match="without a completion"):
        twin.read(server[1], "incomplete")


def test_a_timeout_ends_the_request(twin: Twin, server: tuple[Scripted, str]) -> None:
    with pytest.raises(DeadlineExceeded):
        twin.read(server[1], "silent", timeout_s=0.2)
    assert server[0].left.wait(10)


def test_a_plan_alone_is_tried_again_as_well(twin: Twin, server: tuple[Scripted, str]) -> None:
    refuse(server[0], grpc.StatusCode.UNAVAILABLE, times=2)
    assert twin.plan(server[1], deadline_s=30.0).why == "it fits"
    assert len(server[0].calls) == 3
    assert seconds(server[0].calls[0].request.wishes.deadline) == 30.0


def test_an_outcome_is_reported_once_and_never_again(twin: Twin, server: tuple[Scripted, str]) -> None:
    twin.report(server[1])
    assert server[0].scores == [("r1", 0.5)]
    refuse(server[0], grpc.StatusCode.UNAVAILABLE)
    with pytest.raises(Unavailable):
        twin.report(server[1])
    assert server[0].scores == [("r1", 0.5)]


def test_leaving_a_stream_ends_the_request(server: tuple[Scripted, str]) -> None:
    with Client(server[1], key="k") as client:
        with client.generate("endless") as stream:
            for event in stream:
                if isinstance(event, Delta):
                    break
        assert server[0].left.wait(10)


async def test_leaving_a_stream_ends_the_request_with_asyncio(server: tuple[Scripted, str]) -> None:
    async with AsyncClient(server[1], key="k") as client:
        async with client.generate("endless") as stream:
            async for event in stream:
                if isinstance(event, Delta):
                    break
        assert await asyncio.to_thread(server[0].left.wait, 10)


async def test_a_task_that_is_cancelled_ends_its_request(server: tuple[Scripted, str]) -> None:
    async with AsyncClient(server[1], key="k") as client:
        begun = asyncio.Event()

        async def read() -> None:
            async for _ in client.generate("silent"):
                begun.set()

        reading = asyncio.create_task(read())
        await begun.wait()
        reading.cancel()
        assert await asyncio.to_thread(server[0].left.wait, 10)
        with pytest.raises(asyncio.CancelledError):
            await reading


def test_ctrl_c_ends_the_request(server: tuple[Scripted, str]) -> None:
    main = threading.main_thread().ident
    assert main is not None
    started = threading.Event()

    def interrupt() -> None:
        # Once it waits for an answer: gRPC's own code must not be interrupted.
        started.wait()
        while sys._current_frames()[main].f_code is not threading.Condition.wait.__code__:
            time.sleep(0.001)
        signal.pthread_kill(main, signal.SIGINT)

    with Client(server[1], key="k") as client, client.generate("silent") as stream:
        assert isinstance(next(stream), Plan)
        interrupter = threading.Thread(target=interrupt)
        interrupter.start()
        started.set()
        with pytest.raises(KeyboardInterrupt):
            next(stream)
        interrupter.join()
        assert server[0].left.wait(10)


def test_a_stream_may_be_closed_by_another_thread(server: tuple[Scripted, str]) -> None:
    with Client(server[1], key="k") as client, client.generate("silent") as stream:
        assert isinstance(next(stream), Plan)
        closer = threading.Timer(0.0, stream.close)
        closer.start()
        with pytest.raises(Cancelled):
            next(stream)
        closer.join()
        assert server[0].left.wait(10)
        with pytest.raises(Cancelled):
            next(stream)


def test_a_client_that_another_thread_closes_asks_nobody_any_more(server: tuple[Scripted, str]) -> None:
    with Client(server[1], key="k", retry=QUICK) as client, ThreadPoolExecutor(1) as pool:
        asking = pool.submit(client.ask, "silent")
        assert server[0].asked.wait(10)
        client.close()
        with pytest.raises(Cancelled):
            asking.result(10)


def test_a_wrong_key_or_address_is_refused_at_once() -> None:
    for key in ("é", "a\nb"):
        with pytest.raises(ValueError, match="visible ASCII"):
            Client(NOBODY, key=key)
    for addresses in ([""], []):
        with pytest.raises(ValueError, match="address"):
            AsyncClient(addresses, key="k")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of localhost that vouches for itself, and its key."""
    directory = tmp_path_factory.mktemp("tls")
    cert, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
            ),
            *("-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


async def test_a_connection_can_be_encrypted_and_both_sides_known(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), cert.read_bytes())], cert.read_bytes(), require_client_auth=True
    )
    known = Tls(ca=cert, cert=cert, cert_key=key, server_name="localhost")
    with serving(credentials) as (servicer, address):
        with Client(address, key="k", tls=known) as client:
            assert client.ask("q").answer == "10"
        async with AsyncClient(address, key="k", tls=known) as other:
            assert (await other.ask("q")).answer == "10"
        for tls in (None, Tls(ca=cert, server_name="localhost")):
            with (
                pytest.raises(Unavailable),
                Client(address, key="k", tls=tls, retry=ONCE) as stranger,
            ):
                stranger.ask("q")
        assert len(servicer.calls) == 2


def test_a_certificate_comes_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="come together"):
        Tls(cert=tmp_path / "cert.pem")
    with pytest.raises(OSError, match="none"):
        Client(NOBODY, key="k", tls=Tls(ca=tmp_path / "none.pem"))
