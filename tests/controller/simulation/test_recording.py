"""A running worker's speed, measured from outside."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryFile

import pytest

from controller.policy.command import main
from controller.simulation.recording import record_speed
from controller.simulation.speed import parse_speed
from curfew.processes import start_service

MODEL = Path(__file__).parents[3] / "demo" / "model"
STEP_MS = 5


async def test_a_running_worker_becomes_a_speed_file() -> None:
    arguments = ["--model", str(MODEL), "--listen", "127.0.0.1:0", "--slots", "2"]
    with TemporaryFile() as log:
        worker = await start_service("worker", [*arguments, "--least-step-ms", str(STEP_MS)], log=log)
        try:
            text = await record_speed(worker.addresses["listen"])
        finally:
            await worker.stop()
    model = parse_speed(text, "measured")
    assert model.slots == 2
    assert "load" not in json.loads(text)
    assert model.decode.step_s(1) >= STEP_MS / 1000
    # Nothing is faster than the pace that it is held to; a client may find several deltas at once.
    ratios = model.engine.step_ratios
    assert len(ratios) >= 8
    assert ratios[len(ratios) // 2] > 0.9
    assert model.engine.relay_s > 0
    assert model.engine.step_tokens == 64


def test_a_worker_that_is_not_there_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["speed", "127.0.0.1:1"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("127.0.0.1:1: UNAVAILABLE: ")
    assert err.count("\n") == 1
