"""`curfew worker --plan-memory` and the command's other ways around a checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.gpu.published import HYBRID_9B
from worker.service.command import main


@pytest.fixture
def directory(tmp_path: Path) -> str:
    """A model of which there is only the config."""
    (tmp_path / "config.json").write_text(json.dumps(HYBRID_9B))
    return str(tmp_path)


def test_a_plan_needs_a_config_alone(directory: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(
        [
            "--model",
            directory,
            "--plan-memory",
            "--device-memory",
            "22.06GiB",
            "--slots",
            "1",
            "--checkpoints",
            "0",
        ]
    )
    assert status == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["usable"].startswith("19.66 GiB")
    assert lines["weights"].startswith("16.56 GiB")
    assert lines["pages"].endswith("131072 tokens of context")


def test_a_plan_says_what_quantised_weights_make_room_for(
    directory: str, capsys: pytest.CaptureFixture[str]
) -> None:
    device = ["--model", directory, "--plan-memory", "--device-memory", "22.06GiB", "--checkpoints", "0"]
    assert main([*device, "--weights", "int8", "--max-sequence-tokens", "8192"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^weights +9\.38 GiB", out, re.MULTILINE)
    assert "sequences of 8192 tokens that fit, by the weights' format: 11 (full), 39 (int8), 39 (fp8)" in out


@pytest.mark.parametrize(
    ("extra", "why"),
    [(["--device-memory", "16GiB"], "more than a device of 16.00 GiB gives"), ([], "needs --device-memory")],
)
def test_a_plan_that_cannot_be_made_says_why(
    directory: str, extra: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", directory, "--plan-memory", *extra]) == 2
    assert why in capsys.readouterr().err


@pytest.mark.parametrize("size", ["22", "lots", "-1GiB"])
def test_a_size_without_meaning_is_refused(
    directory: str, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--model", directory, "--plan-memory", f"--device-memory={size}"])
    assert f"{size!r} is not a size" in capsys.readouterr().err
