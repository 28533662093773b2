"""The memory that sequences carry from step to step. Who holds which slot and page is the engine's
business.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.model.config import LayerKind, ModelConfig


@dataclass(frozen=True, slots=True)
class Pools:
    """Tensors of the pools, one of each kind for every layer that has it.

    conv: [slots, K−1, conv channels] in the model's dtype, for each Mamba layer: the last inputs of the
    convolution.
    ssm: [slots, heads, head_dim, state_size] in fp32 by default, for each Mamba layer.
    keys, values: [pages, page tokens, kv heads, head_dim] in the model's dtype, for each attention layer.
    """

    conv: tuple[Tensor, ...]
    ssm: tuple[Tensor, ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @staticmethod
    def allocate(
        config: ModelConfig,
        *,
        slots: int,
        pages: int,
        page_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        ssm_dtype: torch.dtype = torch.float32,
    ) -> Pools:
        """Allocates zeroed pools. fp32 states are the only ones known to cost no accuracy (the model card
        asks for them).
        """
        conv = (slots, config.conv_kernel - 1, config.conv_size)
        ssm = (slots, config.mamba_heads, config.mamba_head_dim, config.state_size)
        kv = (pages, page_tokens, config.kv_heads, config.head_dim)
        mamba, attention = range(config.count(LayerKind.MAMBA)), range(config.count(LayerKind.ATTENTION))
        return Pools(
            conv=tuple(torch.zeros(conv, dtype=dtype, device=device) for _ in mamba),
            ssm=tuple(torch.zeros(ssm, dtype=ssm_dtype, device=device) for _ in mamba),
            keys=tuple(torch.zeros(kv, dtype=dtype, device=device) for _ in attention),
            values=tuple(torch.zeros(kv, dtype=dtype, device=device) for _ in attention),
        )

    def clear_slot(self, slot: int) -> None:
        """Makes a slot the empty sequence's."""
        for pool in (*self.conv, *self.ssm):
            pool[slot].zero_()

    def copy_slot(self, source: int, target: int) -> None:
        """Copies one sequence's state into another slot."""
        for pool in (*self.conv, *self.ssm):
            pool[target].copy_(pool[source])

    def copy_page(self, source: int, target: int) -> None:
        """Copies one page's keys and values into another page."""
        for pool in (*self.keys, *self.values):
            pool[target].copy_(pool[source])

    @property
    def slot_bytes(self) -> int:
        """Memory of one slot, over all layers."""
        return sum(pool[0].nbytes for pool in (*self.conv, *self.ssm))

    @property
    def page_bytes(self) -> int:
        """Memory of one page, over all layers."""
        return sum(pool[0].nbytes for pool in (*self.keys, *self.values))
