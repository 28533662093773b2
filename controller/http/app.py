"""The paths of the door."""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from controller.http import chat_request, responses_request
from controller.http.account import Json
from controller.http.chat_reply import ChatReply
from controller.http.endpoint import Dialect, Endpoint, caller_of
from controller.http.errors import ApiError, api_error
from controller.http.responses_reply import ResponsesReply
from controller.service.asking import unknown_model
from controller.service.requests import Requests
from curfew.rpc.drain import Drain
from curfew.rpc.errors import RpcError

CHAT = Dialect(
    form=chat_request.ChatRequest,
    reply=ChatReply,
    renamed=chat_request.RENAMED,
    named_events=False,
    done=b"data: [DONE]\n\n",
)
RESPONSES = Dialect(
    form=responses_request.ResponsesRequest,
    reply=ResponsesReply,
    renamed=responses_request.RENAMED,
    named_events=True,
    done=b"",
)


def application(
    requests: Requests, drain: Drain, unix_time: Callable[[], float], most_bytes: int
) -> Starlette:
    """All of it. most_bytes: of a request's body."""
    catalogue = Catalogue(requests)
    return Starlette(
        routes=[
            Route(
                "/v1/chat/completions",
                Endpoint(CHAT, requests, drain, unix_time, most_bytes),
                methods=["POST"],
            ),
            Route(
                "/v1/responses",
                Endpoint(RESPONSES, requests, drain, unix_time, most_bytes),
                methods=["POST"],
            ),
            Route("/v1/models", catalogue.models, methods=["GET"]),
            Route("/v1/models/{name:path}", catalogue.model, methods=["GET"]),
            Route("/healthz", catalogue.health, methods=["GET"]),
        ],
        exception_handlers={HTTPException: _no_such_path, RpcError: _refused},
    )


class Catalogue:
    """What can be asked at present."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    async def models(self, request: Request) -> Response:
        """The models that workers run."""
        await self._requests.tenant(caller_of(request))
        return JSONResponse({"object": "list", "data": [_model(name) for name in self._requests.models]})

    async def model(self, request: Request) -> Response:
        """One of them."""
        await self._requests.tenant(caller_of(request))
        name = request.path_params["name"]
        if name not in self._requests.models:
            raise unknown_model(name, self._requests.models)
        return JSONResponse(_model(name))

    async def health(self, request: Request) -> Response:
        """Whether there is a worker to be asked; for load balancers, without a key."""
        ready = self._requests.ready
        return JSONResponse({"ready": ready}, 200 if ready else 503)


def _model(name: str) -> Json:
    return {"id": name, "object": "model", "created": 0, "owned_by": "curfew"}


async def _no_such_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = f"{request.method} {request.url.path}: {error.detail}"
    body: Json = {"message": told, "type": "invalid_request_error", "param": None, "code": "unknown_url"}
    return _answer(ApiError(error.status_code, body, dict(error.headers or {})))


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RpcError)
    return _answer(api_error(error))


def _answer(failure: ApiError) -> Response:
    return JSONResponse(failure.body, failure.status, failure.headers)
