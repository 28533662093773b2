"""`curfew top`: what it shows of what a controller's door for operators says."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from rich.console import Console
from typer.testing import CliRunner

from curfew.cli.main import app
from curfew.cli.top import Snapshot, read_snapshot, screen
from curfew.rpc.durations import duration
from curfew.v1 import admin_pb2, admin_pb2_grpc, worker_pb2

STATUS = admin_pb2.GetStatusResponse(
    uptime=duration(4000),
    policy_version="0123456789ab",
    price=0.0123,
    load=1.24,
    waiting=12,
    workers=[
        admin_pb2.WorkerStatus(
            address="10.0.0.1:7100",
            available=True,
            slots=32,
            silent=duration(0.2),
            load=worker_pb2.WorkerLoad(
                running=30, waiting=4, free_pages=9871, step=duration(0.0087), tokens_per_s=3512.2
            ),
        ),
        admin_pb2.WorkerStatus(address="10.0.0.2:7100"),
    ],
)


def standing(name: str, **fields: object) -> admin_pb2.TenantStanding:
    return admin_pb2.TenantStanding(tenant=name, **{"target_share": 0.95, **fields})  # type: ignore[arg-type]


BUSY = standing(
    "support",
    requests=100,
    answered=99,
    kept=70,
    rate_per_s=102.3,
    think_share=0.62,
    mean_budget_tokens=410.4,
    brownout=admin_pb2.BROWNOUT_NO_THINK,
    price=0.0123,
    in_flight=7,
    median_latency=Duration(nanos=712_000_000),
    shadow=admin_pb2.ShadowDifferences(
        compared=100,
        admission=2,
        mode=11,
        budget=60,
        mean_budget_delta_tokens=-32.1,
        mean_promised_delta=0.012,
        mean_predicted_delta=duration(-0.123),
    ),
)


class Operators(admin_pb2_grpc.AdminServiceServicer):
    """Says what it was given, in pages of two."""

    def __init__(self, standings: list[admin_pb2.TenantStanding]) -> None:
        self.standings = standings

    def GetStatus(
        self, request: admin_pb2.GetStatusRequest, context: grpc.ServicerContext
    ) -> admin_pb2.GetStatusResponse:
        return STATUS

    def ListTenantStandings(
        self, request: admin_pb2.ListTenantStandingsRequest, context: grpc.ServicerContext
    ) -> admin_pb2.ListTenantStandingsResponse:
        rest = [s for s in self.standings if s.tenant > request.page_token]
        token = rest[1].tenant if len(rest) > 2 else ""
        return admin_pb2.ListTenantStandingsResponse(standings=rest[:2], next_page_token=token)


@pytest.fixture
def address() -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    standings = [standing("a"), standing("b"), standing("c"), standing("d"), BUSY]
    operators = Operators(standings)  # type: ignore[abstract]  # what `top` does not call is left out
    admin_pb2_grpc.add_AdminServiceServicer_to_server(operators, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def shown(
    *standings: admin_pb2.TenantStanding,
    status: admin_pb2.GetStatusResponse = STATUS,
    width: int = 80,
    rows: int = 10,
) -> list[str]:
    """The screen's lines, as wide as the terminal."""
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(screen(Snapshot("10.0.0.9:7201", status, standings), width, rows))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def changed(**fields: object) -> admin_pb2.GetStatusResponse:
    status = admin_pb2.GetStatusResponse()
    status.CopyFrom(STATUS)
    status.MergeFrom(admin_pb2.GetStatusResponse(**fields))  # type: ignore[arg-type]  # of any field
    return status


def test_a_screen_of_80_columns_holds_all_of_it() -> None:
    assert shown(standing("analyst"), BUSY) == [
        "10.0.0.9:7201  up 1h06m  policy 0123456789ab",
        "load 124%  price 0.0123  waiting 12",
        "",
        "tenant   req/s  now  kept    of  median think budget squeezed   price",
        "analyst      0    0     -   95%       -     -      -        -       0",
        "support    102    7  70.7   95%  712 ms   62%    410 no_think  0.0123",
        "",
        "worker            state  running waiting pages free    step tokens/s",
        "10.0.0.1:7100   serving    30/32       4       9871  8.7 ms     3512",
        "10.0.0.2:7100       new        -       -          -       -        -",
    ]


def test_workers_are_shown_with_why_they_get_nothing_and_who_names_them() -> None:
    warming = admin_pb2.WorkerStatus(address="w:1", available=True, slow_start=0.4)
    warming.sources.extend([admin_pb2.WORKER_SOURCE_STATIC, admin_pb2.WORKER_SOURCE_DNS])
    workers = [
        warming,
        admin_pb2.WorkerStatus(address="w:2", draining=True, sources=[admin_pb2.WORKER_SOURCE_ANNOUNCED]),
        admin_pb2.WorkerStatus(address="w:3", ejected=Duration(seconds=7)),
        admin_pb2.WorkerStatus(address="w:4", silent=Duration(seconds=7)),
    ]
    lines = shown(status=admin_pb2.GetStatusResponse(workers=workers), width=110)[-4:]
    assert [(line.split()[1], line.split()[-1]) for line in lines] == [
        ("warming", "static+dns"),
        ("draining", "announced"),
        ("ejected", "-"),
        ("lost", "-"),
    ]


@pytest.mark.parametrize("width", [80, 100, 200])
def test_long_names_are_cut_and_numbers_are_not(width: int) -> None:
    long = admin_pb2.TenantStanding()
    long.CopyFrom(BUSY)
    long.tenant = "a" * 63
    status = changed(shadow=admin_pb2.ShadowStatus(policy_version="ba9876543210"))
    status.workers[1].address = f"{'w' * 60}:7100"
    lines = shown(long, status=status, width=width)
    assert max(map(len, lines)) <= width
    tenants = next(line for line in lines if line.startswith("aaa"))
    assert tenants.split()[1:] == [
        "102",
        "7",
        "70.7",
        "95%",
        "712",
        "ms",
        "62%",
        "410",
        "no_think",
        "0.0123",
    ]
    shadow = lines[-1]
    assert shadow.split()[1:] == ["100", "2.0%", "11.0%", "60.0%", "-32", "+1.2%", "-123", "ms"]
    assert lines[-3] == "the shadow policy ba9876543210 would do otherwise"


def test_the_busiest_tenants_are_shown_where_not_all_fit() -> None:
    tenants = [standing(f"tenant-{n}", rate_per_s=float(n % 7)) for n in range(20)]
    lines = shown(*tenants, rows=3)
    assert [line.split()[0] for line in lines[4:7]] == ["tenant-12", "tenant-13", "tenant-6"]
    assert lines[7] == "and 17 with less traffic"


def test_what_is_wrong_stands_above_all_tables() -> None:
    status = changed(
        rejected="policy.yaml:7:5: bad\npolicy.yaml:8:5: worse",
        shadow=admin_pb2.ShadowStatus(rejected="shadow.yaml:1:1: cannot be read", faults=3),
        recording=admin_pb2.RecordingStatus(failure="No space left on device", lost=41, written=7),
    )
    assert shown(status=status)[2:6] == [
        "the policy file is refused: policy.yaml:7:5: bad",
        "the shadow policy is refused: shadow.yaml:1:1: cannot be read",
        "the shadow policy failed for 3 requests",
        "nothing is recorded: No space left on device (41 requests lost)",
    ]


def test_a_recording_that_goes_well_is_told_in_the_head() -> None:
    status = changed(recording=admin_pb2.RecordingStatus(file="x", written=7))
    assert shown(status=status)[1].endswith("  recorded 7")


def test_all_pages_are_read(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        snapshot = read_snapshot(admin_pb2_grpc.AdminServiceStub(channel), address)
    assert [s.tenant for s in snapshot.standings] == ["a", "b", "c", "d", "support"]


def test_once_shows_every_tenant_and_ends(address: str) -> None:
    done = CliRunner().invoke(app, ["top", "--once", "--admin", address])
    assert done.exit_code == 0
    assert done.stdout.startswith(f"{address}  up 1h06m")
    assert "support" in done.stdout


def test_a_terminal_gets_a_live_view_until_ctrl_c(address: str) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    command = [str(Path(sys.executable).with_name("curfew")), "top", "--interval", "0.1", "--admin", address]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        try:
            seen = b""
            while seen.count(b"no_think") < 2:  # a second look has been drawn over the first
                seen += os.read(ours, 4096)
            process.send_signal(signal.SIGINT)
            while LEFT_THE_SCREEN not in seen:
                seen += os.read(ours, 4096)
            assert process.wait(10) == 0
        finally:
            process.kill()
            os.close(ours)
            os.close(theirs)
    assert b"Traceback" not in seen


LEFT_THE_SCREEN = b"\x1b[?1049l"
"""The terminal shows again what it showed before."""


def test_programs_get_one_line_of_json_with_every_field(address: str) -> None:
    done = CliRunner().invoke(app, ["top", "--once", "--json", "--admin", address])
    assert done.exit_code == 0
    (line,) = done.stdout.splitlines()
    told = json.loads(line)
    assert told["address"] == address
    assert told["status"]["workers"][0]["load"]["tokens_per_s"] == 3512.2
    assert [tenant["tenant"] for tenant in told["tenants"]] == ["a", "b", "c", "d", "support"]
    assert told["tenants"][0]["requests"] == "0"  # protobuf's JSON writes 64 bits as text
    assert told["tenants"][4]["brownout"] == "BROWNOUT_NO_THINK"


def test_a_controller_that_is_not_there_is_told_with_code_6() -> None:
    done = CliRunner().invoke(app, ["top", "--once", "--admin", "127.0.0.1:1"])
    assert done.exit_code == 6
    assert done.stderr.startswith("curfew top: 127.0.0.1:1: UNAVAILABLE: ")
