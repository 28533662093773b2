"""Each check passes where budgets are kept, and fails on a server with the leak that it is there for."""

from __future__ import annotations

import asyncio

import pytest

from curfew.conformance import CHECKS, HttpTarget, Result, Suite, TargetError, Verdict
from curfew.conformance.suite import at_once
from curfew.dialects import DIALECTS
from tests.openai_server import Script, serving

REASONING = tuple(f"r{number} " for number in range(40))


async def results(script: Script, dialect: str = "vllm") -> dict[str, Result]:
    with serving(script) as server:
        async with HttpTarget(server.url, DIALECTS[dialect], model=None, key=None) as target:
            found = await Suite(target, "why?", 4).run(CHECKS, lambda _: None)
    return {result.name: result for result in found}


def failed(found: dict[str, Result]) -> set[str]:
    return {name for name, result in found.items() if result.verdict is Verdict.FAIL}


async def test_a_server_that_keeps_its_budgets_passes_everything() -> None:
    found = await results(Script(reasoning=REASONING, step_s=0.002))
    others = {name: result for name, result in found.items() if result.verdict is not Verdict.PASS}
    # It is too quick for a cancelled request to be missed.
    assert set(others) <= {"cancellation"}
    assert not failed(found)


@pytest.mark.parametrize(
    ("script", "check"),
    [
        (Script(over=1, over_unstreamed=1), "exact cap"),
        # Slow enough that several run at once.
        (Script(crowd_over=1, step_s=0.005), "exact cap together"),
        (Script(over_unstreamed=1), "exact cap unstreamed"),
        (Script(ignores_off=True), "budget 0"),
        (Script(closes_twice=True), "natural close"),
        (Script(no_answer=True), "never empty"),
        (Script(takes_any_budget=True), "invalid budgets"),
        (Script(obeys_users=True), "user text"),
        (Script(wrong_finish=True), "finish reasons"),
        (Script(reopens=True), "no reopening"),
        (Script(answer=("it ", "is ", "42", "</think>")), "no tags"),
        (Script(miscounts=-1), "counts"),
        (Script(uncounted_reasoning=True), "reasoning in output"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_each_leak_fails_its_own_check(script: Script, check: str) -> None:
    assert failed(await results(script)) == {check}


@pytest.mark.parametrize("leak", [False, True])
async def test_a_server_that_goes_on_for_nobody_fails_cancellation(leak: bool) -> None:
    (check,) = [check for check in CHECKS if check[0] == "cancellation"]
    script = Script(reasoning=("r ",) * 240, step_s=0.005, goes_on_alone=leak)
    with serving(script) as server:
        async with HttpTarget(server.url, DIALECTS["vllm"], model=None, key=None) as target:
            (found,) = await Suite(target, "why?", 2).run([check], lambda _: None)
    assert found.verdict is (Verdict.FAIL if leak else Verdict.PASS), found.evidence


async def test_what_cannot_be_told_does_not_pass() -> None:
    found = await results(Script(reasoning=()), "plain")
    assert found["exact cap"].verdict is Verdict.NOT_APPLICABLE
    assert found["natural close"].verdict is Verdict.INCONCLUSIVE
    assert found["user text"].verdict is Verdict.INCONCLUSIVE


async def test_nobody_there_is_an_error_not_a_verdict() -> None:
    target = HttpTarget("http://127.0.0.1:1/v1", DIALECTS["vllm"], model="m", key=None)
    async with target:
        with pytest.raises(TargetError):
            await Suite(target, "why?", 1).run(CHECKS, lambda _: None)


async def test_a_server_that_does_not_tell_its_models_is_quoted() -> None:
    with serving() as server, pytest.raises(TargetError, match="HTTP 404: Not Found"):
        async with HttpTarget(f"{server.url}/elsewhere", DIALECTS["vllm"], model=None, key=None):
            pass


async def test_where_one_of_many_fails_the_others_end() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def waits() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def fails() -> None:
        await begun.wait()
        raise TargetError("no")

    with pytest.raises(TargetError):
        await at_once([waits(), fails()])
    assert ended.is_set()


def test_every_check_is_named_once_and_has_a_leak_that_it_fails_on() -> None:
    names = [name for name, _, _ in CHECKS]
    leaks = test_each_leak_fails_its_own_check.pytestmark[0].args[1]  # type: ignore[attr-defined]
    assert sorted(names) == sorted(["cancellation", *(check for _, check in leaks)])
