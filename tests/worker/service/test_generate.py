"""One request's stream, from its beginning to its accounting."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from curfew.rpc.durations import duration
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import worker_pb2
from curfew.v1.worker_pb2_grpc import WorkerServiceStub
from tests.worker.engine.small import Clock, alone, default_closing
from tests.worker.service.serving import (
    MODEL,
    NARROW,
    RANDOM_SEED,
    Answer,
    GenerateRequest,
    Steps,
    ask,
    serving,
    told,
)
from worker.engine.generation import Phase
from worker.service.requests import RequestReader

REASONING, FORCED, ANSWER = pb.PHASE_REASONING, pb.PHASE_FORCED, pb.PHASE_ANSWER
READER = RequestReader(MODEL.chat, default_closing(MODEL))
PHASES = {Phase.REASONING: REASONING, Phase.FORCED: FORCED, Phase.ANSWER: ANSWER}


async def answered(request: GenerateRequest, *, endless: bool = False) -> Answer:
    async with serving(steps=Steps(endless=endless)) as worker:
        return await worker.ask(request)


async def test_a_stream_starts_streams_and_completes() -> None:
    answer = await answered(ask(temperature=1.0))
    events = answer.events
    assert (events[0], events[-1]) == ("started", "completion")
    assert set(events[1:-1]) == {"delta"}
    assert answer.responses[0].HasField("load")
    assert answer.responses[-1].HasField("load")
    assert answer.responses[-1].load.running == 0


@pytest.mark.parametrize("seed", range(8))
async def test_it_brings_what_the_engine_makes_and_counts_it(seed: int) -> None:
    request = ask(temperature=1.0, reasoning=40 * (seed % 2), answer=20)
    request.sampling.seed = seed
    read = READER.read(request, random_seed=0, now_s=0.0)
    (expected,) = alone(MODEL, read)
    answer = await answered(request)
    assert answer.tokens == [(PHASES[phase], token) for phase, token in expected.tokens]
    assert answer.text(REASONING) == expected.reasoning
    assert answer.text(ANSWER) == expected.answer
    usage = answer.completion.usage
    assert usage.prompt_tokens == answer.responses[0].started.prompt_tokens == len(read.prompt.ids)
    counts = usage.reasoning_tokens, usage.forced_tokens, usage.answer_tokens
    assert counts == tuple(answer.count(phase) for phase in (REASONING, FORCED, ANSWER))
    assert usage.output_tokens == sum(counts)


async def test_reasoning_is_cut_at_the_budget_and_the_answer_has_its_own_tokens() -> None:
    answer = await answered(ask(reasoning=30, grace=0, answer=7), endless=True)
    assert answer.completion.reasoning_end == pb.REASONING_END_BUDGET
    assert answer.completion.finish_reason == pb.FINISH_REASON_LENGTH
    assert answer.count(REASONING) == 30
    assert answer.count(ANSWER) >= 7
    assert answer.text(FORCED) == ""
    assert "</think>" not in answer.text(REASONING) + answer.text(ANSWER)


async def test_without_thinking_grace_reserves_nothing() -> None:
    request = ask(reasoning=0, grace=5000, answer=10)
    answer = await answered(request, endless=True)
    assert answer.completion.reasoning_end == pb.REASONING_END_NONE
    assert answer.completion.usage.output_tokens == 10


async def test_a_caller_may_bring_its_own_closing_text() -> None:
    request = ask(reasoning=10, grace=0)
    request.closing_text = "\n\n4 6\n</think>\n"
    answer = await answered(request, endless=True)
    forced = [token for phase, token in answer.tokens if phase == FORCED]
    text = b"".join(MODEL.chat.token_bytes[token] for token in forced).decode()
    assert text.removeprefix(".").lstrip("\n") == request.closing_text.lstrip("\n")


async def test_timings_follow_one_another() -> None:
    answer = await answered(ask(reasoning=20), endless=True)
    timings = answer.completion.timings
    first, first_answer = timings.first_token.ToNanoseconds(), timings.first_answer_token.ToNanoseconds()
    assert timings.queue.ToNanoseconds() + timings.prefill.ToNanoseconds() <= first + 1000
    assert 0 < first < first_answer < timings.total.ToNanoseconds()
    assert timings.mean_batch_size == 1


async def test_a_seed_drawn_at_random_is_told_and_repeats_the_request() -> None:
    drawn = await answered(ask(temperature=1.0, reasoning=60))
    assert drawn.responses[0].started.seed == RANDOM_SEED
    again = ask(temperature=1.0, reasoning=60)
    again.sampling.seed = RANDOM_SEED
    assert (await answered(again)).tokens == drawn.tokens
    again.sampling.seed += 1
    assert (await answered(again)).tokens != drawn.tokens


async def test_a_seed_may_have_all_its_64_bits() -> None:
    request = ask(temperature=1.0)
    request.sampling.seed, request.samples = 2**64 - 1, 2
    answer = await answered(request)
    assert answer.responses[0].started.seed == 2**64 - 1
    assert sorted(answer.completions) == [0, 1]


async def test_samples_share_a_prompt_and_end_each_with_a_completion() -> None:
    request = ask(temperature=1.0, reasoning=20)
    request.samples, request.sampling.seed = 3, 7
    answer = await answered(request)
    assert answer.events.count("started") == 1
    assert answer.events[-1] == "completion"
    for sample in range(3):
        single = ask(temperature=1.0, reasoning=20)
        single.sampling.seed = 7 + sample
        expected = await answered(single)
        own = Answer(
            [r for r in answer.responses if r.WhichOneof("event") != "started" and r.sample == sample]
        )
        assert own.tokens == expected.tokens
        assert own.text(ANSWER) == expected.text(ANSWER)
        assert own.completion.usage == expected.completion.usage


async def test_every_sampled_token_has_its_log_probability_if_asked_for() -> None:
    request = ask(reasoning=10, grace=0)
    request.sampling.top_logprobs = 2
    answer = await answered(request, endless=True)
    for delta in answer.deltas:
        assert len(delta.logprobs) == (0 if delta.phase == FORCED else len(delta.token_ids))
        for report in delta.logprobs:
            assert len(report.top) == 2
            assert report.chosen <= 0
            assert report.top[1].logprob <= report.top[0].logprob <= 0
    silent = await answered(ask(reasoning=10))
    assert not any(delta.logprobs for delta in silent.deltas)


async def test_tokens_that_come_between_two_flushes_travel_together() -> None:
    steps = Steps(held=True, endless=True)
    async with serving(steps=steps, flush_s=3600.0) as worker:
        stream = worker.stub.Generate(ask(reasoning=20, grace=0, answer=5)).__aiter__()
        steps.let(1)
        answer = Answer([await anext(stream), await anext(stream)])
        assert answer.events == ["started", "delta"]
        assert len(answer.tokens) == 1
        # The end of the request is told at once, whenever the next flush would have been.
        steps.let_go()
        async for response in stream:
            answer.take(response)
    assert [delta.phase for delta in answer.deltas] == [REASONING, REASONING, FORCED, ANSWER]
    assert answer.count(REASONING) == 20


async def test_a_slow_reader_finds_everything_in_few_messages() -> None:
    request = ask(reasoning=600, answer=20)
    request.sampling.top_logprobs = 20  # so that the messages are large
    async with (
        serving(steps=Steps(endless=True)) as worker,
        grpc.aio.insecure_channel(worker.address, options=NARROW) as channel,
    ):
        stream = WorkerServiceStub(channel).Generate(request).__aiter__()
        answer = Answer([await anext(stream)])
        await worker.until(lambda load: load.running == 0)
        async for response in stream:
            answer.take(response)
    assert answer.completion.usage.reasoning_tokens == answer.count(REASONING) >= 600
    assert answer.completion.usage.answer_tokens == answer.count(ANSWER) >= 20
    assert len(answer.deltas) < 60


def resumed_after(whole: Answer, tokens: int, request: GenerateRequest) -> tuple[Answer, GenerateRequest]:
    """What a caller has when so many tokens have come, and the request with which it goes on elsewhere."""
    got = Answer()
    for response in whole.responses:
        if len(got.tokens) < tokens:
            got.take(response)
    again = GenerateRequest()
    again.CopyFrom(request)
    again.request_id = "resumed"
    for delta in got.deltas:
        again.resume.add(phase=delta.phase, token_ids=delta.token_ids)
    if got.responses[-1].HasField("strike"):
        again.strike.CopyFrom(got.responses[-1].strike)
    return got, again


def assert_goes_on(got: Answer, rest: Answer, whole: Answer) -> None:
    assert got.tokens + rest.tokens == whole.tokens
    for phase in (REASONING, ANSWER):
        assert got.text(phase) + rest.text(phase) == whole.text(phase)
    assert rest.completion.reasoning_end == whole.completion.reasoning_end
    assert rest.completion.usage == whole.completion.usage


@pytest.mark.parametrize("seed", range(6))
async def test_a_request_resumed_from_its_deltas_goes_on_as_if_it_had_never_stopped(seed: int) -> None:
    request = ask(reasoning=16, grace=4, answer=12, temperature=1.0)
    request.sampling.seed = seed
    async with serving(steps=Steps(endless=seed % 2 == 0)) as worker:
        whole = await worker.ask(request)
        for tokens in range(1, len(whole.tokens), 3):
            got, again = resumed_after(whole, tokens, request)
            assert_goes_on(got, await worker.ask(again), whole)


async def test_so_does_one_whose_time_to_think_was_over() -> None:
    clock, steps = Clock(), Steps(held=True, endless=True)
    request = ask(reasoning=30, grace=4, answer=6, temperature=1.0, reason_until_s=5.0)
    request.sampling.seed = 4
    async with serving(steps=steps, clock=clock) as worker:
        stream = worker.stub.Generate(request).__aiter__()
        steps.let(10)
        whole = Answer()
        while len(whole.tokens) < 10:
            whole.take(await anext(stream))
        clock.now_s += 5.0
        steps.let(1)
        whole.take(await anext(stream))
        assert whole.responses[-1].strike.reason == pb.REASONING_END_DEADLINE
        first = len(whole.tokens)
        steps.let_go()
        async for response in stream:
            whole.take(response)
        assert whole.completion.reasoning_end == pb.REASONING_END_DEADLINE
        assert first < whole.count(REASONING), "it was cut without a grace: choose another seed"
        request.budget.reason_until.CopyFrom(duration(0.0))
        for tokens in (*range(first, first + 6), len(whole.tokens) - 1):
            got, again = resumed_after(whole, tokens, request)
            assert_goes_on(got, await worker.ask(again), whole)


async def test_the_budget_can_be_changed_while_a_request_runs() -> None:
    steps = Steps(held=True, endless=True)
    async with serving(steps=steps) as worker:
        request = ask(reasoning=100, grace=0, answer=5)
        stream = worker.stub.Generate(request).__aiter__()
        steps.let(10)
        answer = Answer()
        while len(answer.tokens) < 10:
            answer.take(await anext(stream))
        change = worker_pb2.AdjustBudgetRequest(request_id=request.request_id, reasoning_tokens=60)
        adjusted = await worker.between_steps(worker.stub.AdjustBudget(change))
        assert adjusted.reasoning_tokens == 60
        assert 10 <= adjusted.used_reasoning_tokens < 60
        steps.let_go()
        async for response in stream:
            answer.take(response)
    assert answer.completion.reasoning_end == pb.REASONING_END_BUDGET
    assert answer.count(REASONING) == 60


@pytest.mark.parametrize(("reserve", "wish", "granted"), [(150, 140, 140), (150, 500, 150), (None, 140, 100)])
async def test_a_budget_can_be_raised_as_far_as_was_reserved(
    reserve: int | None, wish: int, granted: int
) -> None:
    steps = Steps(held=True, endless=True)
    async with serving(steps=steps) as worker:
        request = ask(reasoning=100, grace=0, answer=5)
        if reserve is not None:
            request.reserve_reasoning_tokens = reserve
        stream = aiter(worker.stub.Generate(request))
        steps.let(2)
        answer = Answer([await anext(stream)])
        change = worker_pb2.AdjustBudgetRequest(request_id=request.request_id, reasoning_tokens=wish)
        adjusted = await worker.between_steps(worker.stub.AdjustBudget(change))
        assert adjusted.reasoning_tokens == granted
        steps.let_go()
        async for response in stream:
            answer.take(response)
    assert answer.completion.reasoning_end == pb.REASONING_END_BUDGET
    assert answer.count(REASONING) == granted
    assert answer.count(ANSWER) >= 5


async def test_a_reserve_that_is_not_drawn_on_changes_nothing() -> None:
    request = ask(reasoning=20, temperature=1.0)
    request.sampling.seed = 5
    async with serving(steps=Steps(endless=True)) as worker:
        plain = await worker.ask(request)
        request.reserve_reasoning_tokens = 200
        assert (await worker.ask(request)).tokens == plain.tokens


async def test_a_stream_tells_its_start_before_anything_is_computed() -> None:
    steps = Steps(held=True)
    async with serving(steps=steps) as worker:
        stream = aiter(worker.stub.Generate(ask(text="1" * 200)))
        answer = Answer([await anext(stream)])
        assert answer.events == ["started"]
        assert worker.runner.steps == []
        steps.let_go()
        async for response in stream:
            answer.take(response)
    assert answer.events[-1] == "completion"


async def test_a_reasoning_whose_answer_is_stable_ends_early_and_its_probes_are_accounted() -> None:
    rule = worker_pb2.ProbeRule(
        first_reasoning_tokens=4, every_reasoning_tokens=2, stable_answers=2, answer_tokens=1
    )
    async with serving(steps=Steps(endless=True)) as worker:
        request = ask(reasoning=200, grace=4)
        unprobed = await worker.ask(request)
        request.probe.CopyFrom(rule)
        probed = await worker.ask(request)
        completion = probed.completion
        assert completion.reasoning_end == pb.REASONING_END_STABLE
        assert completion.probes >= 2
        assert completion.usage.probe_tokens > completion.probes
        reasoning = [token for token in probed.tokens if token[0] == REASONING]
        assert len(reasoning) == completion.usage.reasoning_tokens < 200
        assert reasoning == unprobed.tokens[: len(reasoning)]
        assert unprobed.completion.usage.probe_tokens == unprobed.completion.probes == 0
        struck = [r.strike for r in probed.responses if r.HasField("strike")]
        assert {strike.reason for strike in struck} == {pb.REASONING_END_STABLE}
        for tokens in range(struck[0].reasoning_tokens + 1, len(reasoning) + 5):
            got, again = resumed_after(probed, tokens, request)
            rest = await worker.ask(again)
            assert got.tokens + rest.tokens == probed.tokens
            assert rest.completion.reasoning_end == pb.REASONING_END_STABLE
            assert rest.completion.usage.probe_tokens == 0


async def test_the_end_of_reasoning_can_be_brought_forward_while_a_request_runs() -> None:
    clock = Clock()
    steps = Steps(held=True, endless=True)
    async with serving(steps=steps, clock=clock) as worker:
        request = ask(reasoning=100, grace=0, answer=5, reason_until_s=50.0)
        stream = worker.stub.Generate(request).__aiter__()
        steps.let(2)
        answer = Answer([await anext(stream)])
        change = worker_pb2.AdjustBudgetRequest(request_id=request.request_id, reason_until=duration(1.0))
        await worker.between_steps(worker.stub.AdjustBudget(change))
        clock.now_s += 1.0
        steps.let_go()
        async for response in stream:
            answer.take(response)
    assert answer.completion.reasoning_end == pb.REASONING_END_DEADLINE
    assert answer.count(REASONING) < 100


async def test_what_does_not_run_cannot_be_adjusted() -> None:
    async with serving() as worker:
        request = ask()
        await worker.ask(request)
        for request_id in (request.request_id, "never seen"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await worker.stub.AdjustBudget(worker_pb2.AdjustBudgetRequest(request_id=request_id))
            assert told(caught.value).code is grpc.StatusCode.NOT_FOUND
            assert told(caught.value).reason.reason == "REQUEST_NOT_RUNNING"
            assert repr(request_id) in told(caught.value).text


async def test_many_requests_at_once_get_what_they_get_alone() -> None:
    requests = [ask(text=f"{i}+{i}?", reasoning=10 + i, temperature=1.0) for i in range(20)]
    for number, request in enumerate(requests):
        request.sampling.seed = number
    async with serving(slots=6, pages=64) as worker:
        answers = await asyncio.gather(*map(worker.ask, requests))
    for request, answer in zip(requests, answers, strict=True):
        (expected,) = alone(MODEL, READER.read(request, random_seed=0, now_s=0.0))
        assert [token for _, token in answer.tokens] == expected.ids
