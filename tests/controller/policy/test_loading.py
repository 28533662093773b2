"""Files that load, and what becomes of them."""

import hashlib
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from controller.policy import (
    BudgetRange,
    Grace,
    Limits,
    ModePolicy,
    Objectives,
    Otherwise,
    Policy,
    PolicyError,
    load_policy,
    parse_policy,
)
from controller.policy.units import Rate

HEAD = "apiVersion: curfew/v1\n"


def load(text: str, **environ: str) -> Policy:
    return parse_policy(HEAD + text, "policy.yaml", environ)


def test_three_lines_make_a_tenant() -> None:
    policy = load(
        "tenants:\n  - name: support\n    objectives: {deadline: 800ms}\n", CURFEW_KEY_SUPPORT="secret"
    )
    support = policy.tenants["support"]
    assert support.rule == "tenants[0]"
    assert support.objectives == Objectives(share=0.95, deadline_s=0.8)
    assert support.mode is ModePolicy.AUTO
    assert support.otherwise is Otherwise.REFUSE
    assert support.budget == BudgetRange(0, 8192, Grace(share=0.1), answer_tokens=None)
    assert policy.tenant_of("secret") is support
    assert policy.keyless == ()


def test_what_a_tenant_leaves_out_comes_from_the_defaults() -> None:
    policy = load(
        "defaults:\n"
        "  objectives: {deadline: 2s, share: p90}\n"
        "  budget: {max: 1k, grace: 5}\n"
        "  otherwise: best_effort\n"
        "tenants:\n"
        "  - name: own\n"
        "    objectives: {share: 0.99}\n"
        "    budget: {min: 10, grace: 10%}\n"
        "    otherwise: refuse\n"
        "  - name: common\n"
    )
    own, common = policy.tenants["own"], policy.tenants["common"]
    assert own.objectives == Objectives(share=0.99, deadline_s=2.0)
    assert own.budget == BudgetRange(10, 1000, Grace(share=0.1), answer_tokens=None)
    assert own.otherwise is Otherwise.REFUSE
    assert common.objectives == Objectives(share=0.9, deadline_s=2.0)
    assert common.budget == BudgetRange(0, 1000, Grace(fixed_tokens=5), answer_tokens=None)
    assert common.otherwise is Otherwise.BEST_EFFORT


def test_the_most_specific_setting_wins_key_by_key() -> None:
    policy = load(
        "defaults:\n  objectives: {deadline: 8s, share: p90}\n  budget: {max: 800, grace: 8}\n  priority: 7\n"
        "classes:\n"
        "  chat:\n"
        "    objectives: {deadline: 4s, first_token: 400ms}\n"
        "    budget: {max: 400, min: 4}\n"
        "    weight: 4\n"
        "tenants:\n"
        "  - name: support\n"
        "    class: chat\n"
        "    objectives: {deadline: 2s}\n"
        "    mode: think\n"
        "    rules:\n"
        "      - match: {task: triage}\n"
        "        objectives: {deadline: 1s}\n"
        "        priority: 1\n"
        "  - name: other\n"
    )
    support = policy.tenants["support"]
    assert support.objectives == Objectives(share=0.9, deadline_s=2.0, first_token_s=0.4)
    assert support.budget == BudgetRange(4, 400, Grace(fixed_tokens=8), answer_tokens=None)
    assert (support.mode, support.weight, support.priority) == (ModePolicy.THINK, 4.0, 7)
    triage = support.for_labels({"task": "triage"})
    assert triage.objectives == Objectives(share=0.9, deadline_s=1.0, first_token_s=0.4)
    assert (triage.budget, triage.mode, triage.weight) == (support.budget, support.mode, support.weight)
    assert (triage.name, triage.rule, triage.priority) == ("support", "tenants[0].rules[0]", 1)
    assert (policy.tenants["other"].weight, policy.tenants["other"].budget.max_tokens) == (1.0, 800)


def test_the_first_rule_that_matches_applies_alone() -> None:
    support = load(
        "tenants:\n"
        "  - name: support\n"
        "    rules:\n"
        "      - {match: {task: [triage, routing], tier: gold}, weight: 2}\n"
        "      - {match: {task: triage}, priority: 0}\n"
    ).tenants["support"]
    first, second = (rule.policy for rule in support.rules)
    assert support.for_labels({"task": "triage", "tier": "gold", "more": "x"}) is first
    assert support.for_labels({"task": "routing", "tier": "gold"}) is first
    assert support.for_labels({"task": "triage"}) is second
    for labels in ({}, {"tier": "gold"}, {"task": "routing"}, {"task": ""}, {"TASK": "triage"}):
        assert support.for_labels(labels) is support
    assert second.weight == support.weight


def test_without_an_environment_keys_by_name_are_left_out() -> None:
    policy = parse_policy(HEAD + "tenants:\n  - name: a\n    key: {env: UNSET}\n", "policy.yaml", None)
    assert (dict(policy.keys), policy.keyless) == ({}, ())


def test_a_floor_becomes_the_budget_that_reaches_it() -> None:
    policy = load(
        "curves:\n  sums: [[0, 0.2], [100, 0.8], [200, 0.9]]\n"
        "tenants:\n  - name: support\n    quality: {curve: sums, floor: 0.5}\n"
    )
    assert policy.tenants["support"].quality.floor_budget == 50


def test_outcomes_move_a_measured_curve_only_where_the_policy_says_so() -> None:
    policy = load(
        "curves:\n  sums: [[0, 0.2], [100, 0.8]]\n"
        "tenants:\n  - name: plain\n  - {name: measured, quality: {curve: sums}}\n"
        "  - {name: both, quality: {curve: sums, learn: true}}\n  - {name: fixed, quality: {learn: false}}\n"
    )
    learns = {name: tenant.quality.learn for name, tenant in policy.tenants.items()}
    assert learns == {"plain": True, "measured": False, "both": True, "fixed": False}


def test_a_tenant_is_found_by_any_of_its_keys_and_by_no_other() -> None:
    digests = [hashlib.sha256(key).hexdigest() for key in (b"one", b"two")]
    policy = load(
        f"tenants:\n  - name: a\n    keys: [sha256:{digests[0]}, sha256:{digests[1]}]\n"
        "  - name: b\n    key: {env: B}\n",
        B="three",
    )
    found = [policy.tenant_of(key) for key in ("one", "two", "three", "", "One", digests[0])]
    assert [tenant and tenant.name for tenant in found] == ["a", "a", "b", None, None, None]


def test_a_tenant_without_a_key_is_loaded_and_named() -> None:
    policy = load("tenants:\n  - name: no-key\n  - name: with-key\n", CURFEW_KEY_WITH_KEY="secret")
    assert policy.keyless == ("no-key",)


def test_neither_keys_nor_their_text_are_kept() -> None:
    policy = load("tenants:\n  - name: support\n    key: {env: K}\n", K="a very secret key")
    assert "a very secret key" not in repr(policy)


def test_the_version_names_the_text() -> None:
    text = "tenants:\n  - name: support\n"
    assert load(text).version == load(text).version == hashlib.sha256((HEAD + text).encode()).hexdigest()[:12]
    assert load(text + "# changed\n").version != load(text).version


def test_a_policy_cannot_be_changed() -> None:
    policy = load("tenants:\n  - name: support\n")
    with pytest.raises(FrozenInstanceError):
        policy.tenants["support"].weight = 2.0  # type: ignore[misc]  # that it cannot is the point
    with pytest.raises(TypeError):
        policy.tenants["other"] = policy.tenants["support"]  # type: ignore[index]  # as above


def test_the_demonstrations_policy_loads_and_knows_its_documented_keys() -> None:
    policy = load_policy(Path(__file__).parents[3] / "demo" / "policy.yaml", {})
    for name in policy.tenants:
        assert policy.tenant_of(f"demo-{name}") is policy.tenants[name]


def test_a_file_that_is_not_there_is_an_error_of_its_own(tmp_path: Path) -> None:
    missing = tmp_path / "policy.yaml"
    with pytest.raises(PolicyError) as caught:
        load_policy(missing, {})
    assert str(caught.value) == f"{missing}:1:1: cannot be read: No such file or directory"


def test_bytes_that_are_not_text_are_located(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_bytes(b"apiVersion: curfew/v1\nten\xffants: []\n")
    with pytest.raises(PolicyError) as caught:
        load_policy(file, {})
    assert str(caught.value) == f"{file}:2:4: byte 0xff is not UTF-8"


def test_limits_are_inherited_key_by_key_and_the_same_under_every_rule() -> None:
    policy = load(
        "defaults:\n  limits: {rate: 90/m, concurrency: 8}\n"
        "tenants:\n"
        "  - name: own\n"
        "    limits: {tokens: 2M/m, concurrency: 2}\n"
        "    rules: [{match: {task: x}, weight: 2}]\n"
        "  - name: common\n"
        "  - name: slow\n"
        "    limits: {rate: 1/h}\n"
        "  - name: bursty\n"
        "    limits: {burst: 40}\n"
    )
    own, rate = policy.tenants["own"], Rate(90, "m")
    assert own.limits == Limits(rate, burst=2, tokens=Rate(2_000_000, "m"), concurrency=2)
    assert own.for_labels({"task": "x"}).limits == own.limits
    assert policy.tenants["common"].limits == Limits(rate, burst=2, concurrency=8)
    assert policy.tenants["slow"].limits.burst == 1
    assert policy.tenants["bursty"].limits.burst == 40


def test_a_tenant_has_no_limits_unless_they_are_set() -> None:
    assert load("tenants:\n  - name: support\n").tenants["support"].limits == Limits(None, 1, None, None)
