"""mamba-ssm's scan and single-step update behind the twins' signatures, for comparing with ours; all else
is ours.

They take no padding, and one sequence or several of one length: pieces run one after the other, with chunks
that begin where a piece begins. `make mamba-ssm` installs the package without a CUDA compiler.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import torch
from torch import Tensor

from kernels.layout import PrefillIndex


def _find_package() -> None:
    """Lets the package's Triton kernels be imported. Raises ImportError where it is not installed.

    The package's own first module imports extensions that a CUDA compiler must have built. The kernels do
    not need them: they load below a bare module of that name.
    """
    if "mamba_ssm" in sys.modules:
        return
    spec = importlib.util.find_spec("mamba_ssm")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("mamba-ssm is not installed: see `make mamba-ssm`")
    package = ModuleType("mamba_ssm")
    package.__spec__, package.__path__ = spec, list(spec.submodule_search_locations)
    sys.modules["mamba_ssm"] = package


_find_package()
# Only now can they be imported.
from mamba_ssm.ops.triton.selective_state_update import selective_state_update  # noqa: E402
from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined  # noqa: E402

# The family's chunk, which is also the longest that the package's own models use at this state size.
_CHUNK = 128


def scan_update(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, states: Tensor, slots: Tensor
) -> Tensor:
    """See the twin."""
    heads, width = x.shape[1:]
    # The kernel's fast path asks for numbers that are one to a head, seen through strides of 0.
    y: Tensor = selective_state_update(
        states,
        x,
        dt[..., None].expand(-1, -1, width),
        a.float()[:, None, None].expand(-1, width, b.shape[2]),
        b,
        c,
        D=d[:, None].expand(-1, width),
        dt_bias=torch.zeros(heads, 1, device=x.device).expand(-1, width),
        state_batch_indices=slots,
    )
    return y


def scan_prefill(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    states: Tensor,
    slots: Tensor,
    index: PrefillIndex,
) -> Tensor:
    """See the twin."""
    outputs = []
    parts = zip(*(t.split(list(index.lengths)) for t in (x, dt, b, c)), slots.split(1), strict=True)
    for x_piece, dt_piece, b_piece, c_piece, slot in parts:
        y, state = mamba_chunk_scan_combined(
            x_piece[None],
            dt_piece[None],
            a,
            b_piece[None],
            c_piece[None],
            _CHUNK,
            D=d,
            initial_states=states[slot],
            return_final_states=True,
        )
        states.index_copy_(0, slot, state.to(states.dtype))
        outputs.append(y[0])
    return torch.cat(outputs)
