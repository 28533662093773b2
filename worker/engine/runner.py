"""Runs one step of the network for what the scheduler chose."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.layout import Segment, step_layout
from kernels.transfer import send_numbers
from worker.engine.compiled import CompiledDecode
from worker.engine.graphs import DecodeGraphs
from worker.engine.scheduler import Piece, Plan
from worker.engine.sequence import Sequence
from worker.model.network import Network
from worker.model.pools import Pools


class Runner:
    """A network with its pools, and what decodes faster than it: captured steps on a GPU, a compiled one on a
    CPU.
    """

    def __init__(
        self,
        network: Network,
        pools: Pools,
        page_tokens: int,
        graphs: DecodeGraphs | None = None,
        compiled: CompiledDecode | None = None,
    ) -> None:
        self.network = network
        self.pools = pools
        self._page_tokens = page_tokens
        self._graphs, self._compiled = graphs, compiled

    def run(self, plan: Plan) -> Tensor:
        """Feeds the plan's tokens. Returns the logits [decodes + pieces, vocab] that follow each one's last,
        valid until the next run. On a GPU they are not computed yet: nothing has been waited for.

        The sequences themselves are not touched.
        """
        decodes = [_segment(sequence, 1) for sequence in plan.decodes]
        tokens = [sequence.tokens[sequence.computed] for sequence in plan.decodes]
        if self._compiled is not None and decodes and self._compiled.takes(decodes):
            logits = self._compiled.logits(tokens, decodes)
            # A CPU gains nothing from computing pieces in the same products.
            return torch.cat([logits, self._run([], [], plan.pieces)]) if plan.pieces else logits
        if self._graphs is not None and not plan.pieces and len(tokens) <= self._graphs.largest:
            return self._graphs.logits(tokens, decodes)
        return self._run(tokens, decodes, plan.pieces)

    def _run(self, tokens: list[int], decodes: list[Segment], pieces: list[Piece]) -> Tensor:
        """Runs the network as it is: `tokens` of the decodes, then the pieces'."""
        config, device = self.network.config, self.network.device
        fed = list(tokens)
        for piece in pieces:
            first = piece.sequence.computed
            fed += piece.sequence.tokens[first : first + piece.count]
        layout = step_layout(
            decodes,
            [_segment(piece.sequence, piece.count) for piece in pieces],
            page_tokens=self._page_tokens,
            chunk=config.chunk_size,
            window=config.conv_kernel,
            device=device,
        )
        hidden = self.network.hidden(send_numbers(fed, device), layout, self.pools)
        return self.network.logits(hidden.index_select(0, layout.last) if pieces else hidden)


def _segment(sequence: Sequence, length: int) -> Segment:
    assert sequence.slot is not None
    return Segment(sequence.slot, sequence.computed, length, sequence.pages)
