"""The PyTorch twins against token-by-token references in float64."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from kernels import kernels_for
from kernels.layout import Segment, StepLayout, step_layout
from kernels.torch_ops import attention
from tests.kernels.reference import ScanInputs, attend, convolve, gated_group_norm, rms_norm

CPU = torch.device("cpu")
KERNELS = kernels_for(CPU)
CHUNK, PAGE, WINDOW = 8, 4, 4

# (start, length) of the packed pieces of one step.
PACKINGS = {
    "one token": [(0, 1)],
    "one whole chunk": [(0, 8)],
    "odd length over several chunks": [(0, 29)],
    "starts in mid-chunk": [(5, 20)],
    "ends on a border": [(3, 13)],
    "starts on a border": [(16, 9)],
    "many short sequences": [(n, 1 + n % 3) for n in range(12)],
    "long and short": [(0, 1), (13, 40), (0, 7), (7, 1), (2, 33)],
}
# In order, alone, close together in any order, far apart.
SLOTS = [[0, 1, 2, 3, 4], [3], [3, 2, 1], [6, 2, 5], [0, 6], [6, 0]]
packings = pytest.mark.parametrize("spans", PACKINGS.values(), ids=PACKINGS.keys())


def lay_out(spans: Sequence[tuple[int, int]], *, decodes: Sequence[int] = ()) -> StepLayout:
    """Pieces over spans and decodes at positions, in slots n + 1 counted down, on scattered pages."""
    total = len(decodes) + len(spans)
    segments = [
        Segment(total - n, start, length, [n + total * page for page in range((start + length) // PAGE + 1)])
        for n, (start, length) in enumerate([*((at, 1) for at in decodes), *spans])
    ]
    return step_layout(
        segments[: len(decodes)],
        segments[len(decodes) :],
        page_tokens=PAGE,
        chunk=CHUNK,
        window=WINDOW,
        device=CPU,
    )


def error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


@pytest.mark.parametrize("tokens", [1, 5, 33])
@pytest.mark.parametrize("hidden", [1, 7, 64])
def test_add_rms_norm(tokens: int, hidden: int) -> None:
    torch.manual_seed(tokens * hidden)
    x, residual, weight = torch.randn(tokens, hidden), torch.randn(tokens, hidden), torch.randn(hidden)
    normed, total = KERNELS.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, x + residual)
    assert error(normed, rms_norm(x + residual, weight, 1e-5)) < 1e-6
    normed, total = KERNELS.add_rms_norm(x, None, weight, 1e-5)
    assert torch.equal(total, x)
    assert error(normed, rms_norm(x, weight, 1e-5)) < 1e-6


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e6])
def test_rms_norm_of_very_small_and_large_numbers(scale: float) -> None:
    torch.manual_seed(1)
    x, weight = torch.randn(3, 16) * scale, torch.randn(16)
    normed, _ = KERNELS.add_rms_norm(x, None, weight, 1e-5)
    assert error(normed, rms_norm(x, weight, 1e-5)) < 1e-6


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_gated_group_norm(groups: int) -> None:
    torch.manual_seed(groups)
    y, gate, weight = torch.randn(5, 48), torch.randn(5, 48), torch.randn(48)
    got = KERNELS.gated_group_norm(y, gate, weight, 1e-5, groups)
    assert error(got, gated_group_norm(y, gate, weight, 1e-5, groups)) < 1e-6


def test_norms_of_bf16_are_computed_in_fp32_and_rounded_once() -> None:
    torch.manual_seed(3)
    x, gate = torch.randn(4, 64).bfloat16(), torch.randn(4, 64).bfloat16()
    weight = torch.randn(64)
    normed, _ = KERNELS.add_rms_norm(x, None, weight, 1e-5)
    assert torch.equal(normed, KERNELS.add_rms_norm(x.float(), None, weight, 1e-5)[0].bfloat16())
    gated = KERNELS.gated_group_norm(x, gate, weight, 1e-5, 4)
    assert torch.equal(gated, KERNELS.gated_group_norm(x.float(), gate.float(), weight, 1e-5, 4).bfloat16())


@packings
@pytest.mark.parametrize("bias", [False, True])
def test_conv_prefill(spans: list[tuple[int, int]], bias: bool) -> None:
    torch.manual_seed(len(spans))
    layout = lay_out(spans)
    assert layout.prefill is not None
    x, weight = torch.randn(layout.tokens, 6), torch.randn(WINDOW, 6)
    offset = torch.randn(6) if bias else None
    states = torch.randn(len(spans) + 1, WINDOW - 1, 6)
    before = states.clone()
    y = KERNELS.conv_prefill(x, weight, offset, states, layout.slots, layout.prefill)
    first = 0
    for slot, (_, length) in zip(layout.slots.tolist(), spans, strict=True):
        part = slice(first, first + length)
        expected, history = convolve(x[part], weight, offset, before[slot])
        assert error(y[part], expected) < 1e-6
        assert torch.equal(states[slot].double(), history)
        first += length
    assert torch.equal(states[0], before[0])


@pytest.mark.parametrize("window", [2, 3, 4])
@pytest.mark.parametrize("slots", SLOTS)
def test_conv_update(window: int, slots: list[int]) -> None:
    torch.manual_seed(window)
    x, weight, bias = torch.randn(len(slots), 6), torch.randn(window, 6), torch.randn(6)
    states = torch.randn(7, window - 1, 6)
    before = states.clone()
    y = KERNELS.conv_update(x, weight, bias, states, torch.tensor(slots))
    for n, slot in enumerate(slots):
        expected, history = convolve(x[n : n + 1], weight, bias, before[slot])
        assert error(y[n : n + 1], expected) < 1e-6
        assert torch.equal(states[slot].double(), history)
    others = [slot for slot in range(7) if slot not in slots]
    assert torch.equal(states[others], before[others])


@packings
def test_scan_prefill(spans: list[tuple[int, int]]) -> None:
    layout = lay_out(spans)
    assert layout.prefill is not None
    inputs = ScanInputs.draw(layout.tokens, seed=len(spans))
    states = torch.randn(len(spans) + 1, 6, 5, 7, generator=torch.Generator().manual_seed(1))
    before = states.clone()
    y = KERNELS.scan_prefill(*inputs.arguments(), states, layout.slots, layout.prefill)
    first = 0
    for slot, (_, length) in zip(layout.slots.tolist(), spans, strict=True):
        expected, state = inputs.run(before[slot], first, first + length)
        assert error(y[first : first + length], expected) < 5e-6
        assert error(states[slot], state) < 5e-6
        first += length
    assert torch.equal(states[0], before[0])


@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scan_update(slots: list[int], dtype: torch.dtype) -> None:
    inputs = ScanInputs.draw(len(slots), seed=len(slots))
    states = torch.randn(7, 6, 5, 7, generator=torch.Generator().manual_seed(2)).to(dtype)
    before = states.clone()
    y = KERNELS.scan_update(*inputs.arguments(), states, torch.tensor(slots))
    for n, slot in enumerate(slots):
        expected, state = inputs.run(before[slot], n, n + 1)
        assert error(y[n : n + 1], expected) < 1e-6
        assert error(states[slot], state) < (1e-6 if dtype == torch.float32 else 2**-8)
    others = [slot for slot in range(7) if slot not in slots]
    assert torch.equal(states[others], before[others])


@pytest.mark.parametrize(("start", "cut"), [(0, 8), (0, 16), (3, 5), (3, 21), (16, 8)])
def test_a_scan_split_at_a_chunk_border_gives_the_same(start: int, cut: int) -> None:
    inputs = ScanInputs.draw(30, seed=cut)
    initial = torch.randn(2, 6, 5, 7, generator=torch.Generator().manual_seed(3))

    def run(states: Tensor, first: int, end: int) -> Tensor:
        layout = lay_out([(start + first, end - first)])
        assert layout.prefill is not None
        return KERNELS.scan_prefill(*inputs.arguments(first, end), states, layout.slots, layout.prefill)

    whole, parts = initial.clone(), initial.clone()
    y = run(whole, 0, 30)
    assert (start + cut) % CHUNK == 0
    split = torch.cat([run(parts, 0, cut), run(parts, cut, 30)])
    assert error(split, y.double()) < 1e-6
    assert error(parts, whole.double()) < 1e-6


def test_a_scan_of_strong_and_of_no_decay_stays_finite() -> None:
    layout = lay_out([(0, 40)])
    assert layout.prefill is not None
    inputs = ScanInputs.draw(40, seed=9)
    inputs.dt[:, :3] = 50.0
    inputs.dt[:, 3:] = 1e-12
    states = torch.zeros(2, 6, 5, 7)
    y = KERNELS.scan_prefill(*inputs.arguments(), states, layout.slots, layout.prefill)
    expected, state = inputs.run(torch.zeros(6, 5, 7))
    assert error(y, expected) < 1e-5
    assert error(states[1], state) < 1e-5


class Pages:
    """Keys and values of every segment of a step, in pages, and as plain tensors."""

    def __init__(self, layout: StepLayout, spans: Sequence[tuple[int, int]], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        tables = [row[row.cumsum(0) >= 0] for row in layout.page_table] + list(layout.piece_pages)
        count = 1 + max(int(table.max()) for table in tables)
        self.keys = torch.randn(count, PAGE, 2, 5, generator=generator)
        self.values = torch.randn(count, PAGE, 2, 5, generator=generator)
        self.plain = [
            (self.keys[table].flatten(0, 1)[: sum(span)], self.values[table].flatten(0, 1)[: sum(span)])
            for table, span in zip(tables, spans, strict=True)
        ]


@packings
@pytest.mark.parametrize("block", [1, 6, 1000])
def test_attention_prefill(spans: list[tuple[int, int]], block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # The past is attended to in blocks, wherever their borders lie.
    monkeypatch.setattr(attention, "_PAST_BLOCK", block)
    layout = lay_out(spans)
    assert layout.prefill is not None
    pages = Pages(layout, spans, len(spans))
    torch.manual_seed(0)
    q = torch.randn(layout.tokens, 6, 5)
    k, v = (
        torch.cat([pair[kind][start:] for pair, (start, _) in zip(pages.plain, spans, strict=True)])
        for kind in (0, 1)
    )
    y = KERNELS.attention_prefill(q, k, v, pages.keys, pages.values, layout.piece_pages, layout.prefill)
    first = 0
    for (keys, values), (start, length) in zip(pages.plain, spans, strict=True):
        part = slice(first, first + length)
        assert error(y[part], attend(q[part], keys, values, start)) < 2e-6
        first += length


@pytest.mark.parametrize(
    "positions", [[0], [3], [4], [37], [0, 1, 2, 3, 4, 5], [200, 3, 0, 17, 64], [90, 91]]
)
def test_attention_decode(positions: list[int]) -> None:
    layout = lay_out([], decodes=positions)
    pages = Pages(layout, [(at, 1) for at in positions], len(positions))
    torch.manual_seed(1)
    q = torch.randn(len(positions), 6, 5)
    y = KERNELS.attention_decode(q, pages.keys, pages.values, layout.page_table, layout.context)
    for n, (keys, values) in enumerate(pages.plain):
        assert error(y[n : n + 1], attend(q[n : n + 1], keys, values, positions[n])) < 2e-6


def test_store_kv_writes_its_rows_and_no_other() -> None:
    layout = lay_out([(5, 6)], decodes=[2, 9])
    keys = torch.zeros(12, PAGE, 2, 5)
    values = torch.zeros_like(keys)
    k, v = torch.randn(layout.tokens, 2, 5), torch.randn(layout.tokens, 2, 5)
    KERNELS.store_kv(k, v, keys, values, layout.rows)
    for pages, new in ((keys.flatten(0, 1), k), (values.flatten(0, 1), v)):
        assert torch.equal(pages[layout.rows], new)
        rest = torch.ones(len(pages), dtype=torch.bool).index_fill(0, layout.rows, False)
        assert not pages[rest].any()


def test_the_scans_gradients_are_the_references() -> None:
    """The demo model is trained through this function."""
    spans = [(0, 19), (0, 4)]
    layout = lay_out(spans)
    assert layout.prefill is not None
    inputs = ScanInputs.draw(layout.tokens, seed=1)
    weights = torch.randn(layout.tokens, 6, 5, generator=torch.Generator().manual_seed(4))
    leaves = [t.requires_grad_() for t in (inputs.x, inputs.dt, inputs.a, inputs.b, inputs.c, inputs.d)]
    y = KERNELS.scan_prefill(*inputs.arguments(), torch.zeros(3, 6, 5, 7), layout.slots, layout.prefill)
    got = torch.autograd.grad((y * weights).sum(), leaves)
    runs = [inputs.run(torch.zeros(6, 5, 7), first, end)[0] for first, end in ((0, 19), (19, 23))]
    expected = torch.autograd.grad((torch.cat(runs) * weights).sum(), leaves)
    for one, other in zip(got, expected, strict=True):
        assert error(one, other.double()) < 1e-5
