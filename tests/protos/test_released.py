"""Callers, controllers and workers of a released version go on working with this one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.rpc import error_details_pb2

from curfew.client import FinishReason
from curfew.client.values import Completion
from curfew.client.wire import event
from curfew.v1 import admin_pb2, generation_pb2, reasoning_pb2, registry_pb2, worker_pb2
from tests.controller.fake_worker import FakeWorker
from tests.controller.service.harness import ask, controller, detail, key
from tests.protos.compatibility import breaks

RELEASED = sorted((Path(__file__).parents[2] / "protos" / "released").glob("*.binpb"))


def read(file: Path) -> descriptor_pb2.FileDescriptorSet:
    return descriptor_pb2.FileDescriptorSet.FromString(file.read_bytes())


def ours() -> descriptor_pb2.FileDescriptorSet:
    files = descriptor_pb2.FileDescriptorSet()
    for module in (admin_pb2, generation_pb2, reasoning_pb2, registry_pb2, worker_pb2):
        module.DESCRIPTOR.CopyToProto(files.file.add())
    return files


class Released:
    """The messages of a released version, as its own generated code has them."""

    def __init__(self, file: Path) -> None:
        self._pool = descriptor_pool.DescriptorPool()
        for each in read(file).file:
            self._pool.Add(each)

    def __call__(self, name: str) -> Any:
        """A message class of the package."""
        return message_factory.GetMessageClass(self._pool.FindMessageTypeByName(f"curfew.v1.{name}"))


@pytest.fixture(params=RELEASED, ids=lambda file: file.stem)
def released(request: pytest.FixtureRequest) -> Released:
    return Released(request.param)


def test_there_is_a_release_to_compare_with() -> None:
    assert RELEASED


@pytest.mark.parametrize("file", RELEASED, ids=lambda file: file.stem)
def test_nothing_that_was_released_is_gone_or_means_another_thing(file: Path) -> None:
    assert breaks(read(file), ours()) == []


Files = descriptor_pb2.FileDescriptorSet


def message(files: Files, name: str) -> descriptor_pb2.DescriptorProto:
    return next(m for file in files.file for m in file.message_type if m.name == name)


def remove_field(files: Files) -> None:
    del message(files, "Plan").field[0]


def renumber_field(files: Files) -> None:
    message(files, "Plan").field[0].number = 99


def rename_field(files: Files) -> None:
    message(files, "Plan").field[0].name = "id"


def retype_field(files: Files) -> None:
    message(files, "Plan").field[0].type = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES


def repeat_field(files: Files) -> None:
    message(files, "Plan").field[0].label = descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED


def take_field_out_of_its_oneof(files: Files) -> None:
    message(files, "GenerateResponse").field[0].ClearField("oneof_index")


def remove_message(files: Files) -> None:
    message(files, "Plan").name = "Decision"


def remove_enum_value(files: Files) -> None:
    enum = next(e for file in files.file for e in file.enum_type if e.name == "FinishReason")
    del enum.value[-1]


def remove_method(files: Files) -> None:
    service = next(s for file in files.file for s in file.service if s.name == "ReasoningService")
    del service.method[0]


def stop_streaming(files: Files) -> None:
    service = next(s for file in files.file for s in file.service if s.name == "WorkerService")
    service.method[0].server_streaming = False


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (remove_field, "curfew.v1.Plan.request_id = 1 is gone"),
        (renumber_field, "curfew.v1.Plan.request_id = 1 is gone"),
        (rename_field, "curfew.v1.Plan.request_id = 1 was ('request_id', "),
        (retype_field, "curfew.v1.Plan.request_id = 1 was ('request_id', 'TYPE_STRING'"),
        (repeat_field, "curfew.v1.Plan.request_id = 1 was "),
        (take_field_out_of_its_oneof, "curfew.v1.GenerateResponse.plan = 1 was "),
        (remove_message, "curfew.v1.Plan is gone"),
        (remove_enum_value, "curfew.v1.FinishReason.FINISH_REASON_"),
        (remove_method, "curfew.v1.ReasoningService.Generate is gone"),
        (stop_streaming, "curfew.v1.WorkerService.Generate was "),
    ],
)
def test_whatever_breaks_an_older_caller_is_told(change: Callable[[Files], None], told: str) -> None:
    changed = ours()
    change(changed)
    (line,) = breaks(ours(), changed)
    assert line.startswith(told)


async def test_a_released_caller_gets_its_answer(released: Released) -> None:
    request, response = released("GenerateRequest")(), released("GenerateResponse")
    request.messages.add(role=generation_pb2.ROLE_USER, content="What is 12 + 37?")
    request.wishes.max_answer_tokens = 5
    async with (
        FakeWorker() as worker,
        controller([worker.address]) as door,
        grpc.aio.insecure_channel(door.addresses.listen) as channel,
    ):
        call: Any = channel.unary_stream(
            "/curfew.v1.ReasoningService/Generate",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        events = [each async for each in call(request, metadata=key("analyst"), timeout=20)]
    assert events[0].plan.budget.answer_tokens == 5
    answer = "".join(e.delta.text for e in events if e.delta.phase == generation_pb2.PHASE_ANSWER)
    assert answer == "it is 42"
    assert events[-1].completion.finish_reason == generation_pb2.FINISH_REASON_STOP
    assert events[-1].completion.usage.answer_tokens == 3


async def test_a_released_operator_sees_how_the_pool_stands(released: Released) -> None:
    async with (
        FakeWorker() as worker,
        controller([worker.address]) as door,
        grpc.aio.insecure_channel(door.addresses.admin) as channel,
    ):
        call: Any = channel.unary_unary(
            "/curfew.v1.AdminService/GetStatus",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=released("GetStatusResponse").FromString,
        )
        status = await call(released("GetStatusRequest")(), timeout=20)
    assert [w.address for w in status.workers] == [worker.address]


def test_a_released_worker_is_one_whose_capabilities_and_licence_are_not_told(released: Released) -> None:
    told = released("DescribeWorkerResponse")(model="m", bytes_per_token=4.0)
    understood = worker_pb2.DescribeWorkerResponse.FromString(told.SerializeToString())
    assert understood.model == "m"
    assert not understood.HasField("licence")


UNKNOWN_FIELD = b"\xfa\xff\x07\x03new"
"""Field 16383 with three bytes, of which no version knows."""


async def test_what_only_a_newer_caller_says_is_passed_over() -> None:
    request = reasoning_pb2.GenerateRequest.FromString(ask().SerializeToString() + UNKNOWN_FIELD)
    async with FakeWorker() as worker, controller([worker.address]) as door:
        answer = await door.generate("analyst", request)
    assert answer.error is None
    assert answer.completion.usage.answer_tokens == 3


async def test_a_value_that_only_a_newer_caller_knows_is_told_by_its_number() -> None:
    request = ask()
    request.messages[0].role = 99  # type: ignore[assignment]  # no Role yet
    async with FakeWorker() as worker, controller([worker.address]) as door:
        answer = await door.generate("analyst", request)
    assert answer.error is not None
    assert answer.error.code() is grpc.StatusCode.INVALID_ARGUMENT
    (first, *_) = detail(answer.error, error_details_pb2.BadRequest).field_violations
    assert (first.field, first.description) == ("messages[0].role", "99 is not a role")


def test_a_client_takes_what_a_newer_controller_says() -> None:
    completion = reasoning_pb2.Completion(finish_reason=99)  # type: ignore[arg-type]  # no FinishReason yet
    raw = reasoning_pb2.GenerateResponse(completion=completion).SerializeToString() + UNKNOWN_FIELD
    understood = event(reasoning_pb2.GenerateResponse.FromString(raw))
    assert isinstance(understood, Completion)
    assert understood.finish_reason is FinishReason.UNKNOWN
    assert event(reasoning_pb2.GenerateResponse.FromString(UNKNOWN_FIELD)) is None
