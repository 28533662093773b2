"""A model directory loads as it is, or is refused with the name of what is wrong."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kernels import kernels_for
from tests.worker.model.peer import CPU, Driver, load, make_peer, peer_config, prompt
from worker.model.checkpoint import Checkpoint, CheckpointError, load_network
from worker.model.config import ModelConfig
from worker.model.linear import Linear
from worker.model.network import MambaLayer, Network
from worker.model.progress import loading_bar

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    make_peer(peer_config("M*-")).save_pretrained(tmp_path)
    return tmp_path


def rewrite(directory: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    # A new file: the tensors may still be views of the old one.
    (directory / WEIGHTS).unlink()
    save_file(tensors, directory / WEIGHTS, {"format": "pt"})


def logits(network: Network) -> Tensor:
    return Driver(network).step({0: prompt(20, 1)})[0]


def test_both_prefixes_load(directory: Path) -> None:
    before = logits(load(directory))
    assert any(name.startswith("backbone.") for name in load_file(directory / WEIGHTS))

    def rename(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.replace("backbone.", "model.", 1)] = tensors.pop(name)

    rewrite(directory, rename)
    assert torch.equal(logits(load(directory)), before)


def test_shards_load_as_one_file_does(directory: Path, tmp_path: Path) -> None:
    peer = make_peer(peer_config("M*-"))
    peer.save_pretrained(tmp_path / "sharded", max_shard_size="8KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    assert torch.equal(logits(load(tmp_path / "sharded")), logits(load(directory)))


def test_progress_is_told_of_every_tensor(directory: Path) -> None:
    seen: list[tuple[int, int]] = []
    load_network(
        directory,
        ModelConfig.load(directory),
        kernels_for(CPU),
        dtype=torch.float32,
        device=CPU,
        progress=lambda done, total: seen.append((done, total)),
    )
    total = len(load_file(directory / WEIGHTS))
    assert seen == [(done, total) for done in range(1, total + 1)]


def test_a_bf16_model_keeps_the_scans_parameters_and_norms_of_the_file(directory: Path) -> None:
    exact, rounded = load(directory)._layers[0], load(directory, torch.bfloat16)._layers[0]
    assert isinstance(exact, MambaLayer)
    assert isinstance(rounded, MambaLayer)
    for name in ("norm", "a", "d", "dt_bias", "gated_norm"):
        assert torch.equal(getattr(rounded, name), getattr(exact, name))
    assert isinstance(rounded.out_proj, Linear)
    assert rounded.out_proj.weight.dtype == torch.bfloat16


def test_a_missing_tensor_is_named(directory: Path) -> None:
    rewrite(directory, lambda tensors: tensors.__delitem__("backbone.layers.1.mixer.k_proj.weight"))
    with pytest.raises(CheckpointError, match=r"tensor 'layers\.1\.mixer\.k_proj\.weight' is missing"):
        load(directory)


def test_a_bias_that_the_config_promises_must_be_there(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"mlp_bias": True}))
    with pytest.raises(CheckpointError, match=r"tensor 'layers\.2\.mixer\.up_proj\.bias' is missing"):
        load(directory)


def test_a_misshapen_tensor_is_named_with_both_shapes(directory: Path) -> None:
    def cut(tensors: dict[str, Tensor]) -> None:
        tensors["backbone.layers.0.mixer.D"] = torch.ones(5)

    rewrite(directory, cut)
    with pytest.raises(CheckpointError, match=r"tensor 'layers\.0\.mixer\.D' has shape \[5\], not \[8\]"):
        load(directory)


def test_a_tensor_without_a_place_is_named(directory: Path) -> None:
    def add(tensors: dict[str, Tensor]) -> None:
        tensors["backbone.layers.2.mixer.up_proj.weight_scale"] = torch.ones(1)
        tensors["mtp.layers.0.norm.weight"] = torch.ones(1)

    rewrite(directory, add)
    with pytest.raises(CheckpointError, match=r"1 tensors have no place .* 'layers\.2.*weight_scale'"):
        load(directory)


def test_quantised_weights_are_refused(directory: Path) -> None:
    def quantise(tensors: dict[str, Tensor]) -> None:
        name = "backbone.layers.2.mixer.up_proj.weight"
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)

    rewrite(directory, quantise)
    with pytest.raises(CheckpointError, match=r"'layers\.2\.mixer\.up_proj\.weight' is of type .*float8"):
        load(directory)


def test_a_tied_head_may_be_in_the_file_too(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    network = load(directory)
    assert torch.equal(network._head.weight, network._embeddings.t())


@pytest.mark.parametrize("size", [0, 4, 200, -1])
def test_a_truncated_file_is_named(directory: Path, size: int) -> None:
    path = directory / WEIGHTS
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:size])
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS}: not readable as safetensors: "):
        load(directory)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 5000,
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {"a": ["b"]}}',
        '{"weight_map": {}}',
    ],
)
def test_a_broken_index_is_named(directory: Path, text: str) -> None:
    (directory / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=rf"{INDEX}: not an index of shards"):
        load(directory)


def test_missing_shards_are_counted(directory: Path) -> None:
    (directory / INDEX).write_text(
        json.dumps({"weight_map": {"a": WEIGHTS, "b": "x2.safetensors", "c": "x1"}})
    )
    with pytest.raises(CheckpointError, match=r"2 of 3 shards are missing, first 'x1'"):
        Checkpoint(directory, device=CPU)


def test_a_directory_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"{tmp_path.name}: neither {WEIGHTS} nor {INDEX} is there"):
        Checkpoint(tmp_path, device=CPU)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_loading_bar_shows_on_a_terminal_only() -> None:
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        with loading_bar("demo", delay_s=0.0, stream=stream) as show:
            for done in range(1, 4):
                show(done, 3)
    assert "demo" in terminal.getvalue()
    assert file.getvalue() == ""


def test_the_loading_bar_does_not_show_when_loading_is_quick() -> None:
    terminal = Terminal()
    with loading_bar("demo", delay_s=60.0, stream=terminal) as show:
        show(1, 2)
        show(2, 2)
    assert terminal.getvalue().strip() == ""
