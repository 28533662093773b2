"""What the desk is asked."""

from __future__ import annotations

from controller.planning.decision import Prefix
from controller.planning.lengths import LengthModel
from controller.service.asking import LEAST_PREFIX_BYTES, ask_of
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import reasoning_pb2

INSTRUCTIONS = "Answer briefly. " * (LEAST_PREFIX_BYTES // 8)


def prefix(system: str, *, user: str = "What is 1 + 1?", tool: str = "") -> Prefix | None:
    request = reasoning_pb2.GenerateRequest(
        messages=[
            pb.Message(role=pb.ROLE_SYSTEM, content=system),
            pb.Message(role=pb.ROLE_USER, content=user),
        ],
        tools=[pb.Tool(name=tool)] if tool else [],
    )
    return ask_of(request, 100, LengthModel(), 4.0, None).prefix


def test_requests_with_the_same_instructions_and_tools_have_the_same_prefix() -> None:
    first = prefix(INSTRUCTIONS)
    assert first is not None
    assert 0 < first.digest < 1 << 64
    digests = [
        each.digest
        for each in (
            first,
            prefix(INSTRUCTIONS, user="What is 2 + 2?"),
            prefix(INSTRUCTIONS + "!"),
            prefix(INSTRUCTIONS, tool="look"),
        )
        if each is not None
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_short_instructions_are_no_prefix() -> None:
    assert prefix("Be brief.") is None
