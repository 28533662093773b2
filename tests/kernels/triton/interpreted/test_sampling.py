"""The choice of tokens without sorting, interpreted, against the twin that sorts and against float64."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest
import torch
from torch import Tensor

from kernels import Kernels, kernels_for
from kernels.triton_ops import sampling

CPU = torch.device("cpu")
TRITON, TWIN = kernels_for(CPU, "triton"), kernels_for(CPU, "torch")
# Shares of the mass: what rounding in fp32 may move.
ROUNDING = 1e-5


@pytest.fixture(autouse=True)
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that few logits are several parts."""
    monkeypatch.setattr(sampling, "_PART", 64)


@dataclass(frozen=True)
class Row:
    """How one token is to be chosen."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    random: float = 0.5


def choose(kernels: Kernels, logits: Tensor, rows: list[Row]) -> list[int]:
    temperature, top_p, top_k, min_p, random = (
        torch.tensor([[r.temperature, r.top_p, r.top_k, r.min_p, r.random] for r in rows]).t().contiguous()
    )
    ids: list[int] = kernels.sample(
        logits,
        temperature,
        top_p if min(r.top_p for r in rows) < 1 else None,
        top_k if max(r.top_k for r in rows) else None,
        min_p if max(r.min_p for r in rows) else None,
        random,
    ).tolist()
    return ids


def expected(logits: Tensor, row: Row) -> tuple[int, float]:
    """The token by sorting, in float64, and how near a border lies, as a share of the mass."""
    probability = torch.softmax(logits.double() / row.temperature, -1)
    order = sorted(range(len(logits)), key=lambda i: (-float(probability[i]), i))
    kept, before, margin = [], 0.0, 1.0
    least = 0.0
    for rank, token in enumerate(order):
        share = float(probability[token])
        if row.top_p < 1:
            margin = min(margin, abs(before - row.top_p))
        if before < row.top_p and (row.top_k == 0 or rank < row.top_k):
            least = share
        before += share
    least = max(least, row.min_p * float(probability.max()))
    kept = [float(p) if float(p) >= least else 0.0 for p in probability]
    target, upto, found = row.random * sum(kept), 0.0, None
    for token, share in enumerate(kept):
        upto += share
        margin = min(margin, abs(upto - target) / sum(kept))
        if found is None and upto > target:
            found = token
    assert found is not None
    return found, margin


def random_rows(seed: int, count: int) -> list[Row]:
    draw = Random(seed)
    return [
        Row(
            temperature=draw.choice([0.3, 0.6, 1.0, 2.0]),
            top_p=draw.choice([1.0, 0.95, 0.5, 0.1]),
            top_k=draw.choice([0, 1, 5, 50, 1000]),
            min_p=draw.choice([0.0, 0.0, 0.05]),
            random=draw.randrange(1 << 24) / (1 << 24),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("vocabulary", [7, 150])
def test_the_token_is_that_of_a_sort(vocabulary: int, seed: int) -> None:
    rows = random_rows(seed, 5)
    logits = 3 * torch.randn(5, vocabulary + 3, generator=torch.Generator().manual_seed(seed))[:, 3:]
    got, twin = choose(TRITON, logits, rows), choose(TWIN, logits, rows)
    compared = 0
    for n, row in enumerate(rows):
        token, margin = expected(logits[n], row)
        if margin > ROUNDING:
            compared += 1
            assert got[n] == twin[n] == token, (row, margin)
    assert compared >= 4


@pytest.mark.parametrize(
    "rule", [Row(), Row(top_p=0.8), Row(top_k=3), Row(min_p=0.3)], ids=["none", "top_p", "top_k", "min_p"]
)
def test_each_rule_alone(rule: Row) -> None:
    logits = 2 * torch.randn(1, 130, generator=torch.Generator().manual_seed(3))
    for random in (0.3, 1 - 2.0**-24):
        row = Row(rule.temperature, rule.top_p, rule.top_k, rule.min_p, random)
        token, margin = expected(logits[0], row)
        assert choose(TRITON, logits, [row]) == [token] or margin < ROUNDING


def test_what_is_as_likely_as_the_last_token_kept_is_kept_too() -> None:
    logits = torch.full((4, 100), -4.0)
    logits[:, [3, 70, 99]] = torch.tensor([2.0, 1.0, 1.0])
    last = 1 - 2.0**-24
    rows = [
        Row(top_k=2, random=last),
        Row(top_p=0.6, random=last),
        Row(min_p=0.3, random=last),
        Row(top_k=1, random=last),
    ]
    assert choose(TRITON, logits, rows) == choose(TWIN, logits, rows) == [99, 99, 99, 3]


def test_banned_tokens_and_whole_banned_parts_are_never_chosen() -> None:
    logits = torch.full((3, 200), -torch.inf)
    logits[:, 130] = 0.5
    logits[1:, 140] = 0.5
    rows = [Row(top_p=0.9), Row(random=0.0), Row(top_k=5, random=1 - 2.0**-24)]
    assert choose(TRITON, logits, rows) == choose(TWIN, logits, rows) == [130, 130, 140]


def test_logits_of_any_size_and_a_temperature_near_zero_stay_finite() -> None:
    logits = torch.tensor([[0.0, 3e4, -3e4, 2.9e4]]).repeat(3, 1)
    rows = [Row(temperature=1e-5, top_p=0.5), Row(temperature=1e-5), Row(temperature=1e5, random=0.0)]
    assert choose(TRITON, logits, rows) == choose(TWIN, logits, rows) == [1, 1, 0]


def test_a_row_is_chosen_in_a_batch_as_alone() -> None:
    rows = random_rows(9, 4)
    logits = torch.randn(4, 100, generator=torch.Generator().manual_seed(9))
    # Alone, rules that it does not have are not looked for.
    assert choose(TRITON, logits, rows) == [
        choose(TRITON, logits[n : n + 1], [row])[0] for n, row in enumerate(rows)
    ]
