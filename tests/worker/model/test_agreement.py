"""The network computes what transformers' nemotron_h computes."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import torch
from torch import nn
from transformers import DynamicCache, NemotronHConfig, NemotronHForCausalLM

from kernels import kernels_for
from tests.worker.model.peer import (
    CPU,
    Driver,
    difference,
    load,
    make_peer,
    peer_config,
    peer_logits,
    prompt,
    random_peer_config,
)
from worker.model.config import ModelConfig
from worker.model.network import Network

TOLERANCE = 1e-4

Pair = tuple[NemotronHForCausalLM, Network]


def pair(config: NemotronHConfig, directory: Path) -> Pair:
    peer = make_peer(config)
    peer.save_pretrained(directory)
    return peer, load(directory)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair(peer_config("M-M*-M*"), tmp_path_factory.mktemp("usual"))


@pytest.mark.parametrize("seed", range(12))
def test_random_models_agree_in_prefill_pieces_and_decode(seed: int, tmp_path: Path) -> None:
    random = Random(seed)
    peer, network = pair(random_peer_config(random), tmp_path)
    ids = prompt(50, seed)
    expected = peer_logits(peer, ids)
    whole = Driver(network).step({0: ids})[0]
    assert difference(whole, expected) < TOLERANCE
    driver, got, at = Driver(network), [], 0
    while at < len(ids):
        length = random.choice([1, 1, 1, 2, 5, 11, 19])
        got.append(driver.step({0: ids[at : at + length]})[0])
        at += length
    assert difference(torch.cat(got), expected) < TOLERANCE


@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("conv_bias", [False, True])
@pytest.mark.parametrize("linear_biases", [False, True])
def test_groups_and_biases(groups: int, conv_bias: bool, linear_biases: bool, tmp_path: Path) -> None:
    config = peer_config(
        "*-MM",
        n_groups=groups,
        use_conv_bias=conv_bias,
        use_bias=linear_biases,
        mlp_bias=linear_biases,
        attention_bias=linear_biases,
    )
    peer, network = pair(config, tmp_path)
    ids = prompt(30, groups)
    driver = Driver(network)
    got = torch.cat([driver.step({0: part})[0] for part in (ids[:21], ids[21:29], ids[29:])])
    assert difference(got, peer_logits(peer, ids)) < TOLERANCE


@pytest.mark.parametrize("pattern", ["M", "-", "*", "**", "MM", "-*M", "MMMM-"])
def test_patterns_of_any_order(pattern: str, tmp_path: Path) -> None:
    peer, network = pair(peer_config(pattern), tmp_path)
    ids = prompt(20, 1)
    driver = Driver(network)
    got = torch.cat([driver.step({0: part})[0] for part in (ids[:18], ids[18:19], ids[19:])])
    assert difference(got, peer_logits(peer, ids)) < TOLERANCE


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 8, 9, 16, 23, 29])
def test_a_prompt_may_be_cut_anywhere(cut: int, usual: Pair) -> None:
    peer, network = usual
    ids = prompt(30, cut)
    driver = Driver(network)
    got = torch.cat([driver.step({0: part})[0] for part in (ids[:cut], ids[cut:])])
    assert difference(got, peer_logits(peer, ids)) < TOLERANCE


def test_decode_agrees_with_the_peers_own_cached_decode(usual: Pair) -> None:
    peer, network = usual
    ids = prompt(40, 3)
    cache = DynamicCache(config=peer.config)
    driver = Driver(network)
    with torch.inference_mode():
        expected = [peer(torch.tensor([ids[:20]]), past_key_values=cache, use_cache=True).logits[0]]
        for token in ids[20:]:
            expected.append(peer(torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits[0])
    got = [driver.step({0: ids[:20]})[0], *(driver.step({0: [token]})[0] for token in ids[20:])]
    assert difference(torch.cat(got), torch.cat(expected)) < TOLERANCE


@pytest.mark.parametrize("seed", range(4))
def test_sequences_mixed_in_a_step_do_not_see_each_other(seed: int, usual: Pair) -> None:
    peer, network = usual
    random = Random(seed)
    prompts = [prompt(length, seed * 10 + length) for length in (33, 70, 5, 48)]
    driver = Driver(network)
    parts: list[list[torch.Tensor]] = [[] for _ in prompts]
    while any(driver.lengths[n] < len(ids) for n, ids in enumerate(prompts)):
        pieces = {}
        for n, ids in enumerate(prompts):
            start = driver.lengths[n]
            if start < len(ids) and random.random() < 0.8:
                pieces[n] = ids[start : start + random.choice([1, 1, 3, 8, 20])]
        if pieces:
            for n, logits in driver.step(pieces).items():
                parts[n].append(logits)
    for ids, got in zip(prompts, parts, strict=True):
        assert difference(torch.cat(got), peer_logits(peer, ids)) < TOLERANCE


def test_a_slot_and_its_copy_go_on_alike_and_a_cleared_slot_starts_anew(usual: Pair) -> None:
    _, network = usual
    driver = Driver(network)
    ids = prompt(20, 5)
    first = driver.step({0: ids})[0]
    driver.pools.copy_slot(driver.sequences, driver.sequences - 1)
    driver.lengths[1], driver.pages[1] = driver.lengths[0], list(driver.pages[0])
    driver.pages[1][2] = driver.pages[1][-1]  # the page that is written next, in part full
    for pool in (*driver.pools.keys, *driver.pools.values):
        pool[driver.pages[1][2]] = pool[driver.pages[0][2]]
    both = driver.step({0: [7], 1: [7]})
    assert torch.allclose(both[0], both[1], atol=1e-5)
    driver.pools.clear_slot(driver.sequences)
    driver.lengths[0] = 0
    assert torch.equal(driver.step({0: ids})[0], first)


def test_gradients_are_the_peers() -> None:
    """The demo model is trained with the network that is served."""
    peer = make_peer(peer_config("M-*M", use_bias=True, mlp_bias=True, use_conv_bias=True))
    ids = prompt(21, 6)
    targets = torch.tensor(ids[1:])
    loss = nn.functional.cross_entropy(peer(torch.tensor([ids[:-1]]), use_cache=False).logits[0], targets)
    loss.backward()
    parameters = {
        name.removeprefix("model."): p.detach().clone().requires_grad_()
        for name, p in peer.named_parameters()
    }
    config = ModelConfig.parse(peer.config.to_dict())
    network = Network(config, lambda name, *shape: parameters[name], kernels_for(CPU))
    logits = Driver(network).logits({0: ids[:-1]})[0]
    nn.functional.cross_entropy(logits, targets).backward()
    for name, expected in peer.named_parameters():
        got = parameters[name.removeprefix("model.")].grad
        assert got is not None, name
        assert expected.grad is not None, name
        assert difference(got, expected.grad) < TOLERANCE, name


def test_tied_embeddings(tmp_path: Path) -> None:
    peer = make_peer(peer_config("M*-"))
    peer.lm_head.weight = nn.Parameter(peer.model.embeddings.weight.detach().clone())
    peer.config.tie_word_embeddings = True
    state = {name: t for name, t in peer.state_dict().items() if name != "lm_head.weight"}
    peer.save_pretrained(tmp_path, state_dict=state)
    ids = prompt(20, 1)
    assert difference(Driver(load(tmp_path)).step({0: ids})[0], peer_logits(peer, ids)) < TOLERANCE


def test_bfloat16(tmp_path: Path) -> None:
    peer = make_peer(peer_config("M-M*-")).bfloat16()
    peer.save_pretrained(tmp_path)
    ids = prompt(40, 2)
    network = load(tmp_path, torch.bfloat16)
    assert network.dtype == torch.bfloat16
    driver = Driver(network)
    got = torch.cat([driver.step({0: part})[0] for part in (ids[:21], ids[21:38], ids[38:39], ids[39:])])
    assert got.dtype == torch.float32
    # Against the same weights in fp32: eight bits of mantissa, through five layers.
    assert difference(got, peer_logits(peer.float(), ids)) < 0.05


def test_old_spellings_mean_the_same_as_new_ones(tmp_path: Path) -> None:
    peer = make_peer(peer_config("M-*M"))
    peer.save_pretrained(tmp_path)
    ids = prompt(25, 4)
    new = Driver(load(tmp_path)).step({0: ids})[0]
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    del raw["layers_block_type"]
    raw |= {"hybrid_override_pattern": "M-*M", "time_step_limit": [0.0, float("inf")]}
    for old, name in (
        ("mamba_n_groups", "n_groups"),
        ("mamba_d_conv", "conv_kernel"),
        ("mamba_chunk_size", "chunk_size"),
        ("mamba_conv_bias", "use_conv_bias"),
        ("mamba_d_state", "ssm_state_size"),
        ("attention_head_dim", "head_dim"),
        ("rms_norm_eps", "layer_norm_epsilon"),
    ):
        raw[old] = raw.pop(name)
    path.write_text(json.dumps(raw))
    assert "Infinity" in path.read_text()
    assert torch.equal(Driver(load(tmp_path)).step({0: ids})[0], new)
