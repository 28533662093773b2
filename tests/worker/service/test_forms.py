"""Answers of a form, from a real worker with the demo model: they keep it, whatever the model would write."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import grpc
import jsonschema
import pytest
import torch

from curfew.v1 import generation_pb2 as pb
from curfew.v1 import worker_pb2
from tests.worker.service.serving import Answer, GenerateRequest, Worker, ask, refusal, serving
from worker.engine.build import Model, load_model
from worker.engine.grammar import Grammars
from worker.service.command import _grammars

MODEL = Path(__file__).parents[3] / "demo" / "model"
REQUIRED, AUTO, NONE = pb.ToolChoice.KIND_REQUIRED, pb.ToolChoice.KIND_AUTO, pb.ToolChoice.KIND_NONE
STOP, LENGTH, TOOL_CALLS = pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_TOOL_CALLS

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["<think>", "</think>", "<TOOLCALL>"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}  # fmt: skip
SCHEMAS: dict[str, dict[str, object]] = {
    "person": PERSON,
    "choice": {"enum": ["yes", "no", 3, None, {"a": [True]}]},
    "number": {"type": "integer", "minimum": 10, "maximum": 99},
    "tree": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"value": {"type": "boolean"}, "next": {"$ref": "#/$defs/leaf"}},
                "required": ["value", "next"],
                "additionalProperties": False,
            },
            "leaf": {"anyOf": [{"type": "null"}, {"const": "<é\n\u2028>"}]},
        },
    },
    "dated": {"type": "array", "items": {"type": "string", "format": "date"}, "minItems": 1, "maxItems": 2},
    "coded": {"type": "string", "pattern": "^[A-C]{2}-[0-9]{2,3}$"},
}
NUMBERS: dict[str, object] = {
    "type": "object",
    "properties": {
        "numbers": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3}
    },
    "required": ["numbers"],
    "additionalProperties": False,
}
NOTHING: dict[str, object] = {"type": "object", "additionalProperties": False}
NEGATIVE = '{"minProperties": -1}'
Change = Callable[[GenerateRequest], object]


@cache
def demo() -> Model:
    return load_model(MODEL, device=torch.device("cpu"), dtype=torch.float32)


@cache
def grammars() -> Grammars:
    return Grammars(demo().chat, demo().config.vocab_size)


@asynccontextmanager
async def demo_worker(slots: int = 8) -> AsyncIterator[Worker]:
    async with serving(
        demo(), grammars=grammars(), slots=slots, max_sequence_tokens=3000, pages=2400
    ) as worker:
        yield worker


def form(schema: dict[str, object]) -> Change:
    return lambda request: setattr(request.answer_format, "json_schema", json.dumps(schema))


def tools(kind: pb.ToolChoice.Kind.ValueType = AUTO, name: str = "", *, single: bool = False) -> Change:
    def change(request: GenerateRequest) -> None:
        request.tools.add(name="add", description="Adds.", parameters_json_schema=json.dumps(NUMBERS))
        request.tools.add(name="now", description="Tells the time.")
        request.tool_choice.CopyFrom(pb.ToolChoice(kind=kind, name=name, single=single))

    return change


def asked(
    *changes: Change, reasoning: int = 0, answer: int = 200, temperature: float = 0.0
) -> GenerateRequest:
    request = ask(
        text="What is 12 + 37 + 45?", reasoning=reasoning, grace=4, answer=answer, temperature=temperature
    )
    request.sampling.seed = 7
    for change in changes:
        change(request)
    return request


@dataclass(frozen=True, slots=True)
class Call:
    id: str
    name: str
    arguments: str


def calls(answer: Answer) -> list[Call]:
    found: dict[int, list[str]] = {}
    for delta in answer.deltas:
        for piece in delta.tool_calls:
            assert bool(piece.id) is bool(piece.name) is (piece.index not in found)
            parts = found.setdefault(piece.index, [piece.id, piece.name, ""])
            parts[2] += piece.arguments_json
    assert list(found) == list(range(len(found)))
    return [Call(*parts) for parts in found.values()]


def check_call(call: Call) -> None:
    jsonschema.validate(json.loads(call.arguments), {"add": NUMBERS, "now": NOTHING}[call.name])


def resumed(request: GenerateRequest, tokens: Sequence[tuple[int, int]]) -> GenerateRequest:
    again = GenerateRequest()
    again.CopyFrom(request)
    again.request_id += ".1"
    for phase, token in tokens:
        if not again.resume or again.resume[-1].phase != phase:
            again.resume.add(phase=pb.Phase.ValueType(phase))
        again.resume[-1].token_ids.append(token)
    return again


async def test_an_answer_keeps_its_schema_with_and_without_reasoning_and_the_budget_stays_exact() -> None:
    async with demo_worker() as worker:
        for name, schema in SCHEMAS.items():
            for reasoning in (0, 20):
                for temperature in (0.0, 1.5):
                    request = asked(form(schema), reasoning=reasoning, temperature=temperature)
                    answer = await worker.ask(request)
                    case = (name, reasoning, temperature, answer.text(pb.PHASE_ANSWER))
                    assert answer.completion.finish_reason == STOP, case
                    jsonschema.validate(json.loads(answer.text(pb.PHASE_ANSWER)), schema)
                    usage = answer.completion.usage
                    assert usage.reasoning_tokens <= reasoning + (4 if reasoning else 0)
                    assert usage.answer_tokens == answer.count(pb.PHASE_ANSWER)
                    assert bool(answer.text(pb.PHASE_REASONING)) is bool(reasoning)
                    assert not answer.completion.reopened


async def test_answers_of_different_forms_share_a_batch_and_are_what_they_are_alone() -> None:
    requests = [asked(form(schema), reasoning=9, temperature=1.0) for schema in SCHEMAS.values()]
    requests += [asked(tools(REQUIRED), temperature=1.0), asked(temperature=1.0), asked(tools(), reasoning=9)]
    async with demo_worker(slots=len(requests)) as worker:
        alone = [(await worker.ask(request)).tokens for request in requests]
        together = await asyncio.gather(*map(worker.ask, requests))
    assert [answer.tokens for answer in together] == alone


@pytest.mark.parametrize(
    ("change", "reasoning"), [(form(PERSON), 9), (form(PERSON), 0), (tools(REQUIRED, single=True), 9)]
)
async def test_an_answer_that_goes_on_elsewhere_goes_on_identically(change: Change, reasoning: int) -> None:
    request = asked(change, reasoning=reasoning, temperature=1.0)
    async with demo_worker() as worker:
        whole = await worker.ask(request)
        # What is forced comes as a whole.
        phases = [phase for phase, _ in whole.tokens]
        for cut in {1, 5, *range(10, len(whole.tokens), 15), len(whole.tokens)}:
            if phases[cut - 1 : cut + 1] == [pb.PHASE_FORCED] * 2:
                continue
            rest = await worker.ask(resumed(request, whole.tokens[:cut]))
            assert rest.tokens == whole.tokens[cut:]
            assert rest.completion.finish_reason == whole.completion.finish_reason
            assert whole.text(pb.PHASE_ANSWER).endswith(rest.text(pb.PHASE_ANSWER))
            told = "".join(c.arguments_json for delta in rest.deltas for c in delta.tool_calls)
            assert all(call.arguments.endswith(told) for call in calls(whole))


async def test_tokens_that_leave_the_form_are_not_gone_on_from() -> None:
    wrong = resumed(asked(form(PERSON)), [(pb.PHASE_ANSWER, demo().chat.encode_plain("4")[0])])
    async with demo_worker() as worker:
        refused = await refusal(worker.stub.Generate(wrong))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "the answer's form is left" in refused.violations["resume"]


async def test_a_call_that_is_required_comes_and_is_one_of_a_tool() -> None:
    async with demo_worker() as worker:
        for reasoning in (0, 9):
            answer = await worker.ask(asked(tools(REQUIRED, single=True), reasoning=reasoning))
            (call,) = calls(answer)
            check_call(call)
            assert call.id == "call_0"
            assert answer.completion.finish_reason == TOOL_CALLS
            assert not answer.completion.malformed_tool_calls
            assert answer.text(pb.PHASE_ANSWER) == ""
        for name in ("add", "now"):
            (named,) = calls(await worker.ask(asked(tools(REQUIRED, name, single=True))))
            assert named.name == name
            check_call(named)
        several = await worker.ask(asked(tools(REQUIRED, "add"), answer=300, temperature=1.0))
        cut = [call.index for call in several.completion.malformed_tool_calls]
        for index, call in enumerate(calls(several)):
            if index not in cut:
                check_call(call)


async def test_a_call_that_the_model_begins_is_held_to_its_tool() -> None:
    def begun(text: str) -> GenerateRequest:
        tokens = [(int(pb.PHASE_ANSWER), token) for token in demo().chat.encode_plain(text)]
        return resumed(asked(tools(single=True)), tokens)

    async with demo_worker() as worker:
        answer = await worker.ask(begun('I add. <TOOLCALL>[{"name": "a'))
        (call,) = calls(answer)
        check_call(call)
        assert (call.name, answer.text(pb.PHASE_ANSWER)) == ("add", "")
        assert answer.completion.finish_reason == TOOL_CALLS
        # It began no call, and has none.
        plain = await worker.ask(asked(tools()))
        assert plain.text(pb.PHASE_ANSWER)
        assert (calls(plain), plain.completion.finish_reason) == ([], STOP)


async def test_an_answer_may_be_json_or_call_tools() -> None:
    open_call = [(int(pb.PHASE_ANSWER), token) for token in demo().chat.encode_plain("<")]
    both = asked(tools(single=True), form(PERSON))
    async with demo_worker() as worker:
        free = await worker.ask(both)
        calling = await worker.ask(resumed(both, open_call))
    jsonschema.validate(json.loads(free.text(pb.PHASE_ANSWER)), PERSON)
    check_call(calls(calling)[0])
    assert calling.text(pb.PHASE_ANSWER) == ""


async def test_tools_that_must_not_be_called_are_not_even_shown() -> None:
    async with demo_worker() as worker:
        hidden, plain = await worker.ask(asked(tools(NONE))), await worker.ask(asked())
    assert hidden.tokens == plain.tokens
    assert hidden.completion.usage.prompt_tokens == plain.completion.usage.prompt_tokens


async def test_an_answer_without_room_for_its_form_is_cut_and_says_so() -> None:
    async with demo_worker() as worker:
        for room in (1, 2, 3, 5, 8, 11):
            answer = await worker.ask(asked(form(PERSON), answer=room, temperature=1.0))
            assert answer.completion.finish_reason == LENGTH
            assert answer.count(pb.PHASE_ANSWER) == room
            assert answer.text(pb.PHASE_ANSWER).startswith("{")
            cut = await worker.ask(asked(tools(REQUIRED), answer=room + 30))
            assert cut.completion.finish_reason == LENGTH
            (malformed,) = cut.completion.malformed_tool_calls
            assert malformed.index == len(calls(cut)) - any(call.name for call in calls(cut))
            assert "the answer ends" in malformed.why


async def test_no_ban_of_empty_answers_comes_to_a_dead_end_with_a_form() -> None:
    """With few tokens left, an answer must show something: here that meets forms that begin with `<` or may
    be any text.
    """
    async with demo_worker() as worker:
        for room in (1, 2, 4, 5, 7):
            for change in (tools(), tools(REQUIRED), form({"const": "<"}), form({"type": "string"})):
                answer = await worker.ask(asked(change, answer=room, temperature=2.0))
                assert answer.count(pb.PHASE_ANSWER) <= room
                assert answer.text(pb.PHASE_ANSWER) or answer.completion.malformed_tool_calls


async def test_a_stop_string_does_not_act_within_a_call() -> None:
    request = asked(tools(REQUIRED, "add", single=True), lambda r: r.sampling.stop.extend(["numbers", "["]))
    async with demo_worker() as worker:
        answer = await worker.ask(request)
    (call,) = calls(answer)
    check_call(call)
    assert answer.completion.finish_reason == TOOL_CALLS


async def test_every_sample_and_every_probe_has_the_form() -> None:
    several = asked(form(PERSON), temperature=1.5)
    several.samples = 3
    probed = asked(form({"enum": [1, 2]}), reasoning=60)
    rule = worker_pb2.ProbeRule(
        first_reasoning_tokens=5, every_reasoning_tokens=5, stable_answers=2, answer_tokens=8
    )
    probed.probe.CopyFrom(rule)
    async with demo_worker() as worker:
        answer = await worker.ask(several)
        for sample in range(3):
            texts = [r.delta.text for r in answer.responses if r.HasField("delta") and r.sample == sample]
            jsonschema.validate(json.loads("".join(texts)), PERSON)
        answer = await worker.ask(probed)
    # Answers with one of two values are soon equal, which free ones are not after so few tokens.
    assert answer.completion.probes >= 2
    assert answer.completion.reasoning_end == pb.REASONING_END_STABLE
    assert answer.text(pb.PHASE_ANSWER) in ("1", "2")


@pytest.mark.parametrize(
    ("change", "field", "why"),
    [
        (form({"type": "array", "uniqueItems": True}), "answer_format.json_schema", "uniqueItems"),
        (form({"not": {}, "x-guidance": {"lenient": True}}), "answer_format.json_schema", '"not"'),
        (form({"$ref": "#"}), "answer_format.json_schema", "nothing keeps it"),
        (form({"$ref": "http://localhost/schema"}), "answer_format.json_schema", "does not fetch"),
        (form({"type": "integer", "minimum": 3, "maximum": 2}), "answer_format.json_schema", "Unsatisfiable"),
        (form({"type": "string", "pattern": "(?=a)b"}), "answer_format.json_schema", "look-around"),
        (form({"type": "string", "pattern": "("}), "answer_format.json_schema", "no regular expression"),
        (form({"type": "string", "format": "phone"}), "answer_format.json_schema", "Unknown format"),
        (form({"oneOf": [{"type": "string"}, {"minLength": 2}]}), "answer_format.json_schema", "oneOf"),
        (
            form({"allOf": [{"anyOf": [{"properties": {f"{i}.{j}": {"type": "string"}}} for i in range(10)]}
                            for j in range(6)]}),
            "answer_format.json_schema",
            "too large",
        ),
        (
            lambda r: r.tools.extend([pb.Tool(name="a"), pb.Tool(name="b", parameters_json_schema=NEGATIVE)]),
            "tools[1].parameters_json_schema",
            "minProperties",
        ),
    ],
)  # fmt: skip
async def test_a_schema_that_cannot_be_kept_is_refused_with_what_is_wrong(
    change: Change, field: str, why: str
) -> None:
    async with demo_worker() as worker:
        refused = await refusal(worker.stub.Generate(asked(change)))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert list(refused.violations) == [field]
        assert refused.violations[field].startswith("cannot be enforced: ")
        assert why in refused.violations[field]
        assert (await worker.ask(asked())).completion.finish_reason == STOP


async def test_results_stand_in_the_order_of_their_calls() -> None:
    def conversation(*order: str) -> GenerateRequest:
        request = asked()
        turn = request.messages.add(role=pb.ROLE_ASSISTANT)
        for call_id in "ab":
            turn.tool_calls.add(id=call_id, name="now", arguments_json="{}")
        for call_id in order:
            request.messages.add(role=pb.ROLE_TOOL, tool_call_id=call_id, content=f'{{"{call_id}": 1}}')
        return request

    async with demo_worker() as worker:
        one, other = await worker.ask(conversation("a", "b")), await worker.ask(conversation("b", "a"))
    assert one.tokens == other.tokens


def test_a_worker_starts_without_the_library_and_says_that_it_has_no_forms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert _grammars(demo()) is not None
    monkeypatch.setitem(sys.modules, "llguidance", None)
    assert _grammars(demo()) is None
