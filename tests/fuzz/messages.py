"""Well-formed messages with hostile values, derived from the contracts' descriptors, sent to every method."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from tests.fuzz.frames import Door

CALL_S = 1.0
"""When a call is given up: what is valid may take its time."""

REFUSALS = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNIMPLEMENTED,
    # Of the caller's own timeout.
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""What a server that is well says to anything. Not UNKNOWN, INTERNAL or UNAVAILABLE."""

_TEXTS = (
    "",
    " ",
    "\0",
    "\r\n\r\n",
    "😀",
    "é" * 129,
    "﷽" * 2000,
    "a" * 100_000,
    "</think>",
    "<think>" * 50,
    "\n</think>\n\n",
    "<SPECIAL_12>",
    "%s%n{0}{{}}",
    "../../etc/passwd",
    "[" * 20_000,
    '{"a":' * 5_000,
    '{"type": "object"}',
    '{"$ref": "#"}',
    '{"type": "string", "pattern": "(a+)+$"}',
    '{"type": "integer", "minimum": 1e999}',
    "9" * 5_000,
)
_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (0, 1, -1, 2**31 - 1, -(2**31)),
    FieldDescriptor.CPPTYPE_UINT32: (0, 1, 7, 17, 2**16, 2**31, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (0, 1, -1, 315_576_000_001, -(10**11), 2**63 - 1, -(2**63)),
    FieldDescriptor.CPPTYPE_UINT64: (0, 1, 2**63, 2**64 - 1),
}
_DOUBLES = (0.0, -0.0, 0.5, 1.0, -1.0, 5e-324, 1e308, float("nan"), float("inf"), float("-inf"))
_FLOATS = (0.0, -0.0, 1.0, -1.0, 3e38, float("nan"), float("inf"), float("-inf"))
_REPEATED_BYTES = 1 << 20
_UNKNOWN_FIELD = b"\xf2\xff\x01\x03new"


@dataclass(frozen=True, slots=True)
class Method:
    """A method behind a door. base: a request that it takes."""

    door: Door
    base: Message
    streams: bool


def methods(door: Door, service: str, bases: dict[str, Message]) -> Iterator[Method]:
    """The methods of a service with requests by name of the method; empty ones where there is none."""
    described = descriptor_pool.Default().FindServiceByName(service)
    each: MethodDescriptor
    for each in described.methods:
        base = bases.get(each.name) or GetMessageClass(each.input_type)()
        path = f"/{service}/{each.name}"
        yield Method(Door(door.address, path, b"", door.headers), base, each.server_streaming)


@st.composite
def hostile(draw: DrawFn, base: Message) -> bytes:
    """A request that is near a good one, so that it gets past the first check, with some fields gone bad."""
    message = type(base)()
    message.CopyFrom(base)
    for _ in range(draw(st.integers(1, 4))):
        _spoil(draw, message, depth=0)
    raw = message.SerializeToString()
    return raw + _UNKNOWN_FIELD if draw(st.integers(0, 9)) == 9 else raw


def _spoil(draw: DrawFn, message: Message, depth: int) -> None:
    fields = cast("list[FieldDescriptor]", list(message.DESCRIPTOR.fields))
    if not fields:
        return
    field = draw(st.sampled_from(fields))
    inner = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        for number in range(draw(st.sampled_from((1, 17, 2000)))):
            inner[f"{draw(_TEXT)}{number}"] = draw(_TEXT)
    elif field.is_repeated:
        _spoil_list(draw, message, field, depth)
    elif field.message_type is None:
        setattr(message, field.name, draw(_scalar(field)))
    elif depth < 4 and draw(st.integers(0, 5)):
        inner.SetInParent()
        _spoil(draw, inner, depth + 1)
    else:
        message.ClearField(field.name)


def _spoil_list(draw: DrawFn, message: Message, field: FieldDescriptor, depth: int) -> None:
    values = getattr(message, field.name)
    match draw(st.sampled_from(("clear", "add", "many", "inside"))):
        case "clear":
            message.ClearField(field.name)
        case "inside" if field.message_type is not None and len(values):
            _spoil(draw, values[draw(st.integers(0, len(values) - 1))], depth + 1)
        case how:
            if field.message_type is None:
                added = draw(_scalar(field))
                size = len(added) if isinstance(added, str) else 4
            else:
                added = GetMessageClass(field.message_type)()
                if depth < 4:
                    _spoil(draw, added, depth + 1)
                size = added.ByteSize()
            times = 1 if how != "many" else min(20_000, 1 + _REPEATED_BYTES // (size + 2))
            values.extend([added] * times)


def _scalar(field: FieldDescriptor) -> SearchStrategy[object]:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return st.binary(max_size=1000)
        case FieldDescriptor.CPPTYPE_STRING:
            return _TEXT
        case FieldDescriptor.CPPTYPE_ENUM:
            assert field.enum_type is not None
            known = [value.number for value in field.enum_type.values]
            return st.sampled_from([*known, -1, 99, 2**31 - 1, -(2**31)])
        case FieldDescriptor.CPPTYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.CPPTYPE_DOUBLE:
            return st.sampled_from(_DOUBLES)
        case FieldDescriptor.CPPTYPE_FLOAT:
            return st.sampled_from(_FLOATS)
        case kind:
            return st.sampled_from(_INTEGERS[kind])


_TEXT: SearchStrategy[str] = st.sampled_from(_TEXTS) | st.text(max_size=10)


def damaged(raw: bytes) -> SearchStrategy[bytes]:
    """What need not be a message at all."""
    cut = st.builds(
        lambda at, gone, new: raw[:at] + new + raw[at + gone :],
        st.integers(0, len(raw)),
        st.integers(0, 4),
        st.binary(max_size=4) | st.just(struct.pack(">Q", 2**64 - 1)),
    )
    return cut | st.binary(max_size=50)


def attack(method: Method, *, examples: int, randomness: int | None = None) -> None:
    """Sends hostile requests to one method; raises AssertionError for the least one that it does not refuse,
    or answer, as it should. randomness: a seed; None gives the same requests every time.
    """
    requests = hostile(method.base) | damaged(method.base.SerializeToString())
    options = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=randomness is None,
        suppress_health_check=list(HealthCheck),
    )
    with grpc.insecure_channel(method.door.address) as channel:

        @options
        @given(requests)
        def is_refused_or_answered(raw: bytes) -> None:
            code, details = send(channel, method, raw)
            assert code in REFUSALS, f"{method.door.method}: {code}: {details}"
            assert "Traceback" not in details
            assert "Error(" not in details

        if randomness is not None:
            is_refused_or_answered = seed(randomness)(is_refused_or_answered)
        is_refused_or_answered()


def send(
    channel: grpc.Channel, method: Method, raw: bytes, *, timeout_s: float = CALL_S
) -> tuple[grpc.StatusCode, str]:
    """Sends a request as it is. Returns the status that its call ended with."""
    path, metadata = method.door.method, method.door.headers
    try:
        if method.streams:
            for _ in channel.unary_stream(path, bytes, bytes)(raw, timeout=timeout_s, metadata=metadata):
                pass
        else:
            channel.unary_unary(path, bytes, bytes)(raw, timeout=timeout_s, metadata=metadata)
    except grpc.RpcError as error:
        call = cast("grpc.Call", error)
        return call.code(), call.details() or ""
    return grpc.StatusCode.OK, ""
