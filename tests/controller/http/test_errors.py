"""What the HTTP door says to those whom it does not answer."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc
import httpx
import pytest

from controller.http import endpoint
from curfew.rpc.errors import RpcError, retry_after
from tests.controller.fake_worker import Script
from tests.controller.http.door import CHAT, PLAIN, RESPONSES, house
from tests.controller.service.harness import POLICY, controller

USER = {"role": "user", "content": "2 + 2?"}


def error(response: httpx.Response) -> dict[str, Any]:
    """The error that an answer holds, in the API's form."""
    told: dict[str, Any] = response.json()["error"]
    assert {"message", "type", "param", "code"} <= told.keys()
    return told


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_strangers_are_told_401_before_anything_else(path: str) -> None:
    async with house() as door:
        for headers, code in (
            ({}, "missing_api_key"),
            ({"authorization": "Bearer nobody"}, "invalid_api_key"),
            ({"authorization": "Basic x"}, "api_key_malformed"),
        ):
            async with httpx.AsyncClient(base_url=door.client.base_url, headers=headers) as stranger:
                for response in (await stranger.post(path, content=b"{"), await stranger.get("/v1/models")):
                    assert response.status_code == 401
                    told = error(response)
                    assert (told["type"], told["code"]) == ("authentication_error", code)
                    assert "nobody" not in response.text
    assert door.worker.requests == []


async def test_a_body_that_is_no_request_is_told_by_its_field() -> None:
    wrong: list[tuple[str, object, str | None]] = [
        (CHAT, {"model": "fake"}, "messages"),
        (CHAT, {"model": "fake", "messages": []}, "messages"),
        (CHAT, {"messages": [USER]}, "model"),
        (CHAT, [], "body"),
        (CHAT, {"model": "fake", "messages": [USER, {"role": "bard", "content": ""}]}, "messages[1]"),
        (CHAT, {"model": "fake", "messages": [USER, {"role": "user"}]}, "messages[1].content"),
        (
            CHAT,
            {"model": "fake", "messages": [USER], "response_format": {"type": "json_schema"}},
            "response_format.json_schema",
        ),
        (RESPONSES, {"model": "fake"}, "input"),
        (RESPONSES, {"model": "fake", "input": [{"role": "user", "content": 5}]}, "input[0].content"),
        (RESPONSES, {"model": "fake", "input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
    ]
    async with house() as door:
        for path, body, param in wrong:
            response = await door.client.post(path, json=body)
            assert (response.status_code, error(response)["param"]) == (400, param), body
        for content in (b"{", b"\xff", b""):
            response = await door.client.post(CHAT, content=content)
            assert (response.status_code, error(response)["param"]) == (400, "body")
    assert door.worker.requests == []


async def test_of_many_faults_in_a_body_few_are_looked_for() -> None:
    many: list[tuple[str, dict[str, object], str, str]] = [
        (CHAT, {"messages": [1] * 2000}, "messages[0]", "messages[0]: Input should be an object"),
        (
            CHAT,
            {"messages": [USER], "stop": [1] * 2000},
            "stop[0]",
            "stop[0]: Input should be a valid string",
        ),
        (RESPONSES, {"input": [1] * 2000}, "input[0]", "input[0]: is no message, function_call, "),
        (
            RESPONSES,
            {"input": "hello", "metadata": {str(number): 1 for number in range(2000)}},
            "body",
            "body: has 2000 faults",
        ),
    ]
    async with house() as door:
        for path, body, param, message in many:
            response = await door.client.post(path, json={"model": "fake", **body})
            told = error(response)
            assert (response.status_code, told["param"]) == (400, param)
            assert str(told["message"]).startswith(message)
            assert "more" not in str(told["message"])


UNSUPPORTED: list[tuple[str, str, object]] = [
    (CHAT, "n", 2),
    (CHAT, "logit_bias", {"50": 10}),
    (CHAT, "logprobs", True),
    (CHAT, "presence_penalty", 0.5),
    (CHAT, "frequency_penalty", -0.5),
    (CHAT, "functions", [{"name": "f"}]),
    (CHAT, "audio", {"voice": "alloy"}),
    (CHAT, "web_search_options", {"search_context_size": "low"}),
    (CHAT, "verbosity", "high"),
    (CHAT, "temperature", "hot"),
    (CHAT, "temperature", 3.0),
    (CHAT, "max_completion_tokens", 0),
    (CHAT, "reasoning_effort", "heroic"),
    (RESPONSES, "previous_response_id", "resp_1"),
    (RESPONSES, "conversation", "conv_1"),
    (RESPONSES, "background", True),
    (RESPONSES, "prompt", {"id": "p"}),
    (RESPONSES, "truncation", "auto"),
    (RESPONSES, "top_logprobs", 3),
    (RESPONSES, "include", ["message.output_text.logprobs"]),
    (RESPONSES, "top_p", 0),
    (RESPONSES, "max_output_tokens", 0),
]


async def test_what_cannot_be_honoured_is_refused_and_not_passed_over() -> None:
    async with house() as door:
        for path, field, value in UNSUPPORTED:
            response = await door.post(path, **{field: value})
            told = error(response)
            assert (response.status_code, told["type"]) == (400, "invalid_request_error")
            assert told["param"].removesuffix("[0]") == field
            assert field in told["message"]
    assert door.worker.requests == []


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_what_asks_for_nothing_and_what_is_unknown_is_passed_over(path: str) -> None:
    neutral = {
        "presence_penalty": 0,
        "logit_bias": {},
        "n": 1,
        "store": True,
        "user": "u",
        "service_tier": "auto",
    }
    async with house() as door:
        response = await door.post(path, **neutral, metadata={"a": "b"}, unheard_of={"x": [1]})
        assert response.status_code == 200, response.text


async def test_fields_of_the_contract_are_called_as_the_caller_called_them() -> None:
    system = [{"role": "system", "content": "a"}, {"role": "developer", "content": "b"}]
    async with house() as door:
        blank = await door.post(CHAT, messages=[*system, {"role": "user", "content": " "}])
        assert error(blank)["param"] == "messages[2].content"
        late_system = [*system, USER, {"role": "system", "content": "c"}, {"role": "user", "content": "d"}]
        misplaced = await door.post(CHAT, messages=late_system)
        assert error(misplaced)["param"] == "messages[3].role"
        blank = await door.post(RESPONSES, instructions="a", input=[USER, {"role": "user", "content": ""}])
        assert error(blank)["param"] == "input[1].content"
        late = await door.post(CHAT, curfew={"deadline_ms": 0})
        assert error(late)["param"] == "curfew.deadline_ms"
        labelled = await door.post(CHAT, curfew={"labels": {"x": "y" * 65}})
        assert error(labelled)["param"] == "curfew.labels"
        function = {"name": "f", "parameters": {"type": "nonsense"}}
        tools = [{"type": "function", "function": {"name": "a"}}, {"type": "function", "function": function}]
        schema = await door.post(CHAT, tools=tools)
        assert error(schema)["param"] == "tools[1].function.parameters"
        schema = await door.post(RESPONSES, tools=[{"type": "function", **function}])
        assert error(schema)["param"] == "tools[0].parameters"
        nobody = {"type": "function", "function": {"name": "g"}}
        choice = await door.post(CHAT, tools=tools[:1], tool_choice=nobody)
        assert error(choice)["param"] == "tool_choice.function.name"
        misspelt = await door.post(CHAT, curfew={"deadline": 5})
        assert error(misspelt)["param"] == "curfew.deadline"


async def test_a_deadline_in_the_header_must_be_one() -> None:
    async with house() as door:
        for value in ("soon", "0", "-5", "nan", "1e99"):
            headers = {"x-curfew-deadline-ms": value}
            response = await door.client.post(CHAT, json=PLAIN[CHAT], headers=headers)
            assert (response.status_code, error(response)["param"]) == (400, "x-curfew-deadline-ms")


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_a_model_that_nobody_runs_is_not_found(path: str) -> None:
    async with house() as door:
        response = await door.post(path, model="gpt-5")
        assert (response.status_code, error(response)["code"]) == (404, "model_not_found")
        assert "'fake'" in error(response)["message"]
        single = await door.client.get("/v1/models/gpt-5")
        assert (single.status_code, error(single)["code"]) == (404, "model_not_found")


async def test_paths_and_methods_that_are_none_are_told_in_the_same_form() -> None:
    async with house() as door:
        nowhere = await door.client.post("/v1/completions", json={})
        assert (nowhere.status_code, error(nowhere)["code"]) == (404, "unknown_url")
        wrong = await door.client.get(CHAT)
        assert (wrong.status_code, error(wrong)["code"]) == (405, "unknown_url")
        assert wrong.headers["allow"] == "POST"


async def test_a_promise_that_cannot_be_kept_is_422_and_is_not_to_be_tried_again() -> None:
    async with house(tenant="late") as door:
        for _ in range(3):
            assert (await door.post(CHAT)).status_code == 200
        door.client.headers["authorization"] = "Bearer i"
        response = await door.post(CHAT)
        told = error(response)
        assert (response.status_code, told["type"], told["code"]) == (
            422,
            "unprocessable_error",
            "promise_cannot_be_kept",
        )
        assert told["curfew"]["deadline"] == "0.002000s"
        assert "retry-after" not in response.headers


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_pool_is_429_and_says_when_to_come_back(path: str, stream: bool) -> None:
    full = RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, "16 wait", retry_after(2.5))
    async with house(Script(refuse_with=full)) as door:
        response = await door.post(path, stream=stream)
        assert (response.status_code, error(response)["type"]) == (429, "rate_limit_error")
        assert (response.headers["retry-after"], response.headers["retry-after-ms"]) == ("3", "2500")


async def test_a_limit_of_the_tenant_is_429_before_any_stream_begins() -> None:
    policy = POLICY.replace("key: {env: ANALYST}", "key: {env: ANALYST}\n    limits: {rate: 1/h}")
    async with house(policy=policy) as door:
        assert (await door.post(CHAT)).status_code == 200
        response = await door.post(CHAT, stream=True)
        assert (response.status_code, error(response)["code"]) == (429, "limit_reached")
        assert int(response.headers["retry-after"]) > 3000


async def test_without_a_worker_it_is_503() -> None:
    async with (
        controller([], http="127.0.0.1:0", ready=False) as door,
        httpx.AsyncClient(
            base_url=f"http://{door.addresses.http}", headers={"authorization": "Bearer a"}
        ) as client,
    ):
        response = await client.post(CHAT, json=PLAIN[CHAT])
        assert (response.status_code, error(response)["code"]) == (503, "no_worker")
        assert int(response.headers["retry-after"]) >= 1
        assert (await client.get("/healthz")).status_code == 503
        assert (await client.get("/v1/models")).json()["data"] == []


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_a_worker_that_dies_ends_a_stream_with_an_error(path: str) -> None:
    async with house(Script(fail_after=7), tenant="support") as door:
        streamed = await door.post(path, stream=True)
    async with house(Script(fail_after=7), tenant="support") as door:
        whole = await door.post(path)
    assert streamed.status_code == 200
    assert "the worker was lost after 7 tokens had been delivered" in streamed.text
    assert "[DONE]" not in streamed.text
    assert "secret" not in streamed.text
    assert (whole.status_code, error(whole)["code"]) == (503, "worker_lost")


async def test_bodies_are_bounded_in_size_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def chunks() -> Any:
        for _ in range(50):
            yield b"x" * 100_000

    async with house() as door:
        big = {"model": "fake", "messages": [{"role": "user", "content": "x" * (4 * 2**20)}]}
        for response in (
            await door.client.post(CHAT, json=big),
            await door.client.post(CHAT, content=chunks()),
        ):
            assert (response.status_code, error(response)["code"]) == (413, "body_too_large")
        monkeypatch.setattr(endpoint, "BODY_S", 0.1)
        host, port = door.client.base_url.host, door.client.base_url.port
        reader, writer = await asyncio.open_connection(host, port)
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer a\r\ncontent-length: 100\r\n\r\n"
        writer.write(f"{head}{{".encode())
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"body_too_slow" in answer


async def test_headers_are_bounded_in_size() -> None:
    async with house() as door:
        with contextlib.suppress(httpx.ReadError, httpx.WriteError):  # it does not wait for the rest
            response = await door.client.post(CHAT, json=PLAIN[CHAT], headers={"x-long": "x" * 2**20})
            assert response.status_code == 400
    assert door.worker.requests == []


async def test_no_text_of_a_request_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with house(Script(fail_after=7), tenant="support") as door:
        await door.post(CHAT, messages=[{"role": "user", "content": "confidential"}])
        await door.post(CHAT, messages=[{"role": "bard", "content": "confidential"}])
        await door.post(RESPONSES, input="confidential", temperature="confidential")
    assert "confidential" not in "".join(
        record.getMessage() for record in caplog.records if not record.name.startswith(("httpcore", "httpx"))
    )
