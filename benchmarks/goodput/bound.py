"""More than any way of deciding can reach: a knapsack over slot-seconds that knows everything and may split.

Each question is worth its probability of a right answer, by how far its reasoning goes, and costs what it
takes of the worker's slots; together they have all slots for the whole time. Waiting and batching are left
out, deadlines only keep what could not be in time even alone.
"""

from __future__ import annotations

from benchmarks.goodput.accuracy import Accuracy
from benchmarks.goodput.scenario import Kind, Question, Scenario
from controller.planning.options import Increment, Option, menu

PARTS = tuple(step / 20 for step in range(21))
"""Of the reasoning that a question wants."""


def bound(kind: Kind, scenario: Scenario) -> float:
    """The share of the questions that count that can be answered rightly in time."""
    accuracy, questions = Accuracy.read(), scenario.scored
    increments: list[Increment] = []
    for question in questions:
        options = _options(kind, question, scenario.deadlines_s[question.request.tenant], accuracy)
        if options:
            increments += menu(options, 1.0, may_reject=True)
    arrivals = [question.request.arrival.arrival_s for question in questions]
    slowest_s = max(scenario.deadlines_s.values())
    left = kind.model.slots * (arrivals[-1] - arrivals[0] + slowest_s)
    worth = 0.0
    for increment in sorted(increments, key=lambda i: -i.density):
        part = min(1.0, left / increment.slot_s) if increment.slot_s > 0 else 1.0
        worth += part * increment.density * increment.slot_s
        left -= part * increment.slot_s
        if left <= 0:
            break
    return worth / len(questions)


def _options(kind: Kind, question: Question, deadline_s: float, accuracy: Accuracy) -> list[Option]:
    model, nature = kind.model, question.request.nature
    alone_s = max(model.decode.step_s(1), model.engine.least_step_s)
    full_s = max(model.decode.step_s(model.slots), model.engine.least_step_s)
    prompt_s = nature.prompt_tokens / model.prefill_tokens_per_s
    options = []
    for part in PARTS:
        tokens = int(part * nature.reasoning_tokens)
        output = tokens + (1 if tokens else 0) + nature.answer_tokens
        if prompt_s + output * alone_s <= deadline_s:
            quality = accuracy.at(question.numbers, part)
            options.append(Option(tokens, quality, prompt_s * model.slots + output * full_s))
    return options
