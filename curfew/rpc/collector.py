"""Keeps the garbage collector's pauses away from calls."""

from __future__ import annotations

import gc

YOUNGEST, MIDDLE, OLDEST = 10_000, 20, 50
"""Python's defaults (700, 10, 10) look at the young objects after every few decisions of a controller, though
nearly all of them are freed by their reference counts, and at all objects every few hundred.
"""


def calm_collector() -> None:
    """To be called once all that stays has been loaded: that is never looked at again. With PyTorch loaded,
    one look at everything stops a process for a tenth of a second.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNGEST, MIDDLE, OLDEST)
