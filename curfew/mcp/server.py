"""The tool, and the server that offers it."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Literal

import uvicorn
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import Field

from curfew.client import CurfewError, Effort, Options
from curfew.mcp.clients import Clients, NoKeyError
from curfew.mcp.progress import Progress
from curfew.mcp.reasoned import Reasoned, reasoned
from curfew.rpc.addresses import listening

INSTRUCTIONS = (
    "Curfew thinks about a question for as long as you can wait, and answers in time. "
    "Say with deadline_ms how long that is."
)
PATH = "/mcp"

Question = Annotated[
    str, Field(min_length=1, description="What to think about, with everything that is needed to answer it.")
]
DeadlineMs = Annotated[
    float | None,
    Field(
        gt=0,
        le=86_400_000,
        description="Milliseconds from now by which the answer must be there; the less, the less is thought. "
        "Default: as long as the service promises anyway.",
    ),
]
EffortWord = Annotated[
    Literal["none", "minimal", "low", "medium", "high"] | None,
    Field(description="At most how much to think. Default: high, as much as is worth it and fits."),
]


def build(clients: Clients, clock: Callable[[], float] = time.monotonic) -> MCPServer[None]:
    """A server with the tool. clock: seconds from any beginning."""
    server: MCPServer[None] = MCPServer(
        "curfew", version=version("curfew"), instructions=INSTRUCTIONS, log_level="WARNING"
    )

    @server.tool(annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False))
    async def reason(
        question: Question,
        context: Context,
        deadline_ms: DeadlineMs = None,
        effort: EffortWord = None,
    ) -> Reasoned:
        """Thinks step by step about a question, for as long as the deadline allows, and answers in time."""
        options = Options()
        if deadline_ms is not None:
            options["deadline_s"] = deadline_ms / 1000
        if effort is not None:
            options["effort"] = Effort[effort.upper()]
        progress = Progress(clock())
        try:
            async with clients.of(context.headers) as client, client.generate(question, **options) as stream:
                async for event in stream:
                    note = progress.take(event, clock())
                    if note is not None:
                        await context.report_progress(note.tokens, note.most_tokens, note.message)
                return reasoned(await stream.reply())
        except (CurfewError, NoKeyError) as error:
            raise ToolError(str(error)) from None

    return server


async def serve_stdio(clients: Clients) -> None:
    """Serves one agent on standard input and output, until it closes them."""
    async with clients:
        await build(clients).run_stdio_async()


async def serve_http(clients: Clients, address: str, ready: Callable[[str], None]) -> None:
    """Serves agents over streamable HTTP at HOST:PORT and PATH, until SIGINT or SIGTERM. ready: told the
    bound address (port 0 picks a free one). Raises OSError when it cannot be had.
    """
    host = address.rpartition(":")[0]
    with listening(address) as bound:
        app = build(clients).streamable_http_app(streamable_http_path=PATH, host=host.strip("[]"))
        config = uvicorn.Config(
            app, log_config=None, log_level="warning", access_log=False, timeout_graceful_shutdown=1
        )
        async with clients:
            ready(f"{host}:{bound.getsockname()[1]}")
            await uvicorn.Server(config).serve([bound])
