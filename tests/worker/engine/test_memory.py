"""The memory planner against what is published of the family."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from benchmarks.gpu.published import HYBRID_4B, HYBRID_9B, HYBRID_12B
from kernels import kernels_for
from worker.engine.build import EngineOptions
from worker.engine.memory import parse_bytes, plan_memory, sequences_that_fit, weight_bytes
from worker.engine.workspace import estimate_workspace
from worker.model.config import ModelConfig
from worker.model.dummy import DummyTensors
from worker.model.linear import WeightFormat
from worker.model.network import Network

GIB = 2**30
ONE_LONG = EngineOptions(slots=1, checkpoints=0, max_sequence_tokens=131072)
A10G = int(22.06 * GIB)
DTYPES = (torch.bfloat16, torch.float32, torch.int8, torch.float8_e4m3fn)


def network(raw: dict[str, object], weights: WeightFormat) -> Network:
    """On the device `meta`."""
    tensors = DummyTensors(device=torch.device("meta"), dtype=torch.bfloat16)
    kernels = kernels_for(torch.device("cpu"))
    return Network(ModelConfig.parse(raw), tensors, kernels, dtype=torch.bfloat16, weights=weights)


@pytest.mark.parametrize(("raw", "parameters"), [(HYBRID_9B, 8_888_227_328), (HYBRID_4B, 3_973_556_832)])
def test_parameters_are_as_many_as_published(raw: dict[str, object], parameters: int) -> None:
    assert sum(tensor.numel() for tensor in network(raw, WeightFormat.FULL).tensors()) == parameters


def test_9b_with_128k_of_context_fits_an_a10g_and_12b_does_not() -> None:
    """The published reason for its size: 19.66 GiB of an A10G are left for weights and one long sequence."""
    plan = plan_memory(ModelConfig.parse(HYBRID_9B), A10G, ONE_LONG)
    assert plan.usable / GIB == pytest.approx(19.66, abs=0.01)
    assert plan.weights / GIB == pytest.approx(16.56, abs=0.01)
    assert plan.page / plan.page_tokens == 16_384
    assert plan.slot / 2**20 == pytest.approx(135 + 1.9, abs=0.1)
    assert plan.kv_tokens == 131_072
    assert plan.free > 0
    with pytest.raises(ValueError, match=r"need .* GiB"):
        plan_memory(ModelConfig.parse(HYBRID_12B), A10G, ONE_LONG)


def test_bf16_states_take_half() -> None:
    config = ModelConfig.parse(HYBRID_9B)
    single, half = (
        plan_memory(config, A10G, ONE_LONG, ssm_dtype=dtype).slot for dtype in (torch.float32, torch.bfloat16)
    )
    assert (single - half) / 2**20 == 67.5


@pytest.mark.parametrize("weights", [WeightFormat.INT8, WeightFormat.FP8])
def test_quantised_weights_take_half_of_all_but_embeddings_and_head(weights: WeightFormat) -> None:
    full, quantised = (
        {dtype: sum(t.numel() for t in found.tensors() if t.dtype == dtype) for dtype in DTYPES}
        for found in (network(HYBRID_9B, WeightFormat.FULL), network(HYBRID_9B, weights))
    )
    one_byte = quantised[torch.int8] + quantised[torch.float8_e4m3fn]
    assert full[torch.bfloat16] == quantised[torch.bfloat16] + one_byte
    convolutions = 27 * 5 * 12288
    assert quantised[torch.bfloat16] == 2 * 131072 * 4480 + convolutions
    # One scale for each output of a projection.
    outputs = 27 * (22656 + 4480) + 25 * (15680 + 4480) + 4 * (7168 + 4480)
    assert quantised[torch.float32] == full[torch.float32] + outputs
    saved = weight_bytes(ModelConfig.parse(HYBRID_9B), torch.bfloat16) - weight_bytes(
        ModelConfig.parse(HYBRID_9B), torch.bfloat16, weights
    )
    assert saved == one_byte - 4 * outputs


@pytest.mark.parametrize("weights", list(WeightFormat))
@pytest.mark.parametrize("tokens", [2048, 131072])
def test_as_many_sequences_are_said_to_fit_as_a_plan_holds(weights: WeightFormat, tokens: int) -> None:
    config, options = ModelConfig.parse(HYBRID_9B), EngineOptions(checkpoints=0, max_sequence_tokens=tokens)
    most = sequences_that_fit(config, A10G, options, weights=weights)
    assert most >= 1
    assert plan_memory(config, A10G, replace(options, slots=most), weights=weights).kv_tokens >= most * tokens
    try:
        more = plan_memory(config, A10G, replace(options, slots=most + 1), weights=weights).kv_tokens
    except ValueError:
        more = 0
    assert more < (most + 1) * tokens


def test_int8_makes_room_for_three_times_as_many_sequences_on_an_a10g() -> None:
    config, options = ModelConfig.parse(HYBRID_9B), EngineOptions(checkpoints=0, max_sequence_tokens=8192)
    full, int8 = (
        sequences_that_fit(config, A10G, options, weights=weights)
        for weights in (WeightFormat.FULL, WeightFormat.INT8)
    )
    assert (full, int8) == (11, 39)


@pytest.mark.parametrize("raw", [HYBRID_4B, HYBRID_9B, HYBRID_12B])
def test_a_step_with_quantised_weights_has_room_for_the_largest_in_full(raw: dict[str, object]) -> None:
    config = ModelConfig.parse(raw)
    full, int8 = (
        estimate_workspace(config, tokens=2048, sequences=1, number_bytes=2, weights=weights)
        for weights in (WeightFormat.FULL, WeightFormat.INT8)
    )
    largest = max(t.numel() for t in network(raw, WeightFormat.INT8).tensors() if t.dtype == torch.int8)
    assert int8 - full == 2 * largest


def test_nothing_fits_a_device_that_is_too_small() -> None:
    assert sequences_that_fit(ModelConfig.parse(HYBRID_9B), 8 * GIB, ONE_LONG, weights=WeightFormat.INT8) == 0


@pytest.mark.parametrize("gib", [19, 22, 24, 40, 80, 141])
@pytest.mark.parametrize("slots", [1, 4, 16])
def test_a_plan_adds_up_and_gives_all_that_is_of_use(gib: int, slots: int) -> None:
    config, options = ModelConfig.parse(HYBRID_9B), EngineOptions(slots=slots, checkpoints=0)
    least = plan_memory(config, 1000 * GIB, options)
    try:
        plan = plan_memory(config, gib * GIB, options)
    except ValueError as error:
        missing = re.search(r"([\d.]+) more than", str(error))
        assert missing is not None
        # With what is said to be missing, and the device's unusable share of it, there is room.
        assert (
            plan_memory(config, int((gib + (float(missing[1]) + 0.02) / 0.95) * GIB), options).pages >= slots
        )
        return
    assert plan.weights + plan.states + plan.pages * plan.page + plan.free == plan.usable <= plan.device
    assert plan.free >= 0
    assert plan.free < plan.page or plan.pages == least.pages
    assert f"{plan.kv_tokens} tokens of context" in plan.table()


@pytest.mark.parametrize(("text", "size"), [("22GiB", 22 * GIB), ("512MiB", 512 << 20), ("24GB", 24 * 10**9)])
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["22", "GiB", "-1GiB", "nanGiB", "infGiB", "0MiB", "22 Gb"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_bytes(text)
