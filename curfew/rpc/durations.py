"""Between seconds, in which the code counts, and google.protobuf.Duration, in which the contracts do."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration


def duration(seconds: float) -> Duration:
    """Seconds as a message, to the nanosecond. Not infinite: what never comes is a message not set."""
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


def seconds(message: Duration) -> float:
    """A message as seconds."""
    return message.seconds + message.nanos / 1e9
