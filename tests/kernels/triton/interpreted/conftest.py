"""These tests need Triton's interpreter, which must be chosen before Triton is imported:
tests/kernels/triton/ test_interpreter.py runs them in a process of their own.
"""

from __future__ import annotations

import os

import torch

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*"]
torch.set_num_threads(1)
