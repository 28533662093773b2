"""The demo model is trained the family's way, on what the worker will feed it."""

from random import Random

import pytest
import torch

from demo.problems import Problem
from demo.tokenizer import make_tokenizer
from demo.train import CONFIG, STAGES, Example, Trainee, batch_loss, initial_tensors, trace
from worker.engine.closing import Closing
from worker.model.chat import Chat, Role, Turn
from worker.model.config import ModelConfig

PROBLEM = Problem((12, 37, 45))


def traces() -> list[tuple[str, str]]:
    """(text fed, text learnt) of many traces of one problem."""
    tokenizer, random = make_tokenizer(), Random(3)
    examples = [trace(PROBLEM, random, tokenizer, STAGES[-1]) for _ in range(60)]

    def text(example: Example, learnt: bool) -> str:
        pairs = zip(example.ids, example.weights, strict=True)
        ids = [token for token, weight in pairs if (weight > 0) is learnt]
        return str(tokenizer.decode(ids, skip_special_tokens=False))

    return [(text(example, False), text(example, True)) for example in examples]


def test_every_kind_of_trace_ends_with_the_answer() -> None:
    assert all(learnt.endswith("94<SPECIAL_12>") for _, learnt in traces())


def test_the_prompt_and_the_forced_close_are_not_learnt() -> None:
    kinds = set()
    for fed, learnt in traces():
        assert "What is 12 + 37 + 45?" in fed
        if fed.endswith("<think></think>"):
            kinds.add("direct")
            assert learnt == "94<SPECIAL_12>"
        elif "</think>" in fed:
            kinds.add("cut")
            assert "</think>" not in learnt
        else:
            kinds.add("full")
            assert "12 + 37 = 49\n49 + 45 = 94\n</think>" in learnt
    assert kinds == {"direct", "cut", "full"}


@pytest.mark.parametrize("think", [True, False])
def test_traces_begin_like_the_prompts_that_the_worker_builds(think: bool) -> None:
    tokenizer = make_tokenizer()
    chat = Chat(make_tokenizer())
    prompt = chat.prompt([Turn(Role.USER, PROBLEM.question)], think=think).ids
    random = Random(3)
    examples = [trace(PROBLEM, random, tokenizer, STAGES[-1]) for _ in range(60)]
    assert any(tuple(example.ids[: len(prompt)]) == prompt for example in examples)


def test_forced_closes_are_tokenised_as_the_engine_forces_them() -> None:
    tokenizer = make_tokenizer()
    chat = Chat(make_tokenizer())
    closing = Closing(chat.encode, chat.token_bytes)
    for reasoning in ("12 + 37 = 49\n", "12 + 37 = 49\n49 +"):
        close = "</think>\n\n" if reasoning.endswith("\n") else ".\n</think>\n\n"
        assert closing.end(reasoning) == tuple(tokenizer.encode(close).ids)


def test_a_few_steps_of_training_lower_the_loss() -> None:
    torch.set_num_threads(1)
    config = ModelConfig.parse({**CONFIG, "hidden_size": 32, "intermediate_size": 32})
    tensors = initial_tensors(config, torch.Generator().manual_seed(0))
    trainee = Trainee(config, tensors)
    parameters = [t.requires_grad_() for t in tensors.values()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    tokenizer, random = make_tokenizer(), Random(1)
    batch = [trace(PROBLEM, random, tokenizer, STAGES[0]) for _ in range(4)]
    losses = []
    for _ in range(6):
        loss = batch_loss(trainee, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
