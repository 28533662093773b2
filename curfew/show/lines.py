"""A text that comes in pieces, with notes between its lines."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

# A model's text must not steer the terminal: control characters are shown as their pictures.
_PICTURES = {code: 0x2400 + code for code in range(0x20) if code not in b"\n\t"} | {0x7F: 0x2421}


class Lines:
    """Prints pieces as they come, each note on a line of its own."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._within_line = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_line()

    @property
    def within_line(self) -> bool:
        """Whether the text's last line has begun and not ended."""
        return self._within_line

    def write(self, text: str, style: str) -> None:
        """A piece of the text."""
        self._write(Text(text.translate(_PICTURES), style=style))
        self._within_line = not text.endswith("\n")

    def note(self, label: str, text: str, style: str) -> None:
        """A line of our own, indented, and wrapped under its beginning."""
        self.end_line()
        line = Table.grid(padding=(0, 1))
        line.add_column(min_width=8, justify="right")
        line.add_column(overflow="fold")
        line.add_row(label, text, style=style)
        self._console.print(line)

    def end_line(self) -> None:
        """Ends the line that has begun, if one has."""
        if self._within_line:
            self._end_line()
            self._within_line = False

    def _write(self, text: Text) -> None:
        self._console.print(text, end="", soft_wrap=True)

    def _end_line(self) -> None:
        self._console.print()


class LiveLines(Lines):
    """On a terminal, with a last line that is kept up to date beneath the text."""

    def __init__(self, console: Console, footer: RenderableType) -> None:
        """footer: rendered some twenty times a second, in another thread. No line is shown where its text is
        empty.
        """
        super().__init__(console)
        self._begun = Text()  # the line that has begun: what is beneath it moves with it
        self._footer = footer
        self._live = Live(self, console=console, transient=True, refresh_per_second=20)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_line()
        self._live.stop()

    def _write(self, text: Text) -> None:
        *ended, begun = (self._begun + text).split("\n", allow_blank=True)
        *rows, begun = begun.wrap(self._console, self._console.width) or [begun]
        # First, so that no refresh from the other thread shows the printed rows twice.
        self._begun = begun
        for line in (*ended, *rows):
            self._console.print(line)

    def _end_line(self) -> None:
        begun, self._begun = self._begun, Text()
        self._console.print(begun)

    def __rich__(self) -> Group:
        """What is beneath the ended lines now."""
        return Group(*(part for part in (self._begun, self._footer) if str(part)))
