"""Where each token of a step belongs: index data made once per step and read by every layer.

A step packs its tokens without a batch dimension. First come the *decodes*: D sequences with one token each.
Then come the *prefill pieces*: P sequences with one or more tokens each, in order. A piece starts at an
absolute position of its sequence (0 for a new one); what precedes it is in the sequence's state slot and
pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

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
    chunk length.

    lengths, starts: tokens of each piece, and the absolute position of its first.
    conv_rows [T, K]: for each token the K rows of its window in (P·(K−1) rows of carried inputs, then the T
    tokens).
    conv_tail [P, K−1]: the rows that each piece carries on, in the same numbering.
    chunk_rows [n, Q]: the tokens of each chunk; T stands for padding. Chunks end at absolute multiples of Q,
    so that a result does not depend on how prefill was split, and are ordered by rank, then by piece.
    chunk_ranks: for each rank r, the pieces (as an index tensor) that have an r-th chunk.
    spans [P, 3], int32: for each piece its first row, its tokens and its start. page_table [P, max pages],
    int32: each piece's pages, padded with page 0. Kernels that walk pieces on their own read these two alone.
    """

    lengths: tuple[int, ...]
    starts: tuple[int, ...]
    spans: Tensor
    page_table: Tensor
    conv_rows: Tensor
    conv_tail: Tensor
    chunk_rows: Tensor
    chunk_ranks: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class StepLayout:
    """Index data of one step of D decodes and P prefill pieces, T tokens in all.

    slots [D + P]: state slots. rows [T]: for each token its row in the flattened pages.
    page_table [D, max pages], int64, padded with page 0, and context [D]: tokens that each decode attends to,
    its own included.
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


def _prefill_index(
    pieces: Sequence[Segment], chunk: int, window: int, page_tokens: int, device: torch.device
) -> PrefillIndex:
    carried = (window - 1) * len(pieces)
    tokens = sum(piece.length for piece in pieces)
    first_rows = [0, *accumulate(piece.length for piece in pieces)]
    conv_rows = torch.empty(tokens, window, dtype=torch.long)
    conv_tail = torch.empty(len(pieces), window - 1, dtype=torch.long)
    offsets = torch.arange(window)
    ranks: list[list[int]] = []
    chunks: list[list[tuple[int, int]]] = []
    for number, piece in enumerate(pieces):
        first = first_rows[number]
        # The piece's inputs as one strip: its window − 1 carried rows, then its tokens.
        strip = torch.cat(
            [
                torch.arange(number * (window - 1), (number + 1) * (window - 1)),
                torch.arange(carried + first, carried + first + piece.length),
            ]
        )
        conv_rows[first : first + piece.length] = strip[torch.arange(piece.length)[:, None] + offsets]
        conv_tail[number] = strip[piece.length :]
        row = first
        for rank, length in enumerate(chunk_lengths(piece.start, piece.length, chunk)):
            if rank == len(ranks):
                ranks.append([])
                chunks.append([])
            ranks[rank].append(number)
            chunks[rank].append((row, length))
            row += length
    spans = torch.tensor([span for rank in chunks for span in rank], dtype=torch.long)
    within = torch.arange(min(chunk, int(spans[:, 1].max())))
    chunk_rows = torch.where(within < spans[:, 1:], spans[:, :1] + within, tokens)
    return PrefillIndex(
        lengths=tuple(piece.length for piece in pieces),
        starts=tuple(piece.start for piece in pieces),
        spans=torch.tensor(
            [(first, piece.length, piece.start) for first, piece in zip(first_rows, pieces, strict=False)],
            dtype=torch.int32,
            device=device,
        ),
        page_table=_page_table(pieces, page_tokens).to(device, torch.int32),
        conv_rows=conv_rows.to(device),
        conv_tail=conv_tail.to(device),
        chunk_rows=chunk_rows.to(device),
        chunk_ranks=tuple(torch.tensor(rank, device=device) for rank in ranks),
    )


def _page_table(segments: Sequence[Segment], page_tokens: int) -> Tensor:
    """The pages of each segment's tokens, padded with page 0: [segments, the most pages of one], int64."""
    used = [-(-(s.start + s.length) // page_tokens) for s in segments]
    widest = max(used, default=0)
    table = [[*s.pages[:count], *([0] * (widest - count))] for s, count in zip(segments, used, strict=True)]
    return torch.tensor(table, dtype=torch.long).view(len(segments), widest)


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
    segments = [*decodes, *pieces]
    if len(decodes) == len(segments):
        rows = [s.pages[s.start // page_tokens] * page_tokens + s.start % page_tokens for s in decodes]
    else:
        rows = [
            s.pages[position // page_tokens] * page_tokens + position % page_tokens
            for s in segments
            for position in range(s.start, s.start + s.length)
        ]
    ends = list(accumulate(s.length for s in segments))
    return StepLayout(
        tokens=ends[-1],
        decodes=len(decodes),
        slots=torch.tensor([s.slot for s in segments], device=device),
        rows=torch.tensor(rows, device=device),
        page_table=_page_table(decodes, page_tokens).to(device),
        context=torch.tensor([s.start + 1 for s in decodes], device=device, dtype=torch.long),
        piece_pages=tuple(
            torch.tensor(s.pages[: -(-(s.start + s.length) // page_tokens)], device=device) for s in pieces
        ),
        prefill=_prefill_index(pieces, chunk, window, page_tokens, device) if pieces else None,
        last=torch.tensor([end - 1 for end in ends], device=device),
    )
