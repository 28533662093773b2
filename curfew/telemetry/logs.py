"""Log lines that say what request they are about, as text or as JSON."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import Enum

FIELDS = "fields"
"""The attribute of a log record with further facts: `log.info("…", extra={FIELDS: {…}})`."""

_subject: ContextVar[Mapping[str, str]] = ContextVar("subject", default={})  # noqa: B039  # nobody writes to it


class LogFormat(Enum):
    """What a line is: for people, or a JSON object for programs."""

    TEXT = "text"
    JSON = "json"


def concerns(request_id: str, *, tenant: str = "", trace_id: str = "") -> None:
    """What this task, and those that it begins, log from now on is about this request."""
    told = {"request_id": request_id, "tenant": tenant, "trace_id": trace_id}
    _subject.set({name: value for name, value in told.items() if value})


def configure_logging(level: str, form: LogFormat) -> None:
    """Has the process write its log lines of at least this level to its standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form is LogFormat.JSON else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])


class TextFormatter(logging.Formatter):
    """The message, and behind it what it is about."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """One line."""
        line = super().formatMessage(record)
        return " ".join([line, *(f"{name}={value}" for name, value in _facts(record).items())])


class JsonFormatter(logging.Formatter):
    """An object with time, level, logger and message, what it is about, and an exception's text."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_facts(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def _facts(record: logging.LogRecord) -> dict[str, object]:
    return {**_subject.get(), **getattr(record, FIELDS, {})}
