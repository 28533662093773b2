"""Who is in the fleet."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.fleet.members import Member, Members, Source

NEWS = st.lists(
    st.tuples(
        st.sampled_from(Source),
        st.dictionaries(st.sampled_from(["a:1", "b:1", "c:1"]), st.booleans()),
    ),
    max_size=20,
)


def test_a_worker_that_two_sources_name_is_one() -> None:
    members = Members()
    members.tell(Source.STATIC, {"a:1": False})
    assert members.tell(Source.DNS, {"a:1": False, "b:1": False}) == {
        "a:1": Member(frozenset({Source.STATIC, Source.DNS})),
        "b:1": Member(frozenset({Source.DNS})),
    }
    assert members.tell(Source.STATIC, {}).keys() == {"a:1", "b:1"}
    assert members.tell(Source.DNS, {}) == {}


@settings(derandomize=True, deadline=None)
@given(NEWS)
def test_members_are_what_any_source_named_last(
    news: list[tuple[Source, dict[str, bool]]],
) -> None:
    members, last = Members(), dict[Source, dict[str, bool]]()
    for source, named in news:
        last[source] = named
        found = members.tell(source, named)
        assert found.keys() == {address for each in last.values() for address in each}
        for address, member in found.items():
            assert member.sources == {source for source, each in last.items() if address in each}
            assert member.draining == any(each.get(address) for each in last.values())
