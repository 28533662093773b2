"""Checkpoints of shared prompts: made when a prompt comes again, invisible in results, evicted by worth."""

from __future__ import annotations

from random import Random

import pytest

from tests.worker.engine.small import (
    CHUNK,
    CPU,
    Outcomes,
    alone,
    make_engine,
    make_request,
    random_prompt,
    random_request,
    recorded_engine,
    run,
    small_model,
)
from worker.engine.cache import PagePool, SlotPool
from worker.engine.prefix import PrefixCache
from worker.engine.sequence import Request
from worker.model.chat import Prompt
from worker.model.pools import Pools

MODEL = small_model()
SYSTEM = random_prompt(Random("system"), 37, 37)


def sharing(name: str, number: int, **values: object) -> Request:
    """A request with the system text that others have too, of which 32 tokens are whole pages and chunks."""
    own = random_prompt(Random(number), 5, 30)
    return random_request(MODEL, Random(number), name, prompt=[*SYSTEM, *own], shared=len(SYSTEM), **values)


def test_the_second_sighting_makes_a_checkpoint_and_the_third_uses_it() -> None:
    engine, runner = recorded_engine(MODEL, checkpoints=1)
    requests = [sharing(f"{n}", n) for n in range(4)]
    for request in requests:
        runner.steps.clear()
        outcome = run(engine, request)[request.request_id]
        assert outcome.whole == alone(MODEL, request)[0].whole
        hit = request.request_id in "23"
        assert outcome.end.cached_tokens == (32 if hit else 0)
        computed = sum(step[request.request_id, 0] for step in runner.steps) - len(outcome.tokens) + 1
        assert computed <= len(request.prompt.ids) - 32 * hit + 1


def test_results_are_the_same_with_checkpoints_and_without() -> None:
    requests = [sharing(f"{n}", n) for n in range(24)]
    with_checkpoints = run(make_engine(MODEL, checkpoints=2), *requests)
    without = run(make_engine(MODEL, checkpoints=0), *requests)
    for request in requests:
        assert with_checkpoints[request.request_id].whole == without[request.request_id].whole
    hits = [with_checkpoints[request.request_id].end.cached_tokens for request in requests]
    assert hits.count(32) > 10
    assert not any(without[request.request_id].end.cached_tokens for request in requests)


def test_two_that_compute_the_same_prompt_at_once_make_one_checkpoint() -> None:
    engine = make_engine(MODEL, checkpoints=2, idle_step_tokens=512)
    run(engine, *(sharing(f"{n}", n) for n in range(5)))
    # 4 pages of one checkpoint are all that is left, and could be had back.
    assert engine.load().free_pages == 512
    outcome = run(engine, sharing("again", 9))["again"]
    assert outcome.end.cached_tokens == 32


def test_samples_and_preempted_requests_start_from_a_checkpoint_too() -> None:
    engine = make_engine(MODEL, checkpoints=1, slots=3)
    for n in range(2):
        run(engine, sharing(f"{n}", n))
    low = sharing("low", 2, samples=3, priority=1, reasoning=20)
    outcomes = Outcomes()
    engine.submit(low)
    for _ in range(3):
        outcomes.take(engine.step())
    run(engine, make_request(MODEL, "high", samples=3), outcomes=outcomes)
    for sample, expected in enumerate(alone(MODEL, low)):
        got = outcomes.samples["low"][sample]
        assert got.whole == expected.whole
        assert got.end.cached_tokens == 32


def test_a_prompt_too_short_for_whole_pages_and_chunks_has_no_checkpoint() -> None:
    engine = make_engine(MODEL, checkpoints=1, page_tokens=16)
    for n in range(4):
        prompt = [*SYSTEM[:15], *random_prompt(Random(n), 5, 30)]
        assert (
            run(engine, make_request(MODEL, f"{n}", prompt=prompt, shared=15))[f"{n}"].end.cached_tokens == 0
        )


def test_a_prompt_that_is_shared_whole_still_computes_its_last_chunk() -> None:
    engine = make_engine(MODEL, checkpoints=1)
    for n in range(3):
        request = make_request(MODEL, f"{n}", prompt=SYSTEM[:32], shared=32)
        outcome = run(engine, request)[f"{n}"]
        assert outcome.whole == alone(MODEL, request)[0].whole
    assert outcome.end.cached_tokens == 24


def test_checkpoints_make_way_for_requests_that_need_their_pages_but_not_in_vain() -> None:
    engine = make_engine(MODEL, checkpoints=2, pages=20, page_tokens=8)
    for n in range(3):
        run(engine, make_request(MODEL, f"{n}", prompt=[*SYSTEM, 5], shared=len(SYSTEM), answer=1))
    load = engine.load()
    assert load.free_pages == 20
    # 17 of 20 pages: the checkpoint has 4.
    large = make_request(MODEL, "large", prompt=[6] * 130, reasoning=0, answer=1)
    blocked = make_request(MODEL, "blocked", prompt=[6] * 130, reasoning=0, answer=1, received_s=101.0)
    outcomes = run(engine, large, blocked)
    assert outcomes["large"].whole == alone(MODEL, large)[0].whole
    again = make_request(MODEL, "again", prompt=[*SYSTEM, 5], shared=len(SYSTEM), answer=1)
    assert run(engine, again)["again"].end.cached_tokens == 0


def test_a_request_that_cannot_start_yet_evicts_nothing() -> None:
    engine = make_engine(MODEL, checkpoints=1, pages=20, page_tokens=8)
    prompt = [*SYSTEM, 5]
    for n in range(2):
        run(engine, make_request(MODEL, f"{n}", prompt=prompt, shared=len(SYSTEM), answer=1))
    outcomes = Outcomes()
    engine.submit(make_request(MODEL, "running", prompt=[30, 33, 39, 3, 16], reasoning=30))
    outcomes.take(engine.step())
    engine.submit(make_request(MODEL, "large", prompt=[6] * 130, reasoning=0, answer=1, deadline_s=1e9))
    outcomes.take(engine.step())
    assert engine.load().waiting == 1
    engine.cancel("large")
    run(engine, make_request(MODEL, "hit", prompt=prompt, shared=len(SYSTEM)), outcomes=outcomes)
    assert outcomes["hit"].end.cached_tokens == 32


def test_a_request_needs_no_room_for_what_its_checkpoint_holds() -> None:
    engine = make_engine(MODEL, checkpoints=1, pages=10, page_tokens=8)
    prompt = [*SYSTEM, 5]
    for n in range(2):
        run(engine, make_request(MODEL, f"{n}", prompt=prompt, shared=len(SYSTEM), reasoning=0, answer=2))
    # 4 pages of system text, which both share, and 3 of their own.
    requests = [
        make_request(MODEL, name, prompt=prompt, shared=len(SYSTEM), reasoning=0, answer=18) for name in "ab"
    ]
    for request in requests:
        engine.submit(request)
    outcomes = Outcomes()
    outcomes.take(engine.step())
    assert engine.load().running == 2
    assert engine.load().free_pages == 0
    run(engine, outcomes=outcomes)
    assert [outcomes[name].end.cached_tokens for name in "ab"] == [32, 32]


def test_checkpoints_stay_where_slots_are_wanted_and_not_pages() -> None:
    engine = make_engine(MODEL, checkpoints=1, slots=1)
    for n in range(2):
        run(engine, sharing(f"{n}", n))
    outcomes = Outcomes()
    engine.submit(make_request(MODEL, "low", priority=1, reasoning=30))
    outcomes.take(engine.step())
    run(engine, make_request(MODEL, "high"), outcomes=outcomes)
    assert outcomes["low"].end.preemptions == 1
    assert run(engine, sharing("hit", 5))["hit"].end.cached_tokens == 32


# The cache by itself.


def prefix_cache(slots: int, page_tokens: int = 8, pages: int = 64) -> tuple[PrefixCache, PagePool]:
    pools = Pools.allocate(
        MODEL.config,
        slots=slots + 1,
        pages=pages,
        page_tokens=page_tokens,
        dtype=MODEL.network.dtype,
        device=CPU,
    )
    pool = PagePool(pages, page_tokens)
    return PrefixCache(SlotPool(range(1, slots + 1)), pool, pools, CHUNK), pool


def keep(cache: PrefixCache, pool: PagePool, key: tuple[int, ...]) -> None:
    pages = pool.take(pool.needed(len(key)))
    cache.keep(key, 0, pages)
    pool.give(pages)


def test_what_saves_most_work_per_byte_stays() -> None:
    cache, pool = prefix_cache(slots=3)
    short, long, used = ((n,) * length for n, length in ((1, 8), (2, 64), (3, 16)))
    for key in (short, long, used):
        keep(cache, pool, key)
    entry = cache.find(used)
    assert entry is not None
    for _ in range(9):
        pool.give(cache.use(entry, 0))
    evicted: list[tuple[int, ...]] = []
    while True:
        before = {e.key for e in cache}
        if not cache.evict():
            break
        evicted += before - {e.key for e in cache}
    assert evicted == [short, long, used]
    assert pool.free == 64
    cache.check()


def test_past_glory_fades() -> None:
    """A checkpoint once used a lot goes when others have come and gone meanwhile."""
    cache, pool = prefix_cache(slots=2)
    keep(cache, pool, (0,) * 16)
    glorious = cache.find((0,) * 16)
    assert glorious is not None
    for _ in range(5):
        pool.give(cache.use(glorious, 0))
    for n in range(1, 20):
        keep(cache, pool, (n,) * 16)
    assert cache.find((0,) * 16) is None
    cache.check()


def test_a_checkpoint_can_be_spared() -> None:
    cache, pool = prefix_cache(slots=2)
    keep(cache, pool, (1,) * 8)
    spared = cache.find((1,) * 8)
    assert not cache.evict(spare=spared)
    keep(cache, pool, (2,) * 16)
    assert cache.evict(spare=spared)
    assert [e.key for e in cache] == [(1,) * 8]


def test_pages_that_a_sequence_holds_too_are_not_to_be_had_by_eviction() -> None:
    cache, pool = prefix_cache(slots=2)
    keep(cache, pool, (1,) * 16)
    keep(cache, pool, (2,) * 8)
    assert cache.evictable_pages == 3
    entry = cache.find((1,) * 16)
    assert entry is not None
    cache.use(entry, 0)
    assert cache.evictable_pages == 1


@pytest.mark.parametrize(
    ("shared", "covered"), [(0, 0), (23, 0), (24, 24), (47, 24), (48, 48), (60, 48), (100, 96)]
)
def test_a_checkpoint_covers_whole_pages_and_whole_chunks(shared: int, covered: int) -> None:
    cache, _ = prefix_cache(slots=1, page_tokens=12)
    assert len(cache.key(Prompt(tuple(range(100)), shared))) == covered


def test_only_what_was_sighted_before_is_worth_a_checkpoint() -> None:
    cache, _ = prefix_cache(slots=1)
    assert not cache.sighted_before((1,) * 8)
    assert not cache.sighted_before((2,) * 8)
    assert cache.sighted_before((1,) * 8)
    assert not cache.sighted_before(())
    assert not cache.sighted_before(())
    for n in range(5000):
        cache.sighted_before((n, n))
    assert not cache.sighted_before((1,) * 8), "long ago"
