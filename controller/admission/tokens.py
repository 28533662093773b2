"""JSON Web Tokens (RFC 7519) as credentials."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import jwt
from jwt import PyJWK

from controller.admission.key_sets import KeySource

LEEWAY_S = 10.0
"""By which the clocks of who signs and who checks may differ."""
MAX_CHARACTERS = 8192
MAX_REMEMBERED = 4096


class TokenError(Exception):
    """A token names no tenant. Its text is for the log; it repeats nothing of the token."""


class TokenExpiredError(TokenError):
    """A token that was in order has expired."""


@dataclass(frozen=True, slots=True)
class _Good:
    """A token that was in order. until_s: when it expires, in seconds since 1970."""

    name: str
    key_id: str
    key: PyJWK
    until_s: float


class Tokens:
    """Checks tokens, and reads the tenant's name in them.

    A signature costs a tenth of a millisecond to check, and callers show one token many times: those that
    were in order are remembered, by digest, until they expire or their key is no longer the one in the set.
    """

    def __init__(
        self,
        keys: KeySource,
        issuer: str,
        audience: str,
        claim: str,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """issuer, audience: what `iss` must be, and what must be in `aud`. claim: the one that names the
        tenant. wall_clock: seconds since 1970.
        """
        self.keys = keys
        self._issuer, self._audience, self._claim = issuer, audience, claim
        self._wall_clock = wall_clock
        self._good: dict[bytes, _Good] = {}

    async def tenant(self, token: str) -> str:
        """The name that a token gives its bearer; whether there is such a tenant is for others to say.

        The signature must be one of a known key with that key's own algorithm; `exp`, `iss` and `aud` must be
        there and hold, `nbf` and `iat` must hold where they are. Raises TokenError.
        """
        if len(token) > MAX_CHARACTERS:
            raise TokenError(f"is longer than {MAX_CHARACTERS} characters")
        digest = hashlib.sha256(token.encode()).digest()
        good = self._good.get(digest)
        if good is None or good.until_s <= self._wall_clock() or await self._key(good.key_id) is not good.key:
            self._good.pop(digest, None)
            good = await self._check(token)
            if len(self._good) >= MAX_REMEMBERED:
                del self._good[next(iter(self._good))]
            self._good[digest] = good
        return good.name

    async def _check(self, token: str) -> _Good:
        try:
            key_id = jwt.get_unverified_header(token).get("kid")
            if not isinstance(key_id, str):
                raise TokenError("names no key")
            key = await self._key(key_id)
            claims = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                issuer=self._issuer,
                audience=self._audience,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud"], "enforce_minimum_key_length": True},
            )
        except jwt.ExpiredSignatureError:
            raise TokenExpiredError("has expired") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            raise TokenError(f"is not in order: {type(error).__name__}") from None
        name = claims.get(self._claim)
        if not isinstance(name, str):
            raise TokenError(f"has no text as {self._claim}")
        return _Good(name, key_id, key, float(claims["exp"]))

    async def _key(self, key_id: str) -> PyJWK:
        key = await self.keys.find(key_id)
        if key is None:
            raise TokenError("names a key that is not in the set")
        return key


def looks_like_token(credential: str) -> bool:
    """Whether a credential has a token's three parts."""
    return credential.count(".") == 2
