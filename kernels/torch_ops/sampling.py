"""The choice of one token from each row of logits."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

# Of a trained model's distribution at usual settings, the tokens that matter are far fewer.
_CANDIDATES = 64


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_p: Tensor | None,
    top_k: Tensor | None,
    min_p: Tensor | None,
    random: Tensor,
) -> Tensor:
    """Chooses by inverse transform, in the order of ids, among the tokens that each row keeps.

    logits [n, vocab], fp32, of which one at least is finite in each row. All others [n], fp32: temperature,
    at least 1e-5; top_p in (0, 1]; top_k, whole numbers, 0 for all; min_p in [0, 1]; random in [0, 1),
    multiples of 2^-24. A rule is None where no row has it. Returns ids [n], int64.

    Top-p, top-k and min-p are each measured on the whole distribution. What is as likely as the last token
    kept is kept too, so that nothing depends on an order among equals. Implementations choose the same for
    the same numbers, but where a sum of probabilities falls within rounding of a border: of the nucleus, or
    of two neighbours of which `random` takes one.
    """
    weights = torch.softmax(logits / temperature[:, None], dim=-1)
    least: list[Tensor] = []
    if top_p is not None:
        least.append(_least_in_nucleus(weights, top_p[:, None], _CANDIDATES))
    if top_k is not None:
        least.append(_least_of_top(weights, top_k[:, None]))
    if min_p is not None:
        least.append(weights.amax(-1, keepdim=True) * min_p[:, None])
    if least:
        weights = torch.where(weights >= functools.reduce(torch.maximum, least), weights, 0)
    upto = weights.cumsum(-1)
    # Below upto's end in spite of rounding, since random is of 24 bits: what is found has a weight.
    return torch.searchsorted(upto, upto[:, -1:] * random[:, None], right=True).squeeze(1)


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
    least = top.gather(1, (top_k.long() - 1).clamp(0, top.shape[1] - 1))
    return torch.where(top_k > 0, least, 0)
