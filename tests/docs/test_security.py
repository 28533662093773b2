"""The threat model names the test of each defence, and every one of them exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def threats() -> list[tuple[str, str]]:
    """What threatens, and the cell that tells what shows the defence."""
    rows = PAGE.split("## Threats")[1].split("\n## ")[0].splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if row.startswith("|")]
    return [(threat, shown) for threat, _, shown in cells[2:]]


@pytest.mark.parametrize(("threat", "shown"), threats())
def test_every_threat_has_a_test(threat: str, shown: str) -> None:
    assert NAMED.search(shown), threat


@pytest.mark.parametrize(("file", "test"), sorted(set(NAMED.findall(PAGE))))
def test_every_test_that_is_named_exists(file: str, test: str) -> None:
    tree = ast.parse((ROOT / file).read_text())
    functions = {
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert not test or test in functions


def test_every_option_of_the_page_is_one_of_the_services_or_commands() -> None:
    texts = [*(ROOT / "curfew").rglob("*.py"), *(ROOT / "controller").rglob("*.py")]
    texts += (ROOT / "worker").rglob("*.py")
    source = "\n".join(file.read_text() for file in texts)
    # Those of TLS are put together from a prefix and a part.
    prefixes, parts = ("tls", "admin-tls", "worker", "announce"), ("cert", "key", "client-ca", "ca", "name")
    made = {f"--{prefix}-{part}" for prefix in prefixes for part in parts}
    # typer names its options by their parameters.
    typer = {"--ca", "--cert", "--cert-key", "--server-name", "--key"}
    for option in set(re.findall(r"--[a-z][a-z-]+", PAGE)):
        assert option in made | typer or f'"{option}"' in source, option
