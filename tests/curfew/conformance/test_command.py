"""`curfew conformance` as its user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
from typer.testing import CliRunner

from curfew.cli.main import app
from tests.certificates import Authority
from tests.curfew import reasoning_server
from tests.openai_server import Script, serving

RUNNER = CliRunner()


def test_results_are_json_and_a_leak_is_an_exit_status() -> None:
    for script, status in [(Script(), 0), (Script(reopens=True), 1)]:
        with serving(script) as server:
            result = RUNNER.invoke(
                app,
                ["conformance", "--target", server.url, "--dialect", "vllm", "--json", "--concurrency", "2"],
            )
        assert result.exit_code == status, result.output
        content = json.loads(result.stdout)
        assert content["passed"] is (status == 0)
        verdicts = {check["name"]: check["verdict"] for check in content["checks"]}
        assert verdicts["no reopening"] == ("pass" if status == 0 else "fail")


def test_the_table_tells_what_was_seen() -> None:
    with serving() as server:
        result = RUNNER.invoke(app, ["conformance", "--target", server.url, "--dialect", "vllm"])
    assert "exact cap" in result.stdout
    assert "pass" in result.stdout


def test_nobody_there_and_a_wrong_command_line_say_so() -> None:
    nobody = RUNNER.invoke(app, ["conformance", "--target", "http://127.0.0.1:1/v1", "--model", "m"])
    assert nobody.exit_code == 6
    assert "curfew conformance: ConnectError" in nobody.stderr
    for arguments, said in [
        (["--target", "ftp://x"], "ftp://x"),
        (["--target", "http://x", "--dialect", "latin"], "latin"),
        (["--target", "grpc://127.0.0.1:1"], "CURFEW_KEY"),
        (["--target", "grpc://127.0.0.1:1", "--key", "é"], "visible ASCII"),
        (["--target", "grpc://", "--key", "k"], "address is empty"),
        (["--target", "https://x", "--tls"], "grpc:// and worker://"),
    ]:
        wrong = RUNNER.invoke(app, ["conformance", *arguments])
        assert wrong.exit_code == 2
        assert said in wrong.stderr


def test_an_encrypted_controller_is_asked_with_its_authority(tmp_path: Path) -> None:
    identity = Authority(tmp_path).issue("controller")
    pair = (identity.key.read_bytes(), identity.cert.read_bytes())
    with reasoning_server.serving(grpc.ssl_server_credentials([pair])) as (servicer, address):
        asked = ["conformance", "--target", f"grpc://{address}", "--key", "k"]
        assert RUNNER.invoke(app, asked).exit_code == 6
        assert not servicer.calls
        result = RUNNER.invoke(app, [*asked, "--ca", str(identity.ca)])
        assert servicer.calls
        assert "exact cap" in result.stdout
