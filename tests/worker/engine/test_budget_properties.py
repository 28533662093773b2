"""The promises of the reasoning budget, over ten thousand random sequences.

No reasoning token beyond b + g, never an empty answer, no tag shown, no close doubled, exact counts, and a
resumed sequence goes on as if it had never stopped. Vocabularies are random, so that tags straddle tokens in
every way; the model is one that likes tags, whitespace, fragments of characters, the end of text and, where
there are tools, calls.
"""

import json
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby

from tests.worker.engine.vocabulary import Vocabulary
from worker.engine.answer_form import FREE_FORM, AnswerForm
from worker.engine.budget import BudgetMachine, TextFormat
from worker.engine.closing import at_boundary
from worker.engine.generation import (
    Ban,
    CallPiece,
    FinishReason,
    Limits,
    Observation,
    Phase,
    ReasoningEnd,
    TokenRun,
)
from worker.engine.loops import LoopRule
from worker.engine.text import silent_tokens

SEQUENCES = 10_000
RULE = LoopRule(max_period=3, min_repeats=4, min_tokens=8)
TAGS = ("<think>", "</think>")
TOOLS = AnswerForm(tools=frozenset({"add"}), most_calls=2)
CALLS = [
    '<TOOLCALL>[{"name": "add", "arguments": {"a": "<think>END"}}]</TOOLCALL>', "<TOOLCALL>", "<TOOLCALL>[]",
    '<TOOLCALL>[{"name": "sub", "arguments": {}}, {"name": "add", "arguments": {}}]</TOOLCALL>',
]  # fmt: skip
SCRAPS = [
    b"<", b"</", b"<t", b"</t", b"/think", b"think", b"th", b"ink", b"k>", b">", b">\n\n", b">\n\nThe", b"x<",
    b"a </", b"</think>", b"<think>", b"</think>\n\n", b"</think", b"\n", b"\n\n", b" ", b"\t ", b".", b". ",
    b".\n", b"3.", b"?", b"So", b" it", b"END", b"EN", b"D", "é".encode(), "😀".encode()[:2],
    "😀".encode()[2:], "\u3000".encode()[:1], "\u3000".encode()[1:], "。".encode(), b"\xff", b"\xc3", b"\xa9",
]  # fmt: skip


class Model:
    """A vocabulary and the tokens that a sampler draws from it."""

    def __init__(self, rng: random.Random) -> None:
        pieces = set(rng.sample(SCRAPS, rng.randint(5, 25)))
        pieces |= {b"".join(rng.choices(SCRAPS, k=rng.randint(2, 3))) for _ in range(rng.randint(0, 10))}
        self.vocabulary = Vocabulary(sorted(piece for piece in pieces if len(piece) > 1))
        self.text_format: TextFormat = self.vocabulary.text_format()
        end = self.vocabulary.end_of_text
        common = rng.choices(b"<>/think \n.aSE\xe3\x80", k=8)
        self.favourites = [*range(256, end), *common, *[end] * rng.randint(0, 3)]
        table = self.vocabulary.token_bytes
        self.silent = silent_tokens(table, [end])
        self.allowed = {
            Ban.NONE: range(end + 1),
            Ban.END_OF_TEXT: range(end),
            Ban.SILENT: [i for i in range(end) if i not in self.silent],
        }

    def split(self, text: str, rng: random.Random) -> Iterator[int]:
        """The tokens of a random tokenisation."""
        data, table = text.encode(), self.vocabulary.token_bytes
        while data:
            fits = [i for i in range(256, len(table) - 1) if data.startswith(table[i])]
            token = rng.choice([data[0], *fits])
            data = data[len(table[token]) :]
            yield token


class Sampler:
    """Draws tokens that honour the ban; now and then it spells out a tag, or the same thing over and over."""

    def __init__(self, model: Model, rng: random.Random, form: AnswerForm) -> None:
        self.model, self.rng, self.form = model, rng, form
        self.planned: list[int] = []

    def draw(self, ban: Ban) -> int:
        rng, model = self.rng, self.model
        if not self.planned and self.form.tools and rng.random() < 0.2:
            self.planned = list(model.split(rng.choice(CALLS), rng))[::-1]
        elif not self.planned and rng.random() < 0.07:
            self.planned = list(model.split(rng.choice([*TAGS, *TAGS, "END"]), rng))[::-1]
        elif not self.planned and rng.random() < 0.03:
            self.planned = rng.choices(model.favourites, k=rng.randint(1, 3)) * 20
        token = self.planned.pop() if self.planned else rng.choice(model.favourites)
        if (ban is Ban.SILENT and token in model.silent) or (
            ban is not Ban.NONE and token == model.vocabulary.end_of_text
        ):
            self.planned = []
            token = rng.choice(model.allowed[ban])
        return token


def random_limits(rng: random.Random, closing_tokens: int) -> Limits:
    budget = rng.choice([0, rng.randint(1, 4), rng.randint(1, 60)])
    grace, answer = rng.choice([0, rng.randint(0, 8)]), rng.randint(1, 4)
    room = (budget + grace + closing_tokens if budget else 0) + answer + rng.choice([0, rng.randint(0, 25)])
    reserve = rng.choice([0, rng.randint(0, 20)]) if budget else 0
    return Limits(budget, grace, room, answer, rng.choice([math.inf, 30 * rng.random()]), reserve)


def runs_of(tokens: list[tuple[Phase, int]]) -> list[TokenRun]:
    return [
        TokenRun(phase, [i for _, i in run]) for phase, run in groupby(tokens, key=lambda token: token[0])
    ]


def without_tag_prefixes(text: str) -> str:
    while ends := [tag[:n] for tag in TAGS for n in range(1, len(tag)) if text.endswith(tag[:n])]:
        text = text[: -len(ends[0])]
    return text


def first_tag(text: str) -> tuple[int, str] | None:
    return min(((text.index(tag), tag) for tag in TAGS if tag in text), default=None)


def expected_text(runs: list[TokenRun], vocabulary: Vocabulary, stop: str | None) -> tuple[str, str]:
    """The reasoning and the answer to be shown, from the whole of the tokens at once."""
    shown = {Phase.REASONING: "", Phase.ANSWER: ""}
    phase = runs[0].phase if runs and runs[0].phase is not Phase.FORCED else Phase.REASONING
    for forced, group in groupby(runs, key=lambda run: run.phase is Phase.FORCED):
        if forced:
            shown[phase] = without_tag_prefixes(shown[phase])
            phase = Phase.ANSWER
            continue
        text = vocabulary.decode(i for run in group for i in run.token_ids)
        while (found := first_tag(text)) is not None:
            at, tag = found
            shown[phase] += without_tag_prefixes(text[:at])
            text = text[at + len(tag) :]
            if tag == "</think>":
                phase = Phase.ANSWER
        shown[phase] += text
    answer = shown[Phase.ANSWER].lstrip()
    if stop and stop in answer[1:]:
        answer = answer[: answer.index(stop, 1)]
    return shown[Phase.REASONING], answer


def check_forced_close(machine: BudgetMachine, runs: list[TokenRun], vocabulary: Vocabulary) -> None:
    """The sequence has one close, by the model or by force, never both, at the first place that allows it."""
    reasoning = runs[0].token_ids
    if machine.strike is not None and machine.strike.reason is machine.reasoning_end:
        spelled = vocabulary.decode([*reasoning, *runs[1].token_ids])
        assert spelled.count("</think>") == 1
        assert spelled.endswith("</think>\n\n")

        def may_be_cut(text: str) -> bool:
            return at_boundary(text) or text.endswith(tuple("</think>"[:k] for k in range(1, 8)))

        for n in range(machine.strike.reasoning_tokens, len(reasoning)):
            assert not may_be_cut(vocabulary.decode(reasoning[:n]))
        if machine.reasoning_end in (ReasoningEnd.BUDGET, ReasoningEnd.DEADLINE, ReasoningEnd.STABLE):
            budget = min(machine.strike.reasoning_tokens, machine.limits.reasoning_tokens)
            all_used = len(reasoning) == budget + machine.limits.grace_tokens
            assert all_used or may_be_cut(vocabulary.decode(reasoning))


def standing(machine: BudgetMachine) -> list[object]:
    """Everything that an engine can see of a machine."""
    return [
        machine.phase, machine.limits, machine.strike, machine.reasoning_end, machine.reopened, machine.ban,
        machine.finish_reason, machine.malformed, machine.reasoning_tokens, machine.forced_tokens,
        machine.answer_tokens,
    ]  # fmt: skip


def play(model: Model, rng: random.Random) -> tuple[BudgetMachine, set[str]]:
    """One sequence from its start to its finish, checked; its machine and what was special about it."""
    text_format = model.text_format
    stop = rng.choice([(), (), ("END",)])
    form = rng.choice([FREE_FORM, FREE_FORM, FREE_FORM, TOOLS])
    limits = random_limits(rng, text_format.closing.longest)
    if form.tools:
        limits = replace(limits, max_output_tokens=limits.max_output_tokens + rng.choice([0, 90, 120]))
    machine = BudgetMachine(limits, text_format, stop=stop, form=form, loop_rule=RULE)
    resumed: BudgetMachine | None = None
    resume_at = rng.randrange(30)
    sampler, now_s = Sampler(model, rng, form), 0.0
    tokens: list[tuple[Phase, int]] = []
    shown = {Phase.REASONING: "", Phase.ANSWER: ""}
    calls: list[CallPiece] = []
    marks: set[str] = set()

    def take(observation: Observation, token: int | None) -> None:
        if observation.phase is not None and token is not None:
            tokens.append((observation.phase, token))
        for phase, text in observation.text:
            assert text
            shown[phase] += text
        calls.extend(observation.calls)
        if observation.force:
            marks.add("rest" if model.vocabulary.decode(observation.force)[:1] not in ".\n<" else "close")
            tokens.extend((Phase.FORCED, i) for i in observation.force)

    if rng.random() < 0.5:
        take(machine.check(now_s), None)
    while machine.finish_reason is None:
        if resumed is None and len(tokens) >= resume_at:
            found_again = machine.strike and machine.strike.reason in (ReasoningEnd.BUDGET, ReasoningEnd.LOOP)
            told = None if found_again and "adjusted" not in marks else machine.strike
            resumed = BudgetMachine.resume(
                machine.limits,
                text_format,
                runs_of(tokens),
                strike=told,
                stop=stop,
                form=form,
                loop_rule=RULE,
            )
            marks.add("resumed")
            assert standing(resumed) == standing(machine)
        if rng.random() < 0.05:
            wish = rng.choice([None, rng.randint(0, 60)]), rng.choice([None, now_s + rng.uniform(-5, 5)])
            in_force = machine.adjust(*wish)
            assert in_force.required_output_tokens(text_format.closing.longest) <= in_force.max_output_tokens
            assert in_force.reserved_output_tokens == limits.reserved_output_tokens
            if machine.phase is Phase.REASONING:
                assert machine.reasoning_tokens < in_force.reasoning_tokens + in_force.grace_tokens
            marks.add("adjusted")
            if resumed:
                resumed.adjust(*wish)
        if rng.random() < 0.01:
            settled = machine.settle()
            if resumed:
                assert resumed.settle() == settled
            take(settled, None)
        now_s += rng.expovariate(1.0)
        token = sampler.draw(machine.ban)
        observation = machine.observe(token, now_s)
        take(observation, token)
        if resumed:
            assert resumed.observe(token, now_s) == observation
            assert standing(resumed) == standing(machine)
        if machine.finish_reason is None and rng.random() < 0.005:
            take(machine.cancel(), None)
            if resumed:
                resumed.cancel()

    runs = runs_of(tokens)
    counts = Counter(phase for phase, _ in tokens)
    assert counts[Phase.REASONING] == machine.reasoning_tokens
    assert counts[Phase.REASONING] <= machine.limits.reasoning_tokens + machine.limits.grace_tokens
    assert limits.reasoning_tokens or not counts[Phase.REASONING]
    assert counts[Phase.FORCED] == machine.forced_tokens
    assert counts[Phase.ANSWER] == machine.answer_tokens
    assert len(tokens) == machine.output_tokens <= machine.limits.max_output_tokens
    if machine.finish_reason is not FinishReason.CANCELLED:
        assert shown[Phase.ANSWER].strip() or calls or machine.malformed
        assert machine.reasoning_end is not None
    for text in shown.values():
        assert not any(tag in text for tag in TAGS)
    if stop and machine.phase is Phase.ANSWER:
        assert stop[0] not in shown[Phase.ANSWER][1:]
    void = {call.index for call in machine.malformed}
    whole = {call.index for call in calls} - void
    assert bool(whole) is (machine.finish_reason is FinishReason.TOOL_CALLS) or (
        machine.finish_reason in (FinishReason.LENGTH, FinishReason.CANCELLED)
    )
    for index in whole:
        json.loads("".join(call.arguments for call in calls if call.index == index))
    if not form.tools:
        assert not calls
        assert (shown[Phase.REASONING], shown[Phase.ANSWER]) == expected_text(
            runs, model.vocabulary, stop[0] if stop else None
        )
    if len(runs) > 1 and runs[0].phase is Phase.REASONING and runs[1].phase is Phase.FORCED:
        check_forced_close(machine, runs, model.vocabulary)
    return machine, marks


def test_ten_thousand_random_sequences_keep_every_promise() -> None:
    seen: Counter[object] = Counter()
    for n in range(SEQUENCES):
        rng = random.Random(n)
        if n % 100 == 0:
            model = Model(rng)
        try:
            machine, marks = play(model, rng)
        except Exception as error:
            raise AssertionError(f"sequence {n}") from error
        seen.update([machine.reasoning_end, machine.finish_reason, *marks])
        seen.update(["reopened"] * machine.reopened)
    # Each promise was put to the test often enough to mean something.
    wanted = [*ReasoningEnd, *FinishReason, "close", "rest", "resumed", "adjusted", "reopened"]
    assert min(seen[what] for what in wanted) >= 50, seen
