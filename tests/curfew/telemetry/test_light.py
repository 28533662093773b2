"""Without the `telemetry` extra both services run, and say what a flag that needs it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SERVICES = {
    "worker": ["worker", "--model", str(ROOT / "demo" / "model")],
    "controller": ["controller", "--policy", str(ROOT / "demo" / "policy.yaml")],
}


@pytest.mark.parametrize(
    ("service", "libraries"),
    [
        ("worker", ["prometheus_client", "opentelemetry"]),
        ("controller", ["prometheus_client"]),  # redis imports the other where it is installed
    ],
)
def test_a_service_does_not_import_what_no_flag_asks_for(service: str, libraries: list[str]) -> None:
    unwanted = {*libraries, "curfew.telemetry.otlp", "curfew.telemetry.prometheus"}
    program = f"""
import sys
import {service}.service.command
assert not {unwanted} & set(sys.modules), "imported"
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize(
    ("flag", "library"), [("--metrics", "prometheus_client"), ("--otlp", "opentelemetry")]
)
def test_a_missing_extra_is_one_line_and_exit_code_2(
    service: str, flag: str, library: str, tmp_path: Path
) -> None:
    (tmp_path / f"{library}.py").write_text(f"raise ModuleNotFoundError(name={library!r})\n")
    command = [sys.executable, "-P", "-m", *SERVICES[service], flag, "127.0.0.1:0", "--listen", "127.0.0.1:0"]
    ended = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    line = ended.stderr.splitlines()[-1]
    assert line == f"curfew {service}: {flag} needs {library}: pip install 'curfew[telemetry]'"
