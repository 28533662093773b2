"""A damaged file loads, or is refused in lines that name it: never with a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.files import NAMES, attack, kinds


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_loads_or_is_refused(name: str, tmp_path: Path) -> None:
    (kind,) = (kind for kind in kinds(tmp_path) if kind.name == name)
    attack(kind, tmp_path, examples=25)
