"""How shapes become tiles: pure functions, so that a shape always gets the same tiles and the same bits.

A step that is no graph waits for the host that launches it. So what a device is, is asked once, and grids are
divided by Python: `triton.cdiv` takes the host 2 to 5 µs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch


@cache
def hopper(device: torch.device) -> bool:
    """Whether matrix instructions take 64 rows and leave operands in shared memory; older devices hold them
    in registers, and need smaller tiles. What is no GPU counts as the newest.
    """
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)


def launches_early(device: torch.device) -> bool:
    """Whether a kernel can be launched while the one before it runs (see kernels.triton_ops.turns)."""
    return device.type != "cpu" and hopper(device)


def power_of_two(size: int) -> int:
    """The least power of two that is not below `size`.

    >>> [power_of_two(size) for size in (1, 80, 128)]
    [1, 128, 128]
    """
    return 1 << (size - 1).bit_length()


def head_and_tail(width: int) -> tuple[int, int]:
    """Covers a row with two powers of two, so that no half of the lanes is idle; a tail of 0 is none.

    >>> head_and_tail(1280), head_and_tail(4480), head_and_tail(1024)
    ((1024, 256), (4096, 512), (1024, 0))
    """
    head = 1 << (width.bit_length() - 1)
    return head, power_of_two(width - head) if width > head else 0


def row_warps(head: int) -> int:
    """Warps of a program that holds a row in registers: 8 numbers of the head to a lane, one vector, in as
    many as 8 warps.

    >>> [row_warps(head) for head in (128, 1024, 4096)]
    [1, 4, 8]
    """
    return min(8, max(1, head // 256))


@dataclass(frozen=True, slots=True)
class ScanTiles:
    """How a scan is divided: a program that walks over a sequence takes `channels` of a Mamba head, one that
    computes outputs `block` tokens of `together` heads. Stages: of software pipelining.
    """

    channels: int
    warps: int
    stages: int
    block: int
    together: int
    block_warps: int
    block_stages: int


def scan_tiles(width: int, heads_per_group: int, *, wide: bool) -> ScanTiles:
    """Tiles that divide a head, and a group of heads. wide: for a Hopper.

    >>> [scan_tiles(80, heads, wide=True).together for heads in (16, 12, 3)]
    [16, 4, 1]
    """
    together = math.gcd(heads_per_group, 16)
    head = power_of_two(max(16, width))
    if wide:
        return ScanTiles(min(128, head), 8, 3, block=128, together=together, block_warps=8, block_stages=3)
    return ScanTiles(min(32, head), 8, 1, block=64, together=together, block_warps=8, block_stages=2)


def update_channels(width: int) -> int:
    """Channels of a head that one program of the single-step update advances: 16 divide 80, 64 do not.

    >>> [update_channels(width) for width in (80, 64, 5)]
    [16, 16, 8]
    """
    return min(16, power_of_two(width))


def decode_splits(sequences: int, kv_heads: int) -> int:
    """Parts into which each sequence's keys are split, so that few sequences also fill the device: a power of
    two, since each number is compiled.

    >>> [decode_splits(sequences, 8) for sequences in (1, 3, 8, 32, 128)]
    [64, 32, 16, 4, 1]
    """
    parts = max(1, min(64, 1024 // (sequences * kv_heads)))
    return 1 << (parts.bit_length() - 1)


@dataclass(frozen=True, slots=True)
class LinearTiles:
    """How a product of few tokens is divided: a program takes outputs × tokens of the result and
    goes over `share` of the inputs, `inputs` at once.
    """

    outputs: int
    tokens: int
    inputs: int
    share: int
    warps: int
    stages: int


def linear_tiles(tokens: int, outputs: int, inputs: int) -> LinearTiles:
    """Tiles for up to 32 tokens and a weight of 16 bits, on a Hopper, whose matrix units take 64 channels and
    16 tokens or more from shared memory.

    >>> [linear_tiles(tokens, 4480, 10240).tokens for tokens in (1, 17)]
    [16, 32]
    >>> [linear_tiles(1, 4480, inputs).share for inputs in (10240, 15680)]
    [2048, 3200]
    """
    # Of which an H200's 132 multiprocessors hold 396 programs at once.
    width = max(16, power_of_two(tokens))
    return LinearTiles(64, width, 128, _share(-(-outputs // 64), inputs, 128, 396), warps=4, stages=3)


def quantised_linear_tiles(tokens: int, outputs: int, inputs: int, *, wide: bool) -> LinearTiles:
    """Tiles for up to 128 tokens and a weight of 8 bits. wide: for a Hopper.

    >>> [quantised_linear_tiles(tokens, 4480, 10240, wide=True).share for tokens in (1, 32, 64, 128)]
    [1536, 1536, 1472, 3456]
    >>> [quantised_linear_tiles(tokens, 4480, 10240, wide=True).tokens for tokens in (1, 17, 64, 65)]
    [8, 32, 64, 128]
    """
    width = min(max(8, power_of_two(tokens)), 128 if wide else 64)
    channels = 32 if width == 8 else 64
    # Of the widest tile an H200's 132 multiprocessors hold 264 programs at once.
    step = 64 if width == 64 else 128
    warps, stages, programs = (4, 3, 264) if width == 128 else (2, 4, 512)
    # As for tiles of 64 channels everywhere, so that up to 32 tokens get the same sums in the same order.
    count = -(-outputs // 64) * -(-tokens // width)
    return LinearTiles(channels, width, step, _share(count, inputs, step, programs), warps, stages)


def _share(tiles: int, inputs: int, step: int, programs: int) -> int:
    """Inputs of one program, a multiple of a step: where the result has too few tiles to fill a device with
    so many programs, they share the inputs.
    """
    steps = -(-inputs // step)
    return min(-(-steps // min(steps, max(1, programs // tiles))) * step, inputs)
