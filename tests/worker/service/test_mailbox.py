"""Whatever comes, and however rarely it is taken: nothing is lost, reordered or kept in many pieces."""

from __future__ import annotations

import asyncio
from itertools import groupby

from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engine.events import Event, Finished, Output, Piece, Started, Timings
from worker.engine.generation import CallPiece, FinishReason, Phase, ReasoningEnd, Strike
from worker.engine.sampling import TokenLogprobs
from worker.service.mailbox import Mailbox

SAMPLES = 3


def finished(sample: int) -> Finished:
    return Finished(
        request_id="r",
        sample=sample,
        reason=FinishReason.STOP,
        reasoning_end=ReasoningEnd.NONE,
        prompt_tokens=1,
        cached_tokens=0,
        reasoning_tokens=0,
        forced_tokens=0,
        answer_tokens=1,
        reopened=False,
        preemptions=0,
        timings=Timings(0.0, 0.0, 0.0, None, 0.0, 1, 1.0),
    )


@st.composite
def pieces(draw: st.DrawFn) -> tuple[Piece, ...]:
    tokens = [tuple(draw(st.lists(st.integers(0, 99), max_size=2))) for _ in range(draw(st.integers(1, 3)))]
    return tuple(
        Piece(
            draw(st.sampled_from(Phase)),
            ids,
            draw(st.text(max_size=3)),
            tuple(TokenLogprobs(-float(number), ()) for number in ids),
        )
        for ids in tokens
    )


strikes = st.none() | st.builds(Strike, st.just(ReasoningEnd.BUDGET), st.integers(0, 9))
TAKE = None
actions = st.lists(
    st.just(TAKE) | st.builds(Output, st.just("r"), st.integers(0, SAMPLES - 1), pieces(), strikes),
    max_size=40,
)


Content = tuple[list[int], str, list[TokenLogprobs]]


def contents(events: list[Event]) -> dict[tuple[int, Phase], Content]:
    """Of each sample and phase: its tokens, its text, its log-probabilities."""
    found: dict[tuple[int, Phase], Content] = {}
    for event in events:
        if isinstance(event, Output):
            for piece in event.pieces:
                key = event.sample, piece.phase
                tokens, text, logprobs = found.get(key, ([], "", []))
                found[key] = ([*tokens, *piece.token_ids], text + piece.text, [*logprobs, *piece.logprobs])
    return found


def phases(events: list[Event], sample: int) -> list[Phase]:
    """In which order a sample went through its phases."""
    own = [event for event in events if isinstance(event, Output) and event.sample == sample]
    return [phase for phase, _ in groupby(piece.phase for event in own for piece in event.pieces)]


@given(actions)
@settings(derandomize=True, deadline=None, max_examples=300)
def test_any_interleaving_is_taken_unchanged_and_merged(actions: list[Output | None]) -> None:
    async def scenario() -> None:
        mailbox = Mailbox("r", SAMPLES)
        given: list[Event] = [Started("r", 1, 0, 0.0)]
        taken: list[Event] = []
        mailbox.put(given[0])
        for action in actions:
            if action is TAKE:
                taken += mailbox.take()
            else:
                given.append(action)
                mailbox.put(action)
        for sample in range(SAMPLES):
            given.append(finished(sample))
            mailbox.put(given[-1])
        assert mailbox.complete
        taken += mailbox.take()
        assert mailbox.exhausted

        assert taken[0] == given[0]
        assert [event for event in taken if isinstance(event, Finished)] == given[-SAMPLES:]
        assert contents(taken) == contents(given)
        for sample in range(SAMPLES):
            own = [event for event in given if isinstance(event, Output) and event.sample == sample]
            got = [event for event in taken if isinstance(event, Output) and event.sample == sample]
            assert phases(taken, sample) == phases(given, sample)
            # Who resumes after the last delta learns what had struck by then.
            assert not own or got[-1].strike == own[-1].strike

    asyncio.run(scenario())


@given(st.lists(st.tuples(st.integers(0, SAMPLES - 1), st.sampled_from(Phase)), max_size=200))
@settings(derandomize=True, deadline=None, max_examples=200)
def test_what_waits_is_a_piece_for_each_phase_that_a_sample_went_through(
    tokens: list[tuple[int, Phase]],
) -> None:
    async def scenario() -> None:
        mailbox = Mailbox("r", SAMPLES)
        given: list[Event] = [
            Output("r", sample, (Piece(phase, (number,), "x"),), None)
            for number, (sample, phase) in enumerate(tokens)
        ]
        for event in given:
            mailbox.put(event)
        waiting = mailbox.take()
        assert len(waiting) == sum(len(phases(given, sample)) for sample in range(SAMPLES))

    asyncio.run(scenario())


async def test_adjacent_pieces_of_a_call_are_merged_and_calls_are_kept_apart() -> None:
    mailbox = Mailbox("r", 1)
    first = [CallPiece(0, "add", "{"), CallPiece(0, "", '"a": 1'), CallPiece(0, "", "}")]
    for call in [*first, CallPiece(1, "now", "{}")]:
        mailbox.put(Output("r", 0, (Piece(Phase.ANSWER, (1,), "", calls=(call,)),), None))
    whole = (CallPiece(0, "add", '{"a": 1}'), CallPiece(1, "now", "{}"))
    assert mailbox.take() == [Output("r", 0, (Piece(Phase.ANSWER, (1,) * 4, "", calls=whole),), None)]


async def test_a_very_long_phase_is_taken_in_several_pieces() -> None:
    """Or a reader that was slow once would find a message that is too long for it."""
    mailbox = Mailbox("r", 1)
    for number in range(2500):
        mailbox.put(Output("r", 0, (Piece(Phase.ANSWER, (number,), "x"),), None))
    taken = [event.pieces[0] for event in mailbox.take() if isinstance(event, Output)]
    assert [len(piece.token_ids) for piece in taken] == [1024, 1024, 452]
    assert [token for piece in taken for token in piece.token_ids] == list(range(2500))


async def test_a_reader_is_woken_by_what_arrives() -> None:
    mailbox = Mailbox("r", 1)
    arrived = asyncio.create_task(mailbox.arrived())
    await asyncio.sleep(0)
    assert not arrived.done()
    mailbox.put(finished(0))
    await arrived
    assert not mailbox.exhausted
    mailbox.take()
    assert mailbox.exhausted


async def test_completion_does_not_wait_for_the_next_flush() -> None:
    mailbox = Mailbox("r", 1)
    waiting = asyncio.create_task(mailbox.complete_within(3600.0))
    await asyncio.sleep(0)
    assert not waiting.done()
    mailbox.put(finished(0))
    await waiting
    await Mailbox("r", 1).complete_within(0.001)


async def test_tokens_without_ids_bound_a_message_too() -> None:
    mailbox = Mailbox("r", 1)
    for _ in range(3000):
        mailbox.put(Output("r", 0, (Piece(Phase.ANSWER, (), "word ", token_count=1),), None))
    taken = [event.pieces[0] for event in mailbox.take() if isinstance(event, Output)]
    assert len(taken) == 3
    assert sum(piece.token_count for piece in taken) == 3000
