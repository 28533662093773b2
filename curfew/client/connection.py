"""How controllers are reached: addresses, the key, TLS."""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from curfew.rpc.tls import Tls

CHANNEL_OPTIONS = (
    # Who does not answer is given up soon, and tried again soon.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 2000),
)


Metadata = tuple[tuple[str, str], ...]


class Connection:
    """What clients open their channels with."""

    def __init__(self, address: str | Sequence[str], key: str, tls: Tls | None) -> None:
        """key: empty where none is needed. Raises ValueError for no address, a key that no header carries or
        a file that does not fit, OSError for a file that cannot be read.
        """
        self.addresses = [address] if isinstance(address, str) else list(address)
        if not all(self.addresses):
            raise ValueError("an address is empty")
        if not self.addresses:
            raise ValueError("at least one address is needed")
        if not (key.isascii() and key.isprintable()):
            raise ValueError("an API key consists of visible ASCII characters")
        self.metadata: Metadata = (("authorization", f"Bearer {key}"),) if key else ()
        self.credentials = None if tls is None else tls.credentials()
        self.options: Sequence[tuple[str, str | int]] = (
            CHANNEL_OPTIONS if tls is None else (*CHANNEL_OPTIONS, *tls.options)
        )

    def open(self, address: str) -> grpc.Channel:
        """A channel to one of the addresses."""
        if self.credentials is None:
            return grpc.insecure_channel(address, self.options)
        return grpc.secure_channel(address, self.credentials, self.options)

    def open_async(self, address: str) -> grpc.aio.Channel:
        """The same for the event loop that runs."""
        if self.credentials is None:
            return grpc.aio.insecure_channel(address, self.options)
        return grpc.aio.secure_channel(address, self.credentials, self.options)
