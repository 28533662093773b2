"""The garbage collector of a process that serves."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import gc
from curfew.rpc.collector import calm_collector

kept = [[] for _ in range(1000)]
calm_collector()
loaded = gc.get_freeze_count()
cycle = []
cycle.append(cycle)
del cycle
print(loaded > 1000, any(held is kept for held in gc.get_objects()), gc.collect())
"""


def test_what_was_loaded_is_never_looked_at_again_and_the_rest_still_is() -> None:
    """In a process of its own, since a process has one collector."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "1"]
