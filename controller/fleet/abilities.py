"""What a worker can do."""

from __future__ import annotations

from controller.planning.needs import Ability
from curfew.v1 import worker_pb2

UNTOLD = frozenset({Ability.RESUME, Ability.ADJUST, Ability.TOKEN_IDS, Ability.PROBE})
"""Of a worker that is too old to tell."""


def abilities(description: worker_pb2.DescribeWorkerResponse) -> frozenset[Ability]:
    """What a worker says that it can do."""
    if not description.HasField("capabilities"):
        return UNTOLD
    told = description.capabilities
    each = {
        Ability.RESUME: told.resume,
        Ability.ADJUST: told.adjust,
        Ability.TOKEN_IDS: told.token_ids,
        Ability.TOOLS: told.tools,
        Ability.ANSWER_FORMAT: told.answer_format,
        Ability.PROBE: told.probe,
    }
    return frozenset(ability for ability, can in each.items() if can)
