"""Tokens are drawn from the distribution that is asked for, by seed and position alone."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
import torch
from torch import Tensor

from tests.kernels.waiting import DEVICE, Watch
from worker.engine.sampling import Draw, Sampling, choose, uniform

VOCABULARY = 12
LOGITS = torch.tensor([2.0, 1.5, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, 1.2])
# χ² of 11 degrees of freedom exceeds this once in 10,000 draws of a right sampler.
CRITICAL = 35.0


def plain_distribution(logits: Tensor, sampling: Sampling) -> list[float]:
    """What `Sampling` promises, one token after another, likeliest first."""
    scaled = [math.exp(value / sampling.temperature) for value in logits.double().tolist()]
    probability = [value / sum(scaled) for value in scaled]
    order = sorted(range(len(probability)), key=lambda i: (-probability[i], i))
    kept, before = [0.0] * len(probability), 0.0
    for rank, i in enumerate(order):
        top_k = sampling.top_k or len(order)
        if before < sampling.top_p and rank < top_k and probability[i] >= sampling.min_p * max(probability):
            kept[i] = probability[i]
        before += probability[i]
    return [value / sum(kept) for value in kept]


def draw_many(sampling: Sampling, draws: int = 20_000) -> Counter[int]:
    rows = LOGITS.expand(draws, -1).clone()
    return Counter(c.token_id for c in choose(rows, [Draw(sampling, n) for n in range(draws)]))


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, seed=1),
        Sampling(temperature=0.6, seed=2),
        Sampling(temperature=2.0, seed=3),
        Sampling(temperature=1.0, top_k=4, seed=4),
        Sampling(temperature=1.0, top_p=0.8, seed=5),
        Sampling(temperature=1.0, min_p=0.2, seed=6),
        Sampling(temperature=0.8, top_p=0.9, top_k=6, min_p=0.1, seed=7),
    ],
)
def test_the_share_of_each_token_is_its_probability(sampling: Sampling) -> None:
    draws = 20_000
    counts, expected = draw_many(sampling, draws), plain_distribution(LOGITS, sampling)
    possible = {token: share for token, share in enumerate(expected) if share}
    assert {token for token, share in possible.items() if share > 0.001} <= set(counts) <= set(possible)
    chi_square = sum((counts[t] - draws * share) ** 2 / (draws * share) for t, share in possible.items())
    assert chi_square < CRITICAL


def test_draws_at_neighbouring_positions_and_seeds_are_independent() -> None:
    pairs = Counter[tuple[int, int]]()
    for seed in range(100):
        numbers = [uniform(seed, position) for position in range(101)]
        pairs.update((int(4 * a), int(4 * b)) for a, b in pairwise(numbers))
        pairs.update((int(4 * uniform(seed, p)), int(4 * uniform(seed + 1, p))) for p in range(100))
    expected = 20_000 / 16
    assert len(pairs) == 16
    assert sum((count - expected) ** 2 / expected for count in pairs.values()) < 45  # 15 degrees, 1 in 10,000


def test_the_generator_never_changes() -> None:
    """A request resumed on a worker of another version goes on identically."""
    assert [uniform(0, 0), uniform(1, 2), uniform((1 << 64) - 1, 131_071)] == [
        0.6524484753608704,
        0.7376992106437683,
        0.005034267902374268,
    ]
    assert uniform(5, 3) == uniform(5 + (1 << 64), 3), "seeds are of 64 bits"
    assert all(0 <= uniform(seed, 9) < 1 for seed in range(1000))


def random_draw(random: Random, vocabulary: int) -> Draw:
    seen = banned = None
    penalty = 1.0
    if random.random() < 0.5:
        penalty = random.choice([1.1, 1.5])
        seen = torch.tensor([random.random() < 0.4 for _ in range(vocabulary)])
    if random.random() < 0.5:
        banned = torch.tensor(sorted(random.sample(range(vocabulary), vocabulary // 3)))
    sampling = Sampling(
        temperature=random.choice([0.0, 0.3, 1.0, 2.0]),
        top_p=random.choice([1.0, 0.9, 0.5]),
        top_k=random.choice([0, 1, 5, 1000]),
        min_p=random.choice([0.0, 0.1]),
        repetition_penalty=penalty,
        seed=random.randrange(1 << 64),
        logprobs=random.choice([None, None, 0, 3, 1000]),
    )
    return Draw(sampling, random.randrange(100_000), banned, seen)


@pytest.mark.parametrize("seed", range(5))
def test_a_row_of_a_mixed_batch_is_chosen_as_it_is_alone(seed: int) -> None:
    random = Random(seed)
    logits = 3 * torch.randn(40, 50, generator=torch.Generator().manual_seed(seed))
    draws = [random_draw(random, 50) for _ in range(40)]
    together = choose(logits.clone(), draws)
    assert together == [choose(logits[n : n + 1].clone(), [draw])[0] for n, draw in enumerate(draws)]
    assert len({choice.token_id for choice in together}) > 10


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_drawn_that_is_banned_or_cut(seed: int) -> None:
    random = Random(seed)
    logits = 3 * torch.randn(50, generator=torch.Generator().manual_seed(seed))
    for _ in range(20):
        draw = random_draw(random, 50)
        values = logits.clone()
        if draw.seen is not None:
            # Keskar et al. 2019, token by token.
            for token in range(50):
                if draw.seen[token]:
                    penalty = draw.sampling.repetition_penalty
                    values[token] = values[token] / penalty if values[token] > 0 else values[token] * penalty
        if draw.banned is not None:
            values[draw.banned] = -torch.inf
        draws = [Draw(draw.sampling, n, draw.banned, draw.seen) for n in range(200)]
        chosen = {choice.token_id for choice in choose(logits.expand(200, -1).clone(), draws)}
        if draw.sampling.temperature == 0:
            assert chosen == {int(values.argmax())}
        else:
            allowed = plain_distribution(values, draw.sampling)
            # A border may fall to either side by rounding; no token here is that close to one.
            assert chosen <= {token for token, share in enumerate(allowed) if share}


def test_a_number_next_to_one_draws_the_last_token_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies behind the allowed tokens must not be reached by rounding."""
    monkeypatch.setattr("worker.engine.sampling.uniform", lambda seed, position: 1 - 2.0**-24)
    for scale in range(80):
        logits = LOGITS * (0.1 + scale / 50)
        draws = [
            Draw(Sampling(temperature=1.0), 0, torch.tensor([3, 11])),
            Draw(Sampling(temperature=1.0, top_k=2), 0),
        ]
        assert [c.token_id for c in choose(logits.repeat(2, 1), draws)] == [10, 2]


def test_what_is_as_likely_as_the_last_token_kept_is_kept_too() -> None:
    """So that no order among equals matters, which differs between devices."""
    for sampling in (
        Sampling(temperature=1.0, top_k=2),
        Sampling(temperature=1.0, top_p=0.4),
        Sampling(temperature=1.0, min_p=0.6),
    ):
        assert set(draw_many(sampling, 500)) == {0, 1, 2}


@pytest.mark.parametrize("top_p", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("top_k", [0, 63, 64, 65, 150, 300])
def test_cuts_that_keep_many_tokens_are_as_exact_as_those_that_keep_few(top_p: float, top_k: int) -> None:
    logits = torch.randn(200, generator=torch.Generator().manual_seed(top_k))
    sampling = Sampling(temperature=1.5, top_p=top_p, top_k=top_k)
    draws = [Draw(sampling, n) for n in range(3000)]
    counts = Counter(c.token_id for c in choose(logits.expand(3000, -1).clone(), draws))
    expected = plain_distribution(logits, sampling)
    assert set(counts) <= {token for token, share in enumerate(expected) if share}
    assert {token for token, share in enumerate(expected) if share > 0.004} <= set(counts)


def test_a_devices_kernel_draws_for_the_rows_that_are_not_greedy() -> None:
    asked = []

    def sample(
        logits: Tensor,
        temperature: Tensor,
        top_p: Tensor | None,
        top_k: Tensor | None,
        min_p: Tensor | None,
        random: Tensor,
    ) -> Tensor:
        asked.append((temperature.tolist(), top_p, top_k, min_p, random.tolist()))
        return torch.full((len(logits),), 7)

    drawn = Sampling(temperature=0.5, top_k=1 << 40, seed=3)
    choices = choose(LOGITS.repeat(2, 1), [Draw(Sampling(), 4), Draw(drawn, 5)], sample)
    assert [choice.token_id for choice in choices] == [0, 7]
    [(temperature, top_p, top_k, min_p, random)] = asked
    assert (temperature, random) == ([0.5], [uniform(3, 5)])
    assert top_k is not None
    assert top_k.tolist() == [VOCABULARY]
    assert top_p is min_p is None, "rules that no row has are not looked for"


def test_greedy_takes_the_first_of_equals() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0]])
    assert choose(logits, [Draw(Sampling(), 0)])[0].token_id == 1


@pytest.mark.parametrize("temperature", [1e-4, 1e-5, 1e-6, 1e-45, 5e-324])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    draws = [Draw(Sampling(temperature=temperature, seed=seed), 5) for seed in range(50)]
    assert {c.token_id for c in choose(LOGITS.expand(50, -1).clone(), draws)} == {0}


@pytest.mark.parametrize("top_p", [5e-324, 1e-40, 1e-9])
def test_a_nucleus_that_holds_next_to_nothing_is_the_likeliest_token(top_p: float) -> None:
    assert set(draw_many(Sampling(temperature=2.0, top_p=top_p), 100)) == {0}


def test_log_probabilities_are_the_models_own() -> None:
    """Before temperature, penalty and bans."""
    seen = torch.ones(VOCABULARY, dtype=torch.bool)
    sampling = Sampling(temperature=0.5, repetition_penalty=1.5, top_k=3, seed=1, logprobs=4)
    expected = torch.log_softmax(LOGITS.double(), -1)
    for position in range(20):
        [choice] = choose(LOGITS[None].clone(), [Draw(sampling, position, torch.tensor([0]), seen)])
        assert choice.token_id != 0
        assert choice.logprobs is not None
        assert choice.logprobs.chosen == pytest.approx(float(expected[choice.token_id]), abs=1e-5)
        ids, values = zip(*choice.logprobs.top, strict=True)
        assert ids[0] == 0
        assert set(ids) == {0, 1, 2, 11}
        assert values == pytest.approx(sorted(expected.tolist(), reverse=True)[:4], abs=1e-5)


def test_log_probabilities_of_the_chosen_alone_can_be_had() -> None:
    [choice] = choose(LOGITS[None].clone(), [Draw(Sampling(logprobs=0), 0)])
    assert choice.logprobs is not None
    assert choice.logprobs.top == ()


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"logprobs": -1},
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        Sampling(**values)  # type: ignore[arg-type]  # each is of its field's type


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_what_is_allowed_is_chosen_and_the_other_rows_do_not_notice(temperature: float) -> None:
    allowed = torch.zeros(VOCABULARY, dtype=torch.bool)
    allowed[[9, 10]] = True
    sampling = Sampling(temperature=temperature, top_p=0.9, seed=3)
    seen = torch.ones(VOCABULARY, dtype=torch.bool)
    punished = Sampling(temperature=temperature, repetition_penalty=1.5, seed=3)
    draws = [
        draw
        for position in range(50)
        for draw in (
            Draw(sampling, position, allowed=allowed),
            Draw(sampling, position),
            Draw(punished, position, seen=seen, allowed=allowed),
        )
    ]
    chosen = [choice.token_id for choice in choose(LOGITS.expand(len(draws), -1).clone(), draws)]
    alone = choose(LOGITS.expand(50, -1).clone(), draws[1::3])
    assert set(chosen[0::3]) | set(chosen[2::3]) <= {9, 10}
    assert chosen[1::3] == [choice.token_id for choice in alone]
    assert bool(allowed[9])  # the mask is the grammar's, and stays as it was


def test_a_device_is_waited_for_only_when_all_is_launched() -> None:
    """So that it goes on from the logits to the tokens without a pause."""
    logits = torch.empty(6, VOCABULARY, device=DEVICE)
    banned, seen = torch.empty(2, dtype=torch.long, device=DEVICE), torch.empty(VOCABULARY, device=DEVICE) > 0
    warm = Sampling(temperature=0.6, top_p=0.9, top_k=5, min_p=0.1)
    draws = [
        Draw(warm, 0),
        Draw(Sampling(), 1, banned),
        Draw(Sampling(logprobs=2), 2),
        Draw(replace(warm, repetition_penalty=1.2, logprobs=3), 3, banned, seen),
        Draw(Sampling(repetition_penalty=1.2), 4, seen=seen),
        Draw(warm, 5, allowed=torch.ones(VOCABULARY, dtype=torch.bool)),
    ]

    def sample(logits: Tensor, *rules: Tensor | None) -> Tensor:
        assert all(rule is not None and rule.device == DEVICE for rule in rules)
        return torch.empty(len(logits), dtype=torch.long, device=DEVICE)

    for some in (draws, draws[1:2], draws[:1]):
        with Watch() as watch:
            assert len(choose(logits[: len(some)], some, sample)) == len(some)
        assert set(watch.waits) == {"tolist"}
        assert watch.late == []
    assert watch.waits == ["tolist"]
