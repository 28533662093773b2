"""Tokens instead of API keys."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from controller.admission.identity import identify
from controller.admission.key_sets import FRESH_S, LEAST_PAUSE_S, FileKeys, UrlKeys, parse_keys
from controller.admission.tokens import LEEWAY_S, MAX_CHARACTERS, Tokens
from controller.policy import parse_policy
from curfew.rpc.errors import RpcError

POLICY = parse_policy(
    "apiVersion: curfew/v1\ntenants: [{name: support, key: {env: KEY}}, {name: analyst}]\n",
    "policy.yaml",
    {"KEY": "s3cret"},
)
ISSUER, AUDIENCE = "https://login.example", "curfew"
EC, OTHER_EC = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
RSA = rsa.generate_private_key(65537, 2048)
ED = ed25519.Ed25519PrivateKey.generate()
PUBLIC: dict[str, dict[str, Any]] = {
    "ec": json.loads(ECAlgorithm.to_jwk(EC.public_key())),
    "rsa": json.loads(RSAAlgorithm.to_jwk(RSA.public_key())) | {"alg": "PS256", "use": "sig"},
    "ed": json.loads(OKPAlgorithm.to_jwk(ED.public_key())),
}


def key_set(*names: str, **more: dict[str, Any]) -> str:
    listed = {name: PUBLIC[name] for name in names} | more
    return json.dumps({"keys": [entry | {"kid": kid} for kid, entry in listed.items()]})


def claims(**changed: object) -> dict[str, Any]:
    # Some are made long before their test runs.
    now = int(time.time())
    given = {"iss": ISSUER, "aud": AUDIENCE, "exp": now + 3600, "nbf": now, "tenant": "support"} | changed
    return {name: value for name, value in given.items() if value is not None}


def token(key: Any = EC, algorithm: str = "ES256", kid: str | None = "ec", **changed: object) -> str:
    return jwt.encode(claims(**changed), key, algorithm, headers=None if kid is None else {"kid": kid})


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    file = tmp_path / "keys.json"
    file.write_text(key_set("ec", "rsa", "ed"))
    return Tokens(FileKeys(file), ISSUER, AUDIENCE, "tenant")


async def refusal(credential: str, tokens: Tokens) -> tuple[str, str]:
    with pytest.raises(RpcError) as caught:
        await identify(POLICY, credential, tokens)
    assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
    (detail,) = caught.value.details
    return caught.value.message, detail.reason  # type: ignore[attr-defined]  # an ErrorInfo


UNKNOWN = ("the API key is not known", "API_KEY_UNKNOWN")


@pytest.mark.parametrize(
    "credential",
    [
        token(),
        token(aud=["another", AUDIENCE]),
        token(nbf=None),
        token(RSA, "PS256", "rsa"),
        token(ED, "EdDSA", "ed"),
        "s3cret",
    ],
)
async def test_a_token_names_its_tenant_as_a_key_does(credential: str, tokens: Tokens) -> None:
    assert await identify(POLICY, credential, tokens) is POLICY.tenants["support"]


def unsigned() -> str:
    return jwt.encode(claims(), "", "none", headers={"kid": "ec"})


def signed_with_the_public_key() -> str:
    """What a check that lets the token choose its algorithm takes for a good signature."""

    def part(content: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()

    text = f"{part({'alg': 'HS256', 'kid': 'ec'})}.{part(claims())}"
    secret = json.dumps(PUBLIC["ec"]).encode()
    signature = hmac.digest(secret, text.encode(), "sha256")
    return f"{text}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


@pytest.mark.parametrize(
    "make",
    [
        lambda: token(OTHER_EC),
        lambda: token(RSA, "RS256", "rsa"),  # the set says PS256
        lambda: token(RSA, "PS256", "ec"),
        lambda: token(kid="unknown"),
        lambda: token(kid=None),
        lambda: token(iss="https://login.other"),
        lambda: token(iss=None),
        lambda: token(aud="another"),
        lambda: token(aud=None),
        lambda: token(exp=None),
        lambda: token(exp="tomorrow"),
        lambda: token(nbf=int(time.time()) + 60),
        lambda: token(tenant="nobody"),
        lambda: token(tenant=["support"]),
        lambda: token(tenant=None),
        lambda: token()[:-4],
        lambda: token(filler="x" * MAX_CHARACTERS),
        unsigned,
        signed_with_the_public_key,
        lambda: "a.b.c",
        lambda: "..",
        lambda: "é.é.é",
    ],
)
async def test_whatever_is_wrong_with_a_token_the_answer_is_the_same(
    make: Callable[[], str], tokens: Tokens
) -> None:
    assert await refusal(make(), tokens) == UNKNOWN


async def test_only_a_good_token_is_told_that_it_has_expired(tokens: Tokens) -> None:
    past = int(time.time()) - 60
    assert await refusal(token(exp=past), tokens) == ("the token has expired", "TOKEN_EXPIRED")
    assert await refusal(token(OTHER_EC, exp=past), tokens) == UNKNOWN


async def test_a_token_that_was_in_order_is_checked_again_once_it_has_expired(tmp_path: Path) -> None:
    file, clock = tmp_path / "keys.json", Clock()
    file.write_text(key_set("ec"))
    tokens = Tokens(FileKeys(file), ISSUER, AUDIENCE, "tenant", clock)
    expires_s = int(time.time()) - int(LEEWAY_S) + 5
    once = token(exp=expires_s)
    clock.now_s = expires_s - 1.0
    assert (await identify(POLICY, once, tokens)).name == "support"
    checked = jwt.decode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jwt, "decode", lambda *_, **__: pytest.fail("it is checked again"))
        assert (await identify(POLICY, once, tokens)).name == "support"
    clock.now_s = expires_s + 0.0
    seen: list[str] = []

    def decode(token: str, *arguments: Any, **options: Any) -> Any:
        seen.append(token)
        return checked(token, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jwt, "decode", decode)
        assert (await identify(POLICY, once, tokens)).name == "support"
    assert seen == [once]


async def test_keys_change_with_their_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys.json"
    file.write_text(key_set("ed"))
    tokens = Tokens(FileKeys(file), ISSUER, AUDIENCE, "tenant")
    before = token(ED, "EdDSA", "ed")
    assert (await identify(POLICY, before, tokens)).name == "support"
    assert await refusal(token(), tokens) == UNKNOWN
    file.write_text(key_set("ec"))
    assert (await identify(POLICY, token(), tokens)).name == "support"
    # Though it was in order a moment ago.
    assert await refusal(before, tokens) == UNKNOWN
    file.write_text("{")
    assert (await identify(POLICY, token(), tokens)).name == "support"
    assert "what was read before stays in use" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"keys": 1}',
        "[" * 100_000,
        key_set(),
        json.dumps({"keys": [PUBLIC["ec"]]}),
        key_set(secret={"kty": "oct", "k": "c2VjcmV0"}),
        key_set(encrypts=PUBLIC["ec"] | {"use": "enc"}),
        key_set(odd={"kty": "EC", "crv": "P-256", "x": "!", "y": 1}),
    ],
)
def test_a_set_without_a_key_that_verifies_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"it (is not a JSON Web Key Set|has no key)"):
        parse_keys(text)


def test_a_file_that_cannot_be_used_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none.json cannot be read: No such file or directory"):
        FileKeys(tmp_path / "none.json")


@pytest.mark.parametrize("url", ["http://login.example/keys", "ftp://x/keys", "file:///etc/passwd"])
def test_keys_come_over_no_way_on_which_others_could_put_theirs(url: str) -> None:
    with pytest.raises(ValueError, match="is neither https:// nor http:// on this machine"):
        UrlKeys(url, time.monotonic)


class Provider(httpx.AsyncBaseTransport):
    """Answers in place of the network."""

    def __init__(self, *names: str) -> None:
        self.names, self.status, self.fetches = names, 200, 0
        self.answers = asyncio.Event()
        self.answers.set()
        self.asked = asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.fetches += 1
        self.asked.set()
        await self.answers.wait()
        return httpx.Response(self.status, text=key_set(*self.names), headers={"location": "https://evil"})


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


async def test_keys_from_a_url_are_kept_and_fetched_again_for_a_new_one_but_not_too_often() -> None:
    provider, clock = Provider("ed"), Clock()
    keys = UrlKeys("https://login.example/keys", clock, provider)
    tokens = Tokens(keys, ISSUER, AUDIENCE, "tenant")
    await keys.start()
    for _ in range(3):
        assert (await identify(POLICY, token(ED, "EdDSA", "ed"), tokens)).name == "support"
    assert provider.fetches == 1
    provider.names = ("ec", "ed")
    # However many ask with a key that is not known.
    assert await refusal(token(), tokens) == UNKNOWN
    assert provider.fetches == 1
    clock.now_s += LEAST_PAUSE_S
    both = await asyncio.gather(*(identify(POLICY, token(), tokens) for _ in range(5)))
    assert {tenant.name for tenant in both} == {"support"}
    assert provider.fetches == 2
    await keys.close()


async def test_a_key_that_is_taken_back_is_trusted_no_longer_than_a_set_is_fresh() -> None:
    provider, clock = Provider("ec", "ed"), Clock()
    keys = UrlKeys("https://login.example/keys", clock, provider)
    tokens = Tokens(keys, ISSUER, AUDIENCE, "tenant")
    await keys.start()
    provider.names = ("ed",)
    clock.now_s += FRESH_S + 1
    provider.answers.clear()
    # Nobody waits for what is only to be looked at again.
    assert (await identify(POLICY, token(), tokens)).name == "support"
    provider.answers.set()
    clock.now_s += LEAST_PAUSE_S
    await keys.find("unknown")
    assert await refusal(token(), tokens) == UNKNOWN
    await keys.close()


@pytest.mark.parametrize("status", [302, 404, 500])
async def test_while_keys_cannot_be_had_those_before_stay_in_force(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    provider, clock = Provider("ec"), Clock()
    keys = UrlKeys("https://login.example/keys", clock, provider)
    tokens = Tokens(keys, ISSUER, AUDIENCE, "tenant")
    await keys.start()
    provider.status, provider.names = status, ("ed",)
    clock.now_s += LEAST_PAUSE_S
    assert await refusal(token(ED, "EdDSA", "ed"), tokens) == UNKNOWN
    assert (await identify(POLICY, token(), tokens)).name == "support"
    assert f"cannot be had: status {status}" in caplog.text
    await keys.close()


async def test_a_caller_who_leaves_does_not_end_the_fetch_that_others_wait_for() -> None:
    provider, clock = Provider("ec"), Clock()
    provider.answers.clear()
    keys = UrlKeys("https://login.example/keys", clock, provider)
    tokens = Tokens(keys, ISSUER, AUDIENCE, "tenant")
    first, second = (asyncio.create_task(identify(POLICY, token(), tokens)) for _ in range(2))
    await provider.asked.wait()
    first.cancel()
    provider.answers.set()
    assert (await second).name == "support"
    with pytest.raises(asyncio.CancelledError):
        await first
    await keys.close()
