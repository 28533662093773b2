"""Configurations as they were published, for what needs a real model's sizes and none of its weights."""

from __future__ import annotations

import math

# NVIDIA-Nemotron-Nano-9B-v2: an old spelling, with a bare Infinity.
HYBRID_9B: dict[str, object] = {
    "model_type": "nemotron_h",
    "vocab_size": 131072,
    "hidden_size": 4480,
    "hybrid_override_pattern": "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-",
    "num_hidden_layers": 56,
    "intermediate_size": 15680,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "mamba_num_heads": 128,
    "mamba_head_dim": 80,
    "ssm_state_size": 128,
    "n_groups": 8,
    "conv_kernel": 4,
    "chunk_size": 128,
    "expand": 2,
    "use_bias": False,
    "use_conv_bias": True,
    "mlp_bias": False,
    "attention_bias": False,
    "mamba_hidden_act": "silu",
    "mlp_hidden_act": "relu2",
    "time_step_limit": [0.0, math.inf],
    "layer_norm_epsilon": 1e-5,
    "residual_in_fp32": False,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "max_position_embeddings": 131072,
    "eos_token_id": 12,
}
# NVIDIA-Nemotron-Nano-12B-v2 and -3-Nano-4B: the published counts of each kind of layer; their order changes
# no size.
HYBRID_12B = HYBRID_9B | {
    "hybrid_override_pattern": "M" * 28 + "-" * 28 + "*" * 6,
    "num_hidden_layers": 62,
    "hidden_size": 5120,
    "intermediate_size": 20480,
}
HYBRID_4B = HYBRID_9B | {
    "hybrid_override_pattern": "M" * 21 + "-" * 17 + "*" * 4,
    "num_hidden_layers": 42,
    "hidden_size": 3136,
    "intermediate_size": 12544,
    "mamba_num_heads": 96,
}
# A transformer of Qwen3-8B's sizes. Its gated MLP of width 12288 has as many weights as this plain one of
# 18432; the Mamba sizes are unused.
TRANSFORMER_8B = HYBRID_9B | {
    "hybrid_override_pattern": "*-" * 36,
    "num_hidden_layers": 72,
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 18432,
    "num_attention_heads": 32,
}
