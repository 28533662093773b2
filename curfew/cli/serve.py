"""`curfew serve`: one worker and one controller in the foreground."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from pathlib import Path

from curfew.processes import Service, start_service


async def serve_forever(model: Path, policy: Path, listen: str, admin: str) -> int:
    """Starts both and waits for Ctrl-C or SIGTERM, or for either to end. Drains the controller first.

    Returns the exit status: 0 unless a service failed. Raises ServiceError when one does not start.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    statuses: list[int] = []

    async def end(service: Service) -> None:
        statuses.append(await service.stop())

    async with AsyncExitStack() as stack:
        worker = await start_service("worker", ["--model", str(model), "--listen", "127.0.0.1:0"])
        stack.push_async_callback(end, worker)
        controller = await start_service(
            "controller",
            [
                "--policy",
                str(policy),
                "--worker",
                worker.addresses["listen"],
                "--listen",
                listen,
                "--admin",
                admin,
            ],
        )
        stack.push_async_callback(end, controller)
        print(f"worker      {worker.addresses['listen']}  ({model})")
        print(f"controller  {controller.addresses['listen']}  ({policy})")
        print(f"admin       {controller.addresses['admin']}")
        print('ready: curfew ask --tenant support "What is 12 + 37 + 45?"', flush=True)
        waits = [
            asyncio.ensure_future(waiting)
            for waiting in (stop.wait(), worker.process.wait(), controller.process.wait())
        ]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for waiting in waits:
            waiting.cancel()
        print("draining …", flush=True)
    return max(map(abs, statuses), default=0)
