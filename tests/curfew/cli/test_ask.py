"""What the commands that ask have in common: a wish on the command line is a wish in the request."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner, Result

from curfew.cli.main import app
from curfew.client import Effort
from curfew.rpc.durations import duration
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import reasoning_pb2
from tests.curfew.reasoning_server import serving

WISHES = [
    *("--deadline", "800ms", "--think", "--effort", "low", "--budget", "30"),
    *("--max-answer", "5", "--max-output-tokens", "50", "--label", "task=triage", "--system", "s"),
]


def invoke(command: str, address: str, *arguments: str) -> Result:
    question = [] if command == "chat" else ["-"]
    asked = [command, *question, "--key", "k", "--address", address, *arguments]
    return CliRunner().invoke(app, asked, input="q\n")


@pytest.fixture(params=["ask", "plan", "chat"])
def command(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_wishes_arrive(command: str) -> None:
    with serving() as (servicer, address):
        result = invoke(command, address, *WISHES)
        assert result.exit_code == 0, result.output
        (seen,) = servicer.calls
    assert seen.key == "Bearer k"
    assert [turn.content.strip() for turn in seen.request.messages] == ["s", "q"]
    assert dict(seen.request.labels) == {"task": "triage"}
    wishes = seen.request.wishes
    assert 0.7 < wishes.deadline.ToTimedelta().total_seconds() <= 0.8
    wishes.deadline.CopyFrom(duration(0.8))
    assert wishes == reasoning_pb2.Wishes(
        mode=pb.MODE_THINK,
        effort=reasoning_pb2.EFFORT_LOW,
        max_reasoning_tokens=30,
        max_answer_tokens=5,
        max_output_tokens=50,
        deadline=duration(0.8),
    )


@pytest.mark.parametrize("effort", list(Effort))
def test_every_effort_has_its_word(effort: Effort) -> None:
    with serving() as (servicer, address):
        assert invoke("plan", address, "--effort", effort.name.lower()).exit_code == 0
        assert servicer.calls[0].request.wishes.effort == effort.value


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (["--effort", "much"], "much"),
        (["--max-output-tokens", "0"], "max-output-tokens"),
        (["--label", "triage"], "NAME=VALUE"),
        (["--cert-key", __file__], "cert"),
    ],
)
def test_a_wrong_wish_is_told_and_nothing_is_asked(command: str, wish: list[str], said: str) -> None:
    with serving() as (servicer, address):
        result = invoke(command, address, *wish)
        assert result.exit_code == 2
        assert said in result.stderr
        assert not servicer.calls


def test_of_several_addresses_one_that_answers_is_asked(command: str) -> None:
    with serving() as (servicer, address):
        assert invoke(command, f"127.0.0.1:1, {address}").exit_code == 0
        assert len(servicer.calls) == 1


def test_a_key_is_needed(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CURFEW_KEY", raising=False)
    question = [] if command == "chat" else ["q"]
    result = CliRunner().invoke(app, [command, *question])
    assert result.exit_code == 2
    assert "CURFEW_KEY" in result.stderr
