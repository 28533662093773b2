"""The form of an answer, from what a request says of tools and of its answer's format."""

from __future__ import annotations

from collections.abc import Sequence

from curfew.rpc.tools import MAX_CALLS, parse_object
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import worker_pb2
from worker.engine.answer_form import FREE_FORM, AnswerForm, Grammar
from worker.engine.grammar import Grammars, UnsupportedFormError, answer_grammar
from worker.model.tools import Tool
from worker.service.checks import Violations

_SCHEMA = "answer_format.json_schema"


def read_form(
    message: worker_pb2.WorkerServiceGenerateRequest,
    tools: Sequence[Tool],
    grammars: Grammars | None,
    wrong: Violations,
) -> AnswerForm:
    """The form, its grammar compiled, of a message in which nothing else is wrong. tools: shown to the model.

    grammars: None where no form can be enforced, which is then a violation, as is a schema that cannot be.
    """
    if wrong.found or not (tools or message.HasField("answer_format")):
        return FREE_FORM
    if grammars is None:
        why = "this worker cannot hold answers to a form"
        wrong.check(not tools, "tools", why)
        wrong.check(not message.HasField("answer_format"), "answer_format", why)
        return FREE_FORM
    schema = parse_object(message.answer_format.json_schema) if message.HasField("answer_format") else None
    choice = message.tool_choice
    allowed = [tool for tool in tools if choice.name in ("", tool.name)]
    most_calls = 1 if choice.single else MAX_CALLS
    must_call = choice.kind == pb.ToolChoice.KIND_REQUIRED
    text = answer_grammar(schema, allowed, must_call=must_call, most_calls=most_calls)
    return AnswerForm(
        tools=frozenset(tool.name for tool in allowed),
        most_calls=most_calls,
        is_json=schema is not None,
        grammar=_compile(text, schema, tools, grammars, wrong),
    )


def _compile(
    grammar: str,
    schema: dict[str, object] | None,
    tools: Sequence[Tool],
    grammars: Grammars,
    wrong: Violations,
) -> Grammar | None:
    try:
        return grammars.compile(grammar)
    except UnsupportedFormError as error:
        whole = str(error)
    # Which part of it is wrong?
    parts: list[tuple[str, str]] = []
    if schema is not None:
        parts.append((_SCHEMA, answer_grammar(schema, (), must_call=False, most_calls=1)))
    for number, tool in enumerate(tools):
        alone = answer_grammar(None, [tool], must_call=True, most_calls=1)
        parts.append((f"tools[{number}].parameters_json_schema", alone))
    known = len(wrong.found)
    for field, part in parts:
        try:
            grammars.compile(part)
        except UnsupportedFormError as error:
            wrong.check(False, field, f"cannot be enforced: {error}")
    wrong.check(len(wrong.found) > known, parts[0][0], f"cannot be enforced together with others: {whole}")
    return None
