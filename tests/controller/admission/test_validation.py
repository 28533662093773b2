"""What a request must look like."""

import math
from collections.abc import Callable

import pytest
from google.protobuf.duration_pb2 import Duration

from controller.admission.validation import violations
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import reasoning_pb2

Request = reasoning_pb2.GenerateRequest


def turn(role: pb.Role.ValueType, content: str = "hello") -> pb.Message:
    return pb.Message(role=role, content=content)


def request() -> Request:
    return Request(messages=[turn(pb.ROLE_USER)])


def test_a_full_request_is_in_order() -> None:
    full = Request(
        messages=[
            turn(pb.ROLE_SYSTEM, ""),
            turn(pb.ROLE_USER),
            turn(pb.ROLE_ASSISTANT, ""),
            turn(pb.ROLE_USER),
        ],
        sampling=pb.SamplingParams(
            temperature=2,
            top_p=1,
            top_k=5,
            min_p=1,
            repetition_penalty=1,
            seed=3,
            stop=["x" * 64],
            top_logprobs=20,
        ),
        wishes=reasoning_pb2.Wishes(
            mode=pb.MODE_THINK, max_reasoning_tokens=0, max_answer_tokens=1, deadline=Duration(seconds=1)
        ),
        labels={f"key{number}": "" for number in range(16)},
    )
    assert violations(full) == []


def sampling(**fields: float) -> Callable[[Request], None]:
    return lambda r: r.sampling.MergeFrom(pb.SamplingParams(**fields))  # type: ignore[arg-type]  # of any field


def wish(**fields: object) -> Callable[[Request], None]:
    return lambda r: r.wishes.MergeFrom(reasoning_pb2.Wishes(**fields))  # type: ignore[arg-type]  # of any field


def messages(*turns: pb.Message) -> Callable[[Request], None]:
    def change(r: Request) -> None:
        del r.messages[:]
        r.messages.extend(turns)

    return change


@pytest.mark.parametrize(
    ("change", "field", "description"),
    [
        (messages(), "messages", "is empty; send at least one"),
        (messages(turn(pb.ROLE_UNSPECIFIED)), "messages[0].role", "ROLE_UNSPECIFIED is not a role"),
        (messages(turn(77)), "messages[0].role", "77 is not a role"),  # type: ignore[arg-type]  # a number unknown
        (messages(turn(pb.ROLE_USER, " \n")), "messages[0].content", "' \\n' asks nothing"),
        (
            messages(turn(pb.ROLE_USER), turn(pb.ROLE_SYSTEM), turn(pb.ROLE_USER)),
            "messages[1].role",
            "ROLE_SYSTEM stands at 1; it may only be the first",
        ),
        (
            messages(turn(pb.ROLE_USER), turn(pb.ROLE_ASSISTANT)),
            "messages[1].role",
            "the last turn is ROLE_ASSISTANT's; it must be ROLE_USER's or ROLE_TOOL's",
        ),
        (sampling(temperature=2.5), "sampling.temperature", "2.5 is out of range; allowed is 0 to 2"),
        (sampling(temperature=math.nan), "sampling.temperature", "nan is out of range; allowed is 0 to 2"),
        (sampling(top_p=0), "sampling.top_p", "0 is out of range; allowed is above 0, to 1"),
        (sampling(min_p=-0.1), "sampling.min_p", "-0.1 is out of range; allowed is 0 to 1"),
        (
            sampling(repetition_penalty=0.5),
            "sampling.repetition_penalty",
            "0.5 is out of range; allowed is 1 to 2",
        ),
        (sampling(top_logprobs=21), "sampling.top_logprobs", "21 is out of range; allowed is 0 to 20"),
        (
            lambda r: r.sampling.stop.extend(["x"] * 17),
            "sampling.stop",
            "17 strings; allowed are at most 16",
        ),
        (lambda r: r.sampling.stop.append(""), "sampling.stop[0]", "0 characters; allowed are 1 to 64"),
        (
            lambda r: r.sampling.stop.append("x" * 65),
            "sampling.stop[0]",
            "65 characters; allowed are 1 to 64",
        ),
        (
            lambda r: r.messages.extend([r.messages[-1]] * 1024),
            "messages",
            "1025 messages; allowed are at most 1024",
        ),
        (wish(mode=9), "wishes.mode", "9 is not a mode"),
        (lambda r: setattr(r, "model", "m" * 257), "model", "257 characters; allowed are at most 256"),
        (wish(effort=9), "wishes.effort", "9 is not an effort"),
        (wish(max_output_tokens=0), "wishes.max_output_tokens", "0 leaves no answer; allowed is 1 and more"),
        (wish(max_answer_tokens=0), "wishes.max_answer_tokens", "0 leaves no answer; allowed is 1 and more"),
        (
            wish(deadline=Duration(seconds=-1)),
            "wishes.deadline",
            "-1s is out of range; allowed is above 0s, to 24h",
        ),
        (wish(deadline=Duration()), "wishes.deadline", "0s is out of range; allowed is above 0s, to 24h"),
        (
            lambda r: r.labels.update({str(number): "x" for number in range(17)}),
            "labels",
            "17 labels; allowed are at most 16",
        ),
        (
            lambda r: r.labels.update({"k": "x" * 65}),
            "labels",
            "'k' has 1 characters and its value 65; allowed are 1 to 64 and at most 64",
        ),
    ],
)
def test_a_fault_is_named_with_its_value(
    change: Callable[[Request], None], field: str, description: str
) -> None:
    faulty = request()
    change(faulty)
    assert violations(faulty) == [(field, description)]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda r: r.messages.extend([turn(pb.ROLE_USER, "")] * 1024), "messages"),
        (lambda r: r.sampling.stop.extend([""] * 17), "sampling.stop"),
        (lambda r: r.labels.update({f"{number}": "x" * 65 for number in range(17)}), "labels"),
    ],
)
def test_of_what_is_too_much_nothing_else_is_told(change: Callable[[Request], None], field: str) -> None:
    faulty = request()
    change(faulty)
    assert [told for told, _ in violations(faulty)] == [field]


def test_all_faults_are_named_at_once() -> None:
    faulty = Request(
        messages=[turn(pb.ROLE_USER, "")], sampling=pb.SamplingParams(temperature=3, top_p=2), labels={"": ""}
    )
    assert len(violations(faulty)) == 4
