"""Answers that have a form: what is text, what a grammar is told, and what becomes of one that fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.worker.engine.small import (
    Clock,
    Outcomes,
    make_engine,
    make_request,
    run,
    small_model,
)
from tests.worker.engine.vocabulary import Vocabulary
from worker.engine.answer_form import AnswerForm
from worker.engine.budget import BudgetMachine
from worker.engine.generation import (
    Ban,
    CallPiece,
    FinishReason,
    Limits,
    Phase,
    ReasoningEnd,
    Strike,
    TokenRun,
)
from worker.engine.probes import ProbeRule
from worker.engine.sampling import Sampling
from worker.engine.text import TagScanner, trailing_tokens

MODEL = small_model()
VOCABULARY = Vocabulary([b"<think>", b"</think>", b"</think>\n\n"])
TOOLS = AnswerForm(tools=frozenset({"add"}), most_calls=32)
JSON = AnswerForm(is_json=True)
CALL = '<TOOLCALL>[{"name": "add", "arguments": {"a": "<think>\\n</think>END"}}]</TOOLCALL>'


@dataclass
class Recorder:
    """A grammar that takes everything, or fails, and remembers what its answers were. spared: of answers,
    the first, which do not fail.
    """

    fails_at: int = 1_000_000
    spared: int = 0
    allowed_ids: Sequence[int] = ()
    answers: list[list[int]] = field(default_factory=list)

    def matcher(self) -> RecordingMatcher:
        self.answers.append([])
        return RecordingMatcher(self, self.answers[-1], fails=len(self.answers) > self.spared)


@dataclass
class RecordingMatcher:
    grammar: Recorder
    answer: list[int]
    fails: bool

    def accept(self, token_ids: Sequence[int]) -> None:
        self.answer.extend(token_ids)
        if self.fails and len(self.answer) >= self.grammar.fails_at:
            raise ValueError("the answer's form is left")

    def end(self) -> None:
        return None

    def allowed(self) -> Tensor:
        allowed = torch.zeros(MODEL.config.vocab_size, dtype=torch.bool)
        allowed[list(self.grammar.allowed_ids)] = True
        return allowed


def machine_for(
    form: AnswerForm, *, reasoning: int = 0, answer: int = 200, stop: Sequence[str] = ()
) -> BudgetMachine:
    room = reasoning + VOCABULARY.text_format().closing.longest if reasoning else 0
    limits = Limits(reasoning, 0, room + answer, answer)
    return BudgetMachine(limits, VOCABULARY.text_format(), stop=stop, form=form)


def write(machine: BudgetMachine, text: str, *, end: bool = True) -> tuple[str, list[CallPiece], int]:
    """The answer's text, its calls, and how many tokens were forced."""
    shown, calls, forced = "", list[CallPiece](), 0
    tokens = [*VOCABULARY.encode(text), *([VOCABULARY.end_of_text] if end else [])]
    for token in tokens:
        if machine.finish_reason is not None:
            break
        observation = machine.observe(token, 0.0)
        shown += "".join(text for phase, text in observation.text if phase is Phase.ANSWER)
        calls += observation.calls
        forced += len(observation.force)
    return shown, calls, forced


def test_within_json_a_tag_is_data() -> None:
    text = '{"a": "<think></think>", "b": "<TOOLCALL>"}'
    machine = machine_for(AnswerForm(tools=TOOLS.tools, most_calls=1, is_json=True))
    assert write(machine, f"\n {text}") == (text, [], 0)
    assert (machine.reopened, machine.malformed) == (False, [])
    assert machine.finish_reason is FinishReason.STOP


def test_within_a_call_a_tag_and_a_stop_string_are_data() -> None:
    machine = machine_for(TOOLS, stop=("END", "add"))
    shown, calls, forced = write(machine, f"I call. {CALL}")
    assert (shown, forced, machine.reopened) == ("I call. ", 0, False)
    assert "".join(call.arguments for call in calls) == '{"a": "<think>\\n</think>END"}'
    assert machine.finish_reason is FinishReason.TOOL_CALLS


def test_outside_calls_they_act_as_ever() -> None:
    machine = machine_for(TOOLS, stop=("END",))
    assert write(machine, f"{CALL}<think>so END it is")[0] == "so "
    assert machine.reopened
    # It has called, although a stop string ended it.
    assert machine.finish_reason is FinishReason.TOOL_CALLS


def test_an_answer_that_only_calls_is_not_empty() -> None:
    machine, bans = machine_for(TOOLS), list[Ban]()
    # Of `<` alone a thinking tag may come, which shows nothing.
    for text in ("", "<", "TOOLCALL>["):
        write(machine, text, end=False)
        bans.append(machine.ban)
    assert bans == [Ban.END_OF_TEXT, Ban.END_OF_TEXT, Ban.NONE]
    assert write(machine, CALL.removeprefix("<TOOLCALL>["))[1]


def test_a_call_under_way_is_not_banned_for_showing_nothing_yet() -> None:
    machine = machine_for(TOOLS)
    write(machine, "\n\n\n<TOOLCA", end=False)
    assert machine.answer_tokens > 8
    assert machine.ban is Ban.NONE


def test_a_call_that_the_tokens_end_in_is_reported_and_the_finish_is_by_length() -> None:
    machine = machine_for(TOOLS, answer=40)
    write(machine, CALL)
    assert machine.finish_reason is FinishReason.LENGTH
    (malformed,) = machine.malformed
    assert malformed.why == "the answer ends before the call does"


def test_a_grammar_is_told_of_the_answers_tokens_alone() -> None:
    grammar = Recorder()
    machine = machine_for(AnswerForm(grammar=grammar), reasoning=40)
    reasoning = VOCABULARY.encode("1 + 2 = 3</think>\n\n")
    for token in reasoning:
        machine.observe(token, 0.0)
    answer = VOCABULARY.encode("3<think>")
    forced = [token for each in answer for token in machine.observe(each, 0.0).force]
    assert forced
    assert grammar.answers == [[*answer, *forced]]

    runs = [
        TokenRun(Phase.REASONING, reasoning),
        TokenRun(Phase.ANSWER, answer),
        TokenRun(Phase.FORCED, forced),
    ]
    BudgetMachine.resume(machine.limits, VOCABULARY.text_format(), runs, form=AnswerForm(grammar=grammar))
    assert grammar.answers[1] == grammar.answers[0]


def test_a_grammar_is_not_told_of_the_closing_text() -> None:
    grammar = Recorder()
    machine = machine_for(AnswerForm(grammar=grammar), reasoning=5)
    observations = [machine.observe(token, 0.0) for token in VOCABULARY.encode("12345")]
    assert observations[-1].force
    assert machine.strike == Strike(ReasoningEnd.BUDGET, 5)
    assert grammar.answers == [[]]


pieces = st.lists(
    st.sampled_from([b"<", b"</", b"/", b"think", b"nk", b">", b"<think>", b"</think>", b"\n", b"x", b"{"]),
    min_size=1,
    max_size=4,
).map(b"".join)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.lists(pieces, max_size=6), pieces)
def test_a_token_that_closes_and_goes_on_is_known_by_what_is_under_way(
    before: list[bytes], token: bytes
) -> None:
    """Unless it reopens and closes once more, which no vocabulary has a token for."""
    scanner = TagScanner()
    for piece in before:
        text = piece.decode()
        while text:
            _, _, text = scanner.push(text)
    under_way = scanner.close_under_way
    behind, closed = token.decode(), False
    while behind and not closed:
        _, tag, behind = scanner.push(behind)
        closed = tag is not None and tag.value == "</think>"
    if b"<think>" not in token:
        banned = 0 in trailing_tokens([token])[under_way]
        assert banned is (closed and bool(behind.strip()))


def test_an_engine_takes_only_what_the_grammar_allows_and_never_nothing() -> None:
    plus, less = (MODEL.chat.encode_plain(character)[0] for character in "+<")
    for allowed in ([plus], [less]):  # the second is banned where an answer shows nothing
        grammar = Recorder(allowed_ids=allowed)
        request = make_request(MODEL, reasoning=0, answer=6, form=AnswerForm(grammar=grammar))
        outcome = run(make_engine(MODEL), request)["r"]
        assert outcome.ids == allowed * 6
        assert grammar.answers == [allowed * 6]


def test_an_answer_whose_grammar_fails_ends_alone() -> None:
    plus = MODEL.chat.encode_plain("+")
    failing = AnswerForm(grammar=Recorder(fails_at=3, allowed_ids=plus))
    engine, outcomes = make_engine(MODEL, Clock()), Outcomes()
    requests = [
        make_request(MODEL, "failing", reasoning=0, form=failing),
        make_request(MODEL, "other", reasoning=0),
    ]
    run(engine, *requests, outcomes=outcomes)
    assert "the answer's form is left" in outcomes.failed["failing"].why
    assert outcomes["other"].finished is not None


def test_a_probe_whose_grammar_fails_tells_nothing_and_ends_alone() -> None:
    grammar = Recorder(fails_at=2, spared=1, allowed_ids=MODEL.chat.encode_plain("+"))
    rule = ProbeRule(first_tokens=2, every_tokens=4, stable_answers=2, answer_tokens=3)
    sampling = Sampling(temperature=1.0, seed=113)
    form = AnswerForm(grammar=grammar)
    request = make_request(MODEL, reasoning=40, answer=6, sampling=sampling, probe=rule, form=form)
    engine = make_engine(MODEL)
    end = run(engine, request)["r"].end
    assert end.probes == len(grammar.answers) - 1 > 0
    assert end.reasoning_end is not ReasoningEnd.STABLE
    engine.check_integrity()
