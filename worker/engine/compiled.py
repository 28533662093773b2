"""The decode step compiled for this machine's CPU, ahead of time, and kept on disk.

On a CPU four fifths of a small model's decode step go into dispatching some 400 small operations. Inductor
makes a few loops of them, for any number of sequences. What it makes depends on the model's shape alone:
weights and pools are arguments. So it is compiled once for a shape, in half a minute and with a C++ compiler,
and needs neither afterwards.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

import kernels
import worker.model
from kernels.layout import Segment, StepLayout, step_layout
from kernels.traced_ops import traceable
from worker.model.network import Network
from worker.model.pools import Pools

# The compiled step pads every sequence to the longest: to no more than twice their own keys and these many.
_SPARE_KEYS = 128


class CompiledDecode:
    """A decode step over one network and its pools."""

    def __init__(self, package: Path, network: Network, pools: Pools, page_tokens: int) -> None:
        """package: what `compile_decode` made."""
        self._config, self._device, self._page_tokens = network.config, network.device, page_tokens
        self._fixed = [*network.parameters(), *pools.conv, *pools.ssm, *pools.keys, *pools.values]
        # The loader of torch._inductor, without the seconds that importing the compiler takes.
        self._loader = torch._C._aoti.AOTIModelPackageLoader(str(package), "model", True, 1, -1)

    @staticmethod
    def takes(segments: Sequence[Segment]) -> bool:
        """Whether these lengths do not waste too much on padding."""
        contexts = [segment.start + 1 for segment in segments]
        return len(contexts) * max(contexts) <= 2 * sum(contexts) + len(contexts) * _SPARE_KEYS

    def logits(self, tokens: Sequence[int], segments: Sequence[Segment]) -> Tensor:
        """Decodes one token for each of n sequences: [n, vocab], fp32."""
        layout = step_layout(
            segments,
            [],
            page_tokens=self._page_tokens,
            chunk=self._config.chunk_size,
            window=self._config.conv_kernel,
            device=self._device,
        )
        ids = torch.tensor(tokens, device=self._device)
        logits: Tensor
        [logits] = self._loader.boxed_run(
            [ids, layout.slots, layout.rows, layout.page_table, layout.context, *self._fixed]
        )
        return logits


def compiled_decode(
    network: Network,
    pools: Pools,
    page_tokens: int,
    cache: Path,
    on_compile: Callable[[Path], None] = lambda package: None,
) -> CompiledDecode:
    """The compiled step of a network, from the cache's directory if it is there.

    on_compile: told before one is made, where. Raises ValueError for another device than a CPU, and where
    there is no C++ compiler to make one with; OSError when it cannot be kept.
    """
    if network.device.type != "cpu":
        raise ValueError(f"decode steps are compiled for a CPU only, not for {network.device}")
    package = cache / f"decode-{_fingerprint(network, page_tokens)}.pt2"
    if not package.exists():
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            raise ValueError(f"to compile the decode step takes a C++ compiler, and there is no {compiler!r}")
        on_compile(package)
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as directory:
            # Whoever starts at the same time finds all of it or nothing.
            _compile(network, pools, page_tokens, Path(directory) / package.name).replace(package)
    return CompiledDecode(package, network, pools, page_tokens)


class _Step(torch.nn.Module):
    """A decode step as a function of tensors: the first are those of the step, then weights and pools."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self._network = network

    def forward(
        self,
        step: list[Tensor],
        weights: list[Tensor],
        conv: list[Tensor],
        ssm: list[Tensor],
        keys: list[Tensor],
        values: list[Tensor],
    ) -> Tensor:
        tokens, slots, rows, page_table, context = step
        count = tokens.shape[0]
        layout = StepLayout(
            tokens=count,
            decodes=count,
            slots=slots,
            rows=rows,
            page_table=page_table,
            context=context,
            piece_pages=(),
            prefill=None,
            last=slots,
        )
        network = self._network.rebuilt(weights, traceable(kernels.kernels_for(tokens.device, "torch")))
        pools = Pools(tuple(conv), tuple(ssm), tuple(keys), tuple(values))
        return network.logits(network.hidden(tokens, layout, pools))


def _compile(network: Network, pools: Pools, page_tokens: int, package: Path) -> Path:
    count = torch.export.Dim("sequences", min=1, max=1 << 20)
    table = torch.export.Dim("table", min=1, max=1 << 40)
    slots = torch.export.Dim("slots", min=1, max=1 << 40)
    pages = torch.export.Dim("pages", min=1, max=1 << 40)
    # Sizes that are all different, and none of them 0 or 1, so that nothing is taken for a constant.
    example = Pools.allocate(
        network.config, slots=5, pages=7, page_tokens=page_tokens, dtype=network.dtype, device=network.device
    )
    # Nor is one tensor given twice: it would be taken for one argument.
    tokens, slot, rows, context = torch.arange(12).view(4, 3).clone().unbind()
    inputs = (
        [tokens, slot, rows, torch.zeros(3, 2, dtype=torch.long), context],
        network.parameters(),
        *map(list, (example.conv, example.ssm, example.keys, example.values)),
    )
    by_count, by_slot, by_page = {0: count}, {0: slots}, {0: pages}
    shapes = (
        [by_count, by_count, by_count, {0: count, 1: table}, by_count],
        [None] * len(network.parameters()),
        [by_slot] * len(pools.conv),
        [by_slot] * len(pools.ssm),
        [by_page] * len(pools.keys),
        [by_page] * len(pools.values),
    )
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the compiler's about itself
        program = torch.export.export(_Step(network), inputs, dynamic_shapes=shapes, strict=False)
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(package),
            # As many threads as the process has when it runs, not as now.
            inductor_configs={"cpp.dynamic_threads": True},
        )
    return package


def _fingerprint(network: Network, page_tokens: int) -> str:
    """Of all that a compiled step depends on: the shape, torch, the processor, and the code."""
    told = [repr(network.config), str(network.dtype), network.weights.value, str(page_tokens)]
    told += [torch.__version__, platform.machine(), torch.backends.cpu.get_cpu_capability(), _flags()]
    told += [f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in network.parameters()]
    digest = hashlib.sha256("\n".join(told).encode())
    sources = [Path(__file__)]
    for package in (kernels, worker.model):
        sources += sorted(Path(next(iter(package.__path__))).glob("**/*.py"))
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:32]


def _flags() -> str:
    """What this processor can do (Linux): the compiler makes use of all of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
