"""What editors and readers are told, against what the loader does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import fastjsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.policy import PolicyError, parse_policy
from controller.policy.command import main
from controller.policy.document import read_document
from controller.policy.reference import json_schema, reference_text, schema_text

ROOT = Path(__file__).parents[3]
BAD = Path(__file__).parent / "bad"
EXAMPLES = sorted([*(ROOT / "docs" / "policies").glob("*.yaml"), ROOT / "demo" / "policy.yaml"])

BEYOND_A_SCHEMA = {
    "burst_without_rate",
    "class_contradicts_tenant",
    "class_unknown",
    "conflict_is_told_once",
    "count_too_large",
    "curve_empty",
    "curve_not_rising",
    "curve_unknown",
    "curve_without_zero",
    "deadline_before_default_first_token",
    "default_floor_without_curve",
    "duration_too_long",
    "duration_zero",
    "first_answer_token_after_deadline",
    "first_token_after_deadline",
    "first_token_after_first_answer_token",
    "floor_above_curve",
    "floor_beyond_max",
    "floor_without_curve",
    "floor_without_thinking",
    "grace_above_all",
    "key_file_bad_digest",
    "key_file_empty",
    "key_file_missing",
    "key_file_not_text",
    "key_file_of_two_tenants",
    "key_file_with_spaces",
    "key_of_two_tenants",
    "key_twice_over",
    "key_variable_unset",
    "limits_in_rule",
    "min_above_default_max",
    "min_above_max",
    "name_twice",
    "no_think_with_least_budget",
    "rate_of_nothing",
    "rate_too_high",
    "rule_contradicts_tenant",
    "rule_matches_everything",
    "share_of_one",
    "tenants_empty",
    "think_without_budget",
}
"""Files whose error lies between values, or in the size of a quantity with a unit."""

accepts: Callable[[object], object] = fastjsonschema.compile(json_schema())


def refused_by_schema(text: str) -> bool:
    try:
        accepts(read_document(text, "policy.yaml").value)
    except (fastjsonschema.JsonSchemaValueException, PolicyError):
        return True
    return False


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_loads_without_a_warning_and_pleases_the_schema(file: Path) -> None:
    text = file.read_text()
    assert parse_policy(text, file.name, None).warnings == ()
    assert not refused_by_schema(text)


@pytest.mark.parametrize("name", sorted(path.stem for path in BAD.glob("*.yaml")))
def test_the_schema_refuses_what_a_schema_can(name: str) -> None:
    assert refused_by_schema((BAD / f"{name}.yaml").read_text()) == (name not in BEYOND_A_SCHEMA)


WORDS = [
    "800ms",
    "0.5 s",
    "p95",
    "95%",
    "10%",
    "50/s",
    "1.5k / h",
    "2k",
    "think",
    "refuse",
    "support",
    "Big",
    "a b",
    "",
    "1e3",
    "9h ",
]
SCALARS = st.one_of(
    st.sampled_from(WORDS), st.integers(-2, 10), st.floats(-1, 2).map(lambda x: round(x, 2)), st.booleans()
)
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "objectives": st.dictionaries(
            st.sampled_from(["deadline", "share", "per_token", "x"]), SCALARS, max_size=2
        ),
        "budget": st.dictionaries(st.sampled_from(["min", "max", "grace", "answer"]), SCALARS, max_size=2),
        "mode": SCALARS,
        "weight": SCALARS,
        "priority": SCALARS,
        "otherwise": SCALARS,
        "limits": st.dictionaries(
            st.sampled_from(["rate", "burst", "tokens", "concurrency", "x"]), SCALARS, max_size=2
        ),
        "class": SCALARS,
        "rules": st.lists(
            st.fixed_dictionaries({"match": st.dictionaries(st.text(max_size=2), SCALARS, max_size=2)}),
            max_size=1,
        ),
    },
)


@settings(derandomize=True, deadline=None)
@given(SETTINGS)
def test_what_the_loader_accepts_the_schema_accepts(tenant: dict[str, object]) -> None:
    text = json.dumps({"apiVersion": "curfew/v1", "tenants": [{"name": "a", **tenant}]})
    try:
        parse_policy(text, "policy.yaml", None)
    except PolicyError:
        return
    assert not refused_by_schema(text)


@pytest.mark.parametrize(
    ("file", "text"), [("policy.schema.json", schema_text), ("policy.md", reference_text)]
)
def test_the_generated_files_are_current(file: str, text: Callable[[], str]) -> None:
    """`curfew policy schema > docs/policy.schema.json` and its like make them so."""
    assert (ROOT / "docs" / file).read_text() == text()


@pytest.mark.parametrize(("command", "text"), [("schema", schema_text), ("reference", reference_text)])
def test_the_command_prints_them(
    command: str, text: Callable[[], str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command]) == 0
    assert capsys.readouterr().out == text()


def test_every_key_is_described() -> None:
    def check(form: object, where: str) -> None:
        if isinstance(form, dict):
            for key, value in form.get("properties", {}).items():
                assert value.get("description"), f"{where}.{key}"
            for key, value in form.items():
                check(value, f"{where}.{key}")

    check(json_schema(), "")
