"""Services as processes: started when they say so, stopped in order, never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from curfew.processes import ServiceError, start_service

Write = Callable[..., None]

IMPORTS = "import os, signal, sys, time\n"
READY = "print('chatter')\nprint('curfew thing ready: listen=h:1 admin=h:2', flush=True)\n"
PATIENT = "time.sleep(3600)\n"
DRAINS = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\n"
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes the lines of a module that can be started as `thing`."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(*lines: str) -> None:
        (tmp_path / "thing.py").write_text(IMPORTS + "".join(lines))

    return write


def tells_its_id(path: Path) -> str:
    return f"open({str(path)!r}, 'w').write(str(os.getpid()))\n"


def ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def test_a_service_is_started_when_its_ready_line_has_come(write: Write) -> None:
    write(DRAINS, READY, PATIENT)
    service = await start_service("thing", [])
    assert service.addresses == {"listen": "h:1", "admin": "h:2"}
    assert await service.stop() == 3
    assert await service.stop() == 3  # again, which does nothing


async def test_a_service_gets_its_arguments(write: Write) -> None:
    write("print('curfew thing ready: listen=' + sys.argv[2], flush=True)")
    service = await start_service("thing", ["--listen", "h:9"])
    assert service.addresses == {"listen": "h:9"}
    await service.stop()


async def test_one_that_ends_before_it_is_ready_is_told_with_its_status(write: Write) -> None:
    write("raise SystemExit(7)")
    with pytest.raises(ServiceError, match=r"ended with 7: .* -P -m thing --flag"):
        await start_service("thing", ["--flag"])


async def test_one_that_is_not_ready_in_time_is_given_up(write: Write) -> None:
    write(PATIENT)
    with pytest.raises(ServiceError, match=r"not ready after 0.1 s: .* -m thing"):
        await start_service("thing", [], timeout_s=0.1)


async def test_a_start_that_is_cancelled_leaves_nothing_behind(write: Write, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    write(tells_its_id(fifo), PATIENT)
    starting = asyncio.create_task(start_service("thing", []))
    pid = int(await asyncio.to_thread(fifo.read_text))
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert ended(pid)


async def test_one_that_does_not_drain_in_time_is_killed(write: Write) -> None:
    write(STUBBORN, READY, PATIENT)
    service = await start_service("thing", [])
    assert await service.stop(timeout_s=0.2) == -signal.SIGKILL


async def test_a_stop_that_is_cancelled_kills(write: Write) -> None:
    write(STUBBORN, READY, PATIENT)
    service = await start_service("thing", [])
    stopping = asyncio.create_task(service.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert service.process.returncode == -signal.SIGKILL


async def test_ctrl_c_in_the_terminal_reaches_no_service(write: Write) -> None:
    """It goes to the foreground process group; a service is in a session of its own."""
    write(DRAINS, READY, PATIENT)
    service = await start_service("thing", [])
    assert os.getsid(service.process.pid) == service.process.pid != os.getsid(0)
    await service.stop()


async def test_what_lies_in_the_working_directory_is_not_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("print('curfew json ready:', flush=True)")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ServiceError, match="ended with"):
        await start_service("json", [])
