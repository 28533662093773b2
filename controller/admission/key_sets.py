"""The public keys that tokens are signed with: a JSON Web Key Set (RFC 7517), from a file or a URL."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import httpx
from jwt import PyJWK, PyJWTError

from curfew.rpc.addresses import is_loopback
from curfew.rpc.files import Reread

log = logging.getLogger(__name__)

ALGORITHMS = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
"""Asymmetric ones alone: a secret that verifies could also sign."""
MAX_BYTES = 2**18
FETCH_S = 5.0
LEAST_PAUSE_S = 10.0
"""Between two fetches, however many tokens name a key that is not known."""
FRESH_S = 300.0
"""A set that is older is fetched again, so that a key that was taken back is not trusted for longer."""

Keys = Mapping[str, PyJWK]
"""By key id."""


class KeySource(Protocol):
    """Where keys come from, and come again when they change."""

    async def start(self) -> None:
        """Gets the keys for the first time."""

    async def find(self, key_id: str) -> PyJWK | None:
        """The key of an id; None when there is none."""

    async def close(self) -> None:
        """Ends whatever runs."""


def parse_keys(text: str | bytes) -> Keys:
    """The keys of a set that verify signatures. Raises ValueError when there is none."""
    try:
        document = json.loads(text)
        listed = document["keys"]
        entries = [entry for entry in listed if isinstance(entry, dict)]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError('it is not a JSON Web Key Set: {"keys": […]}') from None
    keys: dict[str, PyJWK] = {}
    for entry in entries:
        key_id = entry.get("kid")
        if not isinstance(key_id, str) or entry.get("use", "sig") != "sig":
            continue
        try:
            key = PyJWK(entry)
        except (PyJWTError, ValueError, TypeError, KeyError, AttributeError):
            log.info("a key of the set is of a kind that is not used here")
            continue
        if key.algorithm_name in ALGORITHMS:
            keys[key_id] = key
    if not keys:
        raise ValueError("it has no key with a kid, for signatures, of an asymmetric algorithm")
    return keys


class FileKeys:
    """A file, read again once it has changed."""

    def __init__(self, file: Path) -> None:
        """Raises ValueError for a file that cannot be used."""
        self._keys = Reread([file], lambda: _read(file))

    async def start(self) -> None:
        """Nothing is to be done."""

    async def find(self, key_id: str) -> PyJWK | None:
        """The key of an id in the file as it is now."""
        return self._keys.content.get(key_id)

    async def close(self) -> None:
        """Nothing is to be done."""


def _read(file: Path) -> Keys:
    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
    if len(text) > MAX_BYTES:
        raise ValueError(f"{file} is larger than {MAX_BYTES >> 10} KiB")
    try:
        return parse_keys(text)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


class UrlKeys:
    """A URL, fetched again when the set is no longer fresh and when a token names a key that is not in it,
    not too often. While it cannot be fetched, the keys before stay in force.
    """

    def __init__(
        self, url: str, clock: Callable[[], float], transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        """clock: seconds from any beginning. transport: for tests. Raises ValueError for a URL over which
        anybody could give us keys.
        """
        parts = urlsplit(url)
        if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(f"{parts.hostname}:0")):
            raise ValueError(f"{url!r} is neither https:// nor http:// on this machine")
        self._url = url
        self._clock = clock
        self._client = httpx.AsyncClient(timeout=FETCH_S, transport=transport)
        self._keys: Keys = {}
        self._fetched_s: float | None = None
        """When the keys in force were fetched; None before any."""
        self._tried_s = -LEAST_PAUSE_S + clock()
        self._fetching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Fetches. What is wrong is logged: API keys work without."""
        await self._fetch_once()

    async def find(self, key_id: str) -> PyJWK | None:
        """The key of an id. Waits for a fetch only where it is not known."""
        key = self._keys.get(key_id)
        if key is None:
            if self._may_fetch() or self._fetching is not None:
                await self._fetch_once()
            return self._keys.get(key_id)
        if self._fetched_s is not None and self._clock() - self._fetched_s > FRESH_S and self._may_fetch():
            self._begin()
        return key

    async def close(self) -> None:
        """Ends a fetch and closes the connection."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)
        await self._client.aclose()

    def _may_fetch(self) -> bool:
        return self._clock() - self._tried_s >= LEAST_PAUSE_S

    async def _fetch_once(self) -> None:
        # Shielded: a caller who leaves does not end what others wait for.
        await asyncio.shield(self._begin())

    def _begin(self) -> asyncio.Task[None]:
        if self._fetching is None:
            self._tried_s = self._clock()
            self._fetching = asyncio.create_task(self._fetch())
        return self._fetching

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(FETCH_S):
                self._keys = parse_keys(await self._get())
            self._fetched_s = self._clock()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, TimeoutError) as error:
            log.error("the keys at %s cannot be had: %s", self._url, str(error) or type(error).__name__)
        finally:
            self._fetching = None

    async def _get(self) -> bytes:
        """Redirections are not followed: they may lead to where anybody could answer."""
        async with self._client.stream("GET", self._url, headers={"accept": "application/json"}) as response:
            if response.status_code != httpx.codes.OK:
                raise ValueError(f"status {response.status_code}")
            content = bytearray()
            async for part in response.aiter_bytes():
                content += part
                if len(content) > MAX_BYTES:
                    raise ValueError(f"it is larger than {MAX_BYTES >> 10} KiB")
        return bytes(content)
