"""From a trace to requests: tenants, lengths that were cut, luck."""

from __future__ import annotations

import pytest

from controller.simulation.mapping import MappingError, Share, mapped
from controller.simulation.requests import prepare
from controller.simulation.trace import Arrival, ReasoningEnd, Trace

KNOWN = ("support", "analyst")


def arrival(tenant: str = "a", reasoning: int = 10, end: ReasoningEnd | None = None) -> Arrival:
    return Arrival(0.0, tenant, 5, reasoning, 3, reasoning_end=end)


def owner(mappings: list[str], tenant: str, number: float = 0.0) -> str:
    tell = mapped([Share.parse(text) for text in mappings], [tenant], KNOWN, "p.yaml")
    return tell(arrival(tenant), number)


def test_a_tenant_of_the_same_name_needs_no_mapping() -> None:
    assert owner([], "analyst") == "analyst"


def test_the_first_pattern_that_matches_counts() -> None:
    mappings = ["client-1=analyst", "client-*=support"]
    assert owner(mappings, "client-1") == "analyst"
    assert owner(mappings, "client-2") == "support"


def test_shares_divide_the_requests() -> None:
    owners = [owner(["*=support:3,analyst:1"], "x", n / 100) for n in range(100)]
    assert owners == ["support"] * 75 + ["analyst"] * 25


def test_a_tenant_without_a_place_is_named_with_what_helps() -> None:
    with pytest.raises(
        MappingError, match=r"p\.yaml: 'analist' of the trace .*did you mean analyst\?.*--map"
    ):
        owner([], "analist")
    with pytest.raises(MappingError, match=r"p\.yaml: 'suport' is not a tenant; did you mean support\?"):
        owner(["*=suport"], "x")


@pytest.mark.parametrize(
    "text", ["support", "=support", "*=", "*=support:x", "*=support:0", "*=:1", "*=a,,b"]
)
def test_what_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        Share.parse(text)


def test_reasoning_that_was_cut_is_drawn_longer_than_it_was() -> None:
    whole = [arrival(reasoning=n) for n in range(100, 200)]
    cut = [arrival(reasoning=150, end=ReasoningEnd.BUDGET) for _ in range(200)]
    unseen = [arrival(reasoning=500, end=ReasoningEnd.DEADLINE), arrival(reasoning=0, end=ReasoningEnd.NONE)]
    trace = Trace("t", (*whole, *cut, *unseen))
    lengths = [r.nature.reasoning_tokens for r in prepare(trace, lambda a, n: a.tenant, 0, 0.0)]
    assert lengths[:100] == list(range(100, 200))
    assert all(150 < length < 200 for length in lengths[100:300])
    assert len(set(lengths[100:300])) > 20
    assert lengths[300] > 500
    assert 100 <= lengths[301] < 200


def test_a_seed_gives_the_same_requests_again_and_another_gives_others() -> None:
    trace = Trace("t", tuple(arrival() for _ in range(20)))

    def luck(seed: int) -> list[float]:
        return [request.luck for request in prepare(trace, lambda a, n: a.tenant, seed, 5.0)]

    assert luck(1) == luck(1)
    assert luck(1) != luck(2)
