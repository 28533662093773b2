"""`curfew policy explain`: the account of one request, and that it is the planner's own."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from controller.planning.decision import Decision, Mode, Refusal
from controller.policy import TenantPolicy, parse_policy
from controller.policy.case import Case
from controller.policy.command import main
from controller.policy.explain import explain
from controller.policy.units import format_duration
from controller.simulation.speed import PRESETS

H200 = PRESETS["9b-h200"]
POLICY = """\
apiVersion: curfew/v1
curves:
  sums: [[0, 0.2], [100, 0.6], [400, 0.9]]
defaults:
  quality: {curve: sums}
  budget: {max: 500, grace: 10, answer: 20}
tenants:
  - name: support
    objectives: {deadline: 3s}
    rules:
      - match: {task: [triage, routing]}
        mode: no_think
      - match: {tier: gold}
        objectives: {deadline: 5m}
  - name: hasty
    objectives: {deadline: 12ms}
  - name: torn
    objectives: {deadline: 1ms, first_token: 1ms}
"""
SPEED = {
    "model": "small",
    "limits": {"maxSequenceTokens": 4096, "slots": 8},
    "speed": {
        "decode": [{"batchSize": 1, "step": "0.001s"}, {"batchSize": 8, "step": "0.002s"}],
        "prefillTokensPerS": 20000,
    },
    "unknownField": 1,
}


def tenant(name: str) -> TenantPolicy:
    return parse_policy(POLICY, "policy.yaml", None).tenants[name]


def decided(case: Case, policy: TenantPolicy) -> Decision:
    decision = case.plan(policy)
    assert isinstance(decision, Decision)
    return decision


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("policy.yaml")
    path.write_text(POLICY)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(["explain", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_an_account_tells_rule_promise_worker_plan_and_why(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    support = tenant("support")
    plan = decided(Case({}, 300, 0, H200), support)
    assert plan.mode is Mode.THINK
    quality = support.quality.curve and support.quality.curve.at(plan.budget_tokens)
    said = run(capsys, file, "--tenant", "support")
    account, more = said.split("\n\n")
    assert account == (
        "request  300 input tokens, no labels\n"
        "rule     tenants[0]: none of support's rules matches (task=triage|routing; tier=gold)\n"
        "promise  deadline 3 s; kept for p95\n"
        "limits   none\n"
        "worker   0 other requests running: 5.3 ms a step, 35955 prompt tokens a second (computed from "
        "measurements: 3.4 TB/s, 640 TFLOP/s)\n"
        f"plan     think, {plan.budget_tokens} tokens and 10 to end a sentence; 20 tokens kept for the "
        f"answer; done in {format_duration(plan.predicted_s)}; expected quality {quality:.3g}\n"
        f"because  {plan.why}"
    )
    assert more.startswith("To think more, each of these alone would do:\n  deadline 4.5 s: ")


def test_a_quality_that_reports_may_move_is_called_so() -> None:
    support = tenant("support")
    learning = replace(support, quality=replace(support.quality, learn=True))
    case = Case({}, 300, 0, H200)
    assert "until outcomes are reported" in explain(learning, case)
    assert "until outcomes are reported" not in explain(support, case)


def test_each_change_that_is_offered_brings_more(capsys: pytest.CaptureFixture[str]) -> None:
    case = Case({}, 3000, 20, H200)
    now = decided(case, tenant("support")).budget_tokens
    offers = explain(tenant("support"), case).split("alone would do:\n")[1].splitlines()
    budgets = {}
    for offer in offers:
        match = re.fullmatch(r"  (.+): (\d+) tokens, quality (0\.\d+)", offer)
        assert match is not None
        budgets[match[1]] = int(match[2])
    assert min(budgets.values()) > now
    assert set(budgets) >= {
        "deadline 4.5 s",
        "budget.answer 10",
        "1500 input tokens",
        "no other requests running",
    }
    other = parse_policy(POLICY.replace("deadline: 3s", "deadline: 4500ms"), "policy.yaml", None)
    assert budgets["deadline 4.5 s"] == decided(case, other.tenants["support"]).budget_tokens


@pytest.mark.parametrize("label", ["task=triage", "task=routing"])
def test_labels_lead_to_their_rule(file: Path, label: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = run(capsys, file, "--tenant", "support", "--label", label, "--label", "tier=gold")
    assert f"request  300 input tokens, labels {label}, tier=gold\n" in said
    assert (
        "rule     tenants[0].rules[0]: the first of support's rules that matches, by task=triage|routing\n"
        in said
    )
    assert "plan     answer at once; " in said
    assert "no_think by policy\n" in said
    assert "\n  mode auto: " in said


def test_where_the_curve_is_level_no_more_is_offered(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = run(capsys, file, "--tenant", "support", "--label", "tier=gold")
    assert said.splitlines()[-1] == "More thinking would not help: the curve is level after 400 tokens."


def test_a_refusal_tells_what_would_be_accepted() -> None:
    case = Case({}, 300, 0, H200)
    refusal = case.plan(tenant("hasty"))
    assert isinstance(refusal, Refusal)
    said = explain(tenant("hasty"), case)
    assert f"\nplan     refused; the fastest would take {format_duration(refusal.predicted_s)}\n" in said
    assert "\nTo be accepted, each of these alone would do:\n  deadline 18 ms: " in said


def test_what_no_single_change_brings_is_told_with_what_was_tried() -> None:
    last = explain(tenant("torn"), Case({}, 300, 0, H200)).splitlines()[-1]
    assert last.startswith("To be accepted, no change that was tried suffices alone: deadline 1.5 ms, ")


def test_the_speed_may_be_a_workers_own(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speed = Path("speed.json")
    speed.write_text(json.dumps(SPEED))
    said = run(capsys, file, "--tenant", "support", "--speed", speed, "--input-tokens", "2k", "--load", "7")
    assert "request  2000 input tokens, " in said
    assert (
        "worker   7 other requests running: 2 ms a step, 20000 prompt tokens a second (from speed.json)\n"
        in said
    )
    assert "plan     think, 400 tokens" in said


@pytest.mark.parametrize(
    ("speed", "message"),
    [
        ("{", "speed.json: neither JSON nor YAML: "),
        (json.dumps({"limits": 1}), "speed.json: not what DescribeWorker answers: "),
        ("{}", "speed.json: limits.slots and limits.maxSequenceTokens must be at least 1"),
        (
            json.dumps({**SPEED, "speed": {"prefillTokensPerS": 1}}),
            "speed.json: no decode step was measured",
        ),
    ],
)
def test_a_bad_speed_is_told(
    file: Path, speed: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("speed.json").write_text(speed)
    assert main(["explain", str(file), "--tenant", "support", "--speed", "speed.json"]) == 2
    assert capsys.readouterr().err.startswith(message)


def test_a_stranger_is_told(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(file), "--tenant", "suport"]) == 2
    assert capsys.readouterr().err == "policy.yaml: 'suport' is not a tenant; did you mean support?\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", "task"], "argument --label: 'task' is not LABEL=VALUE"),
        (["--input-tokens", "0"], "argument --input-tokens: '0' is too few; at least 1"),
        (
            ["--input-tokens", "few"],
            "argument --input-tokens: 'few' is not a count; write a whole number such as",
        ),
    ],
)
def test_wrong_arguments_are_told(
    file: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["explain", str(file), "--tenant", "support", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_limits_are_told_beside_the_promise(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = "limits: {rate: 90/m, tokens: 2M/h, concurrency: 8}\n"
    file.write_text(f"apiVersion: curfew/v1\ntenants:\n  - name: support\n    {limits}")
    assert "limits   90/m requests, 2 at once; 2M/h tokens; 8 waiting or running\n" in run(
        capsys, file, "--tenant", "support"
    )
