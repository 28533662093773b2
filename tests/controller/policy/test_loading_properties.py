"""Any text either loads or gives located errors."""

from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from controller.policy import PolicyError, parse_policy

DEMO = (Path(__file__).parents[3] / "demo" / "policy.yaml").read_text()

WORDS = (
    "apiVersion defaults curves tenants name key keys env objectives deadline share first_token per_token "
    "first_answer_token mode budget min max grace answer quality floor curve learn weight priority otherwise "
    "class classes rules match task x"
)
KEYS = st.sampled_from(WORDS.split())
SCALARS = st.one_of(
    st.sampled_from(
        ["curfew/v1", "auto", "think", "refuse", "a", "800ms", "10s", "p95", "10%", "2k", "sha256:00"]
    ),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=5),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
SETTINGS = settings(derandomize=True, deadline=None)


def check(text: str) -> None:
    try:
        parse_policy(text, "policy.yaml", {})
    except PolicyError as error:
        problems = error.problems
    else:
        return
    assert problems
    for problem in problems:
        assert 1 <= problem.mark.line <= len(text.splitlines()) + 1
        assert problem.mark.column >= 1
        assert "\n" not in problem.message


def flow(value: object) -> str:
    """A value as YAML, in a form that need not be what JSON would write."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    return "" if value is None else str(value)


@SETTINGS
@given(st.text())
@example("[" * 10_000)
@example("a: &x [*x]")
@example("%YAML 9.9\n---\na")
@example("\ud800")
@example("? |\n")
@example("!!python/object:os.system x")
@example('"\\')
@example("a: 0o9\nb: 0x\nc: 1e999\nd: " + "9" * 5000)
def test_any_text_loads_or_gives_located_errors(text: str) -> None:
    check(text)


@SETTINGS
@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_any_mapping_loads_or_gives_located_errors(values: dict[str, object]) -> None:
    check("apiVersion: curfew/v1\n" + "\n".join(f"{key}: {flow(value)}" for key, value in values.items()))


@SETTINGS
@given(
    st.integers(0, len(DEMO)), st.integers(0, 12), st.text(alphabet="[]{}:,-#&*!|>'\"% \t\n0a", max_size=3)
)
def test_a_damaged_file_loads_or_gives_located_errors(at: int, removed: int, inserted: str) -> None:
    check(DEMO[:at] + inserted + DEMO[at + removed :])
