"""Runs one step of the network for the work that the scheduler chose."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from kernels.layout import Segment, step_layout
from worker.engine.scheduler import Work
from worker.model.network import Network
from worker.model.pools import Pools


class Runner:
    """A network with its pools."""

    def __init__(self, network: Network, pools: Pools, page_tokens: int) -> None:
        self.network = network
        self.pools = pools
        self._page_tokens = page_tokens

    def run(self, works: Seq[Work]) -> tuple[list[Work], Tensor]:
        """Feeds each work's tokens. Returns the works in the order of the rows of the logits [works, vocab]
        that follow their last tokens. The sequences themselves are not touched.
        """
        decodes = [work for work in works if work.count == 1]
        pieces = [work for work in works if work.count > 1]
        ordered = [*decodes, *pieces]
        config, device = self.network.config, self.network.device
        tokens: list[int] = []
        for work in ordered:
            sequence = work.sequence
            tokens += sequence.tokens[sequence.computed : sequence.computed + work.count]
        layout = step_layout(
            [_segment(work) for work in decodes],
            [_segment(work) for work in pieces],
            page_tokens=self._page_tokens,
            chunk=config.chunk_size,
            window=config.conv_kernel,
            device=device,
        )
        hidden = self.network.hidden(torch.tensor(tokens, device=device), layout, self.pools)
        return ordered, self.network.logits(hidden if not pieces else hidden.index_select(0, layout.last))


def _segment(work: Work) -> Segment:
    sequence = work.sequence
    assert sequence.slot is not None
    return Segment(sequence.slot, sequence.computed, work.count, sequence.pages)
