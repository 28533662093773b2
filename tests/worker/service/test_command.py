"""What the worker's command says when it cannot start."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from worker.service.command import main

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
