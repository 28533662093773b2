"""A service whose libraries are not installed says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODEL = ["--model", "nowhere"]


@pytest.mark.parametrize(
    ("service", "library", "arguments"),
    [
        ("worker", "torch", MODEL),
        ("worker", "httpx", ["--upstream", "http://127.0.0.1:1/v1"]),
        ("controller", "pydantic", ["--policy", "nowhere"]),
    ],
)
def test_a_missing_library_is_one_line_and_exit_code_2(
    service: str, library: str, arguments: list[str], tmp_path: Path
) -> None:
    (tmp_path / f"{library}.py").write_text(f"raise ModuleNotFoundError(name={library!r})\n")
    ended = subprocess.run(
        [sys.executable, "-P", "-m", service, *arguments],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    said = f"curfew {service}: needs {library}: pip install 'curfew[{service}]'\n"
    assert (ended.returncode, ended.stderr) == (2, said)
