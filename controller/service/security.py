"""Who may connect to the controller, and how it connects to workers: the options, and what they come to."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path

from controller.admission.key_sets import FileKeys, UrlKeys
from controller.admission.operators import Door, KeyFile, Role
from controller.admission.tokens import Tokens
from curfew.rpc.addresses import is_loopback
from curfew.rpc.tls import (
    ServerTls,
    Tls,
    add_client_options,
    add_server_options,
    client_tls,
    server_tls,
)


@dataclass(frozen=True, slots=True)
class Security:
    """How the controller is secured. callers, operators: how each door is encrypted; None: it is not.
    workers: the same of the connections to workers. door: who may call at the operators'.
    tokens: what callers may show instead of API keys; None: nothing.
    """

    callers: ServerTls | None = None
    operators: ServerTls | None = None
    workers: Tls | None = None
    door: Door = field(default_factory=Door)
    tokens: Tokens | None = None


OPEN = Security()
"""Nothing is encrypted, and every operator is let in. For addresses that only this machine reaches."""


def add_security_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `read_security` reads, beside `--listen`, `--http` and `--admin`."""
    add_server_options(parser, "tls", "callers")
    add_server_options(parser, "admin-tls", "operators", "that for callers")
    add_client_options(parser, "worker", "workers")
    add = parser.add_argument_group("who is let in").add_argument
    add(
        "--admin-keys",
        type=Path,
        metavar="FILE",
        help="operators need one of these keys: one a line, itself or as sha256: and its digest (no key)",
    )
    add(
        "--admin-allow",
        action="append",
        default=[],
        metavar="NAME",
        help="operators need this name in their certificate; may be given several times (any name)",
    )
    add(
        "--announce-keys",
        type=Path,
        metavar="FILE",
        help="workers may announce themselves with one of these keys too (only with one of --admin-keys)",
    )
    add(
        "--announce-allow",
        action="append",
        default=[],
        metavar="NAME",
        help="workers may announce themselves with this name in their certificate too; may be given several "
        "times (only with one of --admin-allow)",
    )
    add(
        "--jwt-jwks",
        metavar="FILE|URL",
        help="callers may show a JSON Web Token instead of an API key, signed with a key of this JSON Web "
        "Key Set (API keys alone)",
    )
    add("--jwt-issuer", metavar="NAME", help="who must have issued it (iss)")
    add("--jwt-audience", metavar="NAME", help="for whom it must have been issued (aud)")
    add(
        "--jwt-tenant-claim",
        default="tenant",
        metavar="NAME",
        help="the claim in it that names the tenant (%(default)s)",
    )
    add(
        "--insecure",
        action="store_true",
        help="let doors be reached from elsewhere without TLS; something else must encrypt then",
    )


def read_security(options: argparse.Namespace) -> Security:
    """What the options come to, with every file checked. Raises OSError and ValueError, in a line."""
    callers = server_tls(options, "tls")
    operators = server_tls(options, "admin-tls", otherwise=callers)
    door = Door(
        Role(_keys("--admin-keys", options.admin_keys), frozenset(options.admin_allow)),
        Role(_keys("--announce-keys", options.announce_keys), frozenset(options.announce_allow)),
    )
    has_client_ca = operators is not None and operators.client_ca is not None
    for flag, role in (("--admin-allow", door.operators), ("--announce-allow", door.workers)):
        if role.names and not has_client_ca:
            raise ValueError(f"{flag} needs --admin-tls-client-ca")
    if not is_loopback(options.admin) and not has_client_ca and door.operators.keys is None:
        raise ValueError(
            f"--admin {options.admin} can be reached from elsewhere, by anybody: "
            "give --admin-tls-client-ca or --admin-keys"
        )
    doors = (
        ("--listen", options.listen, callers),
        ("--http", options.http, callers),
        ("--admin", options.admin, operators),
    )
    for flag, address, tls in doors:
        if address is not None and not is_loopback(address) and tls is None and not options.insecure:
            raise ValueError(
                f"{flag} {address} can be reached from elsewhere, with keys and questions in clear: "
                "give --tls-cert and --tls-key, or --insecure"
            )
    return Security(callers, operators, client_tls(options, "worker"), door, _tokens(options))


def _tokens(options: argparse.Namespace) -> Tokens | None:
    where: str | None = options.jwt_jwks
    issuer, audience = options.jwt_issuer, options.jwt_audience
    if where is None:
        if issuer or audience:
            raise ValueError(f"{'--jwt-issuer' if issuer else '--jwt-audience'} needs --jwt-jwks")
        return None
    if not issuer or not audience:
        raise ValueError("--jwt-jwks needs --jwt-issuer and --jwt-audience")
    try:
        keys = UrlKeys(where, time.monotonic) if "://" in where else FileKeys(Path(where))
    except ValueError as error:
        raise ValueError(f"--jwt-jwks: {error}") from None
    return Tokens(keys, issuer, audience, options.jwt_tenant_claim)


def _keys(flag: str, file: Path | None) -> KeyFile | None:
    try:
        return None if file is None else KeyFile(file)
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from None
