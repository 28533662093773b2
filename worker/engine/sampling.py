"""Chooses the next token of every sequence of a step at once.

The choice is counter-based: its randomness is a hash of (seed, position), so that a request's tokens depend
neither on its batch nor on the worker, and a request resumed elsewhere goes on identically.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
# Of a trained model's distribution at usual settings, the tokens that matter are far fewer.
_CANDIDATES = 64


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a request's tokens are chosen. Raises ValueError for a number out of range."""

    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    top_k: int = 0
    """0: all."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    logprobs: int | None = None
    """How many of the likeliest tokens to report beside each chosen one; None reports nothing."""

    def __post_init__(self) -> None:
        if not (
            0 <= self.temperature < math.inf
            and 0 < self.top_p <= 1
            and self.top_k >= 0
            and 0 <= self.min_p <= 1
            and 0 < self.repetition_penalty < math.inf
            and (self.logprobs is None or self.logprobs >= 0)
        ):
            raise ValueError(f"out of range: {self}")


class Draw(NamedTuple):
    """One token to be chosen.

    position: index of the token in its sequence, the prompt included. banned: ids that must not be chosen
    [k]. seen [vocab]: which tokens the sequence has, for the repetition penalty; None without one.
    """

    sampling: Sampling
    position: int
    banned: Tensor | None = None
    seen: Tensor | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of the model's own probabilities, before temperature, penalty or bans."""

    chosen: float
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens and theirs, likeliest first."""


class Choice(NamedTuple):
    """A chosen token."""

    token_id: int
    logprobs: TokenLogprobs | None = None


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1), a multiple of 2^-24, that depends on (seed, position) alone: SplitMix64 (Steele,
    Lea & Flood 2014), twice.
    """
    return (_mix(_mix(seed & _MASK) ^ position) >> 40) / (1 << 24)


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def choose(logits: Tensor, draws: Sequence[Draw]) -> list[Choice]:
    """Chooses one token for each row of logits [n, vocab], fp32, which it may overwrite."""
    reported = [row for row, draw in enumerate(draws) if draw.sampling.logprobs is not None]
    model_logprobs = torch.log_softmax(logits[reported], dim=-1) if reported else None
    _penalise(logits, draws)
    _ban(logits, draws)
    ids = _choose_ids(logits, draws)
    if model_logprobs is None:
        return [Choice(token_id) for token_id in ids]
    reports = _report(
        model_logprobs,
        [ids[row] for row in reported],
        [draws[row].sampling.logprobs or 0 for row in reported],
    )
    of_row = dict(zip(reported, reports, strict=True))
    return [Choice(token_id, of_row.get(row)) for row, token_id in enumerate(ids)]


def _penalise(logits: Tensor, draws: Sequence[Draw]) -> None:
    """Keskar et al. 2019: positive logits of seen tokens are divided, negative ones multiplied."""
    rows = [row for row, draw in enumerate(draws) if draw.seen is not None]
    if not rows:
        return
    values = logits[rows]
    seen = torch.stack([draw.seen for draw in draws if draw.seen is not None])
    penalty = torch.tensor([[draws[row].sampling.repetition_penalty] for row in rows], device=logits.device)
    penalised = torch.where(values > 0, values / penalty, values * penalty)
    logits[rows] = torch.where(seen, penalised, values)


def _ban(logits: Tensor, draws: Sequence[Draw]) -> None:
    rows_of: dict[Tensor, list[int]] = {}  # a tensor's hash is its identity, and few are shared by all
    for row, draw in enumerate(draws):
        if draw.banned is not None:
            rows_of.setdefault(draw.banned, []).append(row)
    for banned, rows in rows_of.items():
        logits[torch.tensor(rows, device=logits.device)[:, None], banned] = -torch.inf


def _choose_ids(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    random = [row for row, draw in enumerate(draws) if draw.sampling.temperature > 0]
    if len(random) == len(draws):
        return _draw(logits, draws)
    ids: list[int] = logits.argmax(-1).tolist()
    if random:
        drawn = _draw(logits[random], [draws[row] for row in random])
        for row, token_id in zip(random, drawn, strict=True):
            ids[row] = token_id
    return ids


def _draw(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """Inverse transform, in the order of ids, over the tokens that each row keeps.

    Top-p, top-k and min-p are each measured on the whole distribution. What is as likely as the last token
    kept is kept too, so that nothing depends on an order among equals.
    """
    temperature, top_p, top_k, min_p, random = zip(
        *(
            (s.temperature, s.top_p, s.top_k, s.min_p, uniform(s.seed, draw.position))
            for draw in draws
            for s in (draw.sampling,)
        ),
        strict=True,
    )
    column = functools.partial(_column, device=logits.device)
    weights = torch.softmax(logits / column(temperature), dim=-1)
    least: list[Tensor] = []
    if min(top_p) < 1:
        least.append(_least_in_nucleus(weights, column(top_p), _CANDIDATES))
    if max(top_k) > 0:
        least.append(_least_of_top(weights, column(top_k)))
    if max(min_p) > 0:
        least.append(weights.amax(-1, keepdim=True) * column(min_p))
    if least:
        weights = torch.where(weights >= functools.reduce(torch.maximum, least), weights, 0)
    upto = weights.cumsum(-1)
    # Below upto's end in spite of rounding, since random is of 24 bits: what is found has a weight.
    place = torch.searchsorted(upto, upto[:, -1:] * column(random), right=True)
    ids: list[int] = place.squeeze(1).tolist()
    return ids


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device)[:, None]


def _least_in_nucleus(probability: Tensor, top_p: Tensor, candidates: int) -> Tensor:
    """The least probability [n, 1] in the smallest set that holds top_p [n, 1] of each row; 0 where that is
    everything. Looks at the likeliest `candidates` first: they mostly hold it.
    """
    vocabulary = probability.shape[1]
    top = torch.topk(probability, min(candidates, vocabulary)).values
    within = top.cumsum(-1) - top < top_p
    least = torch.where(within, top, torch.inf).amin(-1, keepdim=True)
    open_ended = within[:, -1] & (top_p[:, 0] < 1)
    if candidates < vocabulary and open_ended.any():
        least[open_ended] = _least_in_nucleus(probability[open_ended], top_p[open_ended], vocabulary)
    return torch.where(top_p < 1, least, 0)


def _least_of_top(probability: Tensor, top_k: Tensor) -> Tensor:
    """The probability [n, 1] of each row's top_k-th token [n, 1]; 0 where top_k is 0."""
    top = torch.topk(probability, min(int(top_k.max()), probability.shape[1])).values
    least = top.gather(1, (top_k - 1).clamp(0, top.shape[1] - 1))
    return torch.where(top_k > 0, least, 0)


def _report(logprobs: Tensor, chosen: Sequence[int], counts: Sequence[int]) -> list[TokenLogprobs]:
    """logprobs [n, vocab] of rows of which `chosen` were taken and `counts` of the likeliest are wanted."""
    of_chosen = logprobs.gather(1, torch.tensor(chosen, device=logprobs.device)[:, None]).squeeze(1).tolist()
    top = torch.topk(logprobs, min(max(counts), logprobs.shape[1]), dim=-1)
    return [
        TokenLogprobs(own, tuple(zip(ids[:count], values[:count], strict=True)))
        for own, ids, values, count in zip(
            of_chosen, top.indices.tolist(), top.values.tolist(), counts, strict=True
        )
    ]
