"""The choice among workers."""

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.fleet.roster import Ranking
from controller.fleet.worker import Worker
from curfew.v1 import worker_pb2
from tests.controller.fleet.test_worker import description

ACTIONS = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from(["send", "report", "lose", "describe"]), st.integers(0, 6)),
    max_size=200,
)


def act(worker: Worker, action: str, number: int) -> None:
    if action == "send":
        worker.note_sent(prompt_tokens=number)
    elif action == "report":
        worker.take_load(worker_pb2.WorkerLoad(running=number, free_slots=max(0, 4 - number)), now_s=0.0)
    elif action == "lose":
        worker.lose()
    else:
        worker.take_description(description(step_s=0.001 * (number + 1)), now_s=0.0)


@settings(derandomize=True, deadline=None)
@given(ACTIONS)
def test_the_best_worker_is_the_best_of_all(actions: list[tuple[int, str, int]]) -> None:
    workers = [Worker(f"w:{number}") for number in range(5)]
    ranking = Ranking()
    for worker in workers:
        worker.healthy = True
    for index, action, number in actions:
        if action in ("send", "report") and not workers[index].available:
            continue
        act(workers[index], action, number)
        ranking.update(workers[index])
        best = ranking.best()
        available = [worker for worker in workers if worker.available]
        if best is None:
            assert not available
        else:
            assert best in available
            assert best.rank() == min(worker.rank() for worker in available)


def test_equal_workers_take_turns() -> None:
    ranking = Ranking()
    workers = [Worker(f"w:{number}") for number in range(3)]
    for worker in workers:
        worker.healthy = True
        worker.take_description(description(), now_s=0.0)
        ranking.update(worker)
    chosen = []
    for _ in range(3):
        best = ranking.best()
        assert best is not None
        chosen.append(best)
        best.note_sent(prompt_tokens=10)
        ranking.update(best)
    assert set(chosen) == set(workers)


def test_the_heap_does_not_grow_with_updates() -> None:
    ranking = Ranking()
    worker = Worker("w:0")
    worker.healthy = True
    worker.take_description(description(), now_s=0.0)
    for number in range(10_000):
        worker.take_load(worker_pb2.WorkerLoad(running=number % 7, free_slots=1), now_s=0.0)
        ranking.update(worker)
    assert len(ranking._heap) < 200
