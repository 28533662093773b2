"""Where each token of a step belongs: index data made once per step and read by every layer.

A step packs its tokens without a batch dimension. First come the *decodes*: D sequences with one token each.
Then come the *prefill pieces*: P sequences with one or more tokens each, in order. A piece starts at an
absolute position of its sequence (0 for a new one); what precedes it is in the sequence's state slot and
pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby, pairwise
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels.transfer import on_host, send, send_all


class Segment(NamedTuple):
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
class ConvIndex:
    """What convolves prefill pieces as one strip; T is their number of tokens, P the pieces, K the
    convolution's width.

    strip [T + P·(K−1)]: the convolution's inputs piece by piece, K−1 carried rows and then the piece's
    tokens, as rows of (all carried rows, then the T tokens). rows [T]: the strip's row at which each token's
    window begins. Both are None for a single piece, whose strip and windows are in order.
    tail [P, K−1]: the strip's rows that each piece carries on.
    """

    strip: Tensor | None
    rows: Tensor | None
    tail: Tensor


@dataclass(frozen=True, slots=True)
class ChunkIndex:
    """The chunks of prefill pieces; T is their number of tokens, n their chunks, Q the chunk length.

    rows [n, Q]: the tokens of each chunk, its last one repeated as padding; real [n, Q, 1], fp32: 1 for a
    token, 0 for padding. cells [T]: each token's place in the flattened chunks. Chunks end at absolute
    multiples of Q, so that a result does not depend on how prefill was split, and are ordered by rank, then
    by piece.
    ranks: for each rank r, the pieces (as an index tensor) that have an r-th chunk.
    """

    rows: Tensor
    real: Tensor
    cells: Tensor
    ranks: tuple[Tensor, ...]


@dataclass(frozen=True)
class PrefillIndex:
    """Index data of the prefill pieces, P of them.

    lengths, starts: tokens of each piece, and the absolute position of its first.
    spans [P, 3], int32: for each piece its first row, its tokens and its start. page_table [P, max pages],
    int32: each piece's pages, the shorter ones padded with their own first page.
    window, chunk: the convolution's width, and the scan's chunk length.

    Kernels that walk pieces on their own read spans and page_table alone; what others need besides is made
    when the first of them asks for it.
    """

    lengths: tuple[int, ...]
    starts: tuple[int, ...]
    spans: Tensor
    page_table: Tensor
    window: int
    chunk: int

    @cached_property
    def conv(self) -> ConvIndex:
        """Pieces as one strip to convolve."""
        carried, pieces = self.window - 1, len(self.lengths)
        strip, rows, tail = list[Tensor](), list[Tensor](), list[Tensor]()
        for number, (length, first) in enumerate(zip(self.lengths, self._firsts, strict=True)):
            begin = first + number * carried  # of the piece in the strip
            strip += [
                torch.arange(number * carried, (number + 1) * carried),
                torch.arange(length) + (pieces * carried + first),
            ]
            rows.append(torch.arange(begin, begin + length))
            tail.append(torch.arange(begin + length, begin + length + carried))
        device = self.spans.device
        if pieces == 1:
            return ConvIndex(None, None, send(torch.stack(tail), device))
        return ConvIndex(*send_all([torch.cat(strip), torch.cat(rows), torch.stack(tail)], device))

    @cached_property
    def chunks(self) -> ChunkIndex:
        """Chunks to scan."""
        spans: list[tuple[int, int, int, int]] = []  # rank, piece, first row, tokens
        for number, (start, length, first) in enumerate(
            zip(self.starts, self.lengths, self._firsts, strict=True)
        ):
            lengths = chunk_lengths(start, length, self.chunk)
            begins = accumulate(lengths[:-1], initial=first)
            spans += [(rank, number, *span) for rank, span in enumerate(zip(begins, lengths, strict=True))]
        spans.sort()
        ranks = [
            torch.tensor([number for _, number, _, _ in members])
            for _, members in groupby(spans, itemgetter(0))
        ]
        _, _, first_row, size = torch.tensor(spans).unsqueeze(-1).unbind(1)  # each [n, 1]
        within = torch.arange(int(size.max()))
        rows, real = first_row + within.minimum(size - 1), within < size
        cells = torch.empty(sum(self.lengths), dtype=torch.long)
        cells[rows[real]] = real.flatten().nonzero()[:, 0]
        rows, real, cells, *ranks = send_all(
            [rows, real.unsqueeze(-1).float(), cells, *ranks], self.spans.device
        )
        return ChunkIndex(rows, real, cells, tuple(ranks))

    @property
    def _firsts(self) -> list[int]:
        """Each piece's first row."""
        return list(accumulate(self.lengths[:-1], initial=0))


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
    # One array of all that is short: making tensors costs more than numbers.
    short = on_host(
        [
            *(s.slot for s in decodes),
            *(s.slot for s in pieces),
            *range(count),
            *(end - 1 for end in ends[1:]),
            *(s.start + 1 for s in decodes),
            *(s.pages[s.start // page_tokens] * page_tokens + s.start % page_tokens for s in decodes),
        ]
    )
    slots, last, context, rows = short.split_with_sizes([total, total, count, count])
    host = [slots, last, context, rows, _page_table(decodes, page_tokens)]
    if pieces:
        tables = [_pages(piece, page_tokens) for piece in pieces]
        written = [_rows(*part, page_tokens) for part in zip(pieces, tables, strict=True)]
        host[3] = torch.cat([rows, *written])
        firsts = [end - piece.length - count for end, piece in zip(ends[1:], pieces, strict=True)]
        spans = [(first, s.length, s.start) for first, s in zip(firsts, pieces, strict=True)]
        host += [torch.tensor(spans, dtype=torch.int32), _page_table(pieces, page_tokens).int(), *tables]
    slots, last, context, rows, page_table, *of_pieces = send_all(host, device)
    prefill = None
    if pieces:
        prefill = PrefillIndex(
            lengths=tuple(piece.length for piece in pieces),
            starts=tuple(piece.start for piece in pieces),
            spans=of_pieces[0],
            page_table=of_pieces[1],
            window=window,
            chunk=chunk,
        )
    return StepLayout(
        tokens=ends[-1],
        decodes=count,
        slots=slots,
        rows=rows,
        page_table=page_table,
        context=context,
        piece_pages=tuple(of_pieces[2:]),
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
