"""`curfew policy check`: what it says, and the exit codes that CI goes by."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from controller.policy.command import main

DEMO = Path(__file__).parents[3] / "demo" / "policy.yaml"
HEAD = "apiVersion: curfew/v1\n"
GOOD = HEAD + "tenants:\n  - name: support\n    objectives: {deadline: 800ms}\n"
DOUBTFUL = HEAD + "tenants:\n  - name: support\n    objectives: {share: p90}\n"
BAD = HEAD + "tenants:\n  - name: support\n    mod: think\n    budget: {max: many}\n"


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    status = main(["check", *map(str, arguments)])
    return status, capsys.readouterr().out


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("policy.yaml")


def test_a_good_file_is_told_to_be_usable(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(GOOD)
    status, said = run(capsys, file)
    assert status == 0
    assert said.startswith("policy.yaml: can be used: 1 tenant, 0 rules, version ")


def test_every_error_is_told_with_its_place(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(BAD)
    assert run(capsys, file) == (
        1,
        "policy.yaml:4:5: error: tenants[0].mod: unknown key; did you mean mode?\n"
        "policy.yaml:5:19: error: tenants[0].budget.max: 'many' is not a count; write a whole number such as "
        "500 or 2k\n"
        "policy.yaml: cannot be used: 2 errors\n",
    )


def test_warnings_fail_only_where_that_is_asked_for(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(DOUBTFUL)
    status, said = run(capsys, file)
    assert status == 0
    assert said.splitlines()[0] == (
        "policy.yaml:4:18: warning: tenants[0].objectives.share: has no effect, since no time is promised; "
        "set a deadline, or remove it"
    )
    assert run(capsys, "--strict", file) == (1, said)


def test_the_worst_of_several_files_decides(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(GOOD)
    bad, missing = Path("bad.yaml"), Path("missing.yaml")
    bad.write_text(BAD)
    assert run(capsys, file, bad)[0] == 1
    status, said = run(capsys, file, missing, bad)
    assert status == 2
    assert "missing.yaml:1:1: error: cannot be read: No such file or directory\n" in said


def test_programs_get_the_same_as_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(BAD)
    doubtful = Path("doubtful.yaml")
    doubtful.write_text(DOUBTFUL)
    status, said = run(capsys, "--json", file, doubtful)
    assert status == 1
    first, second = json.loads(said)
    assert (first["file"], first["usable"], first["version"]) == ("policy.yaml", False, None)
    assert first["problems"][0] == {
        "line": 4,
        "column": 5,
        "severity": "error",
        "message": "tenants[0].mod: unknown key; did you mean mode?",
    }
    assert second["usable"]
    assert [problem["severity"] for problem in second["problems"]] == ["warning"]


def test_keys_are_looked_for_only_where_that_is_asked_for(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UNSET", raising=False)
    file.write_text(GOOD + "    key: {env: UNSET}\n")
    assert run(capsys, file)[0] == 0
    status, said = run(capsys, "--keys", file)
    assert status == 1
    assert "tenants[0].key.env: environment variable UNSET is not set\n" in said


SPEED = {
    "limits": {"maxSequenceTokens": 4096, "slots": 8},
    "speed": {"decode": [{"batchSize": 1, "step": "0.010s"}], "prefillTokensPerS": 10000},
}


def test_with_a_speed_promises_that_cannot_be_kept_are_told(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("speed.json").write_text(json.dumps(SPEED))
    file.write_text(
        HEAD + "tenants:\n  - name: slow\n    objectives: {deadline: 60s}\n"
        "    rules:\n      - match: {task: triage}\n        objectives: {deadline: 60ms}\n"
        "      - match: {task: other}\n        mode: no_think\n"
    )
    assert run(capsys, "--strict", file)[0] == 0
    status, said = run(capsys, "--strict", "--speed", "speed.json", "--input-tokens", "1k", file)
    assert status == 1
    told, usable = said.splitlines()
    assert told == (
        "policy.yaml:6:9: warning: tenants[0].rules[0]: the promise does not hold for 1000 input tokens "
        "beside 0 other requests: without thinking an answer of 256 tokens takes 3.99 s at p95, promised is "
        "60 ms; nothing else runs there"
    )
    assert usable.startswith("policy.yaml: can be used: ")


CURVE = "curves:\n  sums: [[0, 0.2], [100, 0.8], [3000, 0.9]]\n"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (
            "objectives: {first_token: 90ms}",
            "the first token comes after 395 ms at p95, promised is 90 ms; beside at most 7 it does",
        ),
        (
            "objectives: {per_token: 12ms}",
            "a token takes 15 ms at p95, promised is 12 ms; nor does it on an idle worker",
        ),
        (
            "objectives: {first_answer_token: 90ms}",
            "without thinking the answer begins after 395 ms at p95, promised is 90 ms; beside at most 7 it "
            "does",
        ),
        (
            "{objectives: {deadline: 2s}, mode: think, budget: {min: 150, answer: 20}}",
            "150 reasoning tokens, the least that budget.min allows, and an answer of 20 tokens take 3.17 s",
        ),
        (
            "{objectives: {first_answer_token: 1s}, quality: {curve: sums, floor: 0.8}, budget: {answer: 9}}",
            "after 100 reasoning tokens for the quality floor of 0.8 the answer begins at",
        ),
        (
            "{objectives: {deadline: 1h}, quality: {curve: sums, floor: 0.9}, budget: {max: 8k, answer: 20}}",
            "3000 reasoning tokens for the quality floor of 0.9 and an answer of 20 tokens do not fit into a "
            "sequence of 3000 tokens; nor does it on an idle worker",
        ),
    ],
)
def test_what_cannot_hold_is_told_with_its_cause_and_where_it_would(
    file: Path, settings: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = {"limits": {"maxSequenceTokens": 3000, "slots": 8}}
    Path("speed.json").write_text(json.dumps({**SPEED, **limits}))
    body = settings[1:-1] if settings.startswith("{") else settings
    file.write_text(f"{HEAD}{CURVE}tenants:\n  - {{name: a, {body}}}\n")
    status, said = run(capsys, "--strict", "--speed", "speed.json", "--load", "8", file)
    assert status == 1
    told = [line for line in said.splitlines() if "does not hold" in line]
    assert len(told) == 1
    assert why in told[0]


def test_a_preset_serves_as_well(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(GOOD)
    assert run(capsys, "--strict", "--speed", "9b-h200", file)[0] == 1
    assert run(capsys, "--strict", "--speed", "demo", file)[0] == 0


def test_a_speed_that_cannot_be_had_is_code_2(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(GOOD)
    assert main(["check", "--speed", "missing.json", str(file)]) == 2
    assert capsys.readouterr().err.startswith("'missing.json' is neither a file nor one of 9b-h200, ")


def test_the_installed_command_checks() -> None:
    command = [str(Path(sys.executable).with_name("curfew")), "policy", "check", str(DEMO)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{DEMO}: can be used: 4 tenants, 0 rules, version ")


@pytest.mark.parametrize("arguments", [[], ["check"], ["chek", "x"]])
def test_wrong_usage_is_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: curfew policy" in capsys.readouterr().err
