"""TLS of the HTTP door, by the same files as that of the gRPC door."""

from __future__ import annotations

import ssl

from curfew.rpc.files import Reread
from curfew.rpc.tls import ServerTls


def server_context(tls: ServerTls) -> ssl.SSLContext:
    """For a listening socket. Files that change are read again with the next connection; those that cannot be
    used are logged, and those before stay in use.
    """
    contexts = Reread(tls.files, lambda: _read(tls))

    def refresh(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = contexts.content

    first = _read(tls)
    first.sni_callback = refresh
    return first


def _read(tls: ServerTls) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls.cert, tls.key)
    context.set_alpn_protocols(["http/1.1"])
    if tls.client_ca is not None:
        context.load_verify_locations(tls.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
