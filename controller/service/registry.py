"""RegistryService: where workers announce themselves."""

from __future__ import annotations

import logging

import grpc

from controller.state.registry import LEASE_S
from controller.state.store import Store, StoreError, WorkerRecord
from curfew.rpc.addresses import split_address
from curfew.rpc.calls import Context
from curfew.rpc.durations import duration
from curfew.rpc.errors import RpcError, invalid, reason, retry_after
from curfew.v1 import registry_pb2, registry_pb2_grpc

log = logging.getLogger(__name__)

MOST_ADDRESS, MOST_INSTANCE, MOST_MODEL, MOST_VERSION = 256, 64, 256, 64
RETRY_S = 0.5
_EVERYWHERE = {"0.0.0.0", "[::]"}


class RegistryServicer(registry_pb2_grpc.RegistryServiceServicer):
    """Puts workers under leases in the store, where all controllers that share it find them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def Announce(
        self,
        request: registry_pb2.AnnounceRequest,
        context: Context[registry_pb2.AnnounceRequest, registry_pb2.AnnounceResponse],
    ) -> registry_pb2.AnnounceResponse:
        """Begins, renews or ends a worker's lease."""
        wrong = violations(request)
        if wrong:
            raise invalid(wrong)
        record = WorkerRecord(
            id=request.instance,
            address=request.address,
            model=request.model,
            version=request.version,
            capacity=request.slots,
            load=request.load,
            draining=request.draining,
        )
        try:
            if request.gone:
                await self._store.withdraw(record.id)
            else:
                await self._store.announce(record, LEASE_S)
        except StoreError as error:
            log.warning("worker %s cannot be registered: %s", record.address, error)
            raise RpcError(
                grpc.StatusCode.UNAVAILABLE,
                "the store is away; announce yourself again",
                retry_after(RETRY_S),
                reason("STORE_AWAY"),
            ) from None
        return registry_pb2.AnnounceResponse(lease=duration(LEASE_S))


def violations(request: registry_pb2.AnnounceRequest) -> list[tuple[str, str]]:
    """What is wrong with an announcement, as (field, why) pairs."""
    wrong = []
    target = split_address(request.address)
    if target is None or target[1] == 0:
        wrong.append(("address", f"{request.address!r} is not HOST:PORT"))
    elif target[0] in _EVERYWHERE:
        wrong.append(("address", f"{request.address!r} stands for every address and reaches none"))
    if not request.instance:
        wrong.append(("instance", "is empty"))
    texts = (
        ("address", request.address, MOST_ADDRESS),
        ("instance", request.instance, MOST_INSTANCE),
        ("model", request.model, MOST_MODEL),
        ("version", request.version, MOST_VERSION),
    )
    for field, text, most in texts:
        if len(text) > most:
            wrong.append((field, f"has {len(text)} characters; at most {most} are allowed"))
    if request.slots < 1:
        wrong.append(("slots", "0 is out of range; allowed is 1 or more"))
    return wrong
