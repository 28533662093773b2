"""`curfew bench` as its user runs it, against a real server with a script."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner, Result

from curfew.cli.main import app
from curfew.rpc.errors import RpcError, reason
from tests.curfew.reasoning_server import serving

HEAD = "arrival_s,tenant,input_tokens,reasoning_tokens,answer_tokens\n"


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", *arguments])


def test_a_rate_is_put_on_every_tenant_and_reported() -> None:
    with serving() as (servicer, address):
        asked = ["--tenant", "support", "--key", "ops=secret", "--rate", "60", "--duration", "500ms"]
        result = bench("--address", address, *asked, "--input-tokens", "30", "--json")
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        assert report["sent"] == report["answered"] == report["kept"] == len(servicer.calls) > 10
        assert set(report["tenants"]) == {"support", "ops"}
        assert {seen.key for seen in servicer.calls} == {"Bearer demo-support", "Bearer secret"}
        assert report["output_tokens"] == 7 * report["sent"]
        assert all(29 <= len(seen.request.messages[-1].content) <= 36 for seen in servicer.calls)
        # The table is for people, and goes where it does not disturb.
        assert "p95" in result.stderr


def test_the_same_seed_asks_the_same() -> None:
    with serving() as (servicer, address):
        for _ in range(2):
            bench("--address", address, "--tenant", "a", "--rate", "50", "--duration", "200ms", "--seed", "3")
        texts = sorted(seen.request.messages[-1].content for seen in servicer.calls)
        assert texts[::2] == texts[1::2]


def test_a_trace_is_played_with_its_tenants_and_limits(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(f"{HEAD}0.2,support,20,40,8\n0.0,other,10,,\n9.0,other,10,1,1\n")
    with serving() as (servicer, address):
        result = bench(
            *("--address", address, "--tenant", "support", "--trace", str(trace), "--deadline", "2s"),
            *("--speed", "10", "--lengths", "2", "--limit", "500ms", "--json"),
        )
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["sent"] == 2
        wishes = sorted((seen.request.wishes for seen in servicer.calls), key=lambda w: w.max_answer_tokens)
        assert [(w.max_reasoning_tokens, w.max_answer_tokens) for w in wishes] == [(0, 0), (80, 16)]
        assert all(w.deadline.seconds == 2 for w in wishes)


def test_refusals_are_counted_by_their_reason_and_not_tried_again() -> None:
    with serving() as (servicer, address):
        full = RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", reason("POOL_FULL"))
        servicer.refusals = [full, full]
        asked = ["--tenant", "a", "--rate", "40", "--duration", "300ms", "--json"]
        result = bench("--address", address, *asked)
        report = json.loads(result.stdout)
        assert report["failed"] == {"POOL_FULL": 2}
        assert report["answered"] == report["sent"] - 2 == len(servicer.calls) - 2
        assert "2 POOL_FULL" in " ".join(result.stderr.split())


def test_ctrl_c_ends_the_load_and_reports_what_came() -> None:
    with serving() as (servicer, address):
        asked = ["--address", address, "--tenant", "a", "--rate", "50", "--duration", "10m", "--json"]
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "curfew"), "bench", *asked],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            while len(servicer.calls) < 5:
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        report = json.loads(out)
        assert report["elapsed_s"] < 600
        # Those that still ran were cancelled with it.
        assert report["answered"] == report["sent"] <= len(servicer.calls)


def test_nobody_there_is_told_in_the_report() -> None:
    asked = ["--tenant", "a", "--rate", "20", "--duration", "300ms", "--json"]
    result = bench("--address", "127.0.0.1:1", *asked)
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["answered"] == 0
    assert set(report["failed"]) == {"UNAVAILABLE"}
    assert report["latency_s"]["p50"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tenant", "a"], "--rate and --trace"),
        (["--tenant", "a", "--rate", "1", "--trace", "TRACE"], "--rate and --trace"),
        (["--rate", "1"], "CURFEW_KEY"),
        (["--tenant", "a", "--rate", "0"], "0.0"),
        (["--tenant", "a", "--rate", "1", "--duration", "soon"], "soon"),
        (["--tenant", "a", "--trace", "TRACE"], "trace.csv:3"),
        (["--tenant", "a", "--trace", "no.csv"], "no.csv"),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CURFEW_KEY", raising=False)
    trace = tmp_path / "trace.csv"
    trace.write_text(f"{HEAD}0.0,a,1,,\nnever,a,1,,\n")
    result = bench(*(str(trace) if each == "TRACE" else each for each in arguments))
    assert result.exit_code == 2
    # Long lines are broken in a box.
    assert "".join(said.split()) in "".join(result.stderr.replace("│", "").split())
