"""API keys in the files of a mounted directory, as Kubernetes mounts a Secret and Docker its secrets."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

MAX_BYTES = 2**20
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def read_digests(directory: Path, name: str) -> list[bytes]:
    """SHA-256 digests of the keys in a file: one key a line, itself or as its digest.

    Several make a change of keys possible without a moment at which callers have the wrong one. Raises
    ValueError in words that tell nothing of what the file holds.
    """
    try:
        with (directory / name).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"secret {name} cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise ValueError(f"secret {name} is larger than {MAX_BYTES >> 20} MiB")
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"secret {name} is not UTF-8 text") from None
    digests = [_digest(line.strip(), number, name) for number, line in enumerate(lines, 1) if line.strip()]
    if not digests:
        raise ValueError(f"secret {name} holds no key")
    return digests


def _digest(line: str, number: int, name: str) -> bytes:
    if DIGEST.fullmatch(line):
        return bytes.fromhex(line.removeprefix("sha256:"))
    if line.startswith("sha256:"):
        raise ValueError(f"line {number} of secret {name} is not a key's digest: 64 hexadecimal digits")
    if len(line.split()) > 1:
        raise ValueError(f"line {number} of secret {name} is not a key, which holds no space")
    return hashlib.sha256(line.encode()).digest()
