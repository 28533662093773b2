"""How controllers are reached: addresses, the key, TLS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

CHANNEL_OPTIONS = (
    # Who does not answer is given up soon, and tried again soon.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 2000),
)


@dataclass(frozen=True, slots=True)
class Tls:
    """An encrypted connection. Files are in PEM form."""

    ca: Path | None = None
    """Certificates that the controller's is checked against. None: those that gRPC brings."""
    cert: Path | None = None
    """The caller's own certificate, where the controller asks for one; with `cert_key`."""
    cert_key: Path | None = None
    server_name: str = ""
    """The name in the controller's certificate, where it is not that of the address."""

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.cert_key is None):
            raise ValueError("a certificate and its key come together")

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files. Raises OSError."""
        ca, cert_key, cert = (
            None if path is None else path.read_bytes() for path in (self.ca, self.cert_key, self.cert)
        )
        return grpc.ssl_channel_credentials(ca, cert_key, cert)


class Connection:
    """What both clients open their channels with."""

    def __init__(self, address: str | Sequence[str], key: str, tls: Tls | None) -> None:
        """Raises ValueError for no address or a key that no header carries, OSError for a file."""
        self.addresses = [address] if isinstance(address, str) else list(address)
        if not all(self.addresses):
            raise ValueError("an address is empty")
        if not self.addresses:
            raise ValueError("at least one address is needed")
        if not (key.isascii() and key.isprintable()):
            raise ValueError("an API key consists of visible ASCII characters")
        self.metadata = (("authorization", f"Bearer {key}"),)
        self.credentials = None if tls is None else tls.credentials()
        self.options: Sequence[tuple[str, str | int]] = CHANNEL_OPTIONS
        if tls is not None and tls.server_name:
            self.options = (*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", tls.server_name))
