"""Whole models with random weights: decode steps and prefill beside their floors, and what memory lets them
batch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from benchmarks.gpu.measure import Roofs, release, step_s, synchronize
from benchmarks.gpu.shapes import PAGE_TOKENS, Inputs, decodes, page_count
from kernels import Kernels
from worker.engine.build import EngineOptions
from worker.engine.graphs import DecodeGraphs, cuda_capture
from worker.engine.memory import sequences_that_fit
from worker.model.config import LayerKind, ModelConfig
from worker.model.dummy import DummyTensors
from worker.model.linear import WeightFormat
from worker.model.network import Network
from worker.model.pools import Pools


@dataclass(frozen=True, slots=True)
class StepTime:
    """One measured step. of_floor: how many times its floor it takes."""

    name: str
    time_ms: float
    floor_ms: float
    of_floor: float
    tokens_per_s: float


class MeasuredModel:
    """A network with random weights on a device, and its floors."""

    def __init__(
        self,
        config: ModelConfig,
        kernels: Kernels,
        device: torch.device,
        dtype: torch.dtype,
        weights: WeightFormat = WeightFormat.FULL,
    ) -> None:
        tensors = DummyTensors(device=device, dtype=dtype)
        self.config, self.device, self.dtype = config, device, dtype
        self.network = Network(config, tensors, kernels, dtype=dtype, weights=weights)
        self.inputs = Inputs(config, device, dtype)
        self._label = "" if weights is WeightFormat.FULL else f", {weights.value} weights"
        embeddings = 0 if config.tied_embeddings else config.vocab_size * config.hidden_size
        held = sum(tensor.nbytes for tensor in self.network.tensors())
        self._decode_bytes = held - embeddings * dtype.itemsize
        # Every weight but the embeddings and the head multiplies every token once.
        self._token_operations = 2 * (tensors.parameters - 2 * embeddings)

    def pools(self, contexts: Sequence[int], ssm_dtype: torch.dtype = torch.float32) -> Pools:
        """Pools that hold these sequences."""
        return Pools.allocate(
            self.config,
            slots=len(contexts),
            pages=page_count(contexts),
            page_tokens=PAGE_TOKENS,
            dtype=self.dtype,
            device=self.device,
            ssm_dtype=ssm_dtype,
        )

    def decode_bytes(self, sequences: int, context: int, pools: Pools) -> float:
        """What a decode step must read and write: weights, states in and out, keys and values."""
        per_sequence = 2 * pools.slot_bytes + context / PAGE_TOKENS * pools.page_bytes
        return self._decode_bytes + sequences * per_sequence

    def prefill_operations(self, tokens: int) -> float:
        """Floating point operations of a prompt's matrix products."""
        config = self.config
        state = config.mamba_head_dim * config.state_size
        # As in kernel_speed: a chunk's products below the diagonal, and the state in and out.
        scan = config.mamba_heads * (
            config.chunk_size * (config.mamba_head_dim + config.state_size) + 4 * state
        )
        attention = 2 * tokens * config.query_heads * config.head_dim
        return tokens * (
            self._token_operations
            + scan * config.count(LayerKind.MAMBA)
            + attention * config.count(LayerKind.ATTENTION)
        )

    @torch.inference_mode()
    def decode(
        self,
        sequences: int,
        context: int,
        roofs: Roofs,
        *,
        graphs: bool = True,
        ssm_dtype: torch.dtype = torch.float32,
    ) -> StepTime:
        """Times greedy decode steps of a full batch, with the host waiting for each step's tokens."""
        contexts = [context] * sequences
        pools, segments = self.pools(contexts, ssm_dtype), decodes(contexts)
        tokens = [7] * sequences
        if graphs and self.device.type == "cuda":
            captured = DecodeGraphs(
                self.network,
                pools,
                page_tokens=PAGE_TOKENS,
                max_pages=len(segments[0].pages),
                sizes=(sequences,),
                capture=cuda_capture(self.device),
            )

            def step() -> None:
                captured.logits(tokens, segments).argmax(-1).tolist()

        else:

            def step() -> None:
                layout = self.inputs.decodes(contexts)
                hidden = self.network.hidden(torch.tensor(tokens, device=self.device), layout, pools)
                self.network.logits(hidden).argmax(-1).tolist()

        taken_s = step_s(step, self.device)
        states = "" if ssm_dtype == torch.float32 else ", bf16 states"
        how = "" if graphs else ", no graph"
        name = f"decode {sequences} × {context}{self._label}{states}{how}"
        return _time(name, taken_s, self.decode_bytes(sequences, context, pools) / roofs.copy, sequences)

    @torch.inference_mode()
    def prefill(self, tokens: int, roofs: Roofs, *, step_tokens: int = 8192) -> StepTime:
        """Times a prompt's prefill, in steps of `step_tokens`, until its first token is known."""
        pools = self.pools([tokens])
        ids = torch.full((step_tokens,), 7, device=self.device)

        def run() -> None:
            hidden = None
            for start in range(0, tokens, step_tokens):
                count = min(step_tokens, tokens - start)
                layout, _ = self.inputs.prefill([(start, count)])
                hidden = self.network.hidden(ids[:count], layout, pools)
            assert hidden is not None
            self.network.logits(hidden[-1:]).argmax(-1).tolist()

        taken_s = step_s(run, self.device, repeats=3)
        return _time(
            f"prefill {tokens}{self._label}", taken_s, self.prefill_operations(tokens) / roofs.matrix, tokens
        )


def _time(name: str, taken_s: float, floor_s: float, tokens: int) -> StepTime:
    return StepTime(name, taken_s * 1e3, floor_s * 1e3, taken_s / floor_s, tokens / taken_s)


@dataclass(frozen=True, slots=True)
class LongOutput:
    """Output tokens per second of a batch of requests, of `prompt` and `output` tokens each, that fills a
    device.
    """

    model: str
    device_gib: float
    batch: int
    prefill_s: float
    decode_s: float
    output_tokens_per_s: float


def long_output(
    name: str,
    model: MeasuredModel,
    device_gib: float,
    roofs: Roofs,
    *,
    prompt: int = 8192,
    output: int = 16384,
) -> LongOutput | None:
    """Times the batch that memory allows, decoding at the middle of its outputs; None when not one fits."""
    options = EngineOptions(checkpoints=0, max_sequence_tokens=prompt + output)
    batch = sequences_that_fit(model.config, int(device_gib * 2**30), options, weights=model.network.weights)
    if batch == 0:
        return None
    # The last one's pools are of another size, and would be kept beside this one's.
    release(model.device)
    prefill_s = batch * model.prefill(prompt, roofs).time_ms / 1e3
    decode_s = output * model.decode(batch, prompt + output // 2, roofs).time_ms / 1e3
    rate = batch * output / (prefill_s + decode_s)
    return LongOutput(name, device_gib, batch, prefill_s, decode_s, rate)


def transformers_peer(config: dict[str, object], device: torch.device, *, tokens: int) -> Iterator[StepTime]:
    """transformers' own model at the same shape: a prefill of `tokens`, and a decode step at batch 1 and
    32.

    Its floors are not computed here: the rows stand beside ours.
    """
    from transformers import NemotronHConfig, NemotronHForCausalLM

    kinds = {"M": "linear_attention", "-": "mlp", "*": "full_attention"}
    pattern = str(config["hybrid_override_pattern"])
    rest = {key: value for key, value in config.items() if key != "hybrid_override_pattern"}
    peer_config = NemotronHConfig.from_dict(rest | {"layers_block_type": [kinds[kind] for kind in pattern]})
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
    try:
        with torch.device(device):
            model = NemotronHForCausalLM(peer_config).eval()
    finally:
        torch.set_default_dtype(default)

    def generate_s(sequences: int, prompt: int, new: int) -> float:
        ids = torch.full((sequences, prompt), 7, device=device)
        synchronize(device)
        began = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )
        synchronize(device)
        return time.perf_counter() - began

    for sequences, prompt, more in ((1, tokens, 8), (32, 64, 8)):
        generate_s(sequences, prompt, 2)
        first_s = generate_s(sequences, prompt, 1)
        decode_s = (generate_s(sequences, prompt, 1 + more) - first_s) / more
        if sequences == 1:
            yield StepTime(f"transformers: prefill {prompt}", first_s * 1e3, 0.0, 0.0, prompt / first_s)
        yield StepTime(
            f"transformers: decode {sequences} × {prompt}", decode_s * 1e3, 0.0, 0.0, sequences / decode_s
        )
