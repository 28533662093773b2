"""Who may call a worker: controllers."""

from __future__ import annotations

import argparse
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from curfew.rpc.access import check_names
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
    """How a worker is secured.

    tls: how connections to it are encrypted; None: they are not. allowed: names, of which a caller's
    certificate must have one; empty: any. announce: how its own to controllers are encrypted, where it
    announces itself; None: they are not. announce_key: what it sends there; empty: nothing.
    """

    tls: ServerTls | None = None
    allowed: Set[str] = frozenset()
    announce: Tls | None = None
    announce_key: str = ""

    def authorise(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Raises RpcError PERMISSION_DENIED for a caller who is no controller."""
        if self.allowed:
            check_names(context, self.allowed)


def add_security_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `read_security` reads, beside `--listen`."""
    add_server_options(parser, "tls", "controllers")
    add_client_options(parser, "announce", "controllers that it announces itself to", "that of --tls-cert")
    add = parser.add_argument_group("who is let in").add_argument
    add(
        "--announce-secret",
        type=Path,
        metavar="FILE",
        help="the key with which it announces itself, where controllers ask for one",
    )
    add(
        "--allow",
        action="append",
        default=[],
        metavar="NAME",
        help="controllers need this name in their certificate; may be given several times; if not, any",
    )
    add(
        "--insecure",
        action="store_true",
        help="let anybody who reaches the address call, without TLS; something else must keep strangers away",
    )


def read_security(options: argparse.Namespace) -> Security:
    """What the options come to, with every file checked. Raises OSError and ValueError, in a line."""
    tls = server_tls(options, "tls")
    knows_callers = tls is not None and tls.client_ca is not None
    if options.allow and not knows_callers:
        raise ValueError("--allow needs --tls-client-ca")
    if not is_loopback(options.listen) and not knows_callers and not options.insecure:
        raise ValueError(
            f"--listen {options.listen} can be reached from elsewhere, by anybody: "
            "give --tls-cert, --tls-key and --tls-client-ca, or --insecure"
        )
    secret = options.announce_secret
    key = "" if secret is None else read_key("--announce-secret", secret)
    return Security(tls, frozenset(options.allow), client_tls(options, "announce", otherwise=tls), key)


def read_key(option: str, file: Path) -> str:
    """The key in the file of an option. Raises OSError and ValueError, in a line that names the option."""
    try:
        key = file.read_text(errors="replace").strip()
    except OSError as error:
        raise OSError(f"{option}: {file} cannot be read: {error.strerror}") from None
    if not key or not key.isascii() or not key.isprintable():
        raise ValueError(f"{option}: {file} does not hold a key of visible ASCII characters")
    return key
