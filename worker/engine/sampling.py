"""Chooses the next token of every sequence of a step at once.

The choice is counter-based: its randomness is a hash of (seed, position), so that a request's tokens depend
neither on its batch nor on the worker, and a request resumed elsewhere goes on identically.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import torch_ops

_MASK = (1 << 64) - 1
# Below it the likeliest token is taken: others are drawn only when they differ by less than their rounding.
_LEAST_TEMPERATURE = 1e-5
# Of any vocabulary the likeliest token has more; in fp32 a number may be 0 that is not.
_LEAST_TOP_P = 1e-7

Sample = Callable[[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor], Tensor]
"""See `kernels.torch_ops.sampling`."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a request's tokens are chosen. Raises ValueError for a number out of range."""

    temperature: float = 0.0
    """0, or less than 1e-5, takes the likeliest token."""
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
    [k]. seen [vocab]: which tokens the sequence has, for the repetition penalty; None without one. allowed
    [vocab], on the CPU: which tokens may be chosen, at least one; None for all.
    """

    sampling: Sampling
    position: int
    banned: Tensor | None = None
    seen: Tensor | None = None
    allowed: Tensor | None = None


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


def choose(logits: Tensor, draws: Sequence[Draw], sample: Sample = torch_ops.sample) -> list[Choice]:
    """Chooses one token for each row of logits [n, vocab], fp32, which it may overwrite. sample: the kernel
    that draws.
    """
    reported = [row for row, draw in enumerate(draws) if draw.sampling.logprobs is not None]
    model_logprobs = torch.log_softmax(logits[reported], dim=-1) if reported else None
    _penalise(logits, draws)
    _ban(logits, draws)
    _restrict(logits, draws)
    ids = _choose_ids(logits, draws, sample)
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


def _restrict(logits: Tensor, draws: Sequence[Draw]) -> None:
    rows = [row for row, draw in enumerate(draws) if draw.allowed is not None]
    if not rows:
        return
    # All go to the device at once; there each row is masked where it lies.
    allowed = torch.stack([draw.allowed for draw in draws if draw.allowed is not None])
    for row, banned in zip(rows, allowed.logical_not_().to(logits.device), strict=True):
        logits[row].masked_fill_(banned, -torch.inf)


def _choose_ids(logits: Tensor, draws: Sequence[Draw], sample: Sample) -> list[int]:
    random = [row for row, draw in enumerate(draws) if draw.sampling.temperature >= _LEAST_TEMPERATURE]
    if len(random) == len(draws):
        return _draw(logits, draws, sample)
    ids: list[int] = logits.argmax(-1).tolist()
    if random:
        drawn = _draw(logits[random], [draws[row] for row in random], sample)
        for row, token_id in zip(random, drawn, strict=True):
            ids[row] = token_id
    return ids


def _draw(logits: Tensor, draws: Sequence[Draw], sample: Sample) -> list[int]:
    temperature, top_p, top_k, min_p, random = zip(
        *(
            (
                s.temperature,
                max(s.top_p, _LEAST_TOP_P),
                min(s.top_k, logits.shape[1]),
                s.min_p,
                uniform(s.seed, draw.position),
            )
            for draw in draws
            for s in (draw.sampling,)
        ),
        strict=True,
    )
    # One tensor, since each takes its time on the way to a device.
    rules = torch.tensor([temperature, top_p, top_k, min_p, random], device=logits.device).unbind()
    ids: list[int] = sample(
        logits,
        rules[0],
        rules[1] if min(top_p) < 1 else None,
        rules[2] if max(top_k) > 0 else None,
        rules[3] if max(min_p) > 0 else None,
        rules[4],
    ).tolist()
    return ids


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
