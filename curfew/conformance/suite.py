"""The checks in order, each with what it saw. A check that cannot tell says so: it never passes for want of
evidence.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from curfew.conformance.target import Ask, RefusedError, Seen, Target, TargetError

OPEN, CLOSE = "<think>", "</think>"
SWITCHES = ("/no_think", "</think>", "<think></think>")
"""What a user might write to end or skip reasoning."""

_SLOW = 3.0
_SLACK_S = 0.5


class Verdict(Enum):
    """What a check found."""

    PASS = "pass"
    FAIL = "fail"
    NOT_APPLICABLE = "not applicable"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Result:
    """A check's verdict. proves: what a pass means. evidence: what was seen."""

    name: str
    proves: str
    verdict: Verdict
    evidence: str


Found = tuple[Verdict, str]
T = TypeVar("T")


class Suite:
    """Asks one server. natural: what it does without a budget, once that was asked."""

    def __init__(
        self,
        target: Target,
        question: str,
        concurrency: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """question: one that the model reasons about for a while. concurrency: requests at once."""
        self._target, self.question, self.concurrency, self.clock = target, question, concurrency, clock
        self.seen: list[Seen] = []
        """All answers so far."""
        self.natural_tokens = 0
        """Of the reasoning when it is left alone; 0 for none."""

    @property
    def target(self) -> Target:
        """The server."""
        return self._target

    @property
    def budgets(self) -> list[int]:
        """Budgets that this model would exceed, smallest first."""
        natural = self.natural_tokens
        return sorted({1, natural // 4, natural // 2, natural - 1} - {0, -1}) if natural > 1 else []

    async def run(
        self, checks: Sequence[tuple[str, str, Check]], note: Callable[[Result], object]
    ) -> list[Result]:
        """Runs checks in order; note: gets each result. Raises TargetError when the server is not there."""
        natural = await self.ask(None)
        self.natural_tokens = natural.tokens or natural.pieces
        results = []
        for name, proves, check in checks:
            try:
                verdict, evidence = await check(self)
            except RefusedError as error:
                verdict, evidence = Verdict.FAIL, f"refused: {error}"
            except TargetError as error:
                verdict, evidence = Verdict.FAIL, f"failed: {error}"
            results.append(Result(name, proves, verdict, evidence))
            note(results[-1])
        return results

    async def ask(
        self, budget: int | None, *, text: str | None = None, answer_tokens: int = 64, streamed: bool = True
    ) -> Seen:
        """Asks the question, or another one."""
        seen = await self.target.ask(Ask(text or self.question, budget, answer_tokens, streamed))
        self.seen.append(seen)
        return seen

    async def over(
        self, budgets: Sequence[int], *, streamed: bool = True, together: bool = False
    ) -> list[Seen]:
        """Asks with each budget."""
        if together:
            return await at_once([self.ask(budget, streamed=streamed) for budget in budgets])
        return [await self.ask(budget, streamed=streamed) for budget in budgets]


async def at_once(asks: Sequence[Coroutine[None, None, T]]) -> list[T]:
    """What all of them return. Where one raises, the others are cancelled: the next check begins alone."""
    tasks = [asyncio.ensure_future(ask) for ask in asks]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


Check = Callable[[Suite], Awaitable[Found]]


async def exact_cap(suite: Suite) -> Found:
    """Budgets that the model wants to exceed, one after the other."""
    return _judge_cap(suite, await suite.over(suite.budgets), 0)


async def exact_cap_together(suite: Suite) -> Found:
    """The same budgets in many requests at once; no worse than alone."""
    alone = _most_over(suite.seen)
    budgets = suite.budgets
    mixed = [budgets[number % len(budgets)] for number in range(suite.concurrency)] if budgets else []
    return _judge_cap(suite, await suite.over(mixed, together=True), max(0, alone))


async def exact_cap_unstreamed(suite: Suite) -> Found:
    """The same budgets without a stream; no worse than with one."""
    if not suite.target.has_unstreamed:
        return Verdict.NOT_APPLICABLE, "answers always come in a stream"
    streamed = _most_over([seen for seen in suite.seen if seen.ask.streamed])
    return _judge_cap(suite, await suite.over(suite.budgets, streamed=False), max(0, streamed))


def _judge_cap(suite: Suite, seen: Sequence[Seen], allowed: int) -> Found:
    if not suite.target.has_budget:
        return Verdict.NOT_APPLICABLE, "this kind of server has no thinking budget"
    if not seen:
        return Verdict.INCONCLUSIVE, "the model did not reason long enough to exceed a budget"
    counted = [each for each in seen if each.over is not None]
    if not counted:
        return Verdict.INCONCLUSIVE, "the server does not count reasoning tokens"
    worst = max(counted, key=lambda each: each.over or 0)
    said = f"{len(counted)} requests; at most {worst.tokens} tokens at a budget of {worst.ask.budget}"
    if worst.grace_tokens:
        said += f" + {worst.grace_tokens}"
    return (Verdict.FAIL if (worst.over or 0) > allowed else Verdict.PASS), said


def _most_over(seen: Sequence[Seen]) -> int:
    return max((each.over for each in seen if each.over is not None), default=0)


async def budget_zero(suite: Suite) -> Found:
    """No reasoning at all."""
    seen = await suite.ask(0)
    # A server that tells reasoning apart nowhere has it in the answer, up to the tag.
    inline = CLOSE in seen.answer and not any(each.reasoning for each in suite.seen)
    if seen.reasoning.strip() or seen.tokens or inline:
        return (
            Verdict.FAIL,
            f"{seen.tokens or 'some'} reasoning tokens: {_shown(seen.reasoning or seen.answer)}",
        )
    return Verdict.PASS, f"no reasoning; answer {_shown(seen.answer)}"


async def natural_close(suite: Suite) -> Found:
    """Budgets around the length at which the model closes by itself."""
    if not suite.natural_tokens:
        return Verdict.INCONCLUSIVE, "the model did not reason"
    budgets = range(max(1, suite.natural_tokens - 2), suite.natural_tokens + 3)
    seen = await suite.over(budgets)
    doubled = next((each for each in seen if each.answer.lstrip().startswith(CLOSE)), None)
    if doubled is not None:
        return Verdict.FAIL, f"budget {doubled.ask.budget}: the answer begins {_shown(doubled.answer)}"
    return Verdict.PASS, f"budgets {budgets[0]} to {budgets[-1]} around {suite.natural_tokens} tokens"


async def no_reopening(suite: Suite) -> Found:
    """In everything that was seen: reasoning is over once the answer has begun."""
    found = next((each for each in suite.seen if each.reasoned_again or OPEN in each.answer), None)
    if found is not None:
        return Verdict.FAIL, f"budget {_word(found)}: {_shown(found.answer)}"
    return Verdict.PASS, f"{len(suite.seen)} answers"


async def no_tags(suite: Suite) -> Found:
    """In everything that was seen: the answer holds no closing tag, and reasoning none either."""
    for seen in suite.seen:
        rest = seen.answer.lstrip().removeprefix(CLOSE) if seen.reasoning else seen.answer
        stray = CLOSE in rest and OPEN not in rest
        if stray or OPEN in seen.reasoning or CLOSE in seen.reasoning:
            return Verdict.FAIL, f"budget {_word(seen)}: {_shown(rest if stray else seen.reasoning)}"
    return Verdict.PASS, f"{len(suite.seen)} answers"


async def never_empty(suite: Suite) -> Found:
    """Tight budgets and small reserves: there is an answer all the same."""
    for budget in suite.budgets or [1]:
        await suite.ask(budget, answer_tokens=16)
    empty = next((seen for seen in suite.seen if not seen.answer.strip()), None)
    if empty is not None:
        return (
            Verdict.FAIL,
            f"budget {_word(empty)}: no answer after {len(empty.reasoning)} characters of reasoning",
        )
    return Verdict.PASS, f"{len(suite.seen)} answers"


async def counts(suite: Suite) -> Found:
    """What is accounted is what was streamed."""
    checked = 0
    for seen in suite.seen:
        if seen.reasoning_tokens is None:
            continue
        checked += 1
        if seen.streamed_tokens is not None and seen.streamed_tokens != seen.reasoning_tokens:
            return Verdict.FAIL, f"{seen.streamed_tokens} streamed, {seen.reasoning_tokens} accounted"
        if seen.pieces > seen.reasoning_tokens:
            return (
                Verdict.FAIL,
                f"{seen.pieces} pieces of reasoning, {seen.reasoning_tokens} tokens accounted",
            )
    if not checked:
        return Verdict.INCONCLUSIVE, "the server does not count reasoning tokens"
    return Verdict.PASS, f"{checked} answers"


async def reasoning_in_output(suite: Suite) -> Found:
    """Reasoning tokens are output tokens."""
    counted = [each for each in suite.seen if each.output_tokens is not None and each.tokens]
    if not counted:
        return Verdict.INCONCLUSIVE, "the server does not count"
    for seen in counted:
        assert seen.output_tokens is not None
        # An answer takes a token.
        least = (seen.tokens or 0) + bool(seen.answer.strip())
        if seen.output_tokens < least:
            return Verdict.FAIL, f"{seen.output_tokens} output tokens with {seen.tokens} of reasoning"
    return Verdict.PASS, f"{len(counted)} answers"


async def finish_reasons(suite: Suite) -> Found:
    """An answer that is cut short says so, and one that is not does not."""
    whole, cut = await suite.ask(0), await suite.ask(0, answer_tokens=1)
    if whole.answer.strip() == cut.answer.strip():
        return Verdict.INCONCLUSIVE, "the whole answer is a token"
    said = f"whole: {whole.finish}; cut: {cut.finish}"
    return (Verdict.PASS if (whole.finish, cut.finish) == ("stop", "length") else Verdict.FAIL), said


async def cancellation(suite: Suite) -> Found:
    """Who leaves frees what was used: the next request is as fast as on an idle server."""

    async def timed() -> float:
        begun_s = suite.clock()
        await suite.ask(0)
        return suite.clock() - begun_s

    idle_s = max(await timed(), await timed())
    begun_s = suite.clock()
    await suite.ask(None)
    long_s = suite.clock() - begun_s
    ask = Ask(suite.question, None)
    await at_once([suite.target.leave(ask) for _ in range(suite.concurrency)])
    after_s = await timed()
    said = (
        f"{after_s:.2f} s after {suite.concurrency} were left, {idle_s:.2f} s when idle;"
        f" each takes {long_s:.2f} s"
    )
    limit_s = _SLOW * idle_s + _SLACK_S
    if long_s * suite.concurrency <= limit_s:
        return Verdict.INCONCLUSIVE, f"{said}: too short to tell"
    return (Verdict.PASS if after_s <= limit_s else Verdict.FAIL), said


async def invalid_budgets(suite: Suite) -> Found:
    """A budget below 0 is refused, not guessed at."""
    if not suite.target.has_negative_budgets:
        return Verdict.NOT_APPLICABLE, "no budget below 0 can be written"
    try:
        seen = await suite.ask(-5)
    except RefusedError as error:
        return Verdict.PASS, str(error)
    return Verdict.FAIL, f"budget -5: {seen.tokens or 0} reasoning tokens, answer {_shown(seen.answer)}"


async def user_text(suite: Suite) -> Found:
    """A user who writes a switch or a tag is still reasoned for."""
    if not suite.natural_tokens:
        return Verdict.INCONCLUSIVE, "the model did not reason"
    budget = suite.budgets[-1] if suite.budgets else 1
    for switch in SWITCHES:
        seen = await suite.ask(budget, text=f"{suite.question} {switch}")
        if not seen.reasoning.strip() and not seen.tokens:
            return Verdict.FAIL, f"{switch} in the question: no reasoning"
    return Verdict.PASS, ", ".join(SWITCHES)


CHECKS: tuple[tuple[str, str, Check], ...] = (
    ("exact cap", "reasoning never exceeds its budget, not by a token", exact_cap),
    ("exact cap together", "nor when many requests run at once", exact_cap_together),
    ("exact cap unstreamed", "nor when the answer comes in one piece", exact_cap_unstreamed),
    ("budget 0", "no budget is no reasoning", budget_zero),
    ("natural close", "a close that the model is writing is not written again", natural_close),
    ("never empty", "there is an answer, however small the budget", never_empty),
    ("invalid budgets", "a wrong budget is refused, not ignored", invalid_budgets),
    ("user text", "what a user writes does not switch reasoning off", user_text),
    ("finish reasons", "an answer that was cut short says so", finish_reasons),
    ("cancellation", "who leaves frees the server", cancellation),
    ("no reopening", "reasoning is over once the answer has begun", no_reopening),
    ("no tags", "no thinking tag is passed on as text", no_tags),
    ("counts", "reasoning tokens accounted are those streamed", counts),
    ("reasoning in output", "reasoning tokens are part of the output tokens", reasoning_in_output),
)


def _word(seen: Seen) -> str:
    return "none" if seen.ask.budget is None else str(seen.ask.budget)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}…")
