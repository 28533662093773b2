"""The examples do what they say, against the real services."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from asyncio.subprocess import PIPE

import pytest

from tests.system.conftest import ROOT, System, describe

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def run(name: str, address: str, key: str = "key-patient") -> str:
    """What an example prints that asks at an address."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"examples.{name}", address, key), stdout=PIPE, cwd=ROOT
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    return out.decode()


async def test_the_stream_has_reasoning_then_an_answer(system: System) -> None:
    reasoning, _, answer = (await run("stream", system.controller)).partition("]\n")
    assert reasoning.startswith("[12 + 37 = ")
    assert re.fullmatch(r"\d+\nafter \d\.\d\d s, kept\n", answer)


async def test_the_fan_out_answers_every_question(system: System) -> None:
    lines = (await run("fan_out", system.controller)).splitlines()
    assert len(lines) == 8
    assert re.fullmatch(r"What is 2 \+ 9 \+ 6\? \d+", lines[2])


async def test_the_plan_comes_before_the_answer(system: System) -> None:
    plan, answer = (await run("plan_first", system.controller)).splitlines()
    assert re.match("(NO_)?THINK: 2 s at p90: ", plan)
    assert answer.isdecimal()


async def test_refusals_are_told_apart(system: System) -> None:
    wrong, nobody, right = (await run("refusals", system.controller)).splitlines()
    assert wrong == "sampling.temperature 9 is out of range; allowed is 0 to 2"
    assert nobody == "check the key (API_KEY_UNKNOWN)"
    assert right.isdecimal()


async def test_a_tool_is_called_and_the_answer_is_json(system: System) -> None:
    can = (await describe(system.worker)).capabilities
    assert (can.tools, can.answer_format) == (True, True)
    call, answer = (await run("tools", system.controller, "key-agent")).splitlines()
    arguments, result = re.fullmatch(r"add\((.*)\) = (\d+)", call).groups()  # type: ignore[union-attr]
    assert int(result) == sum(json.loads(arguments))
    assert re.fullmatch(r"{'total': \d+}", answer)


async def test_openais_client_is_told_what_was_kept(system: System) -> None:
    *text, kept, reasoning = (await run("openai_client", system.http)).splitlines()
    assert text == ["12 + 37 = 49", "49 + 45 = 94", "94"]
    assert re.fullmatch(r"after \d+ ms, (kept|missed)", kept)
    assert reasoning == "21 reasoning tokens"
