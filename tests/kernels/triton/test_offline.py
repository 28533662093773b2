"""Every Triton kernel compiled at Nemotron-Nano-9B-v2's shapes for an A10G (sm_86) and an H200 (sm_90)."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import triton_ops
from kernels.triton_ops import tiles
from tests.kernels.triton.calls import Shapes, calls, empty
from tests.kernels.triton.offline import SHARED_LIMIT, Launch, caught

ARCHITECTURES = (86, 90)
PREFILL = Shapes(tokens=1024)
CALLS = calls(PREFILL, Shapes(tokens=32))

# Launches of a call, their warps, and the bytes of a lane's widest load and store: 16 wherever rows are moved
# (the scan's decay is turned on its way: its columns begin anywhere).
LAUNCHES: dict[str, list[tuple[str, int, int, int]]] = {
    "add_rms_norm": [("add_rms_norm_kernel", 8, 16, 16)],
    "gated_group_norm": [("gated_group_norm_kernel", 4, 16, 16)],
    "conv_prefill": [("conv_prefill_kernel", 2, 16, 16), ("conv_carry_kernel", 2, 16, 16)],
    "conv_update": [("conv_update_kernel", 2, 16, 16)],
    "scan_prefill": [
        ("scan_decay_kernel", 4, 16, 4),
        ("scan_states_kernel", 8, 16, 16),
        ("scan_outputs_kernel", 8, 16, 16),
    ],
    "scan_update": [("scan_update_kernel", 1, 16, 16)],
    "scan_update of bf16 states": [("scan_update_kernel", 1, 16, 16)],
    "store_kv": [("store_kv_kernel", 4, 16, 16)],
    "attention_decode": [("attention_decode_kernel", 4, 16, 16), ("combine_kernel", 1, 16, 8)],
    "attention_prefill": [("attention_prefill_kernel", 4, 16, 16)],
    **{
        f"quantised_linear, {name}, {use}": found
        for name in ("int8", "fp8")
        for use, found in {
            "in_proj of 8": [("linear_kernel", 2, 16, 8)],
            "in_proj in decode": [("linear_kernel", 2, 16, 16)],
            "down_proj in decode": [("linear_kernel", 2, 16, 16), ("add_shares_kernel", 4, 8, 4)],
            "down_proj of 128": [("linear_kernel", 4, 16, 16), ("add_shares_kernel", 4, 8, 4)],
            "down_proj in prefill": [("full_weight_kernel", 4, 8, 16)],
        }.items()
    },
    "linear, in_proj of 8": [("linear_kernel", 4, 16, 16)],
    "linear, in_proj in decode": [("linear_kernel", 4, 16, 16)],
    "linear, down_proj in decode": [("linear_kernel", 4, 16, 16), ("add_shares_kernel", 4, 8, 4)],
    "relu2": [("relu2_kernel", 4, 16, 16)],
    "sample": [
        ("sum_parts_kernel", 4, 16, 4),
        ("sum_rows_kernel", 1, 4, 4),
        *[("search_kernel", 4, 16, 4)] * 10,
        ("keep_kernel", 4, 16, 4),
        ("choose_kernel", 4, 16, 8),
    ],
    "time_steps": [("time_steps_kernel", 1, 8, 16)],
}


def launches(name: str, arch: int, monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    monkeypatch.setattr(tiles, "hopper", lambda device: arch == 90)
    with caught() as found:
        CALLS[name]()
    return found


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", CALLS)
def test_a_kernel_compiles_without_spills_within_the_limits(
    name: str, arch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = launches(name, arch, monkeypatch)
    if arch < 90 and name.startswith("linear"):
        assert found == []
        return
    # Before Hopper, 128 tokens take two tiles of 64.
    fewer = arch < 90 and name.endswith("of 128")
    assert [(launch.name, launch.options["num_warps"]) for launch in found] == [
        (kernel, 2 if fewer and kernel == "linear_kernel" else warps)
        for kernel, warps, _, _ in LAUNCHES[name]
    ]
    for launch, (_, _, load, store) in zip(found, LAUNCHES[name], strict=True):
        compiled = launch.compile(arch)
        print(compiled.row(launch))
        assert compiled.spilled_bytes == 0, compiled.row(launch)
        assert compiled.shared_bytes <= SHARED_LIMIT[arch], compiled.row(launch)
        assert compiled.programs >= 1, compiled.row(launch)
        pipelined = "cp.async" in compiled.ptx
        assert compiled.widest_access("ld.global") >= load or pipelined, compiled.row(launch)
        assert compiled.widest_access("st.global") >= store, compiled.row(launch)


def test_the_scan_has_the_tiles_that_were_found_right_on_an_h200(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler has made wrong wgmma code of others: see kernels/triton_ops/scan.py."""
    _, states, outputs = launches("scan_prefill", 90, monkeypatch)
    walk = {"CHANNELS": 128, "STAGES": 3, "CHUNK": 128}
    blocks = {"BLOCK": 128, "TOGETHER": 16, "HEAD": 64, "TAIL": 16, "STAGES": 3, "CHUNK": 128}
    assert walk.items() <= states.arguments.items()
    assert blocks.items() <= outputs.arguments.items()


IN_TURN = {
    "add_rms_norm_kernel",
    "gated_group_norm_kernel",
    "conv_update_kernel",
    "scan_update_kernel",
    "time_steps_kernel",
    "store_kv_kernel",
    "attention_decode_kernel",
    "combine_kernel",
    "relu2_kernel",
    "linear_kernel",
    "add_shares_kernel",
}


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", CALLS)
def test_on_hopper_each_program_of_a_decode_step_takes_its_turn(
    name: str, arch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that ended without would let the next kernel begin before its predecessors' end."""
    for launch in launches(name, arch, monkeypatch):
        waits = launch.name == "linear_kernel" and name.startswith("quantised")
        early = launch.name in IN_TURN and arch == 90 and not waits
        assert bool(launch.options.get("launch_pdl")) == early
        before, *after = launch.compile(arch).ptx.split("griddepcontrol.wait")
        assert len(after) == early
        # The listing up to there has no way around it.
        assert not after or not re.search(r"\b(bra|ret)\b", before)


FUSED = [name for name in CALLS if name.startswith("quantised_linear") and not name.endswith("prefill")]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", FUSED)
def test_a_quantised_weight_is_loaded_ahead_by_whole_vectors(
    name: str, arch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ptx = launches(name, arch, monkeypatch)[0].compile(arch).ptx
    ahead = re.findall(r"cp\.async\.\w+\.shared\.global[^;]*?, (\w+), ", ptx)
    assert ahead
    wide = arch == 90 and name.endswith("of 128")
    assert set(ahead) == ({"0x8", "0x10"} if wide else {"0x10"})
    # Many tokens are worth the matrix units that take 64 rows at once.
    assert ("wgmma" in ptx) == wide


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", FUSED)
def test_weights_are_converted_by_pairs(name: str, arch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's own conversion of int8 is one by one before Hopper, and that of fp8 on any device."""
    ptx = launches(name, arch, monkeypatch)[0].compile(arch).ptx
    assert ("fma.rn.bf16x2" in ptx) == ("fp8" in name)
    assert ("sub.bf16x2" in ptx) == (arch == 90 and "int8" in name)
    assert not re.search(r"cvt\.\w+\.(bf16|f16x2)\.(f16|e4m3x2)", ptx)


def test_what_no_row_asks_for_is_not_searched() -> None:
    rules = empty(8, dtype=torch.float32)
    with caught() as found:
        triton_ops.sample(empty(8, 131072, dtype=torch.float32), rules, None, None, rules, rules)
    assert [launch.name for launch in found] == [
        "sum_parts_kernel",
        "sum_rows_kernel",
        "keep_kernel",
        "choose_kernel",
    ]


@pytest.mark.parametrize("tokens", [1, 32, 128])
@pytest.mark.parametrize(("outputs", "inputs"), [(22656, 4480), (4480, 10240), (4480, 15680), (7168, 4480)])
def test_a_product_of_few_tokens_has_programs_for_a_whole_device(
    tokens: int, outputs: int, inputs: int
) -> None:
    tile = tiles.quantised_linear_tiles(tokens, outputs, inputs, wide=True)
    programs = -(-outputs // tile.outputs) * -(-inputs // tile.share)
    assert programs >= 132
    assert tile.share % tile.inputs == 0 or tile.share == inputs
    assert (-(-inputs // tile.share) - 1) * tile.share < inputs


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 30_000), st.integers(1, 20_000), st.integers(1, 32), st.booleans())
def test_the_inputs_are_shared_alike_for_up_to_32_tokens(
    outputs: int, inputs: int, tokens: int, wide: bool
) -> None:
    one, many = (tiles.quantised_linear_tiles(count, outputs, inputs, wide=wide) for count in (1, tokens))
    assert (one.share, one.inputs) == (many.share, many.inputs)


@pytest.mark.parametrize(("sequences", "count"), [(1, 2), (128, 1)])
def test_attention_of_many_sequences_is_one_launch(sequences: int, count: int) -> None:
    with caught() as found:
        calls(PREFILL, Shapes(tokens=sequences))["attention_decode"]()
    assert len(found) == count
