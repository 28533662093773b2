"""Shows how far the loading of a model has come."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from tqdm import tqdm


@contextmanager
def loading_bar(
    label: str, *, delay_s: float = 1.0, stream: TextIO | None = None
) -> Iterator[Callable[[int, int], None]]:
    """Gives the function (done, total) that `load_network` calls as it reads.

    A bar appears on the stream (by default stderr) when it is a terminal and loading takes longer than
    `delay_s`.
    """
    with tqdm(
        desc=label, unit="tensor", delay=delay_s, file=stream or sys.stderr, disable=None, leave=False
    ) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
