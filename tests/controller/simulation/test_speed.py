"""Speed files and presets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from controller.simulation.speed import (
    PRESETS,
    EngineDetails,
    SpeedError,
    WorkerModel,
    find_speed,
    parse_speed,
    speed_text,
)

H200 = PRESETS["9b-h200"]


def test_what_is_written_is_read_again() -> None:
    engine = replace(EngineDetails(), step_ratios=(0.9, 1.2), relay_s=0.004, step_tokens=64)
    read = parse_speed(speed_text(H200.description(), engine), "from a file")
    assert read.engine == engine
    assert read.slots == H200.slots
    assert read.decode.batch_sizes == H200.decode.batch_sizes
    assert read.decode.steps_s == pytest.approx(H200.decode.steps_s, abs=1e-9)
    assert read.prefill_tokens_per_s == H200.prefill_tokens_per_s


def test_a_description_alone_is_a_speed_file() -> None:
    text = speed_text(H200.description(), EngineDetails())
    described = {key: value for key, value in json.loads(text).items() if key != "engine"}
    assert parse_speed(json.dumps(described), "x").engine == EngineDetails()


def test_the_least_step_is_in_what_a_worker_says_of_itself() -> None:
    paced = replace(H200, engine=replace(H200.engine, least_step_s=0.05))
    steps = [point.step.ToNanoseconds() * 1e-9 for point in paced.description().speed.decode]
    assert min(steps) == pytest.approx(0.05)
    assert paced.step_s(1, 0, 0, 1.0) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": {"step_tokns": 3}}, "engine: 'step_tokns' is not known; did you mean step_tokens?"),
        ({"engine": {"step_tokens": 0}}, "engine.step_tokens: 0 is not a number in its range"),
        ({"engine": {"relay_s": "3ms"}}, "engine.relay_s: '3ms' is not a number in its range"),
        ({"engine": {"step_ratios": []}}, "engine.step_ratios: must be a list of numbers above 0"),
        ({"engine": [1]}, "engine: must be a mapping"),
        ({"limits": {}}, "limits.slots and limits.maxSequenceTokens must be at least 1"),
        ({"speed": {}}, "speed.prefillTokensPerS must be above 0"),
    ],
)
def test_errors_tell_what_is_wrong_with_a_file(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "speed.json"
    file.write_text(json.dumps({**json.loads(speed_text(H200.description(), EngineDetails())), **change}))
    with pytest.raises(SpeedError) as error:
        find_speed(str(file))
    assert str(error.value) == f"{file}: {message}"


@pytest.mark.parametrize("text", ["[1]", "{a: [", "limits: 3"])
def test_what_is_no_description_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not what DescribeWorker answers|neither JSON nor YAML"):
        parse_speed(text, "x")


def test_an_unknown_preset_is_told_with_the_known_ones() -> None:
    with pytest.raises(SpeedError, match=r"'9b-h20' is neither a file nor one of .*did you mean 9b-h200"):
        find_speed("9b-h20")


@pytest.mark.parametrize("model", PRESETS.values(), ids=lambda model: model.name)
def test_presets_are_what_their_hardware_can_do(model: WorkerModel) -> None:
    steps = [model.step_s(size, 0, 0, 1.0) for size in (1, model.slots)]
    assert 0.003 < steps[0] <= steps[1] < 0.1
    assert model.pages * model.page_tokens > 50_000
    assert model.slots / steps[1] > 1 / steps[0]
