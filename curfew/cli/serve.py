"""`curfew serve`: one worker and one controller in the foreground."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from curfew.cli.options import DEFAULT_ADDRESS
from curfew.processes import Service, start_service


async def serve_until_told(
    model: Path, policy: Path, listen: str, admin: str, http: str | None, insecure: bool
) -> int:
    """Starts both and waits for Ctrl-C or SIGTERM, or for either service to end. Drains the controller first;
    a second Ctrl-C kills. http: where callers over HTTP are served; None: nowhere. insecure: whether
    callers may reach it from other machines, in clear.

    Returns the exit status: 0 when told to stop and both ended well, else 1. Raises ServiceError when one
    does not start.
    """
    this_task = asyncio.current_task()
    assert this_task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, this_task.cancel)
    statuses: list[int] = []

    async def stop(service: Service) -> None:
        statuses.append(await service.stop())

    failed = False
    try:
        async with AsyncExitStack() as stack:
            worker = await start_service("worker", ["--model", str(model), "--listen", "127.0.0.1:0"])
            stack.push_async_callback(stop, worker)
            address = worker.addresses["listen"]
            arguments = ["--policy", str(policy), "--worker", address, "--listen", listen, "--admin", admin]
            if http is not None:
                arguments += ["--http", http]
            if insecure:
                arguments.append("--insecure")
            controller = await start_service("controller", arguments)
            stack.push_async_callback(stop, controller)
            print(f"worker      {address}  ({model})")
            print(f"controller  {controller.addresses['listen']}  ({policy})")
            print(f"admin       {controller.addresses['admin']}")
            if "http" in controller.addresses:
                print(f"http        http://{controller.addresses['http']}/v1")
            where = "" if listen == DEFAULT_ADDRESS else f"--address {controller.addresses['listen']} "
            print(f'ready: curfew ask {where}--tenant support "What is 12 + 37 + 45?"', flush=True)
            failed = True
            ended = await _first_to_end(worker, controller)
            print(f"curfew serve: the {ended.name} ended by itself", file=sys.stderr)
    except asyncio.CancelledError:
        failed = False  # told to stop
    return 1 if failed or any(statuses) else 0


async def _first_to_end(*services: Service) -> Service:
    waits = {asyncio.create_task(service.process.wait()): service for service in services}
    try:
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        return waits[done.pop()]
    finally:
        for wait in waits:
            wait.cancel()
