"""The kernels in Triton, for NVIDIA GPUs from sm_80 on. Each has its twin's signature (kernels.torch_ops)
and its own file, which says how it is tiled, what it must move and how fast it should be.

They are for models in bf16 or fp16; in fp32 they are right, but those with matrix products spill. Tiles are
pinned by shape (kernels.triton_ops.tiles), not searched for: another tile changes the last bits of a
result.
"""

from kernels.triton_ops.attention_decode import attention_decode
from kernels.triton_ops.attention_prefill import attention_prefill, store_kv
from kernels.triton_ops.conv import conv_prefill, conv_update
from kernels.triton_ops.elementwise import relu2, time_steps
from kernels.triton_ops.linear import linear, quantised_linear
from kernels.triton_ops.norm import add_rms_norm, gated_group_norm
from kernels.triton_ops.sampling import sample
from kernels.triton_ops.scan import scan_prefill
from kernels.triton_ops.update import scan_update

__all__ = [
    "add_rms_norm",
    "attention_decode",
    "attention_prefill",
    "conv_prefill",
    "conv_update",
    "gated_group_norm",
    "linear",
    "quantised_linear",
    "relu2",
    "sample",
    "scan_prefill",
    "scan_update",
    "store_kv",
    "time_steps",
]
