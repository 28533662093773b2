"""What the worker's command says when it cannot start."""

from __future__ import annotations

import argparse
import socket
from pathlib import Path

import pytest

from worker.service.command import arguments, main
from worker.upstream.command import arguments as upstream_arguments
from worker.upstream.command import main as serve_upstream

DEMO_MODEL = Path(__file__).parents[3] / "demo" / "model"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "no/such/model"], "no/such/model/config.json"),
        (["--model", str(DEMO_MODEL), "--device", "abacus"], "abacus"),
        (["--model", str(DEMO_MODEL), "--cache-mib", "1"], "1048576 bytes do not hold 40 states"),
        (["--model", str(DEMO_MODEL), "--max-sequence-tokens", "999999999"], "999999999"),
        (["--model", str(DEMO_MODEL), "--listen", "nowhere:1", "--insecure"], "cannot listen on nowhere"),
        (["--model", str(DEMO_MODEL), "--listen", "0.0.0.0:1"], "can be reached from elsewhere, by anybody"),
        (["--model", str(DEMO_MODEL), "--allow", "controller"], "--allow needs --tls-client-ca"),
        (
            ["--model", "no/such", "--listen", "0.0.0.0:1", "--insecure", "--announce", "controller:1"],
            "--announce: 0.0.0.0:1 stands for every address; --advertise HOST:PORT is needed",
        ),
        (
            ["--model", str(DEMO_MODEL), "--tls-cert", "no/cert", "--tls-key", "no/key"],
            "no/cert cannot be read: No such file or directory",
        ),
    ],
)
def test_what_cannot_start_says_why_in_a_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("curfew worker: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err


def test_an_address_in_use_is_told_before_the_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "127.0.0.1:{1}".format(*taken.getsockname())
        assert main(["--model", "no/such/model", "--listen", address]) == 2
    assert f"cannot listen on {address}" in capsys.readouterr().err


def test_so_it_is_before_a_server_behind_the_worker_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "127.0.0.1:{1}".format(*taken.getsockname())
        assert serve_upstream(["--upstream", "http://127.0.0.1:1/v1", "--listen", address]) == 2
    assert f"cannot listen on {address}" in capsys.readouterr().err


def test_a_key_that_cannot_be_had_is_told_with_its_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing, strange = tmp_path / "missing", tmp_path / "strange"
    strange.write_text("schl\u00fcssel")
    for file, said in [(missing, "cannot be read"), (strange, "does not hold a key of visible ASCII")]:
        options = ["--listen", "127.0.0.1:0", "--upstream-key-file", str(file)]
        assert serve_upstream(["--upstream", "http://127.0.0.1:1/v1", *options]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"curfew worker: --upstream-key-file: {file} ")
        assert said in error


@pytest.mark.parametrize("parser", [arguments(), upstream_arguments()])
def test_the_help_tells_no_default_where_there_is_none(parser: argparse.ArgumentParser) -> None:
    told = " ".join(parser.format_help().split())
    assert "(default: 127.0.0.1:7210)" in told
    assert not any(f"(default: {nothing})" in told for nothing in ("", "None", "False", "[]"))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--slots", "0"),
        ("--threads", "-1"),
        ("--queue", "0"),
        ("--page-tokens", "1.5"),
        ("--grace-s", "nan"),
        ("--flush-ms", "-1"),
        ("--dtype", "int4"),
        ("--listen", "nowhere"),
    ],
)
def test_a_number_out_of_range_is_a_usage_error(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--model", str(DEMO_MODEL), option, value])
    assert ended.value.code == 2
    assert f"argument {option}" in (said := capsys.readouterr().err)
    assert repr(value) in said
