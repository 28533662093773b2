"""`curfew policy diff`: what changes for whom."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.policy import Policy, TenantPolicy, parse_policy
from controller.policy.command import main
from controller.policy.diff import as_text, differences

HEAD = "apiVersion: curfew/v1\n"
KEY = "sha256:" + "0" * 64

BEFORE = """\
curves:
  sums: [[0, 0.2], [100, 0.8]]
defaults:
  quality: {curve: sums}
tenants:
  - name: support
    objectives: {deadline: 800ms}
    budget: {max: 200}
    rules:
      - match: {task: [triage, routing]}
        mode: no_think
      - match: {tier: gold}
        objectives: {deadline: 2s}
  - name: old
  - name: same
"""
AFTER = """\
curves:
  sums: [[0, 0.2], [100, 0.8]]
classes:
  quick: {objectives: {deadline: 600ms, share: p99}, quality: {floor: 0.5}}
defaults:
  quality: {curve: sums}
tenants:
  - name: support
    class: quick
    budget: {max: 200}
    rules:
      - match: {tier: gold}
        objectives: {deadline: 2s, share: p95}
        quality: {floor: 0}
      - match: {task: triage}
        mode: no_think
        quality: {floor: 0}
        objectives: {deadline: 800ms, share: p95}
  - name: same
    objectives: {share: 0.95}
  - name: new
    objectives: {deadline: 5s}
    rules:
      - match: {task: [a, b]}
        budget: {max: 5}
"""
CHANGES = """\
support
  requests under no other rule
    deadline: 800 ms → 600 ms
    share that must keep them: p95 → p99
    quality floor: none → 0.5, 50 tokens
  requests with task=routing
    deadline: 800 ms → 600 ms
    share that must keep them: p95 → p99
    mode: no_think → auto
    quality floor: none → 0.5, 50 tokens
  requests with task=triage, tier=gold or task=routing, tier=gold
    deadline: 800 ms → 2 s
    mode: no_think → auto
old
  all requests
    removed: its keys are no longer known
new
  all requests
    added
    deadline: 5 s
    share that must keep them: p95
    mode: auto
    thinks at least: 0 tokens
    thinks at most: 8192 tokens
    grace: 10% of the budget
    answer reserve: learnt
    quality by tokens: 0.2 at 0, 0.8 at 100
    weight: 1
    priority: 3
    when nothing fits: refuse
    brownout: reject
  requests with task=a or task=b
    thinks at most: 5 tokens
"""


def load(text: str) -> Policy:
    return parse_policy(HEAD + text, "policy.yaml", None)


def tenant(rules: str = "", **settings: str) -> Policy:
    own = "".join(f"    {key}: {value}\n" for key, value in settings.items())
    return load(f"tenants:\n  - name: a\n{own}{rules}")


def test_changes_are_told_by_tenant_and_by_request() -> None:
    assert as_text(differences(load(BEFORE), load(AFTER))) == CHANGES


def test_the_command_prints_them_and_tells_by_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = tmp_path / "a.yaml", tmp_path / "b.yaml"
    before.write_text(HEAD + BEFORE)
    after.write_text(HEAD + AFTER)
    assert main(["diff", str(before), str(after)]) == 1
    assert capsys.readouterr().out == CHANGES
    assert main(["diff", str(before), str(before)]) == 0
    assert capsys.readouterr().out == "no difference in effect\n"
    after.write_text(HEAD)
    assert main(["diff", str(before), str(after)]) == 2
    assert capsys.readouterr().err == f"{after}:1:1: tenants: must be set\n"


@pytest.mark.parametrize(
    ("before", "after", "effect"),
    [
        ({"objectives": "{first_token: 1s}"}, {}, "first token: 1 s → none"),
        (
            {"objectives": "{per_token: 40ms}"},
            {"objectives": "{per_token: 0.05s}"},
            "per token: 40 ms → 50 ms",
        ),
        ({}, {"mode": "think"}, "mode: auto → think"),
        ({"budget": "{max: 9}"}, {"budget": "{max: 9, grace: 4}"}, "grace: 10% of the budget → 4 tokens"),
        ({"budget": "{answer: 5}"}, {}, "answer reserve: 5 tokens → learnt"),
        ({}, {"quality": "{learn: false}"}, "learns quality from: reported outcomes → none"),
        ({"weight": "2"}, {"weight": "0.5"}, "weight: 2 → 0.5"),
        ({"priority": "1"}, {}, "priority: 1 → 3"),
        ({}, {"hedge": "400ms"}, "goes to a second worker after: none → 400 ms"),
        ({"limits": "{rate: 90/m}"}, {}, "requests at most: 90/m, 2 at once → none"),
        (
            {"limits": "{rate: 50/s}"},
            {"limits": "{rate: 50/s, burst: 7}"},
            "requests at most: 50/s, 50 at once → 50/s, 7 at once",
        ),
        ({}, {"limits": "{tokens: 1500k/m}"}, "tokens at most: none → 1.5M/m"),
        ({"limits": "{concurrency: 8}"}, {}, "requests at once: 8 → none"),
        ({"otherwise": "best_effort"}, {}, "when nothing fits: best_effort → refuse"),
        ({"keys": f"[{KEY}]"}, {}, "API keys no longer known: 1"),
        ({}, {"keys": f"[{KEY}]"}, "API keys added: 1"),
    ],
)
def test_each_setting_is_compared(before: dict[str, str], after: dict[str, str], effect: str) -> None:
    (change,) = differences(tenant(**before), tenant(**after))
    assert change.effects == (effect,)


def test_what_only_reads_otherwise_is_no_change() -> None:
    before = load("tenants:\n  - {name: a, objectives: {deadline: 1500ms}, budget: {max: 2k}}\n  - name: b\n")
    after = load(
        "defaults:\n  budget: {max: 2000}\ntenants:\n"
        "  - name: b\n    budget: {max: 8192}\n    rules: [{match: {task: x}, mode: auto}]\n"
        "  - name: a\n    objectives: {deadline: 1.5s, share: 0.95}\n"
    )
    assert differences(before, after) == []


def test_a_rule_that_moves_behind_another_changes_only_what_both_match() -> None:
    rules = ["{match: {task: x}, weight: 2}", "{match: {tier: y}, weight: 3}"]
    before, after = (tenant(rules=f"    rules: [{', '.join(order)}]\n") for order in (rules, reversed(rules)))
    (change,) = differences(before, after)
    assert (change.requests, change.effects) == ("requests with task=x, tier=y", ("weight: 2 → 3",))


VALUES = st.lists(st.sampled_from("xyz"), min_size=1, max_size=2, unique=True)
RULES = st.lists(
    st.tuples(st.dictionaries(st.sampled_from("tu"), VALUES, min_size=1), st.integers(1, 3)), max_size=3
)


def with_rules(weight: int, rules: list[tuple[dict[str, list[str]], int]]) -> TenantPolicy:
    text = "".join(
        "      - {match: {"
        + ", ".join(f"{k}: [{', '.join(v)}]" for k, v in match.items())
        + f"}}, weight: {w}}}\n"
        for match, w in rules
    )
    return tenant(rules=f"    rules:\n{text}" if rules else "", weight=str(weight)).tenants["a"]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(1, 3), RULES, st.integers(1, 3), RULES)
def test_every_request_that_fares_otherwise_is_told_and_no_other(
    old_weight: int,
    old_rules: list[tuple[dict[str, list[str]], int]],
    new_weight: int,
    new_rules: list[tuple[dict[str, list[str]], int]],
) -> None:
    old, new = with_rules(old_weight, old_rules), with_rules(new_weight, new_rules)
    seen = set()
    for t, u in itertools.product(["", "x", "y", "z", "other"], repeat=2):
        labels = {key: value for key, value in (("t", t), ("u", u)) if value}
        before, after = old.for_labels(labels), new.for_labels(labels)
        if before.weight != after.weight:
            seen.add((before.rule, after.rule, f"weight: {before.weight:g} → {after.weight:g}"))
    found = differences(_policy(old), _policy(new))
    assert sorted(effect for change in found for effect in change.effects) == sorted(e for _, _, e in seen)


def _policy(tenant: TenantPolicy) -> Policy:
    return Policy(version="", text="", tenants={tenant.name: tenant}, keys={}, keyless=())
