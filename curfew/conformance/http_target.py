"""A server that speaks OpenAI's chat completions."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType
from typing import Self

from curfew.conformance.target import Ask, RefusedError, Seen, TargetError
from curfew.dialects import Dialect, Json

_CLOSING_TOKENS = 32
_MOST_REASONING = 1024
_TIMEOUT_S = 120.0
_SHOWN = 200
_REASONING = ("reasoning_content", "reasoning")


class HttpTarget:
    """Speaks to one server; to be closed with `async with`. Raises ImportError without httpx."""

    has_unstreamed = True

    def __init__(self, url: str, dialect: Dialect, *, model: str | None, key: str | None) -> None:
        """url: of its /v1. model: None for the first that it lists."""
        import httpx

        self._url, self._dialect, self._model = url.rstrip("/"), dialect, model
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.AsyncClient(headers=headers, timeout=_TIMEOUT_S, trust_env=False)
        self._errors = (httpx.HTTPError,)

    @property
    def has_budget(self) -> bool:
        """As the dialect says."""
        return self._dialect.budget is not None

    @property
    def has_negative_budgets(self) -> bool:
        """JSON has negative numbers."""
        return self.has_budget

    async def __aenter__(self) -> Self:
        if self._model is None:
            try:
                self._model = await self._first_model()
            except BaseException:
                await self._client.aclose()
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def ask(self, ask: Ask) -> Seen:
        """One chat completion."""
        if ask.streamed:
            return await self._streamed(ask)
        try:
            response = await self._client.post(f"{self._url}/chat/completions", json=self._body(ask))
        except self._errors as error:
            raise TargetError(f"{type(error).__name__}: {error}") from None
        _check(response.status_code, response.text)
        content = _object(response.text)
        choice = _first(content)
        message = _dict(choice.get("message"))
        reasoning = _text_of(message)
        return _seen(
            ask, reasoning, _text(message.get("content")), choice.get("finish_reason"), content, pieces=0
        )

    async def leave(self, ask: Ask) -> None:
        """Closes the stream after its first piece."""
        async with aclosing(self._chunks(ask)) as chunks:
            async for chunk in chunks:
                delta = _dict(_first(chunk).get("delta"))
                if _text_of(delta) or _text(delta.get("content")):
                    return

    async def _streamed(self, ask: Ask) -> Seen:
        reasoning, answer, finish = "", "", None
        pieces, again = 0, False
        account: Json = {}
        async with aclosing(self._chunks(ask)) as chunks:
            async for chunk in chunks:
                for name in ("usage", "curfew"):
                    account[name] = _dict(account.get(name)) | _dict(chunk.get(name))
                choice = _first(chunk)
                finish = choice.get("finish_reason") or finish
                delta = _dict(choice.get("delta"))
                if thought := _text_of(delta):
                    again |= bool(answer.strip())
                    reasoning += thought
                    pieces += 1
                answer += _text(delta.get("content"))
        return _seen(ask, reasoning, answer, finish, account, pieces=pieces, reasoned_again=again)

    async def _chunks(self, ask: Ask) -> AsyncGenerator[Json, None]:
        body = self._body(ask) | self._dialect.counting | {"stream": True}
        try:
            async with self._client.stream("POST", f"{self._url}/chat/completions", json=body) as response:
                if not response.is_success:
                    _check(response.status_code, (await response.aread()).decode(errors="replace"))
                async for line in response.aiter_lines():
                    data = line.removeprefix("data:").strip()
                    if line.startswith("data:") and data != "[DONE]":
                        yield _object(data)
        except self._errors as error:
            raise TargetError(f"{type(error).__name__}: {error}") from None

    def _body(self, ask: Ask) -> Json:
        think, dialect = ask.budget != 0, self._dialect
        most = _MOST_REASONING if ask.budget is None else abs(ask.budget)
        body: Json = {
            "model": self._model,
            "messages": [{"role": "user", "content": ask.text}],
            "temperature": 0,
            "max_tokens": most + ask.answer_tokens + (_CLOSING_TOKENS if think and self.has_budget else 0),
        }
        body |= dialect.thinking(think)
        if ask.budget is not None and think and dialect.budget is not None:
            body |= dialect.budget(ask.budget)
        return body

    async def _first_model(self) -> str:
        try:
            response = await self._client.get(f"{self._url}/models")
        except self._errors as error:
            raise TargetError(f"{type(error).__name__}: {error}") from None
        _check(response.status_code, response.text)
        listed = _object(response.text).get("data")
        if isinstance(listed, list) and listed and isinstance(listed[0], dict):
            return _text(listed[0].get("id"))
        raise TargetError(f"{self._url}/models lists no model; --model names one")


def _check(status: int, said: str) -> None:
    if status < 400:
        return
    if status in (401, 403, 404, 429) or status >= 500:
        raise TargetError(f"HTTP {status}: {said[:_SHOWN]}")
    raise RefusedError(f"HTTP {status}: {said[:_SHOWN]}")


def _seen(
    ask: Ask,
    reasoning: str,
    answer: str,
    finish: object,
    account: Json,
    *,
    pieces: int,
    reasoned_again: bool = False,
) -> Seen:
    usage = _dict(account.get("usage"))
    budget = _dict(_dict(account.get("curfew")).get("budget"))
    details = _dict(usage.get("completion_tokens_details"))
    return Seen(
        ask=ask,
        reasoning=reasoning,
        answer=answer,
        finish=_text(finish),
        reasoning_tokens=_number(details.get("reasoning_tokens")),
        output_tokens=_number(usage.get("completion_tokens")),
        pieces=pieces,
        grace_tokens=_number(budget.get("grace_tokens")) or 0,
        reasoned_again=reasoned_again,
    )


def _object(text: str) -> Json:
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict) or content.get("error"):
        raise TargetError(f"the server sent: {text[:_SHOWN]}")
    return content


def _first(content: Json) -> Json:
    choices = content.get("choices")
    return _dict(choices[0]) if isinstance(choices, list) and choices else {}


def _text_of(message: Json) -> str:
    return next((text for name in _REASONING if (text := _text(message.get(name)))), "")


def _dict(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None
