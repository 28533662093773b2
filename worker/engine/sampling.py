"""Chooses the next token of every sequence of a step at once.

The choice is counter-based: its randomness is a hash of (seed, position), so that a request's tokens depend
neither on its batch nor on the worker, and a request resumed elsewhere goes on identically.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels import torch_ops
from kernels.transfer import send, send_numbers

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

    Everything is launched before it waits for anything, while the device still computes the logits.
    """
    device = logits.device
    reported = [row for row, draw in enumerate(draws) if draw.sampling.logprobs is not None]
    if reported:
        reported_rows = send_numbers(reported, device)
        model_logprobs = torch.log_softmax(logits.index_select(0, reported_rows), dim=-1)
    _penalise(logits, draws)
    _ban(logits, draws)
    _restrict(logits, draws)
    ids = _choose_ids(logits, draws, sample)
    if not reported:
        return [Choice(token_id) for token_id in ids.tolist()]
    reports = _report(
        model_logprobs,
        ids.index_select(0, reported_rows),
        [draws[row].sampling.logprobs or 0 for row in reported],
    )
    of_row = dict(zip(reported, reports, strict=True))
    return [Choice(token_id, of_row.get(row)) for row, token_id in enumerate(ids.tolist())]


def _penalise(logits: Tensor, draws: Sequence[Draw]) -> None:
    """Keskar et al. 2019: positive logits of seen tokens are divided, negative ones multiplied."""
    found = [row for row, draw in enumerate(draws) if draw.seen is not None]
    if not found:
        return
    rows = send_numbers(found, logits.device)
    values = logits.index_select(0, rows)
    seen = torch.stack([draw.seen for draw in draws if draw.seen is not None])
    penalty = torch.tensor([[draws[row].sampling.repetition_penalty] for row in found])
    penalty = send(penalty, logits.device)
    penalised = torch.where(values > 0, values / penalty, values * penalty)
    logits.index_copy_(0, rows, torch.where(seen, penalised, values))


def _ban(logits: Tensor, draws: Sequence[Draw]) -> None:
    rows_of: dict[Tensor, list[int]] = {}  # a tensor's hash is its identity, and few are shared by all
    for row, draw in enumerate(draws):
        if draw.banned is not None:
            rows_of.setdefault(draw.banned, []).append(row)
    for banned, rows in rows_of.items():
        # A plain number would be copied to the device, and waited for.
        never = logits.new_full((), -torch.inf)
        logits.index_put_((send_numbers(rows, logits.device)[:, None], banned), never)


def _restrict(logits: Tensor, draws: Sequence[Draw]) -> None:
    rows = [row for row, draw in enumerate(draws) if draw.allowed is not None]
    if not rows:
        return
    # All go to the device at once; there each row is masked where it lies.
    allowed = torch.stack([draw.allowed for draw in draws if draw.allowed is not None])
    for row, banned in zip(rows, send(allowed.logical_not_(), logits.device), strict=True):
        logits[row].masked_fill_(banned, -torch.inf)


def _choose_ids(logits: Tensor, draws: Sequence[Draw], sample: Sample) -> Tensor:
    """Ids [n], on the device."""
    random = [row for row, draw in enumerate(draws) if draw.sampling.temperature >= _LEAST_TEMPERATURE]
    if len(random) == len(draws):
        return _draw(logits, draws, sample)
    ids = logits.argmax(-1)
    if random:
        rows = send_numbers(random, logits.device)
        drawn = _draw(logits.index_select(0, rows), [draws[row] for row in random], sample)
        ids.index_copy_(0, rows, drawn)
    return ids


def _draw(logits: Tensor, draws: Sequence[Draw], sample: Sample) -> Tensor:
    """Ids [n], on the device."""
    rules: list[list[float]] = [
        [draw.sampling.temperature for draw in draws],
        [max(draw.sampling.top_p, _LEAST_TOP_P) for draw in draws],
        [min(draw.sampling.top_k, logits.shape[1]) for draw in draws],
        [draw.sampling.min_p for draw in draws],
        [uniform(draw.sampling.seed, draw.position) for draw in draws],
    ]
    # By way of NumPy, which reads lists several times as fast.
    packed = torch.from_numpy(np.array(rules, dtype=np.float32))
    temperature, top_p, top_k, min_p, random = send(packed, logits.device).unbind()
    return sample(
        logits,
        temperature,
        top_p if min(rules[1]) < 1 else None,
        top_k if max(rules[2]) > 0 else None,
        min_p if max(rules[3]) > 0 else None,
        random,
    )


def _report(logprobs: Tensor, chosen: Tensor, counts: Sequence[int]) -> list[TokenLogprobs]:
    """logprobs [n, vocab] of rows of which `chosen` [n] were taken and `counts` of the likeliest are
    wanted.
    """
    of_chosen = logprobs.gather(1, chosen[:, None]).squeeze(1)
    top = torch.topk(logprobs, min(max(counts), logprobs.shape[1]), dim=-1)
    return [
        TokenLogprobs(own, tuple(zip(ids[:count], values[:count], strict=True)))
        for own, ids, values, count in zip(
            of_chosen.tolist(), top.indices.tolist(), top.values.tolist(), counts, strict=True
        )
    ]
