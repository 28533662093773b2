"""JSON Web Tokens (RFC 7519) as credentials."""

from __future__ import annotations

from dataclasses import dataclass

import jwt

from controller.admission.key_sets import KeySource

LEEWAY_S = 10.0
"""By which the clocks of who signs and who checks may differ."""
MAX_CHARACTERS = 8192


class TokenError(Exception):
    """A token names no tenant. Its text is for the log; it repeats nothing of the token."""


class TokenExpiredError(TokenError):
    """A token that was in order has expired."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Checks tokens, and reads the tenant's name in them.

    issuer, audience: what `iss` must be, and what must be in `aud`. claim: the one that names the tenant.
    """

    keys: KeySource
    issuer: str
    audience: str
    claim: str

    async def tenant(self, token: str) -> str:
        """The name that a token gives its bearer; whether there is such a tenant is for others to say.

        The signature must be one of a known key with that key's own algorithm; `exp`, `iss` and `aud` must be
        there and hold, `nbf` and `iat` must hold where they are. Raises TokenError.
        """
        if len(token) > MAX_CHARACTERS:
            raise TokenError(f"longer than {MAX_CHARACTERS} characters")
        try:
            key_id = jwt.get_unverified_header(token).get("kid")
            if not isinstance(key_id, str):
                raise TokenError("names no key")
            key = await self.keys.find(key_id)
            if key is None:
                raise TokenError("names a key that is not in the set")
            claims = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                issuer=self.issuer,
                audience=self.audience,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud"], "enforce_minimum_key_length": True},
            )
        except jwt.ExpiredSignatureError:
            raise TokenExpiredError("has expired") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            raise TokenError(type(error).__name__) from None
        name = claims.get(self.claim)
        if not isinstance(name, str):
            raise TokenError(f"has no text as {self.claim}")
        return name


def looks_like_token(credential: str) -> bool:
    """Whether a credential has a token's three parts."""
    return credential.count(".") == 2
