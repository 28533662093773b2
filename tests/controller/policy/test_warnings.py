"""What loads and is likely not what was meant."""

import pytest

from controller.policy import parse_policy


def warnings(text: str) -> list[str]:
    policy = parse_policy("apiVersion: curfew/v1\n" + text, "policy.yaml", {})
    return [f"{w.mark.line}:{w.mark.column}: {w.message}" for w in policy.warnings]


def rules(*matches: str) -> str:
    listed = "".join(f"      - match: {match}\n        mode: think\n" for match in matches)
    return "tenants:\n  - name: a\n    rules:\n" + listed


def test_a_curve_that_nobody_uses() -> None:
    text = "curves:\n  sums: [[0, 0.5]]\ntenants:\n  - name: a\n"
    assert warnings(text) == ["3:3: curves.sums: no tenant uses it"]


def test_a_class_that_nobody_uses() -> None:
    text = "classes:\n  chat: {mode: think}\ntenants:\n  - name: a\n"
    assert warnings(text) == ["3:3: classes.chat: no tenant uses it"]


def test_a_share_of_no_time() -> None:
    assert warnings("tenants:\n  - name: a\n    objectives: {share: p90}\n") == [
        "4:18: tenants[0].objectives.share: has no effect, since no time is promised; "
        "set a deadline, or remove it"
    ]


def test_a_common_share_may_be_of_use_to_others() -> None:
    assert warnings("defaults:\n  objectives: {share: p90}\ntenants:\n  - name: a\n") == []


def test_learning_without_thinking() -> None:
    assert warnings("tenants:\n  - name: a\n    mode: no_think\n    quality: {learn: true}\n") == [
        "5:15: tenants[0].quality.learn: has no effect, since mode is no_think"
    ]


def test_how_probes_are_taken_where_none_are() -> None:
    assert warnings("tenants:\n  - name: a\n    probe: {stable: 3}\n") == [
        "4:13: tenants[0].probe.stable: has no effect without probe.every"
    ]


def test_probes_without_thinking() -> None:
    assert warnings("tenants:\n  - name: a\n    mode: no_think\n    probe: {every: 9}\n") == [
        "5:5: tenants[0].probe: has no effect, since mode is no_think"
    ]


def test_a_budget_without_thinking() -> None:
    assert warnings("tenants:\n  - name: a\n    mode: no_think\n    budget: {max: 9, answer: 9}\n") == [
        "5:14: tenants[0].budget.max: has no effect, since mode is no_think"
    ]


@pytest.mark.parametrize(
    "later",
    [
        "{task: triage}",
        "{task: [triage]}",
        "{task: triage, tier: gold}",
        "{task: routing}",
        "{task: [routing, triage]}",
    ],
)
def test_a_rule_that_an_earlier_one_hides(later: str) -> None:
    assert warnings(rules("{task: [triage, routing]}", later)) == [
        "7:9: tenants[0].rules[1]: never applies; tenants[0].rules[0] matches the same requests first"
    ]


@pytest.mark.parametrize("later", ["{task: [triage, other]}", "{tier: gold}", "{task: other}"])
def test_a_rule_that_can_still_match(later: str) -> None:
    assert warnings(rules("{task: [triage, routing]}", later)) == []


def test_the_more_special_rule_may_come_first() -> None:
    assert warnings(rules("{task: triage, tier: gold}", "{task: triage}")) == []
