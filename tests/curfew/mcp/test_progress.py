"""What an agent is told while the model thinks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from curfew.client import wire
from curfew.client.values import Event
from curfew.mcp.progress import EVERY_S, Note, Progress
from curfew.rpc.durations import duration
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import reasoning_pb2


def plan(deadline_s: float | None = 2.0) -> Event:
    message = reasoning_pb2.Plan(
        mode=pb.MODE_THINK, budget=pb.Budget(reasoning_tokens=96, grace_tokens=10, answer_tokens=6)
    )
    if deadline_s is not None:
        message.deadline.CopyFrom(duration(deadline_s))
    return known(reasoning_pb2.GenerateResponse(plan=message))


def delta(tokens: int, phase: pb.Phase.ValueType = pb.PHASE_REASONING) -> Event:
    return known(reasoning_pb2.GenerateResponse(delta=pb.Delta(phase=phase, token_ids=range(tokens))))


def known(message: reasoning_pb2.GenerateResponse) -> Event:
    event = wire.event(message)
    assert event is not None
    return event


def test_a_note_tells_tokens_and_the_time_that_is_left() -> None:
    progress = Progress(began_s=100.0)
    assert progress.take(plan(), 100.0) is None
    assert progress.take(delta(3), 100.1) is None
    assert progress.take(delta(4), 100.5) == Note(7, 112, "thinking, 7 tokens of thought so far, 1.5 s left")
    assert progress.take(delta(2), 100.6) is None
    late = progress.take(delta(2, pb.PHASE_ANSWER), 102.3)
    assert late == Note(11, 112, "answering, 9 tokens of thought so far, 0.3 s late")


def test_without_a_deadline_no_time_is_left() -> None:
    progress = Progress(began_s=0.0)
    progress.take(plan(deadline_s=None), 0.0)
    note = progress.take(delta(1), 1.0)
    assert note is not None
    assert note.message == "thinking, 1 tokens of thought so far"


def test_a_larger_budget_is_told() -> None:
    progress = Progress(began_s=0.0)
    progress.take(plan(), 0.0)
    budget = pb.Budget(reasoning_tokens=200, grace_tokens=10, answer_tokens=6)
    adjustment = reasoning_pb2.BudgetAdjustment(budget=budget)
    progress.take(known(reasoning_pb2.GenerateResponse(adjustment=adjustment)), 0.1)
    note = progress.take(delta(1), 1.0)
    assert note is not None
    assert note.most_tokens == 216


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 0.5))))
def test_notes_are_few_and_never_say_less_than_before(steps: list[tuple[int, float]]) -> None:
    progress, now_s = Progress(began_s=0.0), 0.0
    notes = []
    for tokens, wait_s in steps:
        now_s += wait_s
        note = progress.take(delta(tokens), now_s)
        if note is not None:
            notes.append(note.tokens)
    assert notes == sorted(set(notes))
    assert len(notes) <= now_s / EVERY_S
