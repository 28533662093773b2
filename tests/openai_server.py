"""A real HTTP server that speaks OpenAI's API for a scripted model, well or with a leak."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from worker.model.chat import Chat

Json = dict[str, object]

MODEL = Path(__file__).parents[1] / "demo" / "model"
CLOSE = "</think>\n\n"
FORMAT_TOKENS = 10


@dataclass
class Script:
    """What the server and its model do.

    reasoning, answer: pieces of text, a token each. budget: where a body has the thinking budget. separated:
    reasoning comes in a field of its own, `key`. running_usage: counts come with every chunk. step_s: between
    two tokens. The others are leaks; `over` when more than one request runs is `crowd_over`.
    """

    reasoning: tuple[str, ...] = tuple(f"r{number} " for number in range(30))
    answer: tuple[str, ...] = ("it ", "is ", "4", "2")
    budget: tuple[str, ...] | None = ("thinking_token_budget",)
    separated: bool = True
    key: str = "reasoning_content"
    running_usage: bool = False
    owner: str = "vllm"
    step_s: float = 0.0
    over: int = 0
    crowd_over: int = 0
    over_unstreamed: int = 0
    ignores_off: bool = False
    no_answer: bool = False
    closes_twice: bool = False
    reopens: bool = False
    miscounts: int = 0
    uncounted_reasoning: bool = False
    takes_any_budget: bool = False
    obeys_users: bool = False
    wrong_finish: bool = False
    goes_on_alone: bool = False
    refusal: Callable[[], Response] | None = None
    dies_after: int | None = None
    pauses_after: int | None = None


@dataclass
class OpenAiServer:
    """A running server. bodies: of the requests, with their paths. running: requests now; ended: that were
    left.
    """

    url: str
    script: Script
    bodies: list[tuple[str, Json]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    left: int = 0
    healthy: bool = True
    _slot: asyncio.Lock | None = None
    go_on: threading.Event = field(default_factory=threading.Event)
    paused: threading.Event = field(default_factory=threading.Event)
    emptied: threading.Event = field(default_factory=threading.Event)

    def app(self) -> Starlette:
        """Its routes."""
        return Starlette(
            routes=[
                Route("/health", self._health),
                Route("/v1/models", self._models),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._text, methods=["POST"]),
            ]
        )

    async def _health(self, _: Request) -> Response:
        return PlainTextResponse("ok", 200 if self.healthy else 503)

    async def _models(self, _: Request) -> Response:
        model = {"id": "scripted", "object": "model", "owned_by": self.script.owner, "max_model_len": 4096}
        return JSONResponse({"object": "list", "data": [model]})

    async def _chat(self, request: Request) -> Response:
        body = await self._received(request)
        if self.script.refusal is not None:
            return self.script.refusal()
        messages = body["messages"]
        assert isinstance(messages, list)
        budget, last = self._budget(body), messages[-1]
        if budget is not None and budget < 0 and not self.script.takes_any_budget:
            self.running -= 1
            return JSONResponse({"error": {"message": "the budget must not be negative"}}, 400)
        written = last["content"].removeprefix("<think>\n") if last["role"] == "assistant" else None
        think = written is None and _thinks(body) and budget != 0
        if self.script.ignores_off:
            think = written is None
        if self.script.obeys_users and "/no_think" in last["content"]:
            think = False
        prompt_tokens = FORMAT_TOKENS + sum(len(turn["content"]) for turn in messages)
        return self._answer(request, body, self._output(body, think, budget, written), prompt_tokens)

    async def _text(self, request: Request) -> Response:
        body = await self._received(request)
        if self.script.refusal is not None:
            return self.script.refusal()
        prompt, prompt_tokens = _spelled(body["prompt"])
        opening = prompt.rpartition("Assistant\n")[2]
        think = not opening.startswith("<think></think>")
        written = opening.removeprefix("<think></think>").removeprefix("<think>\n")
        return self._answer(
            request, body, self._output(body, think, None, written, separated=False), prompt_tokens
        )

    def _budget(self, body: Json) -> int | None:
        value: object = body if self.script.budget else None
        for name in self.script.budget or ():
            value = value.get(name) if isinstance(value, dict) else None
        return value if isinstance(value, int) else None

    async def _received(self, request: Request) -> Json:
        body: Json = await request.json()
        self.bodies.append((request.url.path, body))
        self.headers.append(dict(request.headers))
        self.running += self.script.refusal is None
        self.most_running = max(self.most_running, self.running)
        self.emptied.clear()
        return body

    def _output(
        self,
        body: Json,
        think: bool,
        budget: int | None,
        written: str | None,
        *,
        separated: bool | None = None,
    ) -> list[tuple[str, str]]:
        """(kind, text) of every token that is to come, up to the end of text."""
        script, reasoning = self.script, list(self.script.reasoning)
        if budget is not None:
            over = script.crowd_over if self.running > 1 and script.crowd_over else script.over
            over = over if body.get("stream") else script.over_unstreamed
            reasoning = reasoning[: max(0, budget + over)]
        answer = [] if script.no_answer else list(script.answer)
        if script.closes_twice and think:
            answer = [CLOSE, *answer]
        if script.reopens:
            answer = ["<think>", "again ", "</think>", *answer]
        apart = script.separated if separated is None else separated
        if not think:
            return [("text", token) for token in answer]
        closing = [("hidden" if apart else "text", CLOSE)]
        tokens = [(script.key if apart else "text", token) for token in reasoning]
        tokens += closing + [("text", token) for token in answer]
        if not written:
            return tokens
        if "</think>" in written:
            done = written.rpartition("</think>")[2].strip()
            rest = list(script.answer)
            while done and rest and done.startswith(rest[0].strip()):
                done = done.removeprefix(rest.pop(0).strip()).strip()
            return [("text", token) for token in ([] if script.no_answer else rest)]
        while written and tokens and written.startswith(tokens[0][1]):
            written = written.removeprefix(tokens.pop(0)[1])
        return tokens

    def _answer(
        self, request: Request, body: Json, tokens: list[tuple[str, str]], prompt_tokens: int
    ) -> Response:
        limit = body.get("max_tokens") or body.get("max_completion_tokens") or 1000
        assert isinstance(limit, int)
        finish = "stop" if len(tokens) < limit else "length"
        tokens = tokens[:limit]
        if self.script.wrong_finish:
            finish = "stop" if finish == "length" else "length"
        reasoning = sum(kind == self.script.key for kind, _ in tokens)
        reasoning += self.script.miscounts if reasoning else 0
        output = len(tokens) + (finish == "stop")
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": output - (reasoning if self.script.uncounted_reasoning else 0),
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        }
        if body.get("stream"):
            chunks = self._chunks(request, tokens, finish, usage)
            return StreamingResponse(chunks, media_type="text/event-stream")
        self.running -= 1
        texts = {
            kind: "".join(text for each, text in tokens if each == kind) for kind in (self.script.key, "text")
        }
        message = {"role": "assistant", "content": texts["text"], self.script.key: texts[self.script.key]}
        choice = {"index": 0, "message": message, "text": texts["text"], "finish_reason": finish}
        return JSONResponse({"choices": [choice], "usage": usage})

    async def _chunks(
        self, request: Request, tokens: list[tuple[str, str]], finish: str, usage: Json
    ) -> AsyncIterator[str]:
        script, prompt = self.script, usage["prompt_tokens"]
        whole = False
        if script.goes_on_alone:
            await self._alone().acquire()
        try:
            for number, (kind, text) in enumerate(tokens, start=1):
                if script.dies_after == number - 1:
                    raise ConnectionError("scripted")
                if script.pauses_after == number - 1:
                    self.paused.set()
                    await asyncio.to_thread(self.go_on.wait)
                if script.step_s:
                    await asyncio.sleep(script.step_s)
                delta = {} if kind == "hidden" else {"content" if kind == "text" else kind: text}
                choice: Json = {"index": 0, "delta": delta}
                if kind == "text":
                    choice["text"] = text
                counts = (
                    {"prompt_tokens": prompt, "completion_tokens": number} if script.running_usage else None
                )
                yield _event({"choices": [choice], "usage": counts})
            yield _event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
            # Whoever asks next may do so with the last word.
            self.running -= 1
            whole = True
            yield _event({"choices": [], "usage": usage})
            yield "data: [DONE]\n\n"
        finally:
            self.running -= not whole
            self.left += not whole
            if script.goes_on_alone:
                lock, loop = self._slot, asyncio.get_running_loop()
                assert lock is not None
                loop.call_later(0.0 if whole else script.step_s * len(tokens), lock.release)
            if not self.running:
                self.emptied.set()

    def _alone(self) -> asyncio.Lock:
        self._slot = self._slot or asyncio.Lock()
        return self._slot


def _event(content: Json) -> str:
    return f"data: {json.dumps(content)}\n\n"


def _thinks(body: Json) -> bool:
    arguments, thinking = body.get("chat_template_kwargs"), body.get("thinking")
    if isinstance(thinking, dict):
        return thinking.get("type") != "disabled"
    return not isinstance(arguments, dict) or arguments.get("enable_thinking") is not False


def _spelled(prompt: object) -> tuple[str, int]:
    """The text and the length of a prompt, which comes as text or as token ids."""
    chat = Chat.load(MODEL)
    if isinstance(prompt, str):
        return prompt, len(chat.encode(prompt))
    assert isinstance(prompt, list)
    names = chat.special_names
    return b"".join(
        names[number].encode() if number in names else chat.token_bytes[number] for number in prompt
    ).decode(), len(prompt)


@contextmanager
def serving(script: Script | None = None) -> Iterator[OpenAiServer]:
    """Serves a scripted model."""
    server = OpenAiServer("", script or Script())
    with served(server.app()) as server.url:
        try:
            yield server
        finally:
            server.go_on.set()


@contextmanager
def served(app: Starlette) -> Iterator[str]:
    """Serves from a thread of its own. The URL of its /v1."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.001)
        yield "http://{}:{}/v1".format(*server.servers[0].sockets[0].getsockname())
    finally:
        server.should_exit = server.force_exit = True
        thread.join()
