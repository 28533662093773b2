"""What a stream should have been: the same request, cut where it was cut, run by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import grpc

from benchmarks.chaos.callers import ANSWER_TOKENS, Ask, Stream
from curfew.client import Mode, Phase, ReasoningEnd
from curfew.rpc.durations import duration
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import worker_pb2
from curfew.v1.worker_pb2_grpc import WorkerServiceStub

ENOUGH_TOKENS = 300
"""In which all reasoning ends by itself."""
SIDE_BY_SIDE = 8
"""Requests that are run together."""

Tokens = Sequence[tuple[Phase, int]]


@dataclass(frozen=True, slots=True)
class Case:
    """A request and where its reasoning was cut; None where it was not."""

    ask: Ask
    thinks: bool
    cut_at: int | None

    @classmethod
    def of(cls, ask: Ask, stream: Stream) -> list[Case]:
        """What a stream is a case of: none where nothing came, and either of two where it broke off, and
        nobody can say whether its reasoning had been cut.
        """
        if stream.plan is None or not stream.tokens:
            return []
        thinks = stream.plan.mode is Mode.THINK
        whole, cut = cls(ask, thinks, None), cls(ask, thinks, stream.reasoning_tokens)
        closed = any(phase is not Phase.REASONING for phase, _ in stream.tokens)
        if not thinks or not closed:
            return [whole]
        if stream.completion is None:
            return [whole, cut]
        return [whole if stream.completion.reasoning_end is ReasoningEnd.NATURAL else cut]


@dataclass(frozen=True, slots=True)
class Difference:
    """In tokens, between what came and what should have."""

    duplicated: int = 0
    missing: int = 0
    wrong: int = 0

    def __add__(self, other: Difference) -> Difference:
        return Difference(
            self.duplicated + other.duplicated, self.missing + other.missing, self.wrong + other.wrong
        )

    @property
    def total(self) -> int:
        """Of all kinds."""
        return self.duplicated + self.missing + self.wrong


def difference(came: Tokens, truth: Tokens, *, whole: bool) -> Difference:
    """whole: the stream came to its end; else it may be the truth's beginning."""
    if list(came) == list(truth if whole else truth[: len(came)]):
        return Difference()
    found = Difference()
    for what, a, b, c, d in SequenceMatcher(None, truth, came, autojunk=False).get_opcodes():
        if what == "delete":
            found += Difference(missing=b - a if whole or b < len(truth) else 0)
        elif what == "insert" and came[c:d] in (came[max(0, 2 * c - d) : c], came[d : 2 * d - c]):
            found += Difference(duplicated=d - c)
        elif what != "equal":
            found += Difference(wrong=max(b - a, d - c))
    return found


async def truths(worker: str, cases: Iterable[Case]) -> dict[Case, Tokens]:
    """Each case's tokens, from a worker that nothing happens to."""
    limit = asyncio.Semaphore(SIDE_BY_SIDE)
    async with grpc.aio.insecure_channel(worker) as channel:
        stub = WorkerServiceStub(channel)

        async def run(number: int, case: Case) -> Tokens:
            tokens: list[tuple[Phase, int]] = []
            async with limit:
                async for response in stub.Generate(_request(f"truth-{number}", case)):
                    if response.HasField("delta"):
                        phase = Phase(response.delta.phase)
                        tokens += ((phase, token) for token in response.delta.token_ids)
            return tokens

        distinct = list(dict.fromkeys(cases))
        found = await asyncio.gather(*(run(number, case) for number, case in enumerate(distinct)))
    return dict(zip(distinct, found, strict=True))


def _request(request_id: str, case: Case) -> worker_pb2.WorkerServiceGenerateRequest:
    ask = case.ask
    budget = pb.Budget(reasoning_tokens=ENOUGH_TOKENS if case.thinks else 0, answer_tokens=ANSWER_TOKENS)
    if case.cut_at == 0:
        # Its time was up at once. A budget of 0 tokens would not have let it begin to reason.
        budget.reason_until.CopyFrom(duration(0.0))
    elif case.cut_at is not None:
        budget.reasoning_tokens = case.cut_at
    return worker_pb2.WorkerServiceGenerateRequest(
        request_id=request_id,
        messages=[pb.Message(role=pb.ROLE_USER, content=ask.question)],
        mode=pb.MODE_THINK if case.thinks else pb.MODE_NO_THINK,
        budget=budget,
        sampling=pb.SamplingParams(temperature=ask.tenant.temperature, seed=ask.seed),
    )
