"""Who gets through the controller's doors, and how it comes to workers."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import http.server
import json
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from jwt.algorithms import ECAlgorithm

from controller.policy import LivePolicy, load_policy, parse_policy
from controller.service.membership import Sources
from controller.service.security import add_security_options, read_security
from controller.service.server import Addresses, Controller
from curfew.rpc.access import check_names
from curfew.rpc.tls import Dialler, ServerTls, Tls
from curfew.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    reasoning_pb2,
    reasoning_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
)
from tests.certificates import Authority, Identity
from tests.controller.fake_worker import FakeWorker
from tests.controller.service.harness import KEYS, LOCAL, POLICY, ask, key

OK = grpc.StatusCode.OK
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
DENIED = grpc.StatusCode.PERMISSION_DENIED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def read(
    *arguments: str | Path, listen: str = LOCAL.listen, admin: str = LOCAL.admin, http: str | None = None
) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_security_options(parser)
    options = parser.parse_args([str(argument) for argument in arguments])
    options.listen, options.admin, options.http = listen, admin, http
    return options


@asynccontextmanager
async def controller(
    *arguments: str | Path,
    workers: tuple[str, ...] = (),
    policy: LivePolicy | None = None,
    ready: bool = True,
) -> AsyncIterator[Addresses]:
    policy = policy or LivePolicy(lambda: parse_policy(POLICY, "policy.yaml", KEYS))
    running = Controller(policy, Sources(workers), time.monotonic, security=read_security(read(*arguments)))
    try:
        addresses = await running.start(LOCAL)
        if workers and ready:
            assert await running.had_worker(20)
        yield addresses
    finally:
        await running.stop(0.0)


async def ending(call: grpc.aio.Call) -> grpc.StatusCode:
    """How a call ends."""
    code = await call.code()
    assert isinstance(code, grpc.StatusCode)
    return code


async def operates(address: str, tls: Tls | None = None, secret: str | None = None) -> grpc.StatusCode:
    """How an operator's call ends."""
    async with Dialler(tls, [("grpc.use_local_subchannel_pool", 1)]).open(address) as channel:
        metadata = None if secret is None else (("authorization", f"Bearer {secret}"),)
        try:
            await admin_pb2_grpc.AdminServiceStub(channel).GetStatus(
                admin_pb2.GetStatusRequest(), metadata=metadata, timeout=10
            )
        except grpc.aio.AioRpcError as error:
            return error.code()
    return OK


def shown(identity: Identity) -> Tls:
    return Tls(identity.ca, identity.cert, identity.key)


async def test_every_hop_can_be_encrypted_with_both_sides_known(authority: Authority) -> None:
    at_worker, at_controller = authority.issue("worker.internal"), authority.issue("controller.internal")
    caller = authority.issue("support.example")
    async with FakeWorker(
        tls=ServerTls(at_worker.cert, at_worker.key, authority.ca),
        authorise=lambda _, context: check_names(context, {"controller.internal"}),
    ) as worker:
        ours = ("--tls-cert", at_controller.cert, "--tls-key", at_controller.key)
        to_worker = ("--worker-ca", authority.ca, "--worker-name", "worker.internal")
        as_us = ("--worker-cert", at_controller.cert, "--worker-key", at_controller.key)
        arguments = (*ours, "--tls-client-ca", authority.ca, *to_worker, *as_us)
        async with (
            controller(*arguments, workers=(worker.address,)) as addresses,
            Dialler(shown(caller)).open(addresses.listen) as channel,
        ):
            generate = reasoning_pb2_grpc.ReasoningServiceStub(channel).Generate
            call = generate(ask(), metadata=key("analyst"), timeout=20)
            events = [event async for event in call]
            assert events[-1].HasField("completion")
            assert await operates(addresses.admin, Tls(authority.ca)) is OK
            assert await operates(addresses.admin) is UNAVAILABLE


async def test_a_controller_whose_certificate_was_renewed_reaches_its_workers_again(
    authority: Authority, tmp_path: Path
) -> None:
    at_worker = authority.issue("worker")
    ours = Authority(tmp_path, "retired").issue("controller")
    async with FakeWorker(tls=ServerTls(at_worker.cert, at_worker.key, authority.ca)) as worker:
        to_worker = ("--worker-ca", authority.ca, "--worker-cert", ours.cert, "--worker-key", ours.key)
        async with controller(*to_worker, workers=(worker.address,), ready=False) as addresses:
            assert await called(addresses.listen, "a") is UNAVAILABLE
            renewed = authority.issue("controller")
            ours.cert.write_bytes(renewed.cert.read_bytes())
            ours.key.write_bytes(renewed.key.read_bytes())
            async with asyncio.timeout(20):
                while await called(addresses.listen, "a") is UNAVAILABLE:
                    pass
            assert await called(addresses.listen, "a") is OK


async def test_operators_need_one_of_the_keys_in_the_file_as_it_is_now(tmp_path: Path) -> None:
    keys = tmp_path / "operators"
    keys.write_text(f"first\nsha256:{hashlib.sha256(b'second').hexdigest()}\n")
    async with controller("--admin-keys", keys) as addresses:
        assert await operates(addresses.admin) is UNAUTHENTICATED
        assert await operates(addresses.admin, secret="third") is UNAUTHENTICATED
        # A tenant is no operator.
        assert await operates(addresses.admin, secret="a") is UNAUTHENTICATED
        assert await operates(addresses.admin, secret="first") is OK
        assert await operates(addresses.admin, secret="second") is OK
        keys.write_text("second\nthird\n")
        assert await operates(addresses.admin, secret="first") is UNAUTHENTICATED
        assert await operates(addresses.admin, secret="second") is OK
        assert await operates(addresses.admin, secret="third") is OK
        # What cannot be used changes nothing.
        keys.write_text("two words\n")
        assert await operates(addresses.admin, secret="third") is OK


async def test_operators_are_known_by_their_certificate(authority: Authority, tmp_path: Path) -> None:
    server = authority.issue("controller")
    operator, worker = authority.issue("ops@example"), authority.issue("worker")
    keys = tmp_path / "operators"
    keys.write_text("secret\n")
    ours = ("--tls-cert", server.cert, "--tls-key", server.key, "--admin-tls-client-ca", authority.ca)
    async with controller(*ours, "--admin-allow", "ops@example") as addresses:
        assert await operates(addresses.admin, shown(operator)) is OK
        assert await operates(addresses.admin, shown(worker)) is DENIED
        assert await operates(addresses.admin, Tls(authority.ca)) is UNAVAILABLE
    async with controller(*ours, "--admin-allow", "ops@example", "--admin-keys", keys) as addresses:
        assert await operates(addresses.admin, shown(operator)) is UNAUTHENTICATED
        assert await operates(addresses.admin, shown(worker), "secret") is DENIED
        assert await operates(addresses.admin, shown(operator), "secret") is OK


async def announces(address: str, tls: Tls | None = None, secret: str | None = None) -> grpc.StatusCode:
    """How a worker's announcement ends."""
    async with Dialler(tls, [("grpc.use_local_subchannel_pool", 1)]).open(address) as channel:
        metadata = None if secret is None else (("authorization", f"Bearer {secret}"),)
        request = registry_pb2.AnnounceRequest(address="127.0.0.1:1", instance="i", model="m", slots=1)
        stub = registry_pb2_grpc.RegistryServiceStub(channel)
        return await ending(stub.Announce(request, metadata=metadata, timeout=10))


async def test_workers_announce_themselves_with_a_key_or_name_that_does_nothing_else(
    authority: Authority, tmp_path: Path
) -> None:
    operators, workers = tmp_path / "operators", tmp_path / "workers"
    operators.write_text("operator\n")
    workers.write_text("worker\n")
    async with controller("--admin-keys", operators, "--announce-keys", workers) as addresses:
        assert await announces(addresses.admin, secret="worker") is OK
        assert await announces(addresses.admin, secret="operator") is OK
        assert await announces(addresses.admin, secret="a") is UNAUTHENTICATED
        assert await announces(addresses.admin) is UNAUTHENTICATED
        assert await operates(addresses.admin, secret="worker") is UNAUTHENTICATED
    # Without keys of their own, workers have none that will do.
    async with controller("--admin-keys", operators) as addresses:
        assert await announces(addresses.admin, secret="worker") is UNAUTHENTICATED
    server, operator, worker = map(authority.issue, ("controller", "ops", "worker"))
    ours = ("--tls-cert", server.cert, "--tls-key", server.key, "--admin-tls-client-ca", authority.ca)
    async with controller(*ours, "--admin-allow", "ops", "--announce-allow", "worker") as addresses:
        assert await announces(addresses.admin, shown(worker)) is OK
        assert await announces(addresses.admin, shown(operator)) is OK
        assert await announces(addresses.admin, shown(server)) is DENIED
        assert await operates(addresses.admin, shown(worker)) is DENIED
    async with controller(*ours, "--admin-allow", "ops") as addresses:
        assert await announces(addresses.admin, shown(worker)) is DENIED


async def test_only_operators_see_who_is_connected(tmp_path: Path) -> None:
    keys = tmp_path / "operators"
    keys.write_text("secret\n")

    async def looks(address: str, secret: str) -> grpc.StatusCode:
        async with Dialler(None).open(address) as channel:
            call = channelz_pb2_grpc.ChannelzStub(channel).GetServers  # type: ignore[arg-type]  # the stub
            try:
                await call(
                    channelz_pb2.GetServersRequest(), metadata=(("authorization", f"Bearer {secret}"),)
                )
            except grpc.aio.AioRpcError as error:
                return error.code()
        return OK

    async with controller("--admin-keys", keys) as addresses:
        assert await looks(addresses.listen, "a") is grpc.StatusCode.UNIMPLEMENTED
        assert await looks(addresses.admin, "a") is UNAUTHENTICATED
        assert await looks(addresses.admin, "secret") is OK


@pytest.mark.parametrize(
    ("listen", "admin", "arguments", "said"),
    [
        ("0.0.0.0:1", LOCAL.admin, (), "--listen 0.0.0.0:1 can be reached from elsewhere"),
        (LOCAL.listen, "0.0.0.0:1", (), "--admin 0.0.0.0:1 can be reached from elsewhere, by anybody"),
        # That another layer encrypts does not tell who an operator is.
        (LOCAL.listen, "0.0.0.0:1", ("--insecure",), "give --admin-tls-client-ca or --admin-keys"),
        (LOCAL.listen, LOCAL.admin, ("--admin-allow", "x"), "--admin-allow needs --admin-tls-client-ca"),
        (LOCAL.listen, LOCAL.admin, ("--announce-allow", "x"), "--announce-allow needs"),
        (LOCAL.listen, LOCAL.admin, ("--admin-keys", "no/file"), "secret file cannot be read: No such file"),
    ],
)
def test_doors_that_would_stand_open_are_refused_at_the_start(
    listen: str, admin: str, arguments: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        read_security(read(*arguments, listen=listen, admin=admin))


def test_the_http_door_is_held_to_the_same() -> None:
    with pytest.raises(ValueError, match=r"--http 0\.0\.0\.0:1 can be reached from elsewhere"):
        read_security(read(http="0.0.0.0:1"))
    assert read_security(read(http="127.0.0.1:1")).callers is None


def test_operators_keys_do_not_cross_the_network_in_clear(tmp_path: Path) -> None:
    keys = tmp_path / "operators"
    keys.write_text("secret\n")
    with pytest.raises(ValueError, match=r"--admin 0.0.0.0:1 can be reached from elsewhere, with keys"):
        read_security(read("--admin-keys", keys, admin="0.0.0.0:1"))
    assert read_security(read("--admin-keys", keys, "--insecure", admin="0.0.0.0:1")).operators is None


def test_a_door_that_something_else_protects_may_stand_open() -> None:
    assert read_security(read("--insecure", listen="0.0.0.0:1")).callers is None


async def called(address: str, credential: str) -> grpc.StatusCode:
    """How a caller's request ends, without a worker: known callers are told that there is none."""
    async with Dialler(None).open(address) as channel:
        call = reasoning_pb2_grpc.ReasoningServiceStub(channel).Plan(
            reasoning_pb2.PlanRequest(request=ask()),
            metadata=(("authorization", f"Bearer {credential}"),),
            timeout=10,
        )
        return await call.code()


class JwksHandler(http.server.BaseHTTPRequestHandler):
    """An issuer's keys, as they are in `served`."""

    served: ClassVar[list[dict[str, Any]]] = []

    def do_GET(self) -> None:
        body = json.dumps({"keys": self.served}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


async def test_callers_show_tokens_of_an_issuer_whose_keys_are_fetched() -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    JwksHandler.served[:] = [json.loads(ECAlgorithm.to_jwk(private.public_key())) | {"kid": "1"}]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), JwksHandler) as issuer:
        threading.Thread(target=issuer.serve_forever, kwargs={"poll_interval": 0.01}).start()
        try:
            url = f"http://127.0.0.1:{issuer.server_port}/keys"
            arguments = ("--jwt-jwks", url, "--jwt-issuer", "me", "--jwt-audience", "curfew")
            async with controller(*arguments) as addresses:

                def token(tenant: str) -> str:
                    claims = {"iss": "me", "aud": "curfew", "exp": int(time.time()) + 60, "tenant": tenant}
                    return jwt.encode(claims, private, "ES256", headers={"kid": "1"})

                assert await called(addresses.listen, token("analyst")) is UNAVAILABLE
                assert await called(addresses.listen, "a") is UNAVAILABLE
                assert await called(addresses.listen, token("stranger")) is UNAUTHENTICATED
        finally:
            issuer.shutdown()


async def test_two_keys_hold_while_they_are_exchanged_without_a_restart(tmp_path: Path) -> None:
    keys, file = tmp_path / "keys", tmp_path / "policy.yaml"
    keys.mkdir()
    (keys / "analyst-key").write_text("old\n")
    file.write_text("apiVersion: curfew/v1\ntenants: [{name: analyst, key: {file: analyst-key}}]\n")
    policy = LivePolicy(lambda: load_policy(file, {}, keys))
    async with controller(policy=policy) as addresses:
        for held, known in (("old\nnew\n", {"old", "new"}), ("new\n", {"new"})):
            (keys / "analyst-key").write_text(held)
            await policy.reload()
            for key_ in ("old", "new"):
                expected = UNAVAILABLE if key_ in known else UNAUTHENTICATED
                assert await called(addresses.listen, key_) is expected, (held, key_)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("--jwt-jwks", "no/keys.json", *("--jwt-issuer", "i", "--jwt-audience", "a")),
            "no/keys.json cannot",
        ),
        (("--jwt-jwks", "http://far/k", *("--jwt-issuer", "i", "--jwt-audience", "a")), "is neither https"),
        (("--jwt-jwks", "keys.json"), "--jwt-jwks needs --jwt-issuer and --jwt-audience"),
        (("--jwt-audience", "a"), "--jwt-audience needs --jwt-jwks"),
    ],
)
def test_tokens_that_could_not_be_checked_are_refused_at_the_start(
    arguments: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        read_security(read(*arguments))
