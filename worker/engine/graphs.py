"""Decode steps captured once as CUDA graphs and replayed.

A decode step of a 9B model is some 400 launches. One by one they take the host 10 ms on an H200; as a graph
they take the device 4.9 ms, for one sequence. A graph has a fixed batch size and fixed addresses. So there is
one for each rung of a ladder of sizes; a batch is padded up to the next rung with sequences that have no
slot, no page and no context, which the Triton kernels skip; and the index data lies in buffers that are
refilled before each replay. The logits lie in a buffer too, one for all graphs. These share one memory pool,
the largest captured first, since only one runs at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.layout import Segment, StepLayout
from kernels.transfer import on_host, pinned
from worker.model.network import Network
from worker.model.pools import Pools

Step = Callable[[], Tensor]
Capture = Callable[[Step], Step]
"""Runs a step once and returns what repeats it, into the same output."""


def ladder(slots: int) -> tuple[int, ...]:
    """Batch sizes to capture, up to `slots`: powers of two up to 16, then every 16th.

    >>> ladder(40)
    (1, 2, 4, 8, 16, 32, 40)
    """
    rungs = [size for size in (1, 2, 4, 8, *range(16, slots, 16)) if size < slots]
    return (*rungs, slots)


def cuda_capture(device: torch.device) -> Capture:
    """Captures on a GPU."""
    pool = torch.cuda.graph_pool_handle()

    def capture(step: Step) -> Step:
        # The first run compiles kernels and lets libraries allocate, which a capture must not do.
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            output = step()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay

    return capture


@dataclass(frozen=True, slots=True)
class _Rung:
    """One captured size. inputs [4, size]: tokens, slots, rows and contexts."""

    inputs: Tensor
    replay: Step


class DecodeGraphs:
    """Captured decode steps over one network and its pools."""

    def __init__(
        self,
        network: Network,
        pools: Pools,
        *,
        page_tokens: int,
        max_pages: int,
        sizes: Sequence[int],
        capture: Capture,
    ) -> None:
        """Captures a step of each size; no slot or page is touched. max_pages: of the longest sequence."""
        self._network, self._pools, self._page_tokens = network, pools, page_tokens
        self.largest = max(sizes)
        # One row for each place in the batch; a row is rewritten when another sequence takes the place.
        self._table = torch.zeros(self.largest, max_pages, dtype=torch.long, device=network.device)
        self._pages: list[Sequence[int]] = [[] for _ in range(self.largest)]
        # One for all sizes: the graphs' own outputs would each keep their memory.
        self._logits = torch.empty(
            self.largest, network.config.vocab_size, dtype=torch.float32, device=network.device
        )
        with torch.no_grad():
            self._rungs = {size: self._capture(size, capture) for size in sorted(sizes, reverse=True)}

    @torch.no_grad()
    def logits(self, tokens: Sequence[int], segments: Sequence[Segment]) -> Tensor:
        """Decodes one token for each of up to `largest` sequences: [n, vocab], fp32, valid until the next
        call, and the caller's to overwrite until then. Waits for nothing.

        A sequence's list of pages stays as it is while it decodes.
        """
        count = len(segments)
        rung = self._rungs[min(size for size in self._rungs if size >= count)]
        padding = rung.inputs.shape[1] - count
        page_tokens = self._page_tokens
        rows = [s.pages[s.start // page_tokens] * page_tokens + s.start % page_tokens for s in segments]
        inputs = (
            [*tokens, *([0] * padding)],
            [*(s.slot for s in segments), *([-1] * padding)],
            [*rows, *([-1] * padding)],
            [*(s.start + 1 for s in segments), *([0] * padding)],
        )
        self._refill(rung.inputs, inputs)
        for place, segment in enumerate(segments):
            # The same list, since to compare the numbers of long ones would take longer than to send them.
            if self._pages[place] is not segment.pages:
                self._pages[place] = segment.pages
                self._refill(self._table[place, : len(segment.pages)], segment.pages)
        return rung.replay()[:count]

    def _refill(self, buffer: Tensor, numbers: Sequence[object]) -> None:
        """The replays before have read it by then: the copy takes its turn behind them."""
        buffer.copy_(pinned(on_host(numbers), buffer.device), non_blocking=True)

    def _capture(self, size: int, capture: Capture) -> _Rung:
        network, pools = self._network, self._pools
        device = network.device
        inputs = torch.tensor([[0], [-1], [-1], [0]], device=device).repeat(1, size)
        tokens, slots, rows, context = inputs
        layout = StepLayout(
            tokens=size,
            decodes=size,
            slots=slots,
            rows=rows,
            page_table=self._table[:size],
            context=context,
            piece_pages=(),
            prefill=None,
            last=torch.arange(size, device=device),
        )
        logits = self._logits[:size]

        def step() -> Tensor:
            hidden = network.hidden(tokens, layout, pools, captured=True)
            return network.logits(hidden, out=logits, captured=True)

        return _Rung(inputs, capture(step))
