"""The bare relay: `python -m benchmarks.proxy.relay` passes requests to a worker and its events back.

As short as it can be written with gRPC's own asyncio and the generated stubs.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncGenerator

import grpc

from curfew.rpc.server import on_signals
from curfew.v1 import worker_pb2, worker_pb2_grpc

SERVICE = worker_pb2.DESCRIPTOR.services_by_name["WorkerService"].full_name

Request = worker_pb2.WorkerServiceGenerateRequest
Response = worker_pb2.WorkerServiceGenerateResponse
Context = grpc.aio.ServicerContext[Request, Response]


async def serve(worker: str) -> None:
    """Serves on a free port until it is told to stop."""
    stop = asyncio.Event()
    async with grpc.aio.insecure_channel(worker) as channel:
        generate = worker_pb2_grpc.WorkerServiceStub(channel).Generate

        async def relay(request: Request, context: Context) -> AsyncGenerator[Response, None]:
            async for response in generate(request):
                yield response

        handler = grpc.unary_stream_rpc_method_handler(relay, Request.FromString, Response.SerializeToString)
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"Generate": handler}),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        with on_signals(stop.set):
            print(f"curfew relay ready: listen=127.0.0.1:{port}", flush=True)
            await stop.wait()
        await server.stop(None)


def main() -> None:
    """Reads the worker's address, and serves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", required=True, metavar="HOST:PORT")
    asyncio.run(serve(parser.parse_args().worker))


if __name__ == "__main__":
    main()
