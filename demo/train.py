"""Trains the demo model, from nothing, on one machine: `python -m demo.train` (about an hour on 2 CPU cores).

The family's way, in two stages: the first learns to reason, the second to answer within a budget, with more
traces that have no reasoning or a truncated one. What is trained is the network that the worker serves
(worker.model.network), in the checkpoint format that it loads.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from demo.problems import Problem, draw, held_out, is_right
from demo.tokenizer import make_tokenizer
from kernels import kernels_for
from kernels.layout import Segment, StepLayout, step_layout
from worker.model.config import LayerKind, ModelConfig
from worker.model.network import Network
from worker.model.pools import Pools

MODEL_DIR = Path(__file__).parent / "model"
END_OF_TURN = "<SPECIAL_12>"
SYSTEM_TEXTS = ("", "", "", "", "You are a careful clerk.", "Answer with the sum only.")

CONFIG: dict[str, object] = {
    "architectures": ["NemotronHForCausalLM"],
    "model_type": "nemotron_h",
    "vocab_size": make_tokenizer().get_vocab_size(),
    "hidden_size": 128,
    "hybrid_override_pattern": "M-M*-M-M*-",
    "num_hidden_layers": 10,
    "intermediate_size": 384,
    "mlp_hidden_act": "relu2",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "mamba_num_heads": 8,
    "mamba_head_dim": 32,
    "mamba_hidden_act": "silu",
    "ssm_state_size": 32,
    "n_groups": 2,
    "conv_kernel": 4,
    "use_conv_bias": True,
    "chunk_size": 32,
    "time_step_limit": [0.0, math.inf],
    "layer_norm_epsilon": 1e-5,
    "residual_in_fp32": False,
    "tie_word_embeddings": False,
    "max_position_embeddings": 131072,
    "torch_dtype": "float32",
    "bos_token_id": None,
    "pad_token_id": 0,
    "eos_token_id": 12,
}


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the training.

    steps: how many. rate: peak learning rate, reached after `warmup` steps; then it falls along half a cosine
    of `fall` steps. direct, cut: shares of traces without reasoning, and with a truncated one; the rest are
    full. answer_weight: weight of the answer's tokens in the loss, where a reasoning token has 1.
    """

    steps: int
    rate: float
    warmup: int
    fall: int
    direct: float
    cut: float
    answer_weight: float


STAGES = (
    Stage(steps=2000, rate=2e-3, warmup=200, fall=4000, direct=0.15, cut=0.2, answer_weight=1.0),
    Stage(steps=2500, rate=1.5e-3, warmup=100, fall=2500, direct=0.4, cut=0.25, answer_weight=4.0),
)


@dataclass(frozen=True, slots=True)
class Example:
    """A trace: token ids, and the weight in the loss of predicting each."""

    ids: list[int]
    weights: list[float]


def trace(problem: Problem, random: Random, tokenizer: Tokenizer, stage: Stage) -> Example:
    """Writes one training trace. Text that the engine feeds (the prompt, the forced close) is not learnt."""
    system = random.choice(SYSTEM_TEXTS)
    head = f"<SPECIAL_10>System\n{system}\n<SPECIAL_11>User\n{problem.question}\n<SPECIAL_11>Assistant\n"
    reasoning = "".join(line + "\n" for line in problem.reasoning)
    kind = random.random()
    if kind < stage.direct:
        pieces = [(head + "<think></think>", 0.0)]
    elif kind < stage.direct + stage.cut:
        lines = problem.reasoning
        kept = "".join(line + "\n" for line in lines[: random.randrange(len(lines))])
        if random.random() < 0.3:  # a hard cut in mid-line, as with no grace
            rest = reasoning[len(kept) :]
            kept += rest[: random.randrange(1, rest.index("\n"))]
        close = "</think>\n\n" if not kept or kept.endswith("\n") else ".\n</think>\n\n"
        pieces = [(head + "<think>\n", 0.0), (kept, 1.0), (close, 0.0)]
    else:
        pieces = [(head + "<think>\n", 0.0), (reasoning + "</think>\n\n", 1.0)]
    ids: list[int] = []
    weights: list[float] = []
    for text, weight in [*pieces, (problem.answer + END_OF_TURN, stage.answer_weight)]:
        encoded = tokenizer.encode(text).ids
        ids += encoded
        weights += [weight] * len(encoded)
    return Example(ids, weights)


def batches(random: Random, tokenizer: Tokenizer, stage: Stage, size: int) -> Iterator[list[Example]]:
    """Endless batches of traces of similar length, for little padding in the scan's chunks."""
    while True:
        pool = sorted(
            (trace(draw(random), random, tokenizer, stage) for _ in range(size * 8)), key=lambda e: len(e.ids)
        )
        groups = [pool[i::8] for i in range(8)]
        random.shuffle(groups)
        yield from groups


def initial_tensors(config: ModelConfig, generator: torch.Generator) -> dict[str, Tensor]:
    """The usual initialisation: normal 0.02, residual outputs scaled by depth; for Mamba A in 1..16, dt in
    0.001..0.1.
    """
    hidden, inner, channels, heads = (
        config.hidden_size,
        config.inner_size,
        config.conv_size,
        config.mamba_heads,
    )
    q_size, kv_size = config.query_heads * config.head_dim, config.kv_heads * config.head_dim
    depth_scale = 0.02 / math.sqrt(len(config.layers))

    def normal(*shape: int, std: float = 0.02) -> Tensor:
        return torch.randn(shape, generator=generator) * std

    def uniform(*shape: int, low: float, high: float) -> Tensor:
        return torch.rand(shape, generator=generator) * (high - low) + low

    tensors = {
        "backbone.embeddings.weight": normal(config.vocab_size, hidden),
        "backbone.norm_f.weight": torch.ones(hidden),
        "lm_head.weight": normal(config.vocab_size, hidden),
    }
    for number, kind in enumerate(config.layers):
        name = f"backbone.layers.{number}"
        tensors[f"{name}.norm.weight"] = torch.ones(hidden)
        name += ".mixer"
        match kind:
            case LayerKind.MAMBA:
                dt = torch.exp(uniform(heads, low=math.log(1e-3), high=math.log(1e-1)))
                tensors |= {
                    f"{name}.in_proj.weight": normal(inner + channels + heads, hidden),
                    f"{name}.conv1d.weight": uniform(channels, 1, config.conv_kernel, low=-0.5, high=0.5),
                    f"{name}.conv1d.bias": torch.zeros(channels),
                    f"{name}.dt_bias": dt + torch.log(-torch.expm1(-dt)),  # softplus⁻¹(dt)
                    f"{name}.A_log": torch.log(uniform(heads, low=1, high=16)),
                    f"{name}.D": torch.ones(heads),
                    f"{name}.norm.weight": torch.ones(inner),
                    f"{name}.out_proj.weight": normal(hidden, inner, std=depth_scale),
                }
            case LayerKind.ATTENTION:
                tensors |= {
                    f"{name}.q_proj.weight": normal(q_size, hidden),
                    f"{name}.k_proj.weight": normal(kv_size, hidden),
                    f"{name}.v_proj.weight": normal(kv_size, hidden),
                    f"{name}.o_proj.weight": normal(hidden, q_size, std=depth_scale),
                }
            case LayerKind.MLP:
                tensors |= {
                    f"{name}.up_proj.weight": normal(config.mlp_size, hidden),
                    f"{name}.down_proj.weight": normal(hidden, config.mlp_size, std=depth_scale),
                }
    return tensors


class Trainee:
    """Named tensors seen as a network."""

    def __init__(self, config: ModelConfig, tensors: dict[str, Tensor]) -> None:
        self.config = config
        self.tensors = tensors

    def __call__(self, name: str, *shape: int) -> Tensor:
        tensor = self.tensors[name if name in self.tensors else f"backbone.{name}"]
        assert tensor.shape == shape, name
        return tensor

    def network(self) -> Network:
        """The network of the tensors as they are now; gradients flow back to them."""
        return Network(self.config, self, kernels_for(torch.device("cpu")))

    def pools(self, sequences: int, pages: int) -> Pools:
        """Fresh pools with a page for every sequence."""
        return Pools.allocate(
            self.config,
            slots=sequences,
            pages=sequences,
            page_tokens=pages,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )

    def layout(self, decodes: list[Segment], pieces: list[Segment], page_tokens: int) -> StepLayout:
        """Lays out a step of this model."""
        config = self.config
        return step_layout(
            decodes, pieces, page_tokens=page_tokens, chunk=config.chunk_size, window=config.conv_kernel,
            device=torch.device("cpu"),
        )  # fmt: skip


def batch_loss(trainee: Trainee, examples: list[Example]) -> Tensor:
    """Weighted mean of the cross-entropy of a batch's tokens."""
    longest = max(len(e.ids) for e in examples)
    pieces = [Segment(slot=n, start=0, length=len(e.ids) - 1, pages=(n,)) for n, e in enumerate(examples)]
    inputs = torch.tensor([i for e in examples for i in e.ids[:-1]])
    targets = torch.tensor([i for e in examples for i in e.ids[1:]])
    weights = torch.tensor([weight for e in examples for weight in e.weights[1:]])
    learnt = weights > 0
    network = trainee.network()
    hidden = network.hidden(
        inputs, trainee.layout([], pieces, longest), trainee.pools(len(examples), longest)
    )
    losses = F.cross_entropy(network.logits(hidden[learnt]), targets[learnt], reduction="none")
    return torch.dot(losses, weights[learnt]) / weights.sum()


@torch.inference_mode()
def greedy_answers(trainee: Trainee, prompts: list[str], tokenizer: Tokenizer, max_tokens: int) -> list[str]:
    """Greedy continuations of a batch of prompts, for watching the training (the worker's engine is what is
    measured).
    """
    network, capacity = trainee.network(), 512
    encoded = [tokenizer.encode(prompt).ids for prompt in prompts]
    pools = trainee.pools(len(prompts), capacity)
    pieces = [Segment(slot=n, start=0, length=len(ids), pages=(n,)) for n, ids in enumerate(encoded)]
    layout = trainee.layout([], pieces, capacity)
    tokens = torch.tensor([i for ids in encoded for i in ids])
    generated: list[list[int]] = [[] for _ in prompts]
    for _ in range(max_tokens):
        chosen = network.logits(network.hidden(tokens, layout, pools)[layout.last]).argmax(-1)
        for row, token in zip(generated, chosen.tolist(), strict=True):
            row.append(token)
        decodes = [
            Segment(slot=n, start=len(encoded[n]) + len(row) - 1, length=1, pages=(n,))
            for n, row in enumerate(generated)
        ]
        layout, tokens = trainee.layout(decodes, [], capacity), chosen
    end = tokenizer.token_to_id(END_OF_TURN)
    return [tokenizer.decode(row[: row.index(end)] if end in row else row) for row in generated]


def accuracy(trainee: Trainee, problems: list[Problem], tokenizer: Tokenizer) -> tuple[float, float]:
    """(without reasoning, with all the reasoning it wants)."""
    head = "<SPECIAL_10>System\n\n<SPECIAL_11>User\n{}\n<SPECIAL_11>Assistant\n<think>{}"
    direct = greedy_answers(trainee, [head.format(p.question, "</think>") for p in problems], tokenizer, 6)
    thought = greedy_answers(trainee, [head.format(p.question, "\n") for p in problems], tokenizer, 180)
    right = [
        sum(is_right(p, a.split("</think>")[-1]) for p, a in zip(problems, given, strict=True))
        for given in (direct, thought)
    ]
    return right[0] / len(problems), right[1] / len(problems)


def save(tensors: dict[str, Tensor], tokenizer: Tokenizer, directory: Path) -> None:
    """Writes a Hugging Face model directory."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: t.detach().contiguous() for name, t in tensors.items()},
        directory / "model.safetensors",
        {"format": "pt"},
    )
    (directory / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    tokenizer.save(str(directory / "tokenizer.json"))


def train(
    trainee: Trainee, stage: Stage, seed: int, tokenizer: Tokenizer, batch: int, watch: Callable[[int], None]
) -> None:
    """Runs one stage, with a fresh optimizer. watch: called with the step's number after every 500 and the
    last.
    """
    parameters = [t.requires_grad_() for t in trainee.tensors.values()]
    optimizer = torch.optim.AdamW(
        [
            {"params": [t for t in parameters if t.dim() > 1], "weight_decay": 0.05},
            {"params": [t for t in parameters if t.dim() == 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
    )
    stream, started = batches(Random(seed), tokenizer, stage, batch), time.monotonic()
    for step in range(1, stage.steps + 1):
        fallen = (1 + math.cos(math.pi * step / stage.fall)) / 2
        rate = stage.rate * min(1.0, step / stage.warmup) * (0.02 + 0.98 * fallen)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = batch_loss(trainee, next(stream))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 50 == 0:
            spent_s = (time.monotonic() - started) / step
            print(f"step {step}/{stage.steps} loss {loss.item():.4f} {spent_s:.3f} s/step", flush=True)
        if step % 500 == 0 or step == stage.steps:
            watch(step)


def main() -> None:
    """Trains and saves, printing the loss and the accuracy as it goes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64, help="traces in a step")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=MODEL_DIR)
    parser.add_argument(
        "--go-on", action="store_true", help="do the last stage alone, from the weights in --out"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = make_tokenizer()
    config = ModelConfig.parse(CONFIG)
    tensors = (
        load_file(options.out / "model.safetensors")
        if options.go_on
        else initial_tensors(config, torch.Generator().manual_seed(options.seed))
    )
    trainee = Trainee(config, tensors)
    print(f"{sum(t.numel() for t in tensors.values()):,} parameters", flush=True)
    watched = held_out(100)

    def watch(step: int) -> None:
        direct, thought = accuracy(trainee, watched, tokenizer)
        print(f"step {step}: {direct:.2f} without reasoning, {thought:.2f} with", flush=True)
        save(tensors, tokenizer, options.out)

    for number, stage in enumerate(STAGES):
        if number == len(STAGES) - 1 or not options.go_on:
            train(trainee, stage, options.seed + number, tokenizer, options.batch, watch)


if __name__ == "__main__":
    main()
