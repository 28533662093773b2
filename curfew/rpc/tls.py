"""TLS for both sides of a connection, and the options that services take for it. Files are in PEM form."""

from __future__ import annotations

import argparse
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from curfew.rpc.files import Reread


@dataclass(frozen=True, slots=True)
class Tls:
    """An encrypted connection, seen from the side that opens it."""

    ca: Path | None = None
    """Certificates that the server's is checked against. None: those that gRPC brings."""
    cert: Path | None = None
    """One's own certificate, where the server asks for one; with `cert_key`."""
    cert_key: Path | None = None
    server_name: str = ""
    """The name in the server's certificate, where it is not that of the address."""

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.cert_key is None):
            raise ValueError("a certificate and its key come together")

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files. Raises OSError for one that cannot be read, ValueError for an unfit one."""
        if self.ca is not None:
            _check_authorities(self.ca)
        if self.cert is not None and self.cert_key is not None:
            _check_pair(self.cert, self.cert_key)
        contents = (
            None if path is None else path.read_bytes() for path in (self.ca, self.cert_key, self.cert)
        )
        return grpc.ssl_channel_credentials(*contents)

    @property
    def options(self) -> tuple[tuple[str, str], ...]:
        """What a channel must be told beside its credentials."""
        return (("grpc.ssl_target_name_override", self.server_name),) if self.server_name else ()

    @property
    def files(self) -> list[Path]:
        """Those that there are."""
        return [path for path in (self.ca, self.cert_key, self.cert) if path is not None]


@dataclass(frozen=True, slots=True)
class ServerTls:
    """An encrypted connection, seen from the side that is called."""

    cert: Path
    """The server's certificate, and those between it and the authority that callers trust."""
    key: Path
    client_ca: Path | None = None
    """Callers must show a certificate that one of these authorities signed. None: they need none."""

    def credentials(self) -> grpc.ServerCredentials:
        """Reads the files, and again for a new connection once they have changed. Changed files that cannot
        be used are logged, and those before stay in use.

        Raises OSError for a file that cannot be read, ValueError for one that does not fit.
        """
        configurations = Reread(self.files, self._read)
        current = first = configurations.content

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            """The files where they are other ones. gRPC calls this in a thread of its own."""
            nonlocal current
            before, current = current, configurations.content
            return None if current is before else current

        return grpc.dynamic_ssl_server_credentials(
            first,
            fetch,  # type: ignore[arg-type]  # the stub leaves out that None is no change
            require_client_authentication=self.client_ca is not None,
        )

    @property
    def files(self) -> list[Path]:
        """Those that there are."""
        return [path for path in (self.cert, self.key, self.client_ca) if path is not None]

    def _read(self) -> grpc.ServerCertificateConfiguration:
        _check_pair(self.cert, self.key)
        if self.client_ca is not None:
            _check_authorities(self.client_ca)
        return grpc.ssl_server_certificate_configuration(
            [(self.key.read_bytes(), self.cert.read_bytes())],
            None if self.client_ca is None else self.client_ca.read_bytes(),
        )


class Dialler:
    """Opens channels, each with the files of a Tls as they are then.

    A channel connects again by itself, but with the files of its beginning: whose owner loses the connection
    opens another one when `version` has grown since.
    """

    def __init__(self, tls: Tls | None, options: Sequence[tuple[str, str | int]] = ()) -> None:
        """tls: None for no encryption. Raises OSError and ValueError, as `Tls.credentials` does."""
        self._options = options if tls is None else (*options, *tls.options)
        self._files = None if tls is None else Reread(tls.files, tls.credentials)
        self._credentials = None if self._files is None else self._files.content
        self._version = 0

    @property
    def version(self) -> int:
        """Grows when the files have changed."""
        if self._files is not None:
            before, self._credentials = self._credentials, self._files.content
            self._version += self._credentials is not before
        return self._version

    def open(self, address: str) -> grpc.aio.Channel:
        """A channel to HOST:PORT."""
        if self._credentials is None:
            return grpc.aio.insecure_channel(address, options=self._options)
        return grpc.aio.secure_channel(address, self._credentials, options=self._options)


def add_server_options(
    parser: argparse.ArgumentParser, prefix: str, callers: str, without: str = "no encryption"
) -> None:
    """Adds `--{prefix}-cert`, `-key` and `-client-ca`. callers: who calls. without: what holds when they are
    not given. Both for the help.
    """
    add = parser.add_argument_group(f"TLS towards {callers}").add_argument
    add(f"--{prefix}-cert", type=Path, metavar="FILE", help=f"the certificate shown to them ({without})")
    add(f"--{prefix}-key", type=Path, metavar="FILE", help="its private key")
    add(
        f"--{prefix}-client-ca",
        type=Path,
        metavar="FILE",
        help="authorities, one of which must have signed the certificate that they show (they need none)",
    )


def server_tls(
    options: argparse.Namespace, prefix: str, otherwise: ServerTls | None = None
) -> ServerTls | None:
    """What `add_server_options` has read, checked; None without it. otherwise: whose certificate is shown
    when none is given.

    Raises OSError and ValueError, as `ServerTls.credentials` does.
    """
    cert, key, client_ca = _given(options, prefix, "cert", "key", "client_ca")
    if (cert is None) != (key is None):
        raise ValueError(f"--{prefix}-cert and --{prefix}-key come together")
    if cert is None and otherwise is not None:
        cert, key = otherwise.cert, otherwise.key
    if cert is None or key is None:
        if client_ca is not None:
            raise ValueError(f"--{prefix}-client-ca needs --{prefix}-cert")
        return None
    tls = ServerTls(cert, key, client_ca)
    tls.credentials()
    return tls


def add_client_options(
    parser: argparse.ArgumentParser, prefix: str, server: str, without: str = "none"
) -> None:
    """Adds `--{prefix}-ca`, `-cert`, `-key` and `-name`. server: who is called. without: what is shown when
    no certificate is given. Both for the help.
    """
    add = parser.add_argument_group(f"TLS towards {server}").add_argument
    add(
        f"--{prefix}-ca",
        type=Path,
        metavar="FILE",
        help=f"encrypt, and trust these authorities to know {server} (no encryption)",
    )
    add(f"--{prefix}-cert", type=Path, metavar="FILE", help=f"the certificate shown to them ({without})")
    add(f"--{prefix}-key", type=Path, metavar="FILE", help="its private key")
    add(f"--{prefix}-name", default="", metavar="NAME", help="the name in their certificates (their host's)")


def client_tls(options: argparse.Namespace, prefix: str, otherwise: ServerTls | None = None) -> Tls | None:
    """What `add_client_options` has read, checked; None without it. otherwise: whose certificate is shown
    when none is given.

    Raises OSError and ValueError, as `Tls.credentials` does.
    """
    ca, cert, key = _given(options, prefix, "ca", "cert", "key")
    if (cert is None) != (key is None):
        raise ValueError(f"--{prefix}-cert and --{prefix}-key come together")
    if ca is None:
        if cert is not None:
            raise ValueError(f"--{prefix}-cert needs --{prefix}-ca")
        return None
    if cert is None and otherwise is not None:
        cert, key = otherwise.cert, otherwise.key
    tls = Tls(ca, cert, key, getattr(options, f"{prefix}_name"))
    tls.credentials()
    return tls


def _given(options: argparse.Namespace, prefix: str, *parts: str) -> Iterator[Path | None]:
    return (getattr(options, f"{prefix.replace('-', '_')}_{part}") for part in parts)


def _check_pair(cert: Path, key: Path) -> None:
    """Raises OSError, and ValueError for what is no certificate or not the key that belongs to it."""
    for path in (cert, key):
        _check_readable(path)
    try:
        # Without a password given, OpenSSL would ask for one on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ValueError(f"{key} is not the key of certificate {cert}") from None
        raise ValueError(f"{cert} and {key} are not a certificate and its key in PEM form") from None


def _check_authorities(ca: Path) -> None:
    _check_readable(ca)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca)
    except ssl.SSLError:
        raise ValueError(f"{ca} holds no certificates in PEM form") from None


def _check_readable(path: Path) -> None:
    """Raises OSError in words of its own, for a line."""
    try:
        path.read_bytes()
    except OSError as error:
        raise OSError(f"{path} cannot be read: {error.strerror}") from None
