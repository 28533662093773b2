"""The demo's task: sums of 2 to 12 numbers below 100, with running totals as the reasoning.

How long the reasoning is depends on the problem (one line for two numbers, eleven for twelve), and a sum of
few numbers can be done without, so that accuracy rises smoothly with the thinking budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from random import Random

MIN_NUMBERS, MAX_NUMBERS = 2, 12
_COUNTS = range(MIN_NUMBERS, MAX_NUMBERS + 1)


@dataclass(frozen=True, slots=True)
class Problem:
    """A sum to be found: 2 to 12 numbers in 0..99, and the number of the phrase that asks for it."""

    numbers: tuple[int, ...]
    phrase: int = 0

    @property
    def question(self) -> str:
        """The user's text."""
        if self.phrase == 0:
            return f"What is {' + '.join(map(str, self.numbers))}?"
        listed = ", ".join(map(str, self.numbers[:-1])) + f" and {self.numbers[-1]}"
        return f"Add {listed}." if self.phrase == 1 else f"What do {listed} make?"

    @property
    def reasoning(self) -> list[str]:
        """The running totals, a line each, without line ends."""
        totals = list(accumulate(self.numbers))
        return [
            f"{before} + {number} = {total}"
            for before, number, total in zip(totals, self.numbers[1:], totals[1:], strict=False)
        ]

    @property
    def answer(self) -> str:
        """The sum."""
        return str(sum(self.numbers))


def draw(random: Random, count: int | None = None) -> Problem:
    """Draws a problem. Without a count of numbers, c numbers come with probability proportional to 1/c."""
    if count is None:
        count = random.choices(_COUNTS, weights=[1 / c for c in _COUNTS])[0]
    phrase = random.choices((0, 1, 2), weights=(2, 1, 1))[0]
    return Problem(tuple(random.randrange(100) for _ in range(count)), phrase)


def held_out(size: int) -> list[Problem]:
    """The problems that accuracy is measured on. The trainer never draws them (their sequences start
    elsewhere).
    """
    random = Random(f"curfew-held-out-{size}")
    return [draw(random) for _ in range(size)]


def is_right(problem: Problem, answer: str) -> bool:
    """Whether an answer's text is the sum."""
    return answer.strip().rstrip(".") == problem.answer
