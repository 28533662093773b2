"""Budgets through a server that has one of its own, and through one that has none."""

from __future__ import annotations

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse

from curfew.rpc.durations import duration
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import worker_pb2
from tests.openai_server import Script
from tests.worker.service.serving import refusal
from tests.worker.upstream.harness import ANSWER, FORCED, REASONING, Answer, ask, fronting

WAYS = pytest.mark.parametrize("continuation", [False, True], ids=["native", "continuation"])


def counted(answer: Answer, phase: pb.Phase.ValueType) -> int:
    return sum(delta.token_count for delta in answer.deltas if delta.phase == phase)


def check_counts(answer: Answer) -> None:
    """What was streamed is what is accounted."""
    usage = answer.completion.usage
    assert [counted(answer, phase) for phase in (REASONING, FORCED, ANSWER)] == [
        usage.reasoning_tokens,
        usage.forced_tokens,
        usage.answer_tokens,
    ]
    assert usage.output_tokens == usage.reasoning_tokens + usage.forced_tokens + usage.answer_tokens


@WAYS
async def test_reasoning_that_ends_by_itself_costs_one_request(continuation: bool) -> None:
    async with fronting(Script(), continuation=continuation) as worker:
        answer = await worker.ask(ask(reasoning=100, answer=10))
        assert answer.completion.reasoning_end == pb.REASONING_END_NATURAL
        assert answer.completion.finish_reason == pb.FINISH_REASON_STOP
        assert answer.text(REASONING) == "".join(Script().reasoning)
        assert answer.text(ANSWER) == "it is 42"
        check_counts(answer)
        assert len(worker.server.bodies) == 1


async def test_a_continuation_cuts_at_the_budget_and_has_the_answer_follow() -> None:
    async with fronting(Script(), continuation=True) as worker:
        answer = await worker.ask(ask(reasoning=10, grace=0, answer=10))
        assert answer.text(REASONING) == "".join(Script().reasoning[:10])
        assert answer.completion.usage.reasoning_tokens == 10
        assert answer.completion.usage.forced_tokens > 0
        assert answer.completion.reasoning_end == pb.REASONING_END_BUDGET
        assert answer.text(ANSWER) == "it is 42"
        check_counts(answer)
        (_, first), (_, second) = worker.server.bodies
        assert first["max_tokens"] == 10
        assert second["max_tokens"] == 10


async def test_a_sentence_may_end_in_the_grace() -> None:
    script = Script(reasoning=("a ", "b ", "c ", "d.\n", "e ", "f "))
    async with fronting(script, continuation=True) as worker:
        answer = await worker.ask(ask(reasoning=2, grace=3))
        assert answer.text(REASONING) == "a b c d.\n"
        assert answer.completion.usage.reasoning_tokens == 4
        assert answer.completion.reasoning_end == pb.REASONING_END_BUDGET


async def test_a_native_budget_is_the_servers_to_keep_in_one_request() -> None:
    async with fronting(Script()) as worker:
        answer = await worker.ask(ask(reasoning=10, grace=2, answer=10))
        assert len(worker.server.bodies) == 1
        assert worker.server.bodies[0][1]["thinking_token_budget"] == 10
        assert answer.completion.usage.reasoning_tokens == 10
        assert answer.completion.reasoning_end == pb.REASONING_END_BUDGET
        assert answer.text(ANSWER) == "it is 42"
        check_counts(answer)


async def test_a_server_that_ignores_its_budget_is_cut_all_the_same() -> None:
    async with fronting(Script(budget=None)) as worker:
        answer = await worker.ask(ask(reasoning=10, grace=2, answer=10))
        assert answer.completion.usage.reasoning_tokens == 12
        assert answer.completion.reasoning_end == pb.REASONING_END_BUDGET
        assert answer.text(ANSWER) == "it is 42"
        check_counts(answer)
        second = worker.server.bodies[1][1]
        messages = second["messages"]
        assert isinstance(messages, list)
        assert messages[-1]["role"] == "assistant"
        assert messages[-1]["content"].startswith("<think>\nr0 r1 ")
        assert messages[-1]["content"].endswith("</think>\n\n")
        assert second["continue_final_message"] is True


@WAYS
async def test_no_budget_is_no_reasoning(continuation: bool) -> None:
    async with fronting(Script(), continuation=continuation) as worker:
        answer = await worker.ask(ask(reasoning=0, answer=10))
        assert answer.text(REASONING) == ""
        assert answer.completion.usage.reasoning_tokens == 0
        assert answer.completion.reasoning_end == pb.REASONING_END_NONE
        assert answer.text(ANSWER) == "it is 42"


@WAYS
async def test_time_ends_reasoning_like_tokens_do(continuation: bool) -> None:
    async with fronting(Script(), continuation=continuation) as worker:
        answer = await worker.ask(ask(reasoning=100, grace=0, answer=10, reason_until_s=0.0))
        assert answer.completion.reasoning_end == pb.REASONING_END_DEADLINE
        assert answer.completion.usage.reasoning_tokens == 0
        assert answer.text(ANSWER) == "it is 42"


@WAYS
async def test_a_running_request_is_told_to_end_its_reasoning(continuation: bool) -> None:
    script = Script(pauses_after=5)
    async with fronting(script, continuation=continuation) as worker:
        request = ask("r", reasoning=25, grace=0, answer=10)
        call, answer = worker.stub.Generate(request), Answer()
        async for response in call:
            answer.take(response)
            if answer.text(REASONING).endswith("r4 "):
                adjusted = await worker.stub.AdjustBudget(
                    worker_pb2.AdjustBudgetRequest(request_id="r", reasoning_tokens=8)
                )
                assert (adjusted.reasoning_tokens, adjusted.used_reasoning_tokens) == (8, 5)
                script.pauses_after = None
                worker.server.go_on.set()
        assert answer.completion.usage.reasoning_tokens == 8
        assert answer.completion.reasoning_end == pb.REASONING_END_BUDGET
        assert answer.text(ANSWER) == "it is 42"


async def test_new_time_is_taken_up_too() -> None:
    script = Script(pauses_after=5)
    async with fronting(script, continuation=True) as worker:
        call, answer = worker.stub.Generate(ask("r", reasoning=25, grace=0, answer=10)), Answer()
        async for response in call:
            answer.take(response)
            if answer.text(REASONING).endswith("r4 "):
                change = worker_pb2.AdjustBudgetRequest(request_id="r", reason_until=duration(0.0))
                await worker.stub.AdjustBudget(change)
                script.pauses_after = None
                worker.server.go_on.set()
        assert answer.completion.reasoning_end == pb.REASONING_END_DEADLINE
        assert answer.completion.usage.reasoning_tokens == 6


@WAYS
async def test_a_model_that_answers_nothing_is_asked_again_and_never_passed_on_as_an_answer(
    continuation: bool,
) -> None:
    async with fronting(Script(no_answer=True), continuation=continuation) as worker:
        refused = await refusal(worker.stub.Generate(ask(reasoning=100)))
        assert refused.code is grpc.StatusCode.INTERNAL
        assert refused.reason.reason == "UPSTREAM_NO_ANSWER"
        assert [body["temperature"] for _, body in worker.server.bodies[-2:]] == [1.0, 1.0]


@WAYS
async def test_reasoning_is_not_reopened(continuation: bool) -> None:
    async with fronting(Script(reopens=True), continuation=continuation) as worker:
        answer = await worker.ask(ask(reasoning=100, answer=20))
        assert answer.completion.reopened
        assert "think>" not in answer.text(ANSWER)
        assert answer.text(ANSWER).endswith("42")


async def test_an_answer_is_not_begun_anew_where_the_server_cannot_go_on() -> None:
    script = Script(budget=("thinking", "budget_tokens"), answer=("4", "2", "<think>", "again"))
    async with fronting(script, dialect="litellm") as worker:
        answer = await worker.ask(ask(reasoning=100, answer=20))
        assert answer.text(ANSWER) == "42"
        assert answer.completion.reopened
        assert answer.completion.finish_reason == pb.FINISH_REASON_STOP
        assert len(worker.server.bodies) == 1


async def test_an_answer_of_white_space_is_none() -> None:
    async with fronting(Script(answer=(" ",) * 200), continuation=True) as worker:
        refused = await refusal(worker.stub.Generate(ask(reasoning=100)))
        assert refused.reason.reason == "UPSTREAM_NO_ANSWER"


async def test_many_tokens_in_one_piece_are_no_loop() -> None:
    event = 'data: {"choices": [{"text": "long text", "finish_reason": "length"}]}\n\n'
    script = Script(refusal=lambda: PlainTextResponse(event, media_type="text/event-stream"))
    async with fronting(script, continuation=True) as worker:
        answer = await worker.ask(ask(reasoning=400, grace=0, answer=20))
        assert answer.completion.usage.reasoning_tokens == 400
        assert answer.completion.reasoning_end == pb.REASONING_END_BUDGET
        assert answer.completion.finish_reason == pb.FINISH_REASON_LENGTH


async def test_stop_strings_end_the_answer_and_the_servers_work() -> None:
    async with fronting(Script(answer=("1 ", "2 ", "stop ", "3 "))) as worker:
        request = ask(reasoning=100)
        request.sampling.stop.append("stop")
        answer = await worker.ask(request)
        assert answer.text(ANSWER) == "1 2 "
        assert answer.completion.finish_reason == pb.FINISH_REASON_STOP


@WAYS
async def test_an_answer_that_uses_all_its_tokens_is_told_to(continuation: bool) -> None:
    script = Script(answer=tuple(f"a{number} " for number in range(99)))
    async with fronting(script, continuation=continuation) as worker:
        answer = await worker.ask(ask(reasoning=0, answer=5))
        assert answer.completion.finish_reason == pb.FINISH_REASON_LENGTH
        assert answer.text(ANSWER).startswith("a0 a1 a2 a3 a4 ")


async def test_loops_end_early() -> None:
    script = Script(reasoning=("again ",) * 400)
    async with fronting(script, continuation=True) as worker:
        answer = await worker.ask(ask(reasoning=390, answer=10))
        assert answer.completion.reasoning_end == pb.REASONING_END_LOOP
        assert answer.completion.usage.reasoning_tokens < 300
        assert answer.text(ANSWER) == "it is 42"


async def test_running_counts_of_the_server_are_in_force() -> None:
    script = Script(running_usage=True, reasoning=("é ", "b ", "c "))
    async with fronting(script, continuation=True) as worker:
        answer = await worker.ask(ask(reasoning=100))
        assert answer.completion.usage.prompt_tokens > 10
        check_counts(answer)


PIECES = st.sampled_from(["a ", "b.\n", "c", " d", "1.", "\n", "<", "é"])
CASES = st.tuples(
    st.lists(PIECES, max_size=25),
    st.lists(st.sampled_from(["x ", "y", "7 "]), min_size=1, max_size=8),
    st.booleans(),
    st.integers(1, 30),
    st.integers(0, 6),
    st.integers(1, 10),
)


@pytest.mark.parametrize("continuation", [False, True], ids=["native", "continuation"])
@settings(max_examples=4, deadline=None)
@given(cases=st.lists(CASES, min_size=8, max_size=8))
async def test_any_script_keeps_the_contract(
    continuation: bool, cases: list[tuple[list[str], list[str], bool, int, int, int]]
) -> None:
    async with fronting(continuation=continuation) as worker:
        for reasoning, words, running_usage, budget, grace, reserve in cases:
            worker.server.script = Script(
                reasoning=tuple(reasoning), answer=tuple(words), running_usage=running_usage
            )
            answer = await worker.ask(ask(reasoning=budget, grace=grace, answer=reserve))
            assert answer.completion.usage.reasoning_tokens <= budget + grace
            assert answer.text(ANSWER).strip()
            assert "".join(words).startswith(answer.text(ANSWER))
            assert "".join(reasoning).startswith(answer.text(REASONING))
            check_counts(answer)
