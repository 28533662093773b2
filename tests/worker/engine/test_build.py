"""An engine of the sizes that an operator asks for, or a clear refusal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.worker.engine.small import CPU, Clock, alone, make_request, run, small_model
from worker.engine.build import EngineOptions, build_engine, load_model, page_count, prefill_tokens
from worker.model.config import UnsupportedModelError
from worker.model.pools import Pools

MODEL = small_model()
OPTIONS = EngineOptions(slots=3, checkpoints=1, page_tokens=16, queue=5)


def test_memory_goes_to_states_first_and_the_rest_to_pages() -> None:
    one = Pools.allocate(MODEL.config, slots=1, pages=1, page_tokens=16, dtype=torch.float32, device=CPU)
    memory = 4 * one.slot_bytes + 10 * one.page_bytes
    settings = build_engine(MODEL, replace(OPTIONS, cache_bytes=memory + 5), Clock()).settings
    assert (settings.slots, settings.checkpoints, settings.pages) == (3, 1, 10)
    assert (settings.page_tokens, settings.queue) == (16, 5)
    assert settings.max_sequence_tokens == 160


def test_no_more_pages_than_all_sequences_can_use() -> None:
    settings = build_engine(MODEL, replace(OPTIONS, max_sequence_tokens=100), Clock()).settings
    assert settings.pages == 3 * 7
    assert settings.max_sequence_tokens == 100
    assert build_engine(MODEL, OPTIONS, Clock()).settings.max_sequence_tokens == 4096


def test_a_model_without_attention_needs_no_memory_for_pages() -> None:
    model = small_model(0, "M-")
    engine = build_engine(model, OPTIONS, Clock())
    assert engine.settings.pages == 3 * 4096 // 16
    request = make_request(model)
    assert run(engine, request)["r"].whole == alone(model, request)[0].whole


def test_too_little_memory_is_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match="1000 bytes do not hold 4 states of 300 bytes and 3 pages of 50"):
        page_count(1000, OPTIONS, 500, slot_bytes=300, page_bytes=50)
    with pytest.raises(ValueError, match=r"max_sequence_tokens 4000 exceeds the .* tokens of"):
        build_engine(MODEL, replace(OPTIONS, max_sequence_tokens=4000, cache_bytes=200_000), Clock())


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"config\.json"):
        load_model(tmp_path, device=CPU, dtype=torch.float32)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UnsupportedModelError, match=r"config\.json"):
        load_model(tmp_path, device=CPU, dtype=torch.float32)


def test_steps_are_as_long_as_an_operator_says_or_as_suits_the_device() -> None:
    assert prefill_tokens(replace(OPTIONS, step_tokens=100, idle_step_tokens=300), "cpu") == (100, 300)
    step, idle = prefill_tokens(OPTIONS, "cpu")
    assert step <= idle
    gpu_step, gpu_idle = prefill_tokens(OPTIONS, "cuda")
    assert step < gpu_step <= gpu_idle
    settings = build_engine(MODEL, OPTIONS, Clock()).settings
    assert (settings.step_tokens, settings.idle_step_tokens) == (step, idle)
