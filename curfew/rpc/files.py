"""Files that change while a process runs: certificates, keys."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

Signature = tuple[int, int, int, int] | None


def signature(file: Path) -> Signature:
    """What changes with a file's content, links followed: a Kubernetes Secret changes by one. None when it
    cannot be had.
    """
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class Reread(Generic[T]):
    """What small files hold, read again once one of them has changed. Where they cannot be used then, that is
    logged, and what was read before stays in use.
    """

    def __init__(self, files: Sequence[Path], read: Callable[[], T]) -> None:
        """read: reads all of them; its OSError or ValueError, which is raised, names the file."""
        self._files = files
        self._read = read
        self._seen = self._signatures()
        self._content = read()

    @property
    def content(self) -> T:
        """As the files are now. The same object while they do not change."""
        now = self._signatures()
        if now != self._seen:
            # Taken before reading: a change in between is another one.
            self._seen = now
            try:
                self._content = self._read()
                log.info("%s: what it holds now is in use", self._files[0])
            except (OSError, ValueError) as error:
                log.error("%s; what was read before stays in use", error)
        return self._content

    def _signatures(self) -> list[Signature]:
        return [signature(file) for file in self._files]
