"""`curfew policy alerts`: Prometheus rules from a policy file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

import fastjsonschema
import pytest
from ruamel.yaml import YAML

from controller.policy import parse_policy
from controller.policy.alerts import MOST_RATIO, WINDOWS, alert_names, missed_ratio, rules_text
from controller.policy.command import main
from curfew.telemetry.controller_metrics import CONTROLLER_METRICS
from curfew.telemetry.worker_metrics import WORKER_METRICS
from tests.promql import metric_names

POLICY = """\
apiVersion: curfew/v1
tenants:
  - name: support
    objectives: {deadline: 800ms, share: p99}
  - name: analyst
    objectives: {deadline: 10s, share: p50}
  - name: batch
    objectives: {share: p90}
"""
GOLDEN = Path(__file__).parent / "golden" / "alerts.yaml"
RULE = {
    "type": "object",
    "required": ["expr"],
    "oneOf": [{"required": ["record"]}, {"required": ["alert"]}],
    "properties": {
        "record": {"type": "string", "pattern": "^[a-zA-Z_:][a-zA-Z0-9_:]*$"},
        "alert": {"type": "string", "pattern": "^[A-Z][A-Za-z]+$"},
        "expr": {"type": "string", "minLength": 1},
        "for": {"type": "string", "pattern": "^([0-9]+[smhd])+$"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "additionalProperties": False,
}
SCHEMA = {
    "type": "object",
    "required": ["groups"],
    "properties": {
        "groups": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "rules"],
                "properties": {"name": {"type": "string"}, "rules": {"type": "array", "items": RULE}},
                "additionalProperties": False,
            },
        }
    },
    "additionalProperties": False,
}
"""What Prometheus reads of a rules file, as far as it is written here."""

Rule = dict[str, str | dict[str, str]]


def rules(text: str) -> list[Rule]:
    document = YAML(typ="safe").load(text)
    fastjsonschema.validate(SCHEMA, document)
    return [cast("Rule", rule) for group in document["groups"] for rule in group["rules"]]


def of_policy(most_tenants: int = 100) -> str:
    return rules_text(parse_policy(POLICY, "policy.yaml", None), "https://example.com/runbook", most_tenants)


def expression(alert: str, tenant: str) -> str:
    (found,) = [
        rule["expr"]
        for rule in rules(of_policy())
        if rule.get("alert") == alert and cast("dict[str, str]", rule["labels"]).get("tenant") == tenant
    ]
    return str(found)


def test_the_rules_are_those_that_were_looked_at() -> None:
    assert of_policy() == GOLDEN.read_text()


def test_every_expression_asks_for_names_that_a_service_emits_or_a_rule_records() -> None:
    written = rules(of_policy())
    known = {metric.name for metric in (*CONTROLLER_METRICS, *WORKER_METRICS)}
    known |= {str(rule["record"]) for rule in written if "record" in rule}
    for rule in written:
        assert metric_names(str(rule["expr"])) <= known


def test_a_budget_that_burns_too_fast_pages_and_one_that_burns_slowly_does_not() -> None:
    fast, slow = (
        expression(name, "support") for name in ("CurfewObjectiveBurnsFast", "CurfewObjectiveBurnsSlowly")
    )
    limits = re.compile(r"ratio_rate(\w+)\{tenant=\"support\"\} > ([0-9.]+)")
    assert dict(limits.findall(fast)) == {"1h": "0.144", "5m": "0.144", "6h": "0.06", "30m": "0.06"}
    assert dict(limits.findall(slow)) == {"1d": "0.03", "2h": "0.03", "3d": "0.01", "6h": "0.01"}


def test_a_low_share_is_watched_too() -> None:
    assert f"> {MOST_RATIO}" in expression("CurfewObjectiveBurnsFast", "analyst")
    assert "> 0.5" in expression("CurfewObjectiveBurnsSlowly", "analyst")


def test_every_window_that_an_alert_reads_is_recorded() -> None:
    written = rules(of_policy())
    recorded = {str(rule["record"]) for rule in written if "record" in rule}
    assert recorded == {missed_ratio(window) for window in WINDOWS}
    read = {name for rule in written if "alert" in rule for name in metric_names(str(rule["expr"]))}
    assert recorded <= read


def test_a_tenant_that_is_promised_no_time_has_no_objective_to_watch() -> None:
    assert "batch" not in of_policy()


def test_every_alert_names_its_section_of_the_runbook() -> None:
    alerts = [rule for rule in rules(of_policy()) if "alert" in rule]
    assert {str(rule["alert"]) for rule in alerts} == set(alert_names())
    for rule in alerts:
        link = cast("dict[str, str]", rule["annotations"])["runbook_url"]
        assert link == f"https://example.com/runbook#{str(rule['alert']).lower()}"


def test_tenants_without_metrics_of_their_own_are_said_to_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)
    assert main(["alerts", str(file), "--metrics-tenants", "1"]) == 0
    output = capsys.readouterr()
    assert "analyst" not in output.out
    assert "2 tenants have no metrics of their own" in output.err


def test_a_policy_with_errors_has_no_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("apiVersion: curfew/v1\ntenants: []\n")
    assert main(["alerts", str(file)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert str(file) in output.err
