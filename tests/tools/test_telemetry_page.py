"""docs/telemetry.md."""

from __future__ import annotations

from tools.telemetry_page import main


def test_its_tables_are_those_of_the_catalogue() -> None:
    assert main(["--check"]) == 0
