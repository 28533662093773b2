"""What a worker does not take, and how it says so: every status code that the contract names."""

from __future__ import annotations

import math
from collections.abc import Callable

import grpc
import pytest

from curfew.v1 import generation_pb2 as pb
from curfew.v1 import worker_pb2
from tests.worker.service.serving import (
    Answer,
    GenerateRequest,
    Steps,
    ask,
    refusal,
    serving,
    told,
)
from worker.engine.events import Finished
from worker.engine.sequence import Request

Change = Callable[[GenerateRequest], object]
USER, ASSISTANT, SYSTEM = pb.ROLE_USER, pb.ROLE_ASSISTANT, pb.ROLE_SYSTEM


def turns(*roles: pb.Role.ValueType) -> Change:
    def change(request: GenerateRequest) -> None:
        del request.messages[:]
        request.messages.extend(pb.Message(role=role, content="1") for role in roles)

    return change


def sampling(**values: float) -> Change:
    return lambda request: request.sampling.MergeFrom(pb.SamplingParams(**values))  # type: ignore[arg-type]


def stops(*texts: str) -> Change:
    return lambda request: request.sampling.stop.extend(texts)


def seconds(name: str, seconds: int, nanos: int = 0) -> Change:
    def change(request: GenerateRequest) -> None:
        holder = request.budget if name == "reason_until" else request
        value = getattr(holder, name)
        value.seconds, value.nanos = seconds, nanos

    return change


def resume(phase: pb.Phase.ValueType, *token_ids: int) -> Change:
    return lambda request: request.resume.add(phase=phase, token_ids=token_ids)


def strike(reason: pb.ReasoningEnd.ValueType) -> Change:
    def change(request: GenerateRequest) -> None:
        request.resume.add(phase=pb.PHASE_REASONING, token_ids=[5])
        request.strike.reason = reason

    return change


def probe(**changed: int) -> Change:
    numbers = {"first_reasoning_tokens": 8, "every_reasoning_tokens": 8, "stable_answers": 2}
    rule = worker_pb2.ProbeRule(**(numbers | {"answer_tokens": 5} | changed))
    return lambda request: request.probe.CopyFrom(rule)


def field(name: str, value: object) -> Change:
    return lambda request: setattr(request, name, value)


def budget(name: str, value: int) -> Change:
    return lambda request: setattr(request.budget, name, value)


@pytest.mark.parametrize(
    ("change", "path", "description"),
    [
        (field("request_id", ""), "request_id", "must have 1 to 128 characters, has 0"),
        (field("request_id", "x" * 129), "request_id", "must have 1 to 128 characters, has 129"),
        (turns(), "messages", "at least one is needed, none given"),
        (turns(pb.ROLE_UNSPECIFIED, USER), "messages[0].role", "must be a known role, is 0"),
        (turns(USER, ASSISTANT), "messages[1].role", "or ROLE_TOOL, as the last, is ROLE_ASSISTANT"),
        (turns(SYSTEM), "messages[0].role", "must be ROLE_USER or ROLE_TOOL, as the last, is ROLE_SYSTEM"),
        (turns(USER, SYSTEM, USER), "messages[1].role", "ROLE_SYSTEM may only be the first"),
        (field("mode", 0), "mode", "must be MODE_THINK or MODE_NO_THINK, is 0"),
        (field("mode", pb.MODE_NO_THINK), "budget.reasoning_tokens", "must be 0 with MODE_NO_THINK, is 12"),
        (budget("answer_tokens", 0), "budget.answer_tokens", "must be at least 1, is 0"),
        (seconds("reason_until", -1), "budget.reason_until", "must be 0 s or longer, is -1 s and 0 ns"),
        (seconds("reason_until", 0, -5), "budget.reason_until", "must be 0 s or longer, is 0 s and -5 ns"),
        (seconds("deadline", 1, 2**30), "deadline", f"must be 0 s or longer, is 1 s and {2**30} ns"),
        (seconds("deadline", 2**60), "deadline", f"must be 0 s or longer, is {2**60} s and 0 ns"),
        (field("priority", 8), "priority", "must be 0 to 7, is 8"),
        (field("samples", 17), "samples", "must be 0 to 16, is 17"),
        (field("closing_text", "enough"), "closing_text", "'enough'"),
        (field("closing_text", "</think>\n\nSo"), "closing_text", "'</think>\\n\\nSo'"),
        (field("closing_text", "a" * 505 + "</think>"), "closing_text", "at most 512 characters, 513 given"),
        (sampling(temperature=2.5), "sampling.temperature", "at least 0 and at most 2, is 2.5"),
        (sampling(temperature=math.nan), "sampling.temperature", "at least 0 and at most 2, is nan"),
        (sampling(top_p=0.0), "sampling.top_p", "above 0 and at most 1, is 0"),
        (sampling(min_p=-math.inf), "sampling.min_p", "at least 0 and at most 1, is -inf"),
        (sampling(repetition_penalty=0.5), "sampling.repetition_penalty", "at least 1 and at most 2, is 0.5"),
        (sampling(top_logprobs=21), "sampling.top_logprobs", "must be 0 to 20, is 21"),
        (stops(*map(str, range(17))), "sampling.stop", "at most 16 strings, 17 given"),
        (stops("a", ""), "sampling.stop[1]", "must have 1 to 64 characters, has 0"),
        (stops("a" * 65), "sampling.stop[0]", "must have 1 to 64 characters, has 65"),
        (resume(pb.PHASE_UNSPECIFIED, 5), "resume[0].phase", "must be a known phase, is 0"),
        (resume(pb.PHASE_ANSWER, 5), "resume", "token 0, 5, cannot be ANSWER"),
        (resume(pb.PHASE_REASONING, 2**32 - 1), "resume", str(2**32 - 1)),
        (resume(pb.PHASE_REASONING, *[5] * 900), "resume", "900"),
        (strike(pb.REASONING_END_NONE), "strike.reason", "must be one that strikes, is 1"),
        (field("reserve_reasoning_tokens", 11), "reserve_reasoning_tokens", "reasoning_tokens, 12, is 11"),
        (probe(first_reasoning_tokens=0), "probe.first_reasoning_tokens", "must be at least 1, is 0"),
        (probe(every_reasoning_tokens=0), "probe.every_reasoning_tokens", "must be at least 1, is 0"),
        (probe(stable_answers=1), "probe.stable_answers", "must be at least 2, is 1"),
        (probe(answer_tokens=0), "probe.answer_tokens", "must be at least 1, is 0"),
        (lambda request: request.tools.add(name="add"), "tools", "cannot hold answers to a form"),
        (lambda r: setattr(r.answer_format, "json_schema", "{}"), "answer_format", "cannot hold answers to"),
    ],
)  # fmt: skip
async def test_an_invalid_field_is_told_with_its_value(change: Change, path: str, description: str) -> None:
    request = ask()
    change(request)
    async with serving() as worker:
        refused = await refusal(worker.stub.Generate(request))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(refused.violations) == [path]
    assert description in refused.violations[path]
    assert refused.text == f"{path}: {refused.violations[path]}"


async def test_all_invalid_fields_are_told_at_once() -> None:
    request = ask(reasoning=0, answer=0)
    request.samples, request.priority, request.sampling.temperature = 99, 99, 99
    request.messages.add(role=ASSISTANT)
    async with serving() as worker:
        refused = await refusal(worker.stub.Generate(request))
    paths = ["budget.answer_tokens", "priority", "samples", "sampling.temperature", "messages[1].role"]
    assert list(refused.violations) == paths


async def test_fields_do_not_go_with_what_they_need_or_exclude() -> None:
    several = ask()
    several.samples = 2
    several.resume.add(phase=pb.PHASE_REASONING, token_ids=[5])
    several_probed = ask()
    several_probed.samples = 2
    probe()(several_probed)
    nothing_to_raise = ask(reasoning=0)
    nothing_to_raise.reserve_reasoning_tokens = 5
    nothing_resumed = ask()
    nothing_resumed.strike.reason = pb.REASONING_END_LOOP
    async with serving() as worker:
        refused = await refusal(worker.stub.Generate(several))
        assert refused.violations == {"samples": "must be 1 with resume, is 2"}
        refused = await refusal(worker.stub.Generate(several_probed))
        assert refused.violations == {"samples": "must be 1 with probe, is 2"}
        refused = await refusal(worker.stub.Generate(nothing_to_raise))
        assert refused.violations == {"reserve_reasoning_tokens": "must be 0 without reasoning, is 5"}
        refused = await refusal(worker.stub.Generate(nothing_resumed))
        assert refused.violations == {"strike": "is only for a request with resume"}


async def test_what_is_told_of_a_thousand_invalid_fields_still_fits_a_status() -> None:
    request = ask()
    del request.messages[:]
    request.messages.extend(pb.Message(content="思" * 50) for _ in range(1000))
    request.closing_text = "思" * 512
    async with serving() as worker:
        refused = await refusal(worker.stub.Generate(request))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert len(refused.violations) == 8
    assert refused.text.endswith("and 993 more")


@pytest.mark.parametrize(
    ("change", "numbers"),
    [
        (budget("answer_tokens", 2**32 - 1), {"max_output_tokens": "4294967"}),
        (budget("reasoning_tokens", 2**32 - 1), {"max_sequence_tokens": "1024"}),
        (budget("grace_tokens", 2**32 - 1), {"prompt_tokens": "39"}),
        (lambda request: setattr(request.messages[0], "content", "1" * 5000), {"prompt_tokens": "5035"}),
        (field("samples", 16), {"needed_slots": "16", "slots": "8"}),
    ],
)
async def test_what_can_never_fit_is_out_of_range(change: Change, numbers: dict[str, str]) -> None:
    request = ask()
    change(request)
    async with serving() as worker:
        refused = await refusal(worker.stub.Generate(request))
    assert refused.code is grpc.StatusCode.OUT_OF_RANGE
    assert refused.reason.reason == "REQUEST_TOO_LARGE"
    for name, value in numbers.items():
        assert refused.reason.metadata[name].startswith(value)
        assert refused.reason.metadata[name] in refused.text


async def test_a_reserve_that_can_never_fit_is_told_as_the_field_that_it_is() -> None:
    request = ask()
    request.reserve_reasoning_tokens = 5000
    async with serving() as worker:
        refused = await refusal(worker.stub.Generate(request))
        assert refused.code is grpc.StatusCode.OUT_OF_RANGE
        assert refused.reason.reason == "REQUEST_TOO_LARGE"
        assert "exceed the 1024" in refused.violations["reserve_reasoning_tokens"]
        request.reserve_reasoning_tokens = 12
        assert (await worker.ask(request)).events[-1] == "completion"


async def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    steps = Steps(held=True, endless=True)
    async with serving(steps=steps, slots=1, queue=1) as worker:
        calls = [worker.stub.Generate(ask(reasoning=900))]
        await worker.between_steps(worker.until(lambda load: load.running == 1))
        calls.append(worker.stub.Generate(ask(reasoning=900)))
        await worker.between_steps(worker.until(lambda load: load.waiting == 1))
        refused = await worker.between_steps(refusal(worker.stub.Generate(ask())))
        assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.retry.retry_delay.seconds == 1
        assert refused.reason.reason == "QUEUE_FULL"
        assert dict(refused.reason.metadata) == {"waiting": "1", "queue": "1"}
        for call in calls:
            call.cancel()


async def test_an_id_in_use_is_refused_and_the_running_request_goes_on() -> None:
    steps = Steps(held=True)
    async with serving(steps=steps) as worker:
        first = aiter(worker.stub.Generate(ask("twin", reasoning=20)))
        steps.let(1)
        answer = Answer([await anext(first)])
        refused = await refusal(worker.stub.Generate(ask("twin")))
        assert refused.code is grpc.StatusCode.ALREADY_EXISTS
        assert refused.reason.reason == "REQUEST_ID_IN_USE"
        assert "'twin'" in refused.text
        steps.let_go()
        async for response in first:
            answer.take(response)
        assert answer.events[-1] == "completion"
        # Its id is free now.
        assert (await worker.ask(ask("twin", reasoning=20))).tokens == answer.tokens


async def test_an_id_is_free_as_soon_as_its_request_is_abandoned() -> None:
    async with serving(steps=Steps(endless=True)) as worker:
        for _ in range(20):
            call = worker.stub.Generate(ask("again", reasoning=900))
            await call.read()
            call.cancel()
            await worker.until(lambda load: load.running == 0)
            assert (await worker.ask(ask("again"))).events[-1] == "completion"


async def test_leaving_late_does_not_end_the_next_request_of_the_same_id() -> None:
    def request() -> Request:
        return worker.reader.read(ask("same"), random_seed=0, now_s=0.0)

    async with serving() as worker:
        first = await worker.thread.submit(request())
        while not first.complete:
            await first.complete_within(1.0)
        second = await worker.thread.submit(request())
        worker.thread.cancel(first)
        while not second.complete:
            await second.complete_within(1.0)
        assert isinstance(second.take()[-1], Finished)


@pytest.mark.parametrize(
    ("request_id", "reason_until_s", "path"),
    [("", 1, "request_id"), ("x" * 129, 1, "request_id"), ("r", -1, "reason_until")],
)
async def test_an_invalid_adjustment_is_refused(request_id: str, reason_until_s: int, path: str) -> None:
    request = worker_pb2.AdjustBudgetRequest(request_id=request_id)
    request.reason_until.seconds = reason_until_s
    async with serving() as worker:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await worker.stub.AdjustBudget(request)
    assert told(caught.value).code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(told(caught.value).violations) == [path]


async def test_a_message_that_is_too_long_is_never_read() -> None:
    async with serving() as worker:
        refused = await refusal(worker.stub.Generate(ask(text="1" * (1 << 21))))
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
