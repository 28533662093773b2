"""The kernels in PyTorch: what runs on a CPU, and what every Triton kernel is compared with."""

from kernels.torch_ops.attention import attention_decode, attention_prefill, store_kv
from kernels.torch_ops.conv import conv_prefill, conv_update
from kernels.torch_ops.elementwise import relu2, time_steps
from kernels.torch_ops.linear import linear, quantised_linear
from kernels.torch_ops.norm import add_rms_norm, gated_group_norm
from kernels.torch_ops.sampling import sample
from kernels.torch_ops.scan import scan_prefill, scan_update

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
