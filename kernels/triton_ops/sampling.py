"""The choice of tokens from logits, without sorting them.

Top-p and top-k both ask for a threshold: the least weight v of which all greater ones together have less
than top_p of the mass, and are fewer than top_k. Weights exp((logit − best) / temperature) are in [0, 1],
where the order of floats is that of their bits. So v is found three bits at a time: a pass adds up the mass
and the number of what lies above each of seven values, and ten passes fix all thirty bits. Then the mass
that is kept is added up part by part, and one program finds the part, and the token in it, at which the sum
exceeds what was drawn.

A row is divided into parts of 4096 logits, a program for each, so that one row alone also fills a quarter of
a device. Sums go part by part in a fixed order: a row's token does not depend on the batch. Nothing waits
for the host, and what no row asks for is not launched: without top-p and top-k there are four kernels, with
them fourteen.

Bytes: twelve passes over 4 × vocabulary bytes, 524 kB at 131072, which mostly come from the second-level
cache: 6.3 MB for one row, 201 MB for 32. A sort of 32-bit keys with 64-bit ids by 8 bits at a time would move
four times 24 bytes for each, 403 MB for 32, before anything is added up.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton_ops.tiles import power_of_two

_PART, _WARPS = 4096, 4
# Weights are at most 1.0, 0x3f800000: 30 bits, 3 of them in each pass.
_PASSES = 10
# Rules and results of a row lie side by side with others: where one begins depends on the number of rows.
_OF_ROWS = [
    "temperature_ptr",
    "top_p_ptr",
    "top_k_ptr",
    "min_p_ptr",
    "random_ptr",
    "best_ptr",
    "mass_ptr",
    "count_ptr",
    "row_best_ptr",
    "most_mass_ptr",
    "most_count_ptr",
    "prefixes_ptr",
    "least_ptr",
    "kept_ptr",
]


@triton.jit
def _weights(logits_ptr, row, part, stride, temperature, best, vocabulary, PART: tl.constexpr):
    """The weights of one part of a row."""
    token = part * PART + tl.arange(0, PART)
    logits = tl.load(logits_ptr + row * stride + token, mask=token < vocabulary, other=-float("inf"))
    return tl.exp((logits - best) / temperature)


@triton.jit(do_not_specialize_on_alignment=_OF_ROWS)
def sum_parts_kernel(
    logits_ptr,
    temperature_ptr,
    best_ptr,
    mass_ptr,
    stride,
    vocabulary,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
):
    """One program for each part of each row: its greatest logit, and the mass of its weights against it."""
    row, part = tl.program_id(1).to(tl.int64), tl.program_id(0)
    token = part * PART + tl.arange(0, PART)
    logits = tl.load(logits_ptr + row * stride + token, mask=token < vocabulary, other=-float("inf"))
    # Finite, so that a part of which every token is banned has no mass.
    best = tl.maximum(tl.max(logits, 0), -1e30)
    weights = tl.exp((logits - best) / tl.load(temperature_ptr + row))
    tl.store(best_ptr + row * PARTS + part, best)
    tl.store(mass_ptr + row * PARTS + part, tl.sum(weights, 0))


@triton.jit(do_not_specialize_on_alignment=_OF_ROWS)
def sum_rows_kernel(
    best_ptr,
    mass_ptr,
    temperature_ptr,
    top_p_ptr,
    top_k_ptr,
    row_best_ptr,
    most_mass_ptr,
    most_count_ptr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program for each row: its greatest logit, and the mass and the number that what is above the
    threshold must stay below.
    """
    row = tl.program_id(0)
    part = tl.arange(0, BLOCK)
    best = tl.load(best_ptr + row * PARTS + part, mask=part < PARTS, other=-float("inf"))
    mass = tl.load(mass_ptr + row * PARTS + part, mask=part < PARTS, other=0.0)
    row_best = tl.max(best, 0)
    total = tl.sum(mass * tl.exp((best - row_best) / tl.load(temperature_ptr + row)), 0)
    top_p, top_k = tl.load(top_p_ptr + row), tl.load(top_k_ptr + row)
    tl.store(row_best_ptr + row, row_best)
    tl.store(most_mass_ptr + row, tl.where(top_p < 1.0, total * top_p, float("inf")))
    tl.store(most_count_ptr + row, tl.where(top_k > 0.0, top_k, float("inf")))


@triton.jit
def _prefix(
    prefixes_ptr,
    mass_ptr,
    count_ptr,
    most_mass_ptr,
    most_count_ptr,
    row,
    rows,
    step,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The leading bits of the threshold after `step` passes, of which the last is evaluated here: its digit
    is the number of values that have too much above them. Mass and count are [passes, rows, parts, 8].
    """
    part, digit = tl.arange(0, BLOCK), tl.arange(0, 8)
    at = (((step - 1) * rows + row) * PARTS + part[:, None]) * 8 + digit[None, :]
    inside = (part < PARTS)[:, None] & (digit < 7)[None, :]
    mass = tl.sum(tl.load(mass_ptr + at, mask=inside, other=0.0), 0)
    count = tl.sum(tl.load(count_ptr + at, mask=inside, other=0.0), 0)
    too_much = (mass >= tl.load(most_mass_ptr + row)) | (count >= tl.load(most_count_ptr + row))
    found = tl.sum((too_much & (digit < 7)).to(tl.int32), 0)
    return tl.load(prefixes_ptr + (step - 1) * rows + row) * 8 + found


@triton.jit(do_not_specialize=["rows", "step"], do_not_specialize_on_alignment=_OF_ROWS)
def search_kernel(
    logits_ptr,
    temperature_ptr,
    row_best_ptr,
    most_mass_ptr,
    most_count_ptr,
    prefixes_ptr,
    mass_ptr,
    count_ptr,
    stride,
    vocabulary,
    rows,
    step,
    PASSES: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
):
    """One program for each part of each row: the mass and the number of its weights above seven values, which
    divide by three bits what the passes before left.
    """
    row, part = tl.program_id(1).to(tl.int64), tl.program_id(0)
    prefix = 0
    if step > 0:
        prefix = _prefix(
            prefixes_ptr,
            mass_ptr,
            count_ptr,
            most_mass_ptr,
            most_count_ptr,
            row,
            rows,
            step,
            PARTS,
            BLOCK,
        )
    if part == 0:
        tl.store(prefixes_ptr + step * rows + row, prefix)
    temperature, best = tl.load(temperature_ptr + row), tl.load(row_best_ptr + row)
    weights = _weights(logits_ptr, row, part, stride, temperature, best, vocabulary, PART)
    bits = weights.to(tl.int32, bitcast=True)
    at = ((step * rows + row) * PARTS + part) * 8
    shift = 3 * (PASSES - 1 - step)
    for digit in tl.static_range(7):
        above = bits >= ((prefix * 8 + digit + 1) << shift)
        tl.store(mass_ptr + at + digit, tl.sum(tl.where(above, weights, 0.0), 0))
        tl.store(count_ptr + at + digit, tl.sum(above.to(tl.float32), 0))


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=_OF_ROWS)
def keep_kernel(
    logits_ptr,
    temperature_ptr,
    min_p_ptr,
    row_best_ptr,
    most_mass_ptr,
    most_count_ptr,
    prefixes_ptr,
    mass_ptr,
    count_ptr,
    least_ptr,
    kept_ptr,
    stride,
    vocabulary,
    rows,
    PASSES: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
):
    """One program for each part of each row: the mass of the weights that are kept. PASSES: of the search, 0
    when there was none.
    """
    row, part = tl.program_id(1).to(tl.int64), tl.program_id(0)
    least = tl.load(min_p_ptr + row)
    if PASSES > 0:
        bits = _prefix(
            prefixes_ptr,
            mass_ptr,
            count_ptr,
            most_mass_ptr,
            most_count_ptr,
            row,
            rows,
            PASSES,
            PARTS,
            BLOCK,
        )
        least = tl.maximum(least, bits.to(tl.float32, bitcast=True))
    if part == 0:
        tl.store(least_ptr + row, least)
    temperature, best = tl.load(temperature_ptr + row), tl.load(row_best_ptr + row)
    weights = _weights(logits_ptr, row, part, stride, temperature, best, vocabulary, PART)
    tl.store(kept_ptr + row * PARTS + part, tl.sum(tl.where(weights >= least, weights, 0.0), 0))


@triton.jit
def _first_above(mass, sums, target, BLOCK: tl.constexpr):
    """The first place with a mass at which the sums exceed the target; where rounding leaves none, the last
    place with a mass.
    """
    place = tl.arange(0, BLOCK)
    first = tl.min(tl.where((sums > target) & (mass > 0.0), place, BLOCK), 0)
    last = tl.max(tl.where(mass > 0.0, place, 0), 0)
    return tl.where(first < BLOCK, first, last)


@triton.jit(do_not_specialize_on_alignment=_OF_ROWS)
def choose_kernel(
    logits_ptr,
    temperature_ptr,
    random_ptr,
    row_best_ptr,
    least_ptr,
    kept_ptr,
    ids_ptr,
    stride,
    vocabulary,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
):
    """One program for each row: the part and the token at which the kept mass exceeds what was drawn."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    kept = tl.load(kept_ptr + row * PARTS + place, mask=place < PARTS, other=0.0)
    sums = tl.cumsum(kept, 0)
    target = tl.max(sums, 0) * tl.load(random_ptr + row)
    part = _first_above(kept, sums, target, BLOCK)
    target -= tl.sum(tl.where(place == part - 1, sums, 0.0), 0)
    temperature, best = tl.load(temperature_ptr + row), tl.load(row_best_ptr + row)
    weights = _weights(logits_ptr, row, part, stride, temperature, best, vocabulary, PART)
    weights = tl.where(weights >= tl.load(least_ptr + row), weights, 0.0)
    chosen = _first_above(weights, tl.cumsum(weights, 0), target, PART)
    tl.store(ids_ptr + row, (part * PART + chosen).to(tl.int64))


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_p: Tensor | None,
    top_k: Tensor | None,
    min_p: Tensor | None,
    random: Tensor,
) -> Tensor:
    """See the twin. Rows of logits may be strided."""
    rows, vocabulary = logits.shape
    parts = -(-vocabulary // _PART)
    grid, tiles = (parts, rows), {"PARTS": parts, "BLOCK": power_of_two(parts)}

    def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    def rule(given: Tensor | None, neutral: float) -> Tensor:
        return numbers(rows).fill_(neutral) if given is None else given

    passes = 0 if top_p is None and top_k is None else _PASSES
    best, mass, kept = numbers(3, rows, parts)
    row_best, most_mass, most_count, least = numbers(4, rows)
    above_mass, above_count = numbers(2, max(1, passes), rows, parts, 8)
    search = (
        row_best,
        most_mass,
        most_count,
        numbers(_PASSES, rows, dtype=torch.int32),
        above_mass,
        above_count,
    )
    ids = numbers(rows, dtype=torch.int64)
    row = (logits.stride(0), vocabulary)
    sum_parts_kernel[grid](logits, temperature, best, mass, *row, PARTS=parts, PART=_PART, num_warps=_WARPS)
    sum_rows_kernel[(rows,)](
        best, mass, temperature, rule(top_p, 1), rule(top_k, 0), *search[:3], **tiles, num_warps=1
    )
    for step in range(passes):
        search_kernel[grid](
            logits,
            temperature,
            *search,
            *row,
            rows,
            step,
            PASSES=_PASSES,
            **tiles,
            PART=_PART,
            num_warps=_WARPS,
        )
    keep_kernel[grid](
        logits,
        temperature,
        rule(min_p, 0),
        *search,
        least,
        kept,
        *row,
        rows,
        PASSES=passes,
        **tiles,
        PART=_PART,
        num_warps=_WARPS,
    )
    choose_kernel[(rows,)](
        logits, temperature, random, row_best, least, kept, ids, *row, **tiles, PART=_PART, num_warps=_WARPS
    )
    return ids
