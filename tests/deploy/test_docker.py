"""The Dockerfiles build from what is there, and put nothing secret into an image."""

from __future__ import annotations

import fnmatch
import json
import re
import tomllib
from pathlib import Path

import pytest

from tests.deploy.commands import parse

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "deploy" / "docker").glob("*.Dockerfile"))

each_dockerfile = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(instruction, arguments), in order."""
    text = re.sub(r"\\\n", " ", dockerfile.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def in_context(path: str) -> bool:
    """Whether .dockerignore lets a path through; the last line that matches decides."""
    let_in = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        top = path.partition("/")[0]
        if line and not line.startswith("#") and fnmatch.fnmatch(top, pattern):
            let_in = line.startswith("!")
    return let_in


@each_dockerfile
def test_every_source_is_there_and_in_the_context(dockerfile: Path) -> None:
    for name, rest in instructions(dockerfile):
        if name == "COPY" and "--from" not in rest:
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert in_context(source), source


@each_dockerfile
def test_every_package_of_the_wheel_is_copied(dockerfile: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    copied = {rest.split()[0] for name, rest in instructions(dockerfile) if name == "COPY"}
    assert set(packages) <= copied


@each_dockerfile
def test_extras_exist(dockerfile: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = dockerfile.read_text()
    asked = re.findall(r"\.\[([a-z,]+)\]", text) + re.findall(r"EXTRAS=([a-z,]+)", text)
    assert asked
    for extras in asked:
        assert set(extras.split(",")) <= project["optional-dependencies"].keys()


@each_dockerfile
def test_bases_are_pinned_and_the_python_is_one_that_is_supported(dockerfile: Path) -> None:
    bases = [rest.split()[0] for name, rest in instructions(dockerfile) if name == "FROM"]
    assert set(bases) == {"python:3.11-slim-bookworm"}


@each_dockerfile
def test_an_image_runs_as_nobody_and_its_command_is_one(dockerfile: Path) -> None:
    found = dict(instructions(dockerfile))
    assert found["USER"] == "65532:65532"
    assert json.loads(found["ENTRYPOINT"]) == ["curfew"]
    parse(json.loads(found["CMD"]))


@each_dockerfile
def test_no_secret_is_given_at_build_time(dockerfile: Path) -> None:
    names = [rest.split("=")[0].upper() for name, rest in instructions(dockerfile) if name in ("ARG", "ENV")]
    assert not [name for name in names if re.search("KEY|TOKEN|SECRET|PASSWORD", name)]


def test_the_context_holds_no_secrets_and_no_history() -> None:
    for path in (".git", ".venv", ".env", "deploy", "tests", "id_rsa", "policy.yaml"):
        assert not in_context(path)
