"""Log lines, as a process writes them."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from curfew.telemetry.logs import FIELDS, JsonFormatter, TextFormatter, concerns

Emit = Callable[[logging.Formatter, str], str]


@pytest.fixture
def emit() -> Emit:
    def formatted(formatter: logging.Formatter, message: str) -> str:
        return formatter.format(logging.LogRecord("curfew.test", logging.WARNING, "", 0, message, (), None))

    return formatted


def test_a_json_line_is_an_object_with_the_time_in_utc(emit: Emit) -> None:
    line = json.loads(emit(JsonFormatter(), 'it said "no"\nand left'))
    when = datetime.fromisoformat(line.pop("time"))
    assert abs((datetime.now(UTC) - when).total_seconds()) < 60
    assert line == {"level": "warning", "logger": "curfew.test", "message": 'it said "no"\nand left'}


def test_a_json_line_is_one_line_even_with_an_exception() -> None:
    try:
        raise RuntimeError("first\nsecond")
    except RuntimeError:
        record = logging.LogRecord("curfew.test", logging.ERROR, "", 0, "failed", (), sys.exc_info())
    text = JsonFormatter().format(record)
    assert "\n" not in text
    assert "RuntimeError: first\nsecond" in json.loads(text)["exception"]


async def test_lines_say_which_request_their_task_is_about(emit: Emit) -> None:
    async def serve(request_id: str) -> list[dict[str, str]]:
        concerns(request_id, tenant="support", trace_id="")
        await asyncio.sleep(0)
        within = asyncio.create_task(later())
        return [json.loads(emit(JsonFormatter(), "at once")), await within]

    async def later() -> dict[str, str]:
        found: dict[str, str] = json.loads(emit(JsonFormatter(), "later"))
        return found

    for request_id, lines in zip("ab", await asyncio.gather(serve("a"), serve("b")), strict=True):
        for line in lines:
            assert (line["request_id"], line["tenant"]) == (request_id, "support")
            assert "trace_id" not in line
    assert "request_id" not in json.loads(emit(JsonFormatter(), "elsewhere"))


async def test_a_text_line_has_the_same_facts_behind_its_message(emit: Emit) -> None:
    concerns("a", tenant="support", trace_id="4bf9")
    line = emit(TextFormatter(), "request answered")
    assert line.endswith("WARNING curfew.test: request answered request_id=a tenant=support trace_id=4bf9")


def test_facts_of_a_record_are_fields_of_the_line() -> None:
    record = logging.LogRecord("curfew.test", logging.INFO, "", 0, "request answered", (), None)
    setattr(record, FIELDS, {"curfew.outcome": "answered", "curfew.latency_seconds": 0.5})
    line = json.loads(JsonFormatter().format(record))
    assert (line["curfew.outcome"], line["curfew.latency_seconds"]) == ("answered", 0.5)
