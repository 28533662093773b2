"""Who may call at the operators' door: operators, and workers that announce themselves there."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from controller.admission.identity import authorizations, bearer
from controller.policy.secrets import read_digests
from curfew.rpc.access import check_names
from curfew.rpc.errors import RpcError, reason
from curfew.rpc.files import Reread

REGISTRY = "/curfew.v1.RegistryService/"


class KeyFile:
    """Keys in a file: one a line, itself or as `sha256:` and its digest. While keys are exchanged both may be
    in it. It is read again once it has changed.
    """

    def __init__(self, file: Path) -> None:
        """Raises ValueError, in words that tell nothing of what the file holds."""
        self._digests = Reread([file], lambda: read_digests(file.parent, file.name))

    def holds(self, key: str) -> bool:
        """Whether a key is one of them."""
        digest = hashlib.sha256(key.encode()).digest()
        # All are compared, so that the time does not tell which it was.
        return sum(hmac.compare_digest(digest, each) for each in self._digests.content) > 0


@dataclass(frozen=True, slots=True)
class Role:
    """What those must show who may do something. Where both are set, both.

    keys: one of these as `authorization: Bearer KEY`; None: no key. names: one of these in their
    certificate; empty: any name.
    """

    keys: KeyFile | None = None
    names: Set[str] = frozenset()


ANYBODY = Role()


@dataclass(frozen=True, slots=True)
class Door:
    """The operators' door: what it takes to call AdminService, and what to call RegistryService, where what
    an operator shows will do too. What a worker shows will do for nothing else.
    """

    operators: Role = ANYBODY
    workers: Role = ANYBODY

    def authorise(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Raises RpcError UNAUTHENTICATED or PERMISSION_DENIED for a caller who may not call a method."""
        announces = method.startswith(REGISTRY)
        names = self.operators.names | (self.workers.names if announces else frozenset())
        if names:
            check_names(context, names)
        files = (self.operators.keys, self.workers.keys if announces else None)
        accepted = [file for file in files if file is not None]
        if accepted:
            _check_key(bearer(authorizations(context.invocation_metadata())), accepted)


def _check_key(key: str, accepted: list[KeyFile]) -> None:
    if not any(file.holds(key) for file in accepted):
        raise RpcError(grpc.StatusCode.UNAUTHENTICATED, "the key is not known", reason("KEY_UNKNOWN"))
