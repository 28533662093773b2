"""Keeps the garbage collector's pauses away from decisions."""

from __future__ import annotations

import gc

YOUNGEST, MIDDLE, OLDEST = 10_000, 20, 50
"""Python's defaults (700, 10, 10) look at the young objects after every few decisions, though nearly all of a
controller's are freed by their reference counts, and at all objects every few hundred.
"""


def calm_collector() -> None:
    """To be called once all that stays has been loaded: that is never looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNGEST, MIDDLE, OLDEST)
