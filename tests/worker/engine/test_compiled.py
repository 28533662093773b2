"""A compiled decode step gives the tokens that the network gives, and is compiled once for a shape.

Compiling takes some 15 seconds for the smallest model, once for this module.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from kernels.layout import Segment
from tests.worker.engine.small import (
    CPU,
    Clock,
    make_request,
    random_request,
    run,
    small_model,
)
from worker.engine.build import EngineOptions, Model, build_engine
from worker.engine.compiled import CompiledDecode, compiled_decode
from worker.engine.engine import Engine
from worker.engine.sampling import Sampling
from worker.model.pools import Pools

MODEL = small_model(pattern="M*-")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the small model's step."""
    directory = tmp_path_factory.mktemp("compiled")
    engine(MODEL, directory)
    return directory


def engine(model: Model, cache: Path | None, slots: int = 8) -> Engine:
    options = EngineOptions(
        slots=slots,
        checkpoints=2,
        cache_bytes=1 << 20,
        page_tokens=8,
        step_tokens=16,
        max_sequence_tokens=1024,
        compiled=cache,
    )
    return build_engine(model, options, Clock())


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")


def test_requests_get_the_same_tokens_with_and_without(cache: Path) -> None:
    random = Random(1)
    requests = [random_request(MODEL, random, f"{n}") for n in range(30)]
    with_it, without = (run(engine(MODEL, directory), *requests) for directory in (cache, None))
    for request in requests:
        name = request.request_id
        assert [s.whole for s in with_it.samples[name].values()] == [
            s.whole for s in without.samples[name].values()
        ]


@pytest.mark.usefixtures("no_compiler")
def test_a_second_start_needs_no_compiler_whatever_the_weights_and_the_sizes_of_the_pools(
    cache: Path,
) -> None:
    model = small_model(seed=7, pattern="M*-")
    request = make_request(model, sampling=Sampling(temperature=1.0, seed=3))
    with_it, without = (run(engine(model, where, slots=3), request) for where in (cache, None))
    assert with_it["r"].whole == without["r"].whole


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("change", ["pattern", "page_tokens"])
def test_another_shape_is_not_served_by_it_and_a_missing_compiler_is_named(cache: Path, change: str) -> None:
    model = small_model(pattern="M-*") if change == "pattern" else MODEL
    page_tokens = 16 if change == "page_tokens" else 8
    network = model.network
    pools = Pools.allocate(
        model.config, slots=1, pages=1, page_tokens=page_tokens, dtype=network.dtype, device=CPU
    )
    with pytest.raises(ValueError, match="takes a C\\+\\+ compiler, and there is no 'no-such-compiler'"):
        compiled_decode(network, pools, page_tokens, cache)


def test_contexts_that_would_mostly_be_padding_are_left_to_the_network() -> None:
    def segments(*contexts: int) -> list[Segment]:
        return [Segment(n, context - 1, 1, [0]) for n, context in enumerate(contexts)]

    assert CompiledDecode.takes(segments(100_000))
    assert CompiledDecode.takes(segments(1, 2, 100, 130))
    assert not CompiledDecode.takes(segments(100, 100, 100_000))
