"""Every Triton kernel, interpreted, against its twin and against a token-by-token reference in float64."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from kernels import kernels_for
from kernels.layout import PrefillIndex, Segment, StepLayout, step_layout
from tests.kernels.reference import ScanInputs, attend, convolve, gated_group_norm, rms_norm

CPU = torch.device("cpu")
TRITON, TWIN = kernels_for(CPU, "triton"), kernels_for(CPU, "torch")
PAGE, WINDOW = 16, 4
# The interpreter does not round to bf16 but cuts off.
BF16 = 2**-7
# (start, length) of the packed pieces of one step.
PACKINGS = {
    "one token": [(0, 1)],
    "over a border in mid-chunk": [(100, 61)],
    "two chunks": [(0, 133)],
    "many short sequences": [(n * 31, 1 + n % 4) for n in range(5)],
    "long and short": [(127, 1), (130, 70), (128, 2)],
}
packings = pytest.mark.parametrize("spans", PACKINGS.values(), ids=PACKINGS.keys())


def lay_out(spans: Sequence[tuple[int, int]], *, decodes: Sequence[int] = ()) -> StepLayout:
    """Pieces over spans and decodes at positions, in slots counted down, on scattered pages."""
    total = len(decodes) + len(spans)
    segments = [
        Segment(total - n, start, length, [n + total * page for page in range((start + length) // PAGE + 1)])
        for n, (start, length) in enumerate([*((at, 1) for at in decodes), *spans])
    ]
    return step_layout(
        segments[: len(decodes)],
        segments[len(decodes) :],
        page_tokens=PAGE,
        chunk=128,
        window=WINDOW,
        device=CPU,
    )


def pieces(spans: Sequence[tuple[int, int]]) -> tuple[StepLayout, PrefillIndex]:
    layout = lay_out(spans)
    assert layout.prefill is not None
    return layout, layout.prefill


def strided(*shape: int) -> Tensor:
    """Random rows that are a part of longer rows, as a projection's parts are."""
    longer = torch.randn(shape[0], 3 + math.prod(shape[1:]))
    rows: Tensor = longer[:, 3:].unflatten(1, shape[1:])
    return rows


def error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


@pytest.mark.parametrize("hidden", [1, 7, 64, 140])
def test_add_rms_norm(hidden: int) -> None:
    torch.manual_seed(hidden)
    x, residual, weight = strided(3, hidden), strided(3, hidden), torch.randn(hidden)
    normed, total = TRITON.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, x + residual)
    assert error(normed, rms_norm(x + residual, weight, 1e-5)) < 1e-6
    normed, total = TRITON.add_rms_norm(x, None, weight, 1e-5)
    assert total is x
    assert error(normed, rms_norm(x, weight, 1e-5)) < 1e-6


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("width", [5, 20])
def test_gated_group_norm(groups: int, width: int) -> None:
    torch.manual_seed(groups)
    y, gate, weight = torch.randn(2, groups * width), strided(2, groups * width), torch.randn(groups * width)
    got = TRITON.gated_group_norm(y, gate, weight, 1e-5, groups)
    assert error(got, gated_group_norm(y, gate, weight, 1e-5, groups)) < 1e-6


def test_bf16_rows_are_summed_and_normalised_as_by_the_twin() -> None:
    torch.manual_seed(3)
    x, residual, weight = torch.randn(2, 96).bfloat16(), torch.randn(2, 96).bfloat16(), torch.randn(96)
    for got, expected in zip(
        TRITON.add_rms_norm(x, residual, weight, 1e-5),
        TWIN.add_rms_norm(x, residual, weight, 1e-5),
        strict=True,
    ):
        assert got.dtype == torch.bfloat16
        assert error(got, expected.double()) < BF16
    got = TRITON.gated_group_norm(x, residual, weight, 1e-5, 4)
    assert error(got, TWIN.gated_group_norm(x, residual, weight, 1e-5, 4).double()) < BF16


@pytest.mark.parametrize("spans", [[(0, 1)], [(5, 70)], [(n, 1 + n) for n in range(5)]])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_conv_prefill(spans: list[tuple[int, int]], bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(len(spans))
    layout, index = pieces(spans)
    x, weight = strided(layout.tokens, 6).to(dtype), torch.randn(WINDOW, 6).to(dtype)
    offset = torch.randn(6).to(dtype) if bias else None
    states = torch.randn(len(spans) + 1, WINDOW - 1, 6).to(dtype)
    before = states.clone()
    y = TRITON.conv_prefill(x, weight, offset, states, layout.slots, index)
    first = 0
    for slot, (_, length) in zip(layout.slots.tolist(), spans, strict=True):
        part = slice(first, first + length)
        expected, history = convolve(x[part], weight, offset, before[slot])
        assert error(y[part], expected) < (1e-6 if dtype == torch.float32 else BF16)
        assert torch.equal(states[slot].double(), history)
        first += length
    assert torch.equal(states[0], before[0])


@pytest.mark.parametrize("window", [2, 4])
@pytest.mark.parametrize("slots", [[6, 2, -1, 5], [3]])
def test_conv_update(window: int, slots: list[int]) -> None:
    torch.manual_seed(window)
    x, weight, bias = strided(len(slots), 6), torch.randn(window, 6), torch.randn(6)
    states = torch.randn(7, window - 1, 6)
    before = states.clone()
    y = TRITON.conv_update(x, weight, bias, states, torch.tensor(slots))
    for n, slot in enumerate(slots):
        if slot < 0:
            assert not y[n].any()
            continue
        expected, history = convolve(x[n : n + 1], weight, bias, before[slot])
        assert error(y[n : n + 1], expected) < 1e-6
        assert torch.equal(states[slot].double(), history)
    others = [slot for slot in range(7) if slot not in slots]
    assert torch.equal(states[others], before[others])


def test_convolving_token_by_token_gives_the_bits_of_prefill() -> None:
    torch.manual_seed(5)
    layout, index = pieces([(3, 19)])
    x, weight, bias = torch.randn(19, 6), torch.randn(WINDOW, 6), torch.randn(6)
    states = torch.randn(2, WINDOW - 1, 6)
    stepped = states.clone()
    y = TRITON.conv_prefill(x, weight, bias, states, layout.slots, index)
    rows = [TRITON.conv_update(row[None], weight, bias, stepped, layout.slots) for row in x]
    assert torch.equal(torch.cat(rows), y)
    assert torch.equal(stepped, states)


@packings
def test_scan_prefill(spans: list[tuple[int, int]]) -> None:
    layout, index = pieces(spans)
    inputs = ScanInputs.draw(layout.tokens, seed=len(spans), heads=2, width=20, groups=1, size=18)
    states = torch.randn(len(spans) + 1, 2, 20, 18, generator=torch.Generator().manual_seed(1))
    before = states.clone()
    y = TRITON.scan_prefill(*inputs.arguments(), states, layout.slots, index)
    first = 0
    for slot, (_, length) in zip(layout.slots.tolist(), spans, strict=True):
        expected, state = inputs.run(before[slot], first, first + length)
        assert error(y[first : first + length], expected) < 5e-6
        assert error(states[slot], state) < 5e-6
        first += length
    assert torch.equal(states[0], before[0])


@pytest.mark.parametrize("width", [80, 64])
def test_scan_prefill_of_the_pinned_head_widths(width: int) -> None:
    layout, index = pieces([(3, 140)])
    inputs = ScanInputs.draw(layout.tokens, seed=width, heads=2, width=width, groups=2, size=128)
    states = torch.randn(2, 2, width, 128, generator=torch.Generator().manual_seed(1))
    before = states.clone()
    y = TRITON.scan_prefill(*inputs.arguments(), states, layout.slots, index)
    expected, state = inputs.run(before[1])
    assert error(y, expected) < 5e-6
    assert error(states[1], state) < 5e-6


def test_a_scan_split_at_a_chunk_border_gives_the_same_bits() -> None:
    inputs = ScanInputs.draw(150, seed=4, heads=1, width=16, groups=1, size=16)
    initial = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(3))

    def run(states: Tensor, first: int, end: int) -> Tensor:
        layout, index = pieces([(40 + first, end - first)])
        return TRITON.scan_prefill(*inputs.arguments(first, end), states, layout.slots, index)

    whole, parts = initial.clone(), initial.clone()
    y = run(whole, 0, 150)
    split = torch.cat([run(parts, 0, 88), run(parts, 88, 150)])
    assert torch.equal(split, y)
    assert torch.equal(parts, whole)


def test_a_scan_of_strong_and_of_no_decay_stays_finite() -> None:
    layout, index = pieces([(0, 140)])
    inputs = ScanInputs.draw(140, seed=9, heads=2, width=16, groups=1, size=16)
    inputs.dt[:, :1] = 50.0
    inputs.dt[:, 1:] = 1e-12
    states = torch.zeros(2, 2, 16, 16)
    y = TRITON.scan_prefill(*inputs.arguments(), states, layout.slots, index)
    expected, state = inputs.run(torch.zeros(2, 16, 16))
    assert error(y, expected) < 1e-5
    assert error(states[1], state) < 1e-5


@pytest.mark.parametrize("slots", [[6, 2, -1, 5], [3]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scan_update(slots: list[int], dtype: torch.dtype) -> None:
    inputs = ScanInputs.draw(len(slots), seed=len(slots), heads=2, width=20, groups=2, size=7)
    states = torch.randn(7, 2, 20, 7, generator=torch.Generator().manual_seed(2)).to(dtype)
    before = states.clone()
    y = TRITON.scan_update(*inputs.arguments(), states, torch.tensor(slots))
    for n, slot in enumerate(slots):
        if slot < 0:
            assert not y[n].any()
            continue
        expected, state = inputs.run(before[slot], n, n + 1)
        assert error(y[n : n + 1], expected) < 1e-6
        assert error(states[slot], state) < (1e-6 if dtype == torch.float32 else BF16)
    others = [slot for slot in range(7) if slot not in slots]
    assert torch.equal(states[others], before[others])


class Pages:
    """Keys and values of every segment of a step, in pages, and as plain tensors."""

    def __init__(self, tables: Sequence[Tensor], tokens: Sequence[int], width: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        count = 1 + max(int(table.max()) for table in tables)
        self.keys = torch.randn(count, PAGE, 2, width, generator=generator)
        self.values = torch.randn(count, PAGE, 2, width, generator=generator)
        self.plain = [
            (self.keys[table].flatten(0, 1)[:n], self.values[table].flatten(0, 1)[:n])
            for table, n in zip(tables, tokens, strict=True)
        ]


@pytest.mark.parametrize("page", [16, 128, 24], ids=["whole pages", "parts of a page", "neither"])
@packings
def test_attention_prefill(spans: list[tuple[int, int]], page: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile is 64 keys."""
    monkeypatch.setattr(sys.modules[__name__], "PAGE", page)
    layout, index = pieces(spans)
    pages = Pages(layout.piece_pages, [sum(span) for span in spans], 12, len(spans))
    torch.manual_seed(0)
    q = strided(layout.tokens, 4, 12)
    k = v = q[:, :2]
    y = TRITON.attention_prefill(q, k, v, pages.keys, pages.values, layout.piece_pages, index)
    first = 0
    for (keys, values), (start, length) in zip(pages.plain, spans, strict=True):
        part = slice(first, first + length)
        assert error(y[part], attend(q[part], keys, values, start)) < 2e-6
        first += length


@pytest.mark.parametrize("positions", [[0], [63], [64, 150, 5], [3] * 33])
def test_attention_decode(positions: list[int]) -> None:
    """One sequence is split into most parts, 33 into some: parts without keys, and one part alone occur."""
    layout = lay_out([], decodes=positions)
    pages = Pages(list(layout.page_table), [at + 1 for at in positions], 12, len(positions))
    torch.manual_seed(1)
    q = strided(len(positions), 6, 12)
    y = TRITON.attention_decode(q, pages.keys, pages.values, layout.page_table, layout.context)
    for n, (keys, values) in enumerate(pages.plain):
        assert error(y[n : n + 1], attend(q[n : n + 1], keys, values, positions[n])) < 2e-6


@pytest.mark.parametrize("sequences", [2, 300])
def test_a_padding_sequence_attends_to_nothing(sequences: int) -> None:
    keys = torch.full((1, PAGE, 1, 4), torch.nan)
    table, context = torch.zeros(sequences, 1, dtype=torch.long), torch.zeros(sequences, dtype=torch.long)
    assert not TRITON.attention_decode(torch.ones(sequences, 1, 4), keys, keys, table, context).any()


def test_store_kv_writes_its_rows_and_no_other() -> None:
    layout = lay_out([(5, 6)], decodes=[2, 9])
    rows = layout.rows.clone()
    rows[1] = -1
    keys = torch.zeros(12, PAGE, 2, 5)
    values = torch.zeros_like(keys)
    k, v = strided(layout.tokens, 2, 5), strided(layout.tokens, 2, 5)
    TRITON.store_kv(k, v, keys, values, rows)
    for pages, new in ((keys.flatten(0, 1), k), (values.flatten(0, 1), v)):
        assert torch.equal(pages[rows[rows >= 0]], new[rows >= 0])
        rest = torch.ones(len(pages), dtype=torch.bool).index_fill(0, rows[rows >= 0], False)
        assert not pages[rest].any()


def test_relu2_is_the_twins() -> None:
    x = torch.linspace(-3, 3, 1100)
    assert torch.equal(TRITON.relu2(x), TWIN.relu2(x))


@pytest.mark.parametrize(("low", "high"), [(0.0, math.inf), (0.001, 0.5)])
def test_time_steps(low: float, high: float) -> None:
    dt = torch.linspace(-60, 60, 120)[:, None].expand(-1, 3).reshape(30, 12)
    bias = torch.linspace(-1, 1, 12)
    got = TRITON.time_steps(dt, bias, low, high)
    exact = torch.nn.functional.softplus((dt + bias).double()).clamp(low, high)
    assert float(((got - exact).abs() / exact.clamp(min=1e-30)).max()) < 1e-5
