"""A small random model, engines over it, and what came of requests."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import groupby
from random import Random
from typing import TypeVar

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from kernels import kernels_for
from worker.engine.answer_form import FREE_FORM, AnswerForm
from worker.engine.build import Model
from worker.engine.closing import Closing
from worker.engine.engine import Engine, EngineSettings
from worker.engine.events import Event, Failed, Finished, Output, Started
from worker.engine.generation import Limits, Phase, Strike, TokenRun
from worker.engine.probes import ProbeRule
from worker.engine.runner import Runner
from worker.engine.sampling import Sampling, TokenLogprobs
from worker.engine.scheduler import Plan
from worker.engine.sequence import Request
from worker.model.chat import CLOSE_TAG, END_MARK, SYSTEM_MARK, TURN_MARK, Chat, Prompt, byte_symbols
from worker.model.config import ModelConfig
from worker.model.network import Network
from worker.model.pools import Pools

CPU = torch.device("cpu")
CHUNK = 8
# Few enough that a random model often writes a line end, a full stop, a whole tag or the end of text.
_ALPHABET = " \n.?<>/think" + "SystemUserAssistant" + "+0123456789"
_MARKS = (SYSTEM_MARK, TURN_MARK, END_MARK)


def small_tokenizer() -> Tokenizer:
    """Byte-level, of a few dozen characters; `</think>` is one token where it stands in a text, and the
    pieces that it is merged from are tokens too.
    """
    symbol = byte_symbols()
    vocabulary = [*_MARKS, *dict.fromkeys(symbol[ord(character)] for character in _ALPHABET)]
    merges = []
    for end in range(1, len(CLOSE_TAG)):
        merges.append((CLOSE_TAG[:end], CLOSE_TAG[end]))
        vocabulary.append(CLOSE_TAG[: end + 1])
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(vocabulary)}, merges=merges))
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in _MARKS])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@cache
def small_model(seed: int = 0, pattern: str = "M*-M") -> Model:
    """Random weights, large enough that every layer matters to the next token."""
    chat = Chat(small_tokenizer())
    config = ModelConfig.parse(
        {
            "vocab_size": len(chat.token_bytes) + 3,
            "hidden_size": 24,
            "hybrid_override_pattern": pattern,
            "intermediate_size": 32,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 2,
            "chunk_size": CHUNK,
            "max_position_embeddings": 4096,
        }
    )
    generator = torch.Generator().manual_seed(seed)

    def tensors(name: str, *shape: int) -> Tensor:
        if name.endswith("A_log"):
            return torch.rand(shape, generator=generator) * math.log(16.0)
        if name.endswith("dt_bias"):
            return torch.rand(shape, generator=generator) * 4 - 4
        if len(shape) == 1:
            return torch.randn(shape, generator=generator) * 0.3 + ("norm" in name)
        return torch.randn(shape, generator=generator) * 1.5 / math.sqrt(math.prod(shape[1:]))

    return Model("small", config, chat, Network(config, tensors, kernels_for(CPU)))


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class RecordingRunner(Runner):
    """Remembers each step: what every request was fed, by id and sample, and the slots of the last."""

    def __init__(self, network: Network, pools: Pools, page_tokens: int) -> None:
        super().__init__(network, pools, page_tokens)
        self.steps: list[dict[tuple[str, int], int]] = []
        self.slots: dict[tuple[str, int], int | None] = {}

    def run(self, plan: Plan) -> Tensor:
        parts = [(s, 1) for s in plan.decodes] + [(p.sequence, p.count) for p in plan.pieces]
        self.slots = {(s.request.request_id, s.sample): s.slot for s, _ in parts}
        self.steps.append({(s.request.request_id, s.sample): count for s, count in parts})
        return super().run(plan)


R = TypeVar("R", bound=RecordingRunner)


def make_runner(model: Model, settings: EngineSettings, kind: type[R]) -> R:
    pools = Pools.allocate(
        model.config,
        slots=settings.slots + settings.checkpoints,
        pages=settings.pages,
        page_tokens=settings.page_tokens,
        dtype=model.network.dtype,
        device=CPU,
    )
    # What a slot or page held before must not matter.
    for pool in (*pools.conv, *pools.ssm, *pools.keys, *pools.values):
        pool.fill_(1e3)
    return kind(model.network, pools, settings.page_tokens)


def make_settings(**sizes: int) -> EngineSettings:
    """Ample sizes; `sizes` replaces some."""
    usual = {
        "slots": 8,
        "checkpoints": 0,
        "pages": 512,
        "page_tokens": 8,
        "step_tokens": 16,
        "idle_step_tokens": 64,
        "queue": 100,
        "max_sequence_tokens": 1024,
    }
    return EngineSettings(**(usual | sizes))


def make_engine(model: Model, clock: Callable[[], float] | None = None, **sizes: int) -> Engine:
    return recorded_engine(model, clock, **sizes)[0]


def recorded_engine(
    model: Model, clock: Callable[[], float] | None = None, **sizes: int
) -> tuple[Engine, RecordingRunner]:
    settings = make_settings(**sizes)
    runner = make_runner(model, settings, RecordingRunner)
    return Engine(runner, model.chat, settings, clock or Clock()), runner


@cache
def default_closing(model: Model) -> Closing:
    return Closing(model.chat.encode, model.chat.token_bytes)


def make_request(
    model: Model,
    name: str = "r",
    *,
    prompt: Sequence[int] = tuple(range(3, 20)),
    shared: int = 0,
    reasoning: int = 12,
    grace: int = 2,
    answer: int = 6,
    extra: int = 0,
    reason_until_s: float = math.inf,
    sampling: Sampling | None = None,
    closing: Closing | None = None,
    received_s: float = 100.0,
    priority: int = 0,
    deadline_s: float = math.inf,
    stop: tuple[str, ...] = (),
    samples: int = 1,
    resume: tuple[TokenRun, ...] = (),
    strike: Strike | None = None,
    probe: ProbeRule | None = None,
    reserve: int = 0,
    form: AnswerForm = FREE_FORM,
) -> Request:
    """A request whose output is as long as its budget, grace, close and answer need, and `extra` more."""
    closing = closing or default_closing(model)
    thinking = reasoning + grace + closing.longest if reasoning else 0
    return Request(
        request_id=name,
        prompt=Prompt(tuple(prompt), shared),
        limits=Limits(
            reasoning, grace if reasoning else 0, thinking + answer + extra, answer, reason_until_s, reserve
        ),
        closing=closing,
        sampling=sampling or Sampling(),
        received_s=received_s,
        priority=priority,
        deadline_s=deadline_s,
        stop=stop,
        samples=samples,
        resume=resume,
        strike=strike,
        probe=probe,
        form=form,
    )


@dataclass
class Outcome:
    """What came of one sample."""

    tokens: list[tuple[Phase, int]] = field(default_factory=list)
    reasoning: str = ""
    answer: str = ""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    strike: Strike | None = None
    finished: Finished | None = None

    @property
    def ids(self) -> list[int]:
        return [token for _, token in self.tokens]

    @property
    def runs(self) -> tuple[TokenRun, ...]:
        return runs_of(self.tokens)

    @property
    def end(self) -> Finished:
        assert self.finished is not None, "did not finish"
        return self.finished

    @property
    def whole(self) -> tuple[object, ...]:
        """All of it but what depends on time, batch and caches."""
        end = self.end
        counts = (end.prompt_tokens, end.reasoning_tokens, end.forced_tokens, end.answer_tokens, end.reopened)
        return self.tokens, self.reasoning, self.answer, end.reason, end.reasoning_end, counts


def runs_of(tokens: Iterable[tuple[Phase, int]]) -> tuple[TokenRun, ...]:
    return tuple(
        TokenRun(phase, [token for _, token in run]) for phase, run in groupby(tokens, key=lambda t: t[0])
    )


class Outcomes:
    """Collects events, and checks that they come in order."""

    def __init__(self) -> None:
        self.samples: dict[str, dict[int, Outcome]] = defaultdict(lambda: defaultdict(Outcome))
        self.started: dict[str, Started] = {}
        self.failed: dict[str, Failed] = {}

    def __getitem__(self, name: str) -> Outcome:
        return self.samples[name][0]

    def output_tokens(self, name: str) -> int:
        """So far, of the first sample."""
        return len(self[name].tokens)

    def take(self, events: Iterable[Event]) -> None:
        for event in events:
            assert event.request_id not in self.failed, "nothing follows a failure"
            match event:
                case Started():
                    assert event.request_id not in self.started
                    self.started[event.request_id] = event
                case Failed():
                    self.failed[event.request_id] = event
                case Output():
                    self._take_output(event)
                case Finished():
                    outcome = self.samples[event.request_id][event.sample]
                    assert outcome.finished is None
                    outcome.finished = event

    def _take_output(self, event: Output) -> None:
        assert event.request_id in self.started
        outcome = self.samples[event.request_id][event.sample]
        assert outcome.finished is None
        outcome.strike = event.strike
        for piece in event.pieces:
            outcome.tokens += [(piece.phase, token) for token in piece.token_ids]
            outcome.logprobs += piece.logprobs
            if piece.phase is Phase.ANSWER:
                outcome.answer += piece.text
            else:
                outcome.reasoning += piece.text


def computed(engine: Engine) -> list[Event]:
    """The events of the next step that computes; before it, those of requests that begin come alone."""
    events = engine.step()
    return [*events, *engine.step()] if any(isinstance(event, Started) for event in events) else events


def run(
    engine: Engine, *requests: Request, outcomes: Outcomes | None = None, steps: int = 10_000
) -> Outcomes:
    """Submits requests and steps until all are over; the cache is whole after every step."""
    outcomes = outcomes or Outcomes()
    for request in requests:
        engine.submit(request)
    while not engine.idle:
        outcomes.take(engine.step())
        engine.check_integrity()
        steps -= 1
        assert steps, "the engine does not come to an end"
    return outcomes


def alone(model: Model, request: Request) -> list[Outcome]:
    """What a request's samples are when each is all that ever runs on an engine."""
    outcomes = []
    for sample in range(request.samples):
        sampling = replace(request.sampling, seed=request.sampling.seed + sample)
        engine = make_engine(model, slots=1, idle_step_tokens=1024)
        own = replace(request, sampling=sampling, samples=1)
        outcomes.append(run(engine, own)[own.request_id])
    return outcomes


def random_prompt(random: Random, shortest: int = 1, longest: int = 60) -> list[int]:
    return [random.randrange(3, 40) for _ in range(random.randint(shortest, longest))]


def random_sampling(random: Random) -> Sampling:
    if random.random() < 0.4:
        return Sampling(repetition_penalty=random.choice([1.0, 1.0, 1.3]))
    return Sampling(
        temperature=random.choice([0.5, 1.0, 1.5]),
        top_p=random.choice([1.0, 0.9]),
        top_k=random.choice([0, 0, 10]),
        min_p=random.choice([0.0, 0.05]),
        repetition_penalty=random.choice([1.0, 1.0, 1.2]),
        seed=random.randrange(1 << 64),
    )


def random_request(model: Model, random: Random, name: str = "r", **fixed: object) -> Request:
    values = {
        "prompt": random_prompt(random),
        "reasoning": random.choice([0, 1, 5, 20]),
        "grace": random.randrange(4),
        "answer": random.randint(1, 8),
        "extra": random.choice([0, 5]),
        "sampling": random_sampling(random),
        "stop": random.choice([(), (), ("1", "+ ")]),
    }
    return make_request(model, name, **(values | fixed))  # type: ignore[arg-type]  # each fits its own
