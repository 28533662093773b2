"""docs/operations.md tells of every alert, and of commands, metrics and things that there are."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.policy.alerts import alert_names
from curfew.telemetry.controller_metrics import CONTROLLER_METRICS
from curfew.telemetry.worker_metrics import WORKER_METRICS
from tests.deploy.commands import parse
from tests.deploy.render import name_of, render

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "operations.md"
TEXT = PAGE.read_text()


def code() -> Iterator[str]:
    """Every line of an indented block, and every span of code."""
    for line in TEXT.splitlines():
        if line.startswith("    "):
            yield line.strip()
    prose = "\n".join(line for line in TEXT.splitlines() if not line.startswith("    "))
    for span in re.findall(r"`([^`]+)`", prose):
        yield " ".join(span.split())


def commands() -> list[str]:
    """Every `curfew …` in them, by itself or behind what runs it elsewhere."""
    found = (re.search(r"(?:^|-- | controller )(curfew [a-z][^>|…]*)(?![^>|]*…)", line) for line in code())
    return sorted({match[1].strip() for match in found if match})


def test_there_is_a_section_for_each_alert_and_for_nothing_else() -> None:
    sections = re.findall(r"^### (Curfew\w+)$", TEXT, re.MULTILINE)
    assert sorted(sections) == sorted(alert_names())


@pytest.mark.parametrize("command", commands())
def test_a_command_is_one(command: str) -> None:
    parse(shlex.split(command)[1:])


def test_commands_were_found() -> None:
    assert len(commands()) > 12


def test_every_metric_is_one_that_a_service_emits() -> None:
    known = {metric.name for metric in (*CONTROLLER_METRICS, *WORKER_METRICS)}
    named = {name for line in code() for name in re.findall(r"\bcurfew_[a-z_]+", line)}
    assert named
    assert named <= known


def test_every_option_that_is_named_is_one() -> None:
    options = {option for line in code() for option in re.findall(r"^(--[a-z-]+)", line)}
    assert options
    parsers = [parse(["worker", "--model", "x"]), parse(["controller", "--policy", "x", "--worker", "h:1"])]
    known = {f"--{name.replace('_', '-')}" for parser in parsers for name in vars(parser)}
    assert options <= known


def test_every_file_and_link_is_there() -> None:
    for path in re.findall(r"\bdeploy/[\w./-]+\w", "\n".join(code())):
        # As `kubectl` writes a deployment.
        if not path.startswith(("deploy/curfew-", "deployment/")) and "alerts.yaml" not in path:
            assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\(([\w.]+\.md)\)", TEXT):
        assert (PAGE.parent / link).exists(), link


def test_everything_in_the_cluster_that_is_named_is_there() -> None:
    kinds = {"deploy": "Deployment", "deployment": "Deployment", "service": "Service"}
    manifests = {name_of(each) for each in render(ROOT / "deploy" / "kubernetes" / "overlays" / "a10")}
    named = {
        (kinds[kind], name)
        for line in code()
        if line.startswith("kubectl")
        for kind, name in re.findall(r"\b(deploy|deployment|service)/(curfew-\w+)", line)
    }
    assert named
    assert named <= manifests
    # What must be given, by the table, is all that is asked for.
    text = "".join(path.read_text() for path in (ROOT / "deploy" / "kubernetes" / "base").glob("*.yaml"))
    asked = set(re.findall(r"(?:secretName|claimName): ([\w-]+)|secretKeyRef: \{name: ([\w-]+)", text))
    assert {name for pair in asked for name in pair if name} <= set(re.findall(r"`(curfew-[\w-]+)`", TEXT))
