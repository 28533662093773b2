"""The HTTP side: streams of chunks from an OpenAI-compatible server, and its errors as gRPC statuses."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Self

import grpc
import httpx

from curfew.dialects import Json
from curfew.rpc.errors import RpcError, reason, retry_after

logger = logging.getLogger(__name__)

CHAT_PATH, COMPLETIONS_PATH = "/chat/completions", "/completions"

_CONNECT_S, _ASK_S = 5.0, 2.0
_RETRY_S, _MAX_RETRY_S = 1.0, 3600.0
_SHOWN = 500
_TOO_LONG = re.compile(r"context|too long|too large|exceed|maximum.{0,20}(length|tokens)", re.IGNORECASE)
_NOT_THERE = (httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT)


@dataclass(frozen=True, slots=True)
class Usage:
    """What the server counted so far. prompt_tokens and output_tokens of this request."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """One event of a stream. reasoning: text that the server itself told apart; text: everything else.
    finish: its reason to end, such as "stop" or "length". output_tokens: generated up to here; None where it
    does not tell. usage: with the last chunk, as a rule.
    """

    reasoning: str
    text: str
    finish: str | None
    output_tokens: int | None
    usage: Usage | None


class Upstream:
    """A server, by the URL of its /v1. To be closed with `async with`."""

    def __init__(self, url: str, *, key: str | None, silence_s: float) -> None:
        """key: sent as a bearer token. silence_s: a stream without a word for so long is given up."""
        self._base = url.rstrip("/")
        self._client = httpx.AsyncClient(
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(silence_s, connect=_CONNECT_S),
            # Slots bound what runs; a pool of connections must not.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    @property
    def root(self) -> str:
        """The server's URL without /v1."""
        return self._base.removesuffix("/v1")

    async def ask(self, url: str) -> httpx.Response | None:
        """What a GET brings; None when nobody answers."""
        try:
            return await self._client.get(url, timeout=_ASK_S)
        except httpx.HTTPError:
            return None

    async def models(self) -> list[Json]:
        """Its models, as /v1/models lists them; empty when it does not."""
        listed = json_of(await self.ask(f"{self._base}/models")).get("data")
        return (
            [dict(model) for model in listed if isinstance(model, dict)] if isinstance(listed, list) else []
        )

    async def is_there(self, health_path: str) -> bool:
        """Whether it answers, and not only what stands before it."""
        answer = await self.ask(self.root + health_path)
        return answer is not None and answer.status_code not in _NOT_THERE

    async def stream(self, path: str, body: Json) -> AsyncGenerator[Chunk, None]:
        """Posts a request and gives what comes. Closing this ends the request upstream. Raises RpcError."""
        try:
            async with self._client.stream(
                "POST", self._base + path, json=body | {"stream": True}
            ) as response:
                if response.status_code != httpx.codes.OK:
                    raise _refusal(response, (await response.aread()).decode(errors="replace"))
                async for line in response.aiter_lines():
                    if not line.startswith("data:"):
                        continue
                    data = line.removeprefix("data:").strip()
                    if data == "[DONE]":
                        return
                    yield _chunk(data)
        except httpx.HTTPError as error:
            logger.warning("the upstream server failed: %s: %s", type(error).__name__, error)
            raise unavailable("does not answer") from None


def json_of(response: httpx.Response | None) -> Json:
    """The JSON object in a good answer; else an empty one."""
    if response is None or response.status_code != httpx.codes.OK:
        return {}
    try:
        content = response.json()
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _chunk(data: str) -> Chunk:
    try:
        content = json.loads(data)
    except ValueError:
        content = None
    if not isinstance(content, dict) or "error" in content:
        logger.warning("the upstream server sent: %s", data[:_SHOWN])
        if _TOO_LONG.search(data):
            raise _too_long()
        raise unavailable("failed in the middle of a request")
    choices = content.get("choices")
    choice = _object(choices[0]) if isinstance(choices, list) and choices else {}
    delta = _object(choice.get("delta"))
    usage = _usage(content.get("usage"))
    timings = content.get("timings")
    counted = usage.output_tokens if usage is not None else None
    if counted is None and isinstance(timings, dict):
        predicted = timings.get("predicted_n")
        counted = predicted if isinstance(predicted, int) else None
    return Chunk(
        reasoning=_text(delta.get("reasoning_content")) or _text(delta.get("reasoning")),
        text=_text(delta.get("content")) or _text(choice.get("text")),
        finish=_text(choice.get("finish_reason")) or None,
        output_tokens=counted,
        usage=usage,
    )


def _usage(content: object) -> Usage | None:
    if not isinstance(content, dict):
        return None
    prompt, output = content.get("prompt_tokens"), content.get("completion_tokens")
    if not isinstance(prompt, int) or not isinstance(output, int):
        return None
    details = content.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Usage(prompt, output, cached if isinstance(cached, int) else 0)


def _object(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _refusal(response: httpx.Response, said: str) -> RpcError:
    """What a status of HTTP means. What the server said is for the log."""
    status = response.status_code
    logger.warning("the upstream server refused with %d: %s", status, said[:_SHOWN])
    if status == httpx.codes.TOO_MANY_REQUESTS:
        return RpcError(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "the upstream server is full",
            retry_after(_retry_s(response.headers.get("retry-after"))),
            reason("UPSTREAM_FULL"),
        )
    if status == httpx.codes.REQUEST_ENTITY_TOO_LARGE or (status in (400, 422) and _TOO_LONG.search(said)):
        return _too_long()
    if status in (400, 422):
        return RpcError(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"the upstream server refused the request (HTTP {status})",
            reason("UPSTREAM_REFUSED", http_status=status),
        )
    # A wrong key or model is the operator's to mend; to a caller the worker is not there.
    return unavailable(f"answered HTTP {status}", http_status=status)


def _too_long() -> RpcError:
    return RpcError(
        grpc.StatusCode.OUT_OF_RANGE,
        "the request does not fit the upstream server's context",
        reason("REQUEST_TOO_LARGE"),
    )


def unavailable(what: str, **numbers: int) -> RpcError:
    """The server is not there, or as good as that."""
    return RpcError(
        grpc.StatusCode.UNAVAILABLE,
        f"the upstream server {what}",
        retry_after(_RETRY_S),
        reason("UPSTREAM_UNAVAILABLE", **numbers),
    )


def _retry_s(header: str | None) -> float:
    """Seconds of a Retry-After, which is a number or a date: an hour at most."""
    if header is None:
        return _RETRY_S
    try:
        return min(max(0.0, float(header)), _MAX_RETRY_S)
    except ValueError:
        pass
    try:
        seconds = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        return min(max(0.0, seconds), _MAX_RETRY_S)
    except (ValueError, TypeError):
        return _RETRY_S
