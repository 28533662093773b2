"""Index data of a step says where each token belongs."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.layout import Segment, StepLayout, chunk_lengths, step_layout
from tests.kernels.waiting import DEVICE, Watch
from worker.model.parts import tensors_of

PAGE = 4
CHUNK = 8
CPU = torch.device("cpu")

lengths = st.integers(1, 40)
starts = st.integers(0, 50)


@st.composite
def steps(draw: st.DrawFn) -> tuple[list[Segment], list[Segment]]:
    """(decodes, pieces) with slots and pages of their own, and more pages than they need."""
    decodes = draw(st.lists(starts, max_size=5))
    pieces = draw(st.lists(st.tuples(starts, lengths), max_size=4, min_size=0 if decodes else 1))
    spans = [(start, 1) for start in decodes] + pieces
    free = draw(st.permutations(range(sum((start + length) // PAGE + 2 for start, length in spans))))
    slots = draw(st.permutations(range(len(spans) + 2)))
    segments = []
    for slot, (start, length) in zip(slots, spans, strict=False):
        count = (start + length) // PAGE + 2
        segments.append(Segment(slot, start, length, free[:count]))
        free = free[count:]
    return segments[: len(decodes)], segments[len(decodes) :]


def lay_out(decodes: list[Segment], pieces: list[Segment], window: int = 4) -> StepLayout:
    return step_layout(decodes, pieces, page_tokens=PAGE, chunk=CHUNK, window=window, device=CPU)


def row(segment: Segment, position: int) -> int:
    return segment.pages[position // PAGE] * PAGE + position % PAGE


@given(start=st.integers(0, 1000), length=st.integers(1, 500), chunk=st.integers(1, 64))
@settings(derandomize=True, deadline=None)
def test_chunks_end_at_absolute_multiples(start: int, length: int, chunk: int) -> None:
    parts = chunk_lengths(start, length, chunk)
    assert sum(parts) == length
    assert all(1 <= part <= chunk for part in parts)
    ends = [start + sum(parts[: n + 1]) for n in range(len(parts))]
    assert all(end % chunk == 0 for end in ends[:-1])


@given(steps())
@settings(derandomize=True, deadline=None)
def test_every_token_has_its_row_in_its_own_pages(step: tuple[list[Segment], list[Segment]]) -> None:
    decodes, pieces = step
    layout = lay_out(decodes, pieces)
    segments = [*decodes, *pieces]
    assert layout.slots.tolist() == [s.slot for s in segments]
    assert layout.rows.tolist() == [row(s, p) for s in segments for p in range(s.start, s.start + s.length)]
    ends = [sum(s.length for s in segments[: n + 1]) for n in range(len(segments))]
    assert layout.last.tolist() == [end - 1 for end in ends]
    assert (layout.tokens, layout.decodes) == (ends[-1], len(decodes))


@given(steps())
@settings(derandomize=True, deadline=None)
def test_decodes_see_the_pages_that_their_context_fills(step: tuple[list[Segment], list[Segment]]) -> None:
    decodes, pieces = step
    layout = lay_out(decodes, pieces)
    assert layout.context.tolist() == [s.start + 1 for s in decodes]
    for segment, pages in zip(decodes, layout.page_table.tolist(), strict=True):
        used = segment.start // PAGE + 1
        assert pages[:used] == list(segment.pages[:used])
        assert set(pages[used:]) <= {segment.pages[0]}
    for segment, table in zip(pieces, layout.piece_pages, strict=True):
        assert table.tolist() == list(segment.pages[: -(-(segment.start + segment.length) // PAGE)])


@given(steps(), st.integers(1, 5))
@settings(derandomize=True, deadline=None)
def test_a_tokens_convolution_window_is_what_precedes_it_in_its_sequence(
    step: tuple[list[Segment], list[Segment]], window: int
) -> None:
    decodes, pieces = step
    index = lay_out(decodes, pieces, window).prefill
    assert (index is None) == (not pieces)
    if index is None:
        return
    # Every row of (carried inputs, tokens) as (piece, position relative to its start).
    rows = [(n, back - (window - 1)) for n in range(len(pieces)) for back in range(window - 1)]
    rows += [(n, offset) for n, piece in enumerate(pieces) for offset in range(piece.length)]
    strip = rows if index.conv.strip is None else [rows[r] for r in index.conv.strip.tolist()]
    tokens = rows[len(pieces) * (window - 1) :]
    begins = range(len(tokens)) if index.conv.rows is None else index.conv.rows.tolist()
    for (n, offset), begin in zip(tokens, begins, strict=True):
        assert strip[begin : begin + window] == [(n, offset - back) for back in range(window - 1, -1, -1)]
    for n, (piece, kept) in enumerate(zip(pieces, index.conv.tail.tolist(), strict=True)):
        assert [strip[r] for r in kept] == [(n, piece.length - back) for back in range(window - 1, 0, -1)]


@given(steps())
@settings(derandomize=True, deadline=None)
def test_every_token_is_in_one_chunk_of_its_sequence(step: tuple[list[Segment], list[Segment]]) -> None:
    decodes, pieces = step
    index = lay_out(decodes, pieces).prefill
    if index is None:
        return
    chunks = index.chunks.rows.tolist()
    assert index.chunks.rows.flatten()[index.chunks.cells].tolist() == list(
        range(sum(p.length for p in pieces))
    )
    owners = [(n, rank) for rank, members in enumerate(index.chunks.ranks) for n in members.tolist()]
    seen: dict[int, list[int]] = {n: [] for n in range(len(pieces))}
    for (n, rank), chunk, is_real in zip(owners, chunks, index.chunks.real.tolist(), strict=True):
        real = [r for r, (flag,) in zip(chunk, is_real, strict=True) if flag]
        assert chunk == real + [real[-1]] * (len(chunk) - len(real))
        assert len(real) == chunk_lengths(pieces[n].start, pieces[n].length, CHUNK)[rank]
        seen[n] += real
    first = 0
    for n, piece in enumerate(pieces):
        assert seen[n] == list(range(first, first + piece.length))
        first += piece.length


def test_a_step_is_laid_out_on_a_device_without_waiting_for_it() -> None:
    decodes = [Segment(0, 5, 1, [1, 2]), Segment(1, 3, 1, [0])]
    pieces = [Segment(2, 0, 9, [3, 4, 5]), Segment(3, 4, 2, [6, 7])]
    with Watch() as watch:
        layout = step_layout(decodes, pieces, page_tokens=PAGE, chunk=CHUNK, window=4, device=DEVICE)
        assert layout.prefill is not None
        others = (layout.prefill.conv, layout.prefill.chunks)
    assert watch.waits == []
    assert {tensor.device for tensor in tensors_of((layout, others))} == {DEVICE}
