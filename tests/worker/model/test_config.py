"""A config.json of any age is understood, or refused with the key and its value."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.gpu.published import HYBRID_9B
from worker.model.config import LayerKind, ModelConfig, UnsupportedModelError


def test_nano_9b() -> None:
    config = ModelConfig.parse(HYBRID_9B)
    assert [config.count(kind) for kind in (LayerKind.MAMBA, LayerKind.MLP, LayerKind.ATTENTION)] == [
        27,
        25,
        4,
    ]
    assert config.inner_size == 10240  # not expand × hidden_size
    assert config.conv_size == 12288
    assert config.time_step_limit == (0.0, math.inf)
    assert (config.conv_bias, config.mamba_bias, config.attention_bias, config.mlp_bias) == (
        True,
        *[False] * 3,
    )
    assert config.end_token_ids == (12,)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"hybrid_override_pattern": "M*-"}, {"layers_block_type": ["mamba", "attention", "mlp"]}),
        (
            {"hybrid_override_pattern": "M*-"},
            {"layers_block_type": ["linear_attention", "full_attention", "mlp"]},
        ),
        ({"hybrid_override_pattern": "M*-"}, {"layer_types": ["mamba2", "attention", "mlp"]}),
        ({"mamba_n_groups": 4}, {"n_groups": 4}),
        ({"mamba_d_conv": 3}, {"conv_kernel": 3}),
        ({"mamba_d_state": 16}, {"ssm_state_size": 16}),
        ({"mamba_chunk_size": 64}, {"chunk_size": 64}),
        ({"mamba_conv_bias": False}, {"use_conv_bias": False}),
        ({"attention_head_dim": 64}, {"head_dim": 64}),
        ({"rms_norm_eps": 1e-6}, {"layer_norm_epsilon": 1e-6}),
        ({"mamba_dt_limit": [0.1, 2.0]}, {"time_step_limit": [0.1, 2.0]}),
        ({"time_step_limit": [0, math.inf]}, {"time_step_limit": [0, {"__float__": "Infinity"}]}),
        ({"eos_token_id": 2}, {"eos_token_id": [2]}),
        ({"num_key_value_heads": None}, {"num_key_value_heads": 40}),
    ],
)
def test_two_spellings_of_one_thing(old: dict[str, object], new: dict[str, object]) -> None:
    names = {
        "hybrid_override_pattern", "n_groups", "conv_kernel", "ssm_state_size", "chunk_size", "use_conv_bias",
        "head_dim", "layer_norm_epsilon", "time_step_limit",
    }  # fmt: skip
    # Keys that a spelling replaces are left out, so that the other one has to be read.
    base = {key: value for key, value in HYBRID_9B.items() if key not in names}
    full = {key: value for key, value in HYBRID_9B.items() if key in names}

    def read(spelling: dict[str, object]) -> ModelConfig:
        replaced = {key for pair in (old, new) for key in pair}
        replaced |= {"hybrid_override_pattern"} if replaced & {"layers_block_type", "layer_types"} else set()
        return ModelConfig.parse(base | {k: v for k, v in full.items() if k not in replaced} | spelling)

    assert read(old) == read(new)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type 'llama': this worker runs nemotron_h"),
        (
            {"hybrid_override_pattern": "MEM*E-"},
            "2 of 6 layers are mixtures of experts, which are not supported yet",
        ),
        (
            {"layers_block_type": ["mamba", "moe"]},
            "1 of 2 layers are mixtures of experts, which are not supported yet",
        ),
        ({"hybrid_override_pattern": "MX"}, "unknown kind of layer 'X'"),
        ({"layers_block_type": ["mamba", 3]}, "unknown kind of layer 3"),
        ({"hybrid_override_pattern": ""}, "the layer pattern is empty"),
        ({"hybrid_override_pattern": 7}, "hybrid_override_pattern or layers_block_type is needed, not 7"),
        (
            {"hybrid_override_pattern": None},
            "hybrid_override_pattern or layers_block_type is needed, not None",
        ),
        ({"mlp_hidden_act": "silu"}, "mlp_hidden_act 'silu' is not supported: only 'relu2' is"),
        ({"mamba_hidden_act": "gelu"}, "mamba_hidden_act 'gelu' is not supported: only 'silu' is"),
        ({"sliding_window": 4096}, "sliding_window 4096 is not supported: only None is"),
        ({"residual_in_fp32": True}, "residual_in_fp32 True is not supported: only False is"),
        ({"hidden_size": 0}, "hidden_size must be a whole number of at least 1, not 0"),
        ({"hidden_size": True}, "hidden_size must be a whole number of at least 1, not True"),
        ({"vocab_size": "many"}, "vocab_size must be a whole number of at least 1, not 'many'"),
        ({"head_dim": None}, "head_dim must be a whole number of at least 1, not None"),
        ({"mlp_bias": "no"}, "mlp_bias must be true or false, not 'no'"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon must be a positive number, not 0"),
        ({"layer_norm_epsilon": 10**400}, f"layer_norm_epsilon must be a positive number, not {10**400}"),
        ({"mamba_num_heads": 12}, "mamba_num_heads 12 is not a multiple of n_groups 8"),
        (
            {"num_attention_heads": 41},
            "num_attention_heads 41 is not a multiple of num_key_value_heads 8",
        ),
        ({"time_step_limit": [2, 1]}, "time_step_limit must be two numbers, the smaller first, not [2, 1]"),
        (
            {"time_step_limit": [0, 10**400]},
            f"time_step_limit must be two numbers, the smaller first, not [0, {10**400}]",
        ),
        (
            {"time_step_limit": [0, {"__float__": "?"}]},
            "time_step_limit must be two numbers, the smaller first, not [0, {'__float__': '?'}]",
        ),
        ({"time_step_limit": "0"}, "time_step_limit must be two numbers, the smaller first, not '0'"),
        ({"eos_token_id": [2, "x"]}, "eos_token_id must be a token id or a list of them, not [2, 'x']"),
    ],
)
def test_what_is_not_supported_is_refused_by_key_and_value(change: dict[str, object], message: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        ModelConfig.parse(HYBRID_9B | change)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[" * 5000, "not JSON"),
        ("[]", "an object is needed, not list"),
        ("{}", "mamba_num_heads must be a whole number of at least 1, not None"),
        ('{"model_type": "gpt2"}', "model_type 'gpt2'"),
    ],
)
def test_a_bad_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UnsupportedModelError) as caught:
        ModelConfig.load(tmp_path)
    assert str(caught.value).startswith(f"{path}: {message}")
