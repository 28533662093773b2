"""Where each token of a step belongs: index data made once per step and read by every layer.

A step packs its tokens without a batch dimension. First come the *decodes*: D sequences with one token each.
Then come the *prefill pieces*: P sequences with one or more tokens each, in order. A piece starts at an
absolute position of its sequence (0 for a new one); what precedes it is in the sequence's state slot and
pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Segment:
    """One sequence's part in a step.

    slot: its state slot. start: absolute position of its first token in the step. length: its tokens in the
    step.
    pages: the pages of its keys and values, in order; they must hold start + length tokens.
    """

    slot: int
    start: int
    length: int
    pages: Sequence[int]


@dataclass(frozen=True, slots=True)
class PrefillIndex:
    """Index data of the prefill pieces; T is their number of tokens, P the pieces, n their chunks, Q the
    chunk length, K the convolution's width.

    lengths, starts: tokens of each piece, and the absolute position of its first.
    spans [P, 3], int32: for each piece its first row, its tokens and its start. page_table [P, max pages],
    int32: each piece's pages, the shorter ones padded with their own first page. Kernels that walk pieces on
    their own read these two alone.
    conv_strip [T + P·(K−1)]: the convolution's inputs piece by piece, K−1 carried rows and then the piece's
    tokens, as rows of (all carried rows, then the T tokens). conv_rows [T]: the strip's row at which each
    token's window begins. Both are None for a single piece, whose strip and windows are in order.
    conv_tail [P, K−1]: the strip's rows that each piece carries on.
    chunk_rows [n, Q]: the tokens of each chunk, its last one repeated as padding; chunk_real [n, Q, 1], fp32:
    1 for a token, 0 for padding. chunk_cells [T]: each token's place in the flattened chunks. Chunks end at
    absolute multiples of Q, so that a result does not depend on how prefill was split, and are ordered by
    rank, then by piece.
    chunk_ranks: for each rank r, the pieces (as an index tensor) that have an r-th chunk.
    """

    lengths: tuple[int, ...]
    starts: tuple[int, ...]
    spans: Tensor
    page_table: Tensor
    conv_strip: Tensor | None
    conv_rows: Tensor | None
    conv_tail: Tensor
    chunk_rows: Tensor
    chunk_real: Tensor
    chunk_cells: Tensor
    chunk_ranks: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class StepLayout:
    """Index data of one step of D decodes and P prefill pieces, T tokens in all.

    slots [D + P]: state slots. rows [T]: for each token its row in the flattened pages.
    page_table [D, max pages], int64, the shorter padded with their own first page, and context [D]: tokens
    that each decode attends to, its own included.
    piece_pages: pages of each prefill piece [its pages]. last [D + P]: row of each sequence's last token in
    the step.
    """

    tokens: int
    decodes: int
    slots: Tensor
    rows: Tensor
    page_table: Tensor
    context: Tensor
    piece_pages: tuple[Tensor, ...]
    prefill: PrefillIndex | None
    last: Tensor


def chunk_lengths(start: int, length: int, chunk: int) -> list[int]:
    """Lengths of the chunks that tokens start .. start + length − 1 fall into, cut at absolute multiples of
    `chunk`.

    >>> chunk_lengths(5, 10, 8)
    [3, 7]
    """
    borders = [start, *range((start // chunk + 1) * chunk, start + length, chunk), start + length]
    return [end - begin for begin, end in pairwise(borders)]


def step_layout(
    decodes: Sequence[Segment],
    pieces: Sequence[Segment],
    *,
    page_tokens: int,
    chunk: int,
    window: int,
    device: torch.device,
) -> StepLayout:
    """Lays out one step.

    decodes: segments of length 1. pieces: segments of length ≥ 1. page_tokens: tokens in a page. chunk: the
    scan's chunk length. window: the convolution's width K.
    """
    count, total = len(decodes), len(decodes) + len(pieces)
    ends = list(accumulate((piece.length for piece in pieces), initial=count))
    # One tensor of all that is short: making tensors, and sending them to a device, costs more than numbers.
    short = torch.tensor(
        [
            *(s.slot for s in decodes),
            *(s.slot for s in pieces),
            *range(count),
            *(end - 1 for end in ends[1:]),
            *(s.start + 1 for s in decodes),
            *(s.pages[s.start // page_tokens] * page_tokens + s.start % page_tokens for s in decodes),
        ],
        dtype=torch.long,
        device=device,
    )
    slots, last, context, rows = short.split_with_sizes([total, total, count, count])
    piece_pages: tuple[Tensor, ...] = ()
    prefill = None
    if pieces:
        tables = [_pages(piece, page_tokens) for piece in pieces]
        piece_pages = tuple(table.to(device) for table in tables)
        written = [_rows(*part, page_tokens) for part in zip(pieces, tables, strict=True)]
        rows = torch.cat([rows, torch.cat(written).to(device)])
        prefill = _prefill_index(pieces, chunk, window, page_tokens, device)
    return StepLayout(
        tokens=ends[-1],
        decodes=count,
        slots=slots,
        rows=rows,
        page_table=_page_table(decodes, page_tokens).to(device),
        context=context,
        piece_pages=piece_pages,
        prefill=prefill,
        last=last,
    )


def _used(segment: Segment, page_tokens: int) -> int:
    return -(-(segment.start + segment.length) // page_tokens)


def _pages(piece: Segment, page_tokens: int) -> Tensor:
    """The pages of a piece up to its last token."""
    return torch.tensor(piece.pages[: _used(piece, page_tokens)])


def _rows(piece: Segment, pages: Tensor, page_tokens: int) -> Tensor:
    """The rows of a piece's tokens in the flattened pages."""
    first = piece.start // page_tokens
    rows = (pages[first:, None] * page_tokens + torch.arange(page_tokens)).flatten()
    return rows[piece.start - first * page_tokens :][: piece.length]


def _page_table(segments: Sequence[Segment], page_tokens: int) -> Tensor:
    """The pages of each segment's tokens, int64 [segments, the most pages of one]. Padding repeats a
    segment's own first page, so that nothing of another sequence is ever read.
    """
    used = [_used(s, page_tokens) for s in segments]
    table = np.empty((len(segments), max(used, default=0)), dtype=np.int64)
    for row, segment, count in zip(table, segments, used, strict=True):
        row[:count] = segment.pages[:count]
        row[count:] = segment.pages[0]
    return torch.from_numpy(table)


def _prefill_index(
    pieces: Sequence[Segment], chunk: int, window: int, page_tokens: int, device: torch.device
) -> PrefillIndex:
    carried = window - 1
    firsts = list(accumulate((piece.length for piece in pieces), initial=0))
    strip, conv_rows, conv_tail = [], [], []
    chunks: list[tuple[int, int, int, int]] = []  # rank, piece, first row, tokens
    for number, (piece, first) in enumerate(zip(pieces, firsts, strict=False)):
        begin = first + number * carried  # of the piece in the strip
        strip += [
            torch.arange(number * carried, (number + 1) * carried),
            torch.arange(piece.length) + (len(pieces) * carried + first),
        ]
        conv_rows.append(torch.arange(begin, begin + piece.length))
        conv_tail.append(torch.arange(begin + piece.length, begin + piece.length + carried))
        lengths = chunk_lengths(piece.start, piece.length, chunk)
        begins = accumulate(lengths[:-1], initial=first)
        chunks += [(rank, number, *span) for rank, span in enumerate(zip(begins, lengths, strict=True))]
    chunks.sort()
    ranks = [[number for _, number, _, _ in members] for _, members in groupby(chunks, itemgetter(0))]
    _, _, chunk_first, chunk_size = torch.tensor(chunks).unsqueeze(-1).unbind(1)  # each [n, 1]
    within = torch.arange(int(chunk_size.max()))
    chunk_rows, real = chunk_first + within.minimum(chunk_size - 1), within < chunk_size
    cells = torch.empty(firsts[-1], dtype=torch.long)
    cells[chunk_rows[real]] = real.flatten().nonzero()[:, 0]
    single = len(pieces) == 1
    return PrefillIndex(
        lengths=tuple(piece.length for piece in pieces),
        starts=tuple(piece.start for piece in pieces),
        spans=torch.tensor(
            [(first, piece.length, piece.start) for first, piece in zip(firsts, pieces, strict=False)],
            dtype=torch.int32,
            device=device,
        ),
        page_table=_page_table(pieces, page_tokens).to(device, torch.int32),
        conv_strip=None if single else torch.cat(strip).to(device),
        conv_rows=None if single else torch.cat(conv_rows).to(device),
        conv_tail=torch.stack(conv_tail).to(device),
        chunk_rows=chunk_rows.to(device),
        chunk_real=real.unsqueeze(-1).float().to(device),
        chunk_cells=cells.to(device),
        chunk_ranks=tuple(torch.tensor(rank, device=device) for rank in ranks),
    )
