"""What waits for a slow reader."""

import asyncio

import pytest

from controller.service.outbox import Outbox
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import reasoning_pb2


def delta(phase: pb.Phase.ValueType, text: str, *ids: int) -> pb.Delta:
    logprobs = [pb.TokenLogprobs(chosen=-float(number)) for number in ids]
    return pb.Delta(phase=phase, text=text, token_ids=ids, logprobs=logprobs)


REASONING, FORCED, ANSWER = pb.PHASE_REASONING, pb.PHASE_FORCED, pb.PHASE_ANSWER
COMPLETION = reasoning_pb2.GenerateResponse(completion=reasoning_pb2.Completion())


async def drain(outbox: Outbox) -> list[reasoning_pb2.GenerateResponse]:
    taken = []
    while (event := await outbox.take()) is not None:
        taken.append(event)
    return taken


async def test_adjacent_deltas_of_a_phase_are_merged() -> None:
    outbox = Outbox()
    for phase, text, number in [(REASONING, "a", 1), (REASONING, "b", 2), (FORCED, "", 3), (ANSWER, "c", 4)]:
        outbox.put_delta(delta(phase, text, number))
    outbox.put_delta(delta(ANSWER, "d", 5, 6))
    outbox.put(COMPLETION)
    outbox.close()
    events = await drain(outbox)
    assert [event.delta for event in events[:-1]] == [
        delta(REASONING, "ab", 1, 2),
        delta(FORCED, "", 3),
        delta(ANSWER, "cd", 4, 5, 6),
    ]

    assert events[-1] == COMPLETION


async def test_counts_of_tokens_without_ids_are_added_up() -> None:
    outbox = Outbox()
    for tokens in (1, 3):
        outbox.put_delta(pb.Delta(phase=REASONING, text="a", token_count=tokens))
    outbox.close()
    assert [event.delta for event in await drain(outbox)] == [
        pb.Delta(phase=REASONING, text="aa", token_count=4)
    ]


async def test_the_pieces_of_a_call_are_merged_and_calls_are_kept_apart() -> None:
    first = pb.ToolCallDelta(index=0, id="a", name="add", arguments_json="{")
    second = pb.ToolCallDelta(index=1, id="b", name="add", arguments_json="{}")
    pieces = [first, pb.ToolCallDelta(arguments_json='"x":'), pb.ToolCallDelta(arguments_json=" 1}"), second]
    outbox = Outbox()
    outbox.put_delta(pb.Delta(phase=ANSWER, text="I add."))
    for piece in pieces:
        outbox.put_delta(pb.Delta(phase=ANSWER, token_ids=[1], tool_calls=[piece]))
    outbox.close()
    whole = pb.ToolCallDelta(index=0, id="a", name="add", arguments_json='{"x": 1}')
    assert [event.delta for event in await drain(outbox)] == [
        pb.Delta(phase=ANSWER, text="I add.", token_ids=[1] * 4, tool_calls=[whole, second])
    ]


async def test_what_was_taken_is_not_added_to() -> None:
    outbox = Outbox()
    outbox.put_delta(delta(ANSWER, "a", 1))
    first = await outbox.take()
    outbox.put_delta(delta(ANSWER, "b", 2))
    outbox.close()
    assert first is not None
    assert first.delta.text == "a"
    assert [event.delta.text for event in await drain(outbox)] == ["b"]


async def test_any_number_of_deltas_wait_as_few_messages_none_too_long() -> None:
    outbox = Outbox()
    for number in range(2500):
        outbox.put_delta(delta(REASONING, "x", number))
    outbox.close()
    events = await drain(outbox)
    assert [len(event.delta.text) for event in events] == [1024, 1024, 452]
    assert [token for event in events for token in event.delta.token_ids] == list(range(2500))


async def test_a_reader_waits_for_what_comes() -> None:
    outbox = Outbox()
    reader = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)
    outbox.put_delta(delta(ANSWER, "a", 1))
    event = await reader
    assert event is not None
    assert event.delta.text == "a"


async def test_an_error_comes_after_what_was_before_it() -> None:
    outbox = Outbox()
    outbox.put_delta(delta(ANSWER, "a", 1))
    outbox.close(ValueError("late"))
    assert await outbox.take() is not None
    with pytest.raises(ValueError, match="late"):
        await outbox.take()
