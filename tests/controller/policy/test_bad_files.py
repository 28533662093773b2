"""Every way in which a policy file can be wrong, one file each; a file begins with its errors."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import controller.policy
from controller.policy import PolicyError, load_policy, parse_policy
from controller.policy.loading import MAX_BYTES

BAD = Path(__file__).parent / "bad"
SECRETS = Path(__file__).parent / "secrets"
LOADER = ("document", "loading", "quality", "resolve", "schema", "secrets", "units")
"""Modules that find errors in a file."""
SAYS = ("ValueError", "Problem", "self._problem", "self._conflict")
"""What they say them with."""
WITHOUT_A_FILE = {
    "byte 0x",
    "larger than",
    "nested too deeply",
    "not YAML",
    "there is no secrets directory; give it with --secrets",
    "is larger than",
}
"""Errors of files that are no text, too large, or not there; they have tests of their own."""


@pytest.mark.parametrize("name", sorted(path.stem for path in BAD.glob("*.yaml")))
def test_a_bad_file_gives_exactly_its_errors(name: str) -> None:
    text = (BAD / f"{name}.yaml").read_text()
    expected = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")]
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "policy.yaml", {"SET": "a key"}, SECRETS)
    assert str(caught.value).splitlines() == [f"policy.yaml:{line}" for line in expected]


def literal_parts(node: ast.AST) -> Iterator[str]:
    """The text of a message that does not depend on the file."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        for value in node.values:
            yield from literal_parts(value)
    elif isinstance(node, ast.BinOp | ast.IfExp):
        for child in ast.iter_child_nodes(node):
            yield from literal_parts(child)


def messages_of(module: str) -> set[str]:
    """Parts of all that a module says of a file, but for words and marks between values."""
    tree = ast.parse((Path(controller.policy.__file__).parent / f"{module}.py").read_text())
    said = (
        argument
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func) in SAYS
        for argument in call.args
    )
    parts = {part.strip(" :;(),'") for argument in said for part in literal_parts(argument)}
    return {part for part in parts if len(part) > 6}


@pytest.mark.parametrize("module", LOADER)
def test_no_error_is_without_a_file_that_gives_it(module: str) -> None:
    files = "\n".join(path.read_text() for path in BAD.glob("*.yaml"))
    messages = messages_of(module)
    assert messages
    assert {message for message in messages - WITHOUT_A_FILE if message not in files} == set()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 10_000, "policy.yaml:1:1: nested too deeply"),
        ('a: "\\U00110000"', "policy.yaml:1:1: not YAML: "),
    ],
)
def test_what_the_parser_cannot_take_is_told_at_the_beginning(text: str, message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "policy.yaml", None)
    assert str(caught.value).startswith(message)


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(PolicyError) as caught:
        load_policy(file, None)
    assert str(caught.value) == f"{file}:1:1: larger than 16 MiB"
