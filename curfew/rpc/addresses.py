"""Network addresses of the form HOST:PORT, as options give them."""

from __future__ import annotations

import argparse
import ipaddress
import re

_ADDRESS = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")


def host_and_port(text: str) -> str:
    """A type of options: HOST:PORT, as it was given. Raises argparse.ArgumentTypeError."""
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[1]) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return text


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches HOST:PORT. No name but localhost is known to be its own."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
