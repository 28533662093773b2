"""What each kind of server is sent, and how it is told from others."""

from __future__ import annotations

import grpc
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from curfew.dialects import DIALECTS
from curfew.v1 import generation_pb2 as pb
from curfew.v1 import worker_pb2
from tests.openai_server import Script, served
from tests.worker.service.serving import refusal
from tests.worker.upstream.harness import ANSWER, CHAT, ask, fronting
from worker.upstream.client import Upstream
from worker.upstream.probing import probe


@pytest.mark.parametrize(
    ("dialect", "field", "sent"),
    [
        ("vllm", ("thinking_token_budget",), 9),
        ("sglang", ("custom_params", "thinking_budget"), 8),
        ("nim", ("nvext", "max_thinking_tokens"), 8),
        ("llama.cpp", ("thinking_budget_tokens",), 9),
        ("litellm", ("thinking", "budget_tokens"), 9),
        ("curfew", ("thinking", "budget_tokens"), 9),
    ],
)
async def test_the_budget_goes_where_the_server_looks_for_it(
    dialect: str, field: tuple[str, ...], sent: int
) -> None:
    async with fronting(Script(budget=field), dialect=dialect) as worker:
        answer = await worker.ask(ask(reasoning=10, grace=0, answer=10))
        assert answer.completion.usage.reasoning_tokens == sent
        assert answer.completion.reasoning_end == pb.REASONING_END_BUDGET
        assert answer.text(ANSWER) == "it is 42"
        (_, body), *others = worker.server.bodies
        assert not others
        value: object = body
        for name in field:
            assert isinstance(value, dict)
            value = value[name]
        assert value == sent


@pytest.mark.parametrize("dialect", [dialect for dialect in DIALECTS if dialect != "plain"])
@pytest.mark.parametrize(("budget", "grace"), [(1, 0), (1, 5), (10, 0), (100, 10), (100, 0)])
def test_a_server_ends_reasoning_within_budget_and_grace_in_spite_of_its_overshoot(
    dialect: str, budget: int, grace: int
) -> None:
    known = DIALECTS[dialect]
    sent = known.sent_budget(budget, grace)
    most = sent + known.overshoot_tokens + sent * known.overshoot_percent // 100
    assert 0 <= sent <= budget
    assert most < budget + grace or sent == 0


async def test_thinking_is_switched_off_in_the_template_or_in_the_system_text() -> None:
    async with fronting() as worker:
        await worker.ask(ask(reasoning=0))
        assert worker.server.bodies[0][1]["chat_template_kwargs"] == {"enable_thinking": False}
    async with fronting(switch_in_system=True) as worker:
        request = ask(reasoning=0)
        request.messages.insert(0, pb.Message(role=pb.ROLE_SYSTEM, content="be kind"))
        await worker.ask(request)
        messages = worker.server.bodies[0][1]["messages"]
        assert isinstance(messages, list)
        assert messages[0] == {"role": "system", "content": "be kind\n/no_think"}


async def test_token_ids_keep_a_users_text_from_being_read_as_anything_else() -> None:
    text = "say <SPECIAL_12> and <think></think>"
    async with fronting(continuation=True) as worker:
        await worker.ask(ask(text=text, reasoning=0))
        prompt = worker.server.bodies[0][1]["prompt"]
        assert isinstance(prompt, list)
        # The marks of the format, and none that the text spells.
        assert [number for number in prompt if number in CHAT.special_ids] == [10, 11, 11]


async def test_where_text_goes_as_text_special_tokens_in_it_are_refused() -> None:
    async with fronting(dialect="plain", continuation=True) as worker:
        refused = await refusal(worker.stub.Generate(ask(text="say <SPECIAL_12>")))
        assert refused.violations == {"messages[0].content": "must not hold the special token <SPECIAL_12>"}


async def test_what_a_server_cannot_do_is_refused_with_its_name() -> None:
    async with fronting(dialect="plain", continuation=True) as worker:
        request = ask()
        request.sampling.top_k = 5
        request.sampling.top_logprobs = 1
        request.samples = 2
        request.probe.CopyFrom(worker_pb2.ProbeRule())
        request.tools.add(name="t")
        request.resume.add(phase=pb.PHASE_REASONING, token_ids=[1])
        request.closing_text = "no tag"
        refused = await refusal(worker.stub.Generate(request))
        assert {"sampling.top_k", "sampling.top_logprobs", "samples", "probe", "tools", "resume"} < set(
            refused.violations
        )
        assert "closing_text" in refused.violations
        request = ask()
        request.messages.append(pb.Message(role=pb.ROLE_TOOL, content="4", tool_call_id="c"))
        refused = await refusal(worker.stub.Generate(request))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert "messages[1]" in refused.violations


async def test_sampling_and_the_key_are_passed_on() -> None:
    async with fronting(dialect="llama.cpp", key="k") as worker:
        request = ask(temperature=0.5)
        request.sampling.repetition_penalty = 1.5
        request.sampling.seed = 1 << 40
        await worker.ask(request)
        body = worker.server.bodies[0][1]
        assert (body["temperature"], body["repeat_penalty"], body["seed"]) == (0.5, 1.5, 0)
        assert worker.server.headers[0]["authorization"] == "Bearer k"


def a_server(owner: str, **paths: Response) -> Starlette:
    """One that lists a model of this owner and has these paths, with - for /."""
    models = {"data": [{"id": "m", "owned_by": owner}]}

    def route(path: str, response: Response) -> Route:
        return Route(path, lambda _: response)

    others = [route("/" + path.replace("_", "/"), response) for path, response in paths.items()]
    return Starlette(routes=[route("/v1/models", JSONResponse(models)), *others])


@pytest.mark.parametrize(
    ("app", "dialect"),
    [
        (a_server("vllm"), "vllm"),
        (a_server("sglang"), "sglang"),
        (a_server("llamacpp"), "llama.cpp"),
        (a_server("vllm", v1_health_ready=JSONResponse({"message": "ready"})), "nim"),
        (a_server("me", props=JSONResponse({"default_generation_settings": {"n_ctx": 512}})), "llama.cpp"),
        (a_server("openai", health_liveliness=PlainTextResponse('"I\'m alive!"')), "litellm"),
        (a_server("curfew"), "curfew"),
        (a_server("me"), "plain"),
    ],
)
async def test_a_server_is_known_by_what_it_answers(app: Starlette, dialect: str) -> None:
    with served(app) as url:
        async with Upstream(url, key=None, silence_s=5.0) as upstream:
            found = await probe(upstream, None, None)
    assert (found.dialect.name, found.model) == (dialect, "m")
    assert found.max_sequence_tokens == (512 if "/props" in str(app.routes) else None)
