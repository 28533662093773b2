"""The whole engine on a device: whether it answers right, and what it adds to the model's own steps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, median

import torch

from benchmarks.harness import DEMO_MODEL, make_engine, threads
from demo.problems import held_out, is_right
from worker.engine.build import Model, load_model
from worker.engine.closing import Closing
from worker.engine.events import Finished, Output
from worker.engine.generation import Limits, Phase
from worker.engine.sampling import Sampling
from worker.engine.sequence import Request
from worker.model.chat import Chat, Prompt, Role, Turn
from worker.model.config import ModelConfig
from worker.model.network import Network


@dataclass(frozen=True, slots=True)
class Answers:
    """Share of held-out problems that a trained model gets right, greedily. agreement: share of those whose
    tokens are all those of PyTorch's kernels in fp32 on a CPU.
    """

    name: str
    problems: int
    right: float
    right_on_cpu: float
    agreement: float


def answers(device: torch.device, dtype: torch.dtype, problems: int) -> Iterator[Answers]:
    """Asks the demonstration's model on the device and on a CPU, with little to think and with enough."""
    asked = held_out(problems)
    questions = [problem.question for problem in asked]
    models = [
        load_model(DEMO_MODEL, device=at, dtype=kind)
        for at, kind in ((device, dtype), (torch.device("cpu"), torch.float32))
    ]
    for budget in (32, 128):
        # So small a model is no faster with more threads.
        with threads(2):
            here, there = (_answered(model, questions, budget) for model in models)
        right, right_on_cpu = (
            mean(is_right(problem, text) for problem, (text, _) in zip(asked, found, strict=True))
            for found in (here, there)
        )
        agreement = mean(a == b for a, b in zip(here, there, strict=True))
        yield Answers(f"demo model, budget {budget}", problems, right, right_on_cpu, agreement)


def _answered(model: Model, questions: Sequence[str], budget: int) -> list[tuple[str, list[int]]]:
    """Answers and all tokens, of questions asked at once."""
    engine = make_engine(model, queue=len(questions), cache_bytes=256 << 20)
    closing = Closing(model.chat.encode, model.chat.token_bytes)
    for number, question in enumerate(questions):
        prompt = model.chat.prompt([Turn(Role.USER, question)], think=True)
        limits = Limits(budget, 12, budget + 12 + closing.longest + 12)
        engine.submit(Request(f"{number}", prompt, limits, closing, Sampling(), time.monotonic()))
    texts, tokens = [""] * len(questions), [list[int]() for _ in questions]
    while not engine.idle:
        for event in engine.step():
            if isinstance(event, Output):
                number = int(event.request_id)
                for piece in event.pieces:
                    tokens[number] += piece.token_ids
                    texts[number] += piece.text if piece.phase is Phase.ANSWER else ""
    return list(zip(texts, tokens, strict=True))


@dataclass(frozen=True, slots=True)
class Served:
    """Requests that arrive together, with temperature and top-p. step_ms: of a step that only decodes.
    of_model: how many times what the model's own greedy step takes, host included.
    """

    name: str
    first_token_ms: float
    step_ms: float
    of_model: float
    output_tokens_per_s: float


def serve(
    network: Network, config: ModelConfig, model_step_ms: float, *, requests: int, prompt: int, output: int
) -> Served:
    """Runs an engine over a network with random weights. model_step_ms: of as many sequences."""
    chat = Chat.load(DEMO_MODEL, config.end_token_ids)
    engine = make_engine(
        Model("dummy", config, chat, network),
        slots=requests,
        checkpoints=2,
        max_sequence_tokens=prompt + 2 * output,
    )
    closing = Closing(chat.encode, chat.token_bytes)
    limits = Limits(output, 0, output + closing.longest + 1)
    sampling = Sampling(temperature=0.6, top_p=0.95)
    began_s = time.monotonic()
    for number in range(requests):
        ids = tuple((7 * number + place) % config.vocab_size for place in range(prompt))
        engine.submit(Request(f"{number}", Prompt(ids, 0), limits, closing, sampling, began_s))
    steps, tokens = list[float](), 0
    first_tokens_s = list[float]()
    while not engine.idle:
        step_began_s = time.monotonic()
        events = engine.step()
        taken_s = time.monotonic() - step_began_s
        outputs = [event for event in events if isinstance(event, Output)]
        tokens += sum(len(piece.token_ids) for event in outputs for piece in event.pieces)
        first_tokens_s += [event.timings.first_token_s for event in events if isinstance(event, Finished)]
        if len(outputs) == requests:
            steps.append(taken_s)
    engine.check_integrity()
    step_ms = median(steps) * 1e3
    return Served(
        name=f"{requests} requests, {prompt} in, {output} out",
        first_token_ms=median(first_tokens_s) * 1e3,
        step_ms=step_ms,
        of_model=step_ms / model_step_ms,
        output_tokens_per_s=tokens / (time.monotonic() - began_s),
    )
