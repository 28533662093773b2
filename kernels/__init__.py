"""What a hybrid step needs beyond matrix products, each operation under one signature for every device.

`torch_ops` are the PyTorch twins.
"""

from kernels.select import Kernels, kernels_for

__all__ = ["Kernels", "kernels_for"]
