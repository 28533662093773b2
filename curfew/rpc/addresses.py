"""Network addresses of the form HOST:PORT, as options give them."""

from __future__ import annotations

import argparse
import ipaddress
import re
import socket

_ADDRESS = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")


def split_address(text: str) -> tuple[str, int] | None:
    """The host and the port of HOST:PORT; None where a text is not of that form."""
    match = _ADDRESS.fullmatch(text)
    return None if match is None or int(match[2]) > 65535 else (match[1], int(match[2]))


def host_and_port(text: str) -> str:
    """A type of options: HOST:PORT, as it was given. Raises argparse.ArgumentTypeError."""
    if split_address(text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return text


def check_free(address: str) -> None:
    """Finds early what would keep a server from HOST:PORT. Raises OSError when it cannot be had now."""
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, target = found[0]
        with socket.socket(family, kind, protocol) as trial:
            # What an ended process leaves behind is no hindrance; one that listens is.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(target)
            trial.listen(1)
    except OSError:
        raise OSError(cannot_listen(address)) from None


def cannot_listen(address: str) -> str:
    """Why a server cannot start."""
    return f"cannot listen on {address}: in use, or not an address of this machine"


def listening(address: str) -> socket.socket:
    """A socket that listens on HOST:PORT (port 0 picks a free one). Raises OSError, in a line."""
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), int(port)), family=family)
    except (ValueError, OverflowError):
        raise OSError(f"cannot listen on {address}: it is not HOST:PORT") from None
    except OSError as error:
        raise OSError(f"cannot listen on {address}: {error.strerror or error}") from None


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches HOST:PORT. No name but localhost is known to be its own."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
