"""The demo's problems are what they say."""

from random import Random

import pytest

from demo.problems import MAX_NUMBERS, MIN_NUMBERS, Problem, draw, held_out, is_right


def test_a_problem_is_reasoned_by_running_totals() -> None:
    problem = Problem((12, 37, 45))
    assert problem.question == "What is 12 + 37 + 45?"
    assert problem.reasoning == ["12 + 37 = 49", "49 + 45 = 94"]
    assert problem.answer == "94"


@pytest.mark.parametrize(
    ("phrase", "question"), [(1, "Add 12, 37 and 45."), (2, "What do 12, 37 and 45 make?")]
)
def test_a_problem_can_be_asked_in_other_words(phrase: int, question: str) -> None:
    assert Problem((12, 37, 45), phrase).question == question


def test_the_last_running_total_is_the_answer() -> None:
    random = Random(1)
    for _ in range(200):
        problem = draw(random)
        assert MIN_NUMBERS <= len(problem.numbers) <= MAX_NUMBERS
        assert problem.reasoning[-1].endswith(f"= {problem.answer}")
        assert len(problem.reasoning) == len(problem.numbers) - 1


def test_held_out_problems_are_the_same_in_every_run_and_of_every_length() -> None:
    problems = held_out(500)
    assert problems == held_out(500)
    assert {len(p.numbers) for p in problems} == set(range(MIN_NUMBERS, MAX_NUMBERS + 1))


@pytest.mark.parametrize(("answer", "right"), [("94", True), (" 94.\n", True), ("194", False), ("", False)])
def test_an_answer_is_right_if_it_is_the_sum(answer: str, right: bool) -> None:
    assert is_right(Problem((12, 37, 45)), answer) is right
