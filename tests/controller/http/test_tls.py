"""The HTTP door behind TLS."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from controller.policy import LivePolicy, parse_policy
from controller.service.membership import Sources
from controller.service.security import Security
from controller.service.server import Controller
from curfew.rpc.tls import ServerTls
from tests.certificates import Authority
from tests.controller.service.harness import KEYS, LOCAL, POLICY


@asynccontextmanager
async def door(tls: ServerTls) -> AsyncIterator[str]:
    policy = LivePolicy(lambda: parse_policy(POLICY, "policy.yaml", KEYS))
    controller = Controller(policy, Sources(()), time.monotonic, security=Security(callers=tls))
    addresses = await controller.start(replace(LOCAL, http="127.0.0.1:0"))
    assert addresses.http is not None
    try:
        yield addresses.http
    finally:
        await controller.stop(0.0)


async def shown(address: str, context: ssl.SSLContext) -> bytes | None:
    """The certificate that the door shows."""
    host, port = address.split(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    try:
        certificate: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return certificate
    finally:
        writer.close()
        await writer.wait_closed()


async def test_a_caller_who_trusts_the_authority_is_served_and_a_changed_certificate_is_shown(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path)
    files = authority.issue("controller")
    context = ssl.create_default_context(cafile=files.ca)
    async with door(ServerTls(files.cert, files.key)) as address:
        async with httpx.AsyncClient(base_url=f"https://{address}", verify=context) as client:
            assert (await client.get("/healthz")).status_code == 503
        first = await shown(address, context)
        authority.issue("controller")
        second = await shown(address, context)
        files.cert.write_text("nonsense")
        third = await shown(address, context)
    assert first != second == third


async def test_a_caller_without_the_certificate_that_is_asked_for_is_not_served(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files, own = authority.issue("controller"), authority.issue("caller")
    context = ssl.create_default_context(cafile=files.ca)
    async with door(ServerTls(files.cert, files.key, client_ca=files.ca)) as address:
        async with httpx.AsyncClient(base_url=f"https://{address}", verify=context) as client:
            with pytest.raises(httpx.HTTPError):
                await client.get("/healthz")
        context.load_cert_chain(own.cert, own.key)
        async with httpx.AsyncClient(base_url=f"https://{address}", verify=context) as client:
            assert (await client.get("/healthz")).status_code == 503
