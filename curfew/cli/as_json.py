"""Messages of the contracts as the commands print them with --json."""

from __future__ import annotations

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message


def as_dict(message: Message) -> dict[str, object]:
    """The JSON form of a message: with the names of the contract's fields, and the same fields every time."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
