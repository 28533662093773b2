"""Turns of an API's request, in the contract's form."""

from __future__ import annotations

import time

from controller.http.conversation import Conversation
from curfew.v1 import generation_pb2 as pb


def conversation(*turns: tuple[pb.Role.ValueType, str]) -> Conversation:
    made = Conversation()
    for origin, (role, content) in enumerate(turns):
        made.add(origin, pb.Message(role=role, content=content))
    return made


def test_texts_of_the_system_are_one_where_they_begin() -> None:
    made = conversation(
        (pb.ROLE_SYSTEM, "be brief"),
        (pb.ROLE_SYSTEM, "be kind"),
        (pb.ROLE_USER, "hello"),
        (pb.ROLE_SYSTEM, "no"),
    )
    told = [
        (pb.ROLE_SYSTEM, "be brief\n\nbe kind"),
        (pb.ROLE_USER, "hello"),
        (pb.ROLE_SYSTEM, "no"),
    ]
    for _ in range(2):
        assert [(message.role, message.content) for message in made.messages] == told
    assert made.origin("messages[1].content") == "messages[2].content"


def test_a_body_full_of_texts_of_the_system_takes_no_more_time_than_another() -> None:
    began_s = time.process_time()
    made = conversation(*[(pb.ROLE_SYSTEM, "x" * 100)] * 20_000)
    assert len(made.messages[0].content) == 102 * 20_000 - 2
    assert time.process_time() - began_s < 3
