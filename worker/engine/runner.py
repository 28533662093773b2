"""Runs one step of the network for what the scheduler chose."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.layout import Segment, step_layout
from worker.engine.graphs import DecodeGraphs
from worker.engine.scheduler import Plan
from worker.engine.sequence import Sequence
from worker.model.network import Network
from worker.model.pools import Pools


class Runner:
    """A network with its pools, and on a GPU its captured decode steps."""

    def __init__(
        self, network: Network, pools: Pools, page_tokens: int, graphs: DecodeGraphs | None = None
    ) -> None:
        self.network = network
        self.pools = pools
        self._page_tokens = page_tokens
        self._graphs = graphs

    def run(self, plan: Plan) -> Tensor:
        """Feeds the plan's tokens. Returns the logits [decodes + pieces, vocab] that follow each one's last.

        The sequences themselves are not touched.
        """
        config, device = self.network.config, self.network.device
        tokens = [sequence.tokens[sequence.computed] for sequence in plan.decodes]
        for piece in plan.pieces:
            first = piece.sequence.computed
            tokens += piece.sequence.tokens[first : first + piece.count]
        if self._graphs is not None and not plan.pieces and len(tokens) <= self._graphs.largest:
            segments = [_segment(sequence, 1) for sequence in plan.decodes]
            return self.network.logits(self._graphs.hidden(tokens, segments))
        layout = step_layout(
            [_segment(sequence, 1) for sequence in plan.decodes],
            [_segment(piece.sequence, piece.count) for piece in plan.pieces],
            page_tokens=self._page_tokens,
            chunk=config.chunk_size,
            window=config.conv_kernel,
            device=device,
        )
        hidden = self.network.hidden(torch.tensor(tokens, device=device), layout, self.pools)
        return self.network.logits(hidden.index_select(0, layout.last) if plan.pieces else hidden)


def _segment(sequence: Sequence, length: int) -> Segment:
    assert sequence.slot is not None
    return Segment(sequence.slot, sequence.computed, length, sequence.pages)
