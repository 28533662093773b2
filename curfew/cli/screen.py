"""Where a stream is shown: on the terminal, or split between standard output and standard error."""

from __future__ import annotations

import sys
import time

from rich.console import Console

from curfew.client import Delta, Phase, Stream
from curfew.show import Countdown, Lines, LiveLines, StreamView


def show(stream: Stream) -> None:
    """Shows a stream: on a terminal as a whole, with a countdown; else the answer on standard output and the
    rest on standard error.
    """
    piped = not sys.stdout.isatty()
    console = Console(stderr=piped, highlight=False)
    countdown = Countdown(time.monotonic)
    lines = LiveLines(console, countdown) if console.is_terminal else Lines(console)
    view = StreamView(lines, _to_pipe if piped else None)
    answered = False
    try:
        with lines:
            for event in stream:
                answered |= isinstance(event, Delta) and event.phase is Phase.ANSWER
                countdown.take(event)
                view.show(event)
    finally:
        if piped and answered:
            print(flush=True)


def _to_pipe(text: str) -> None:
    print(text, end="", flush=True)
