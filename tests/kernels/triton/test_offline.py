"""Every Triton kernel compiled at Nemotron-Nano-9B-v2's shapes for an A10G (sm_86) and an H200 (sm_90)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from kernels import triton_ops
from kernels.layout import PrefillIndex, Segment, step_layout
from kernels.triton_ops import scan
from tests.kernels.triton.offline import SHARED_LIMIT, Compiled, Launch, caught

BF16, FP32 = torch.bfloat16, torch.float32
ARCHITECTURES = (86, 90)
PAGE, DECODES = 32, 32


def empty(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    """A tensor without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


@dataclass(frozen=True)
class Shapes:
    """The arguments of one model's kernels, for one prompt of `tokens` or for decoding; strided as its
    network makes them.
    """

    tokens: int
    hidden: int = 4480
    heads: int = 128
    width: int = 80
    groups: int = 8
    size: int = 128
    mlp: int = 15680

    @property
    def inner(self) -> int:
        return self.heads * self.width

    @property
    def channels(self) -> int:
        return self.inner + 2 * self.groups * self.size

    def projected(self) -> tuple[Tensor, Tensor, Tensor]:
        parts = [self.inner, self.channels, self.heads]
        z, xbc, dt = empty(self.tokens, sum(parts)).split(parts, dim=-1)
        return z, xbc, dt

    def scan(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        bc = self.groups * self.size
        x, b, c = empty(self.tokens, self.channels).split([self.inner, bc, bc], dim=-1)
        dt = empty(self.tokens, self.heads, dtype=FP32)
        per_head = empty(self.heads, dtype=FP32)
        grouped = (self.groups, self.size)
        x = x.unflatten(-1, (self.heads, self.width))
        return x, dt, per_head, b.unflatten(-1, grouped), c.unflatten(-1, grouped), per_head

    def states(self, dtype: torch.dtype = FP32) -> Tensor:
        return empty(DECODES, self.heads, self.width, self.size, dtype=dtype)

    def heads_of_attention(self) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = empty(self.tokens, 56, 128).split([40, 8, 8], dim=1)
        return q, k, v

    def index(self) -> PrefillIndex:
        pages = range(-(-self.tokens // PAGE))
        layout = step_layout(
            [],
            [Segment(0, 0, self.tokens, pages)],
            page_tokens=PAGE,
            chunk=128,
            window=4,
            device=torch.device("cpu"),
        )
        assert layout.prefill is not None
        return layout.prefill


PREFILL, DECODE = Shapes(tokens=1024), Shapes(tokens=DECODES)
SLOTS, IDS = empty(1, dtype=torch.int64), empty(DECODES, dtype=torch.int64)
KV = empty(100, PAGE, 8, 128)


def decode_update(dtype: torch.dtype) -> Callable[[], object]:
    return lambda: triton_ops.scan_update(*DECODE.scan(), DECODE.states(dtype), IDS)


CALLS: dict[str, Callable[[], object]] = {
    "add_rms_norm": lambda: triton_ops.add_rms_norm(
        empty(1024, 4480), empty(1024, 4480), empty(4480, dtype=FP32), 1e-5
    ),
    "gated_group_norm": lambda: triton_ops.gated_group_norm(
        empty(1024, 10240), PREFILL.projected()[0], empty(10240, dtype=FP32), 1e-5, 8
    ),
    "conv_prefill": lambda: triton_ops.conv_prefill(
        PREFILL.projected()[1], empty(4, 12288), empty(12288), empty(9, 3, 12288), SLOTS, PREFILL.index()
    ),
    "conv_update": lambda: triton_ops.conv_update(
        DECODE.projected()[1], empty(4, 12288), empty(12288), empty(9, 3, 12288), IDS
    ),
    "scan_prefill": lambda: triton_ops.scan_prefill(
        *PREFILL.scan(), PREFILL.states(), SLOTS, PREFILL.index()
    ),
    "scan_update": decode_update(FP32),
    "scan_update of bf16 states": decode_update(BF16),
    "store_kv": lambda: triton_ops.store_kv(*DECODE.heads_of_attention()[1:], KV, KV, IDS),
    "attention_decode": lambda: triton_ops.attention_decode(
        DECODE.heads_of_attention()[0], KV, KV, empty(DECODES, 4096, dtype=torch.int64), IDS
    ),
    "attention_prefill": lambda: triton_ops.attention_prefill(
        *PREFILL.heads_of_attention(), KV, KV, (), PREFILL.index()
    ),
    "relu2": lambda: triton_ops.relu2(empty(1024, 15680)),
    "time_steps": lambda: triton_ops.time_steps(
        PREFILL.projected()[2], empty(128, dtype=FP32), 0.0, math.inf
    ),
}

# Launches of a call, their warps, and the bytes of a lane's widest load and store: 16 wherever rows are moved
# (the scan's decay is turned on its way: its columns begin anywhere).
LAUNCHES: dict[str, list[tuple[str, int, int, int]]] = {
    "add_rms_norm": [("add_rms_norm_kernel", 4, 16, 16)],
    "gated_group_norm": [("gated_group_norm_kernel", 1, 16, 16)],
    "conv_prefill": [("conv_prefill_kernel", 4, 16, 16), ("conv_carry_kernel", 2, 16, 16)],
    "conv_update": [("conv_update_kernel", 2, 16, 16)],
    "scan_prefill": [
        ("scan_decay_kernel", 4, 16, 4),
        ("scan_states_kernel", 8, 16, 16),
        ("scan_outputs_kernel", 4, 16, 16),
    ],
    "scan_update": [("scan_update_kernel", 4, 16, 16)],
    "scan_update of bf16 states": [("scan_update_kernel", 4, 16, 16)],
    "store_kv": [("store_kv_kernel", 4, 16, 16)],
    "attention_decode": [("attention_decode_kernel", 4, 16, 16), ("combine_kernel", 1, 16, 8)],
    "attention_prefill": [("attention_prefill_kernel", 8, 16, 16)],
    "relu2": [("relu2_kernel", 4, 16, 16)],
    "time_steps": [("time_steps_kernel", 1, 8, 16)],
}


def launches(name: str, arch: int, monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    monkeypatch.setattr(scan, "output_block", lambda device: 64 if arch == 90 else 32)
    with caught() as found:
        CALLS[name]()
    return found


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", CALLS)
def test_a_kernel_compiles_without_spills_within_the_limits(
    name: str, arch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = launches(name, arch, monkeypatch)
    assert [(launch.name, launch.options["num_warps"]) for launch in found] == [
        (kernel, warps) for kernel, warps, _, _ in LAUNCHES[name]
    ]
    for launch, (_, _, load, store) in zip(found, LAUNCHES[name], strict=True):
        compiled = launch.compile(arch)
        print(row(launch, compiled))
        assert compiled.spilled_bytes == 0, row(launch, compiled)
        assert compiled.shared_bytes <= SHARED_LIMIT[arch], row(launch, compiled)
        assert compiled.programs >= 1, row(launch, compiled)
        assert compiled.widest_access("ld.global") >= load or "cp.async" in compiled.ptx, row(
            launch, compiled
        )
        assert compiled.widest_access("st.global") >= store, row(launch, compiled)


def row(launch: Launch, compiled: Compiled) -> str:
    load, store = compiled.widest_access("ld.global"), compiled.widest_access("st.global")
    return (
        f"{launch.name:26} sm_{compiled.arch} grid {launch.grid!s:16} warps {compiled.warps}"
        f" registers {compiled.registers:3} spilled {compiled.spilled_bytes} shared {compiled.shared_bytes:5}"
        f" programs/SM {compiled.programs:2} load {load:2} store {store:2} wgmma {'wgmma' in compiled.ptx}"
    )


def test_the_scan_is_never_pipelined_in_software(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler has produced wrong wgmma code in pipelined chunk scans on sm_90."""
    _, states, outputs = launches("scan_prefill", 90, monkeypatch)
    assert states.options["num_stages"] == outputs.options["num_stages"] == 1


@pytest.mark.parametrize(("sequences", "count"), [(1, 2), (64, 1)])
def test_attention_of_many_sequences_is_one_launch(sequences: int, count: int) -> None:
    with caught() as found:
        triton_ops.attention_decode(
            empty(sequences, 40, 128),
            KV,
            KV,
            empty(sequences, 8, dtype=torch.int64),
            empty(sequences, dtype=torch.int64),
        )
    assert len(found) == count
