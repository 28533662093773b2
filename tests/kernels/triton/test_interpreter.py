"""Runs the tests in tests/kernels/triton/interpreted, which need Triton's interpreter, in a process of
their own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


def test_interpreted_kernels_agree_with_their_twins_and_references() -> None:
    tests = Path(__file__).parent / "interpreted"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 50
