"""`curfew chat` as its user runs it: over pipes, and on a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from curfew.cli.chat import Conversation, converse
from curfew.cli.main import app
from curfew.client import Client, Options
from curfew.v1 import generation_pb2 as pb
from tests.curfew.reasoning_server import serving

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
"""Colours and cursor movements."""


def chat(address: str, *lines: str) -> Result:
    asked = ["chat", "--tenant", "support", "--address", address]
    return CliRunner().invoke(app, asked, input="".join(f"{line}\n" for line in lines))


def test_each_line_is_a_turn_and_what_was_said_is_kept() -> None:
    with serving() as (servicer, address):
        result = chat(address, "first", "", "  second  ", "/quit", "never")
        assert result.exit_code == 0, result.output
        assert result.stdout == "10\n10\n"
        assert [[turn.content for turn in seen.request.messages] for seen in servicer.calls] == [
            ["first"],
            ["first", "10", "second"],
        ]
        assert servicer.calls[1].request.messages[1].role == pb.ROLE_ASSISTANT


def test_reset_forgets() -> None:
    with serving() as (servicer, address):
        result = chat(address, "first", "/reset", "second")
        assert [turn.content for turn in servicer.calls[1].request.messages] == ["second"]
        assert "forgotten" in result.stderr


def test_wishes_hold_until_they_are_changed() -> None:
    with serving() as (servicer, address):
        lines = ["/deadline 800ms", "/think on", "a", "/deadline off", "/think off", "b", "/think auto", "c"]
        assert chat(address, *lines).exit_code == 0
        wishes = [seen.request.wishes for seen in servicer.calls]
        assert [wish.mode for wish in wishes] == [pb.MODE_THINK, pb.MODE_NO_THINK, pb.MODE_UNSPECIFIED]
        assert [wish.deadline.ToMilliseconds() for wish in wishes] == [800, 0, 0]


@pytest.mark.parametrize("line", ["/thinks on", "/think maybe", "/reset now", "/"])
def test_what_is_no_command_is_no_turn_either(line: str) -> None:
    with serving() as (servicer, address):
        assert f"{line} is no command" in chat(address, line).stderr
        assert not servicer.calls


def test_a_bad_deadline_changes_nothing_and_says_why() -> None:
    with serving() as (servicer, address):
        result = chat(address, "/deadline soon", "a")
        assert "'soon' is not a duration" in result.stderr
        assert not servicer.calls[0].request.wishes.HasField("deadline")


def test_help_tells_every_command() -> None:
    with serving() as (_, address):
        said = chat(address, "/help").stderr
        assert all(name in said for name in ("/reset", "/deadline", "/think", "/quit"))


def test_a_failed_turn_is_told_and_forgotten() -> None:
    with serving() as (servicer, address):
        result = chat(address, "lost", "again")
        assert "lost" in result.stderr
        assert [turn.content for turn in servicer.calls[-1].request.messages] == ["again"]
        assert result.exit_code == 0


def test_nobody_there_is_told_and_the_conversation_goes_on() -> None:
    result = chat("127.0.0.1:1", "/deadline 200ms", "anyone?", "/quit")
    assert result.exit_code == 0
    assert "127.0.0.1:1" in result.stderr


def test_ctrl_c_between_turns_tells_how_to_end(capsys: pytest.CaptureFixture[str]) -> None:
    typed = iter([KeyboardInterrupt, EOFError])

    def read_line() -> str:
        raise next(typed)

    with Client("127.0.0.1:1", key="k") as client:
        converse(client, Conversation(Options()), read_line)
    assert "/quit or Ctrl-D ends" in capsys.readouterr().err


@contextmanager
def terminal(address: str) -> Iterator[Terminal]:
    """A chat on a terminal of its own."""
    ours, theirs = pty.openpty()
    curfew = str(Path(sys.executable).parent / "curfew")
    command = [curfew, "chat", "--tenant", "support", "--address", address]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    try:
        yield Terminal(ours, process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(ours)


class Terminal:
    """What is typed on it, and what it shows."""

    def __init__(self, descriptor: int, process: subprocess.Popen[bytes]) -> None:
        self._descriptor, self.process = descriptor, process
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def until(self, text: str, within_s: float = 20.0) -> None:
        """Reads what is shown until a text comes that was not there before."""
        end_s = time.monotonic() + within_s
        while text not in self.shown:
            ready, _, _ = select.select([self._descriptor], [], [], max(0.0, end_s - time.monotonic()))
            assert ready, f"no {text!r} in {self.shown!r}"
            self.shown += os.read(self._descriptor, 4096).decode(errors="replace")
            self.shown = _CONTROL.sub("", self.shown)
        self.shown = self.shown.partition(text)[2]


def test_on_a_terminal_the_answer_is_shown_and_ctrl_d_ends() -> None:
    with serving() as (_, address), terminal(address) as screen:
        screen.until("> ")
        screen.type("hello\n")
        screen.until("1 + 2 = 3")
        screen.until("10")
        screen.until("> ")
        screen.type("\x04")
        assert screen.process.wait(30) == 0


def test_ctrl_c_cancels_the_answer_alone() -> None:
    with serving() as (servicer, address), terminal(address) as screen:
        screen.until("> ")
        screen.type("silent\n")
        while not servicer.calls:
            time.sleep(0.005)
        screen.process.send_signal(signal.SIGINT)
        screen.until("cancelled")
        assert servicer.left.wait(30)
        screen.until("> ")
        screen.type("hello\n")
        screen.until("10")
        assert [turn.content for turn in servicer.calls[-1].request.messages] == ["hello"]
        screen.until("> ")
        screen.type("/quit\n")
        assert screen.process.wait(30) == 0
