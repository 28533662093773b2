"""What it costs to hold an answer to a form: `python -m benchmarks.forms`.

A form costs a compilation when its request is read, and for each token of the answer a mask of the
vocabulary, made on the CPU and applied to the logits. The vocabulary has 131,072 ids, as the family's, of
which most stand for text: byte-level BPE learnt from the Python library's own sources. The answers are drawn
at random from what their grammar allows, which leads through more of it than a model would. What is compared
with is the choice of as many tokens without a form.
"""

from __future__ import annotations

import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from statistics import median, quantiles

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks.harness import print_machine, print_result, print_table
from worker.engine.grammar import Grammars, answer_grammar
from worker.engine.sampling import Draw, Sampling, choose
from worker.model.chat import END_MARK, SYSTEM_MARK, TURN_MARK, Chat
from worker.model.tools import Tool

VOCABULARY = 131_072
SOURCES = 1500
TOKENS = 400
ROWS = 32

LINE: dict[str, object] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "count": {"type": "integer", "minimum": 0},
        "price": {"type": "number"},
        "kind": {"enum": ["part", "service", "other"]},
    },
    "required": ["name", "count", "price", "kind"],
    "additionalProperties": False,
}
ORDER: dict[str, object] = {
    "type": "object",
    "properties": {"id": {"type": "string", "format": "uuid"}, "lines": {"type": "array", "items": LINE}},
    "required": ["id", "lines"],
    "additionalProperties": False,
}
WIDE: dict[str, object] = {
    "type": "object",
    "properties": {f"field_{number}": {"type": "string", "maxLength": 40} for number in range(200)},
    "additionalProperties": False,
}
TOOLS = [Tool(f"tool_{number}", "Does something.", ORDER) for number in range(16)]
FORMS = {
    "any object": answer_grammar({"type": "object"}, [], must_call=False, most_calls=1),
    "an order": answer_grammar(ORDER, [], must_call=False, most_calls=1),
    "200 optional fields": answer_grammar(WIDE, [], must_call=False, most_calls=1),
    "16 tools, required": answer_grammar(None, TOOLS, must_call=True, most_calls=32),
    "16 tools, free text": answer_grammar(None, TOOLS, must_call=False, most_calls=32),
}


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one form: to compile it, and for each token to make its mask and to follow the token. Seconds."""

    compile_s: float
    mask_s: float
    mask_p99_s: float
    follow_s: float
    mask: torch.Tensor
    """The last one."""


def main() -> None:
    """Prints a line for each form, and what masks add to a step's choice of tokens."""
    torch.set_num_threads(1)
    print_machine()
    chat = Chat(_tokenizer())
    began = time.perf_counter()
    grammars = Grammars(chat, VOCABULARY)
    start_s = time.perf_counter() - began
    print(f"{len(chat.token_bytes)} tokens; once at the worker's start {start_s:.2f} s")
    costs = {name: _cost(grammars, form) for name, form in FORMS.items()}
    header = ["form", "compile ms", "mask us", "mask p99 us", "follow us"]
    print_table(
        header,
        (
            (name, c.compile_s * 1e3, c.mask_s * 1e6, c.mask_p99_s * 1e6, c.follow_s * 1e6)
            for name, c in costs.items()
        ),
    )
    free_s, held_s = (_choice(mask) for mask in (None, costs["an order"].mask))
    print(f"choosing {ROWS} tokens: {free_s * 1e3:.2f} ms free, {held_s * 1e3:.2f} ms by given masks")
    print_result(
        {
            "benchmark": "forms",
            "vocabulary": VOCABULARY,
            "start_s": start_s,
            "mask_us": {name: cost.mask_s * 1e6 for name, cost in costs.items()},
            "compile_ms": {name: cost.compile_s * 1e3 for name, cost in costs.items()},
            "choice_ratio": held_s / free_s,
        }
    )


def _cost(grammars: Grammars, form: str) -> Cost:
    began = time.perf_counter()
    grammar = grammars.compile(form)
    compile_s = time.perf_counter() - began
    random, mask_s, follow_s = Random(0), list[float](), list[float]()
    matcher = grammar.matcher()
    allowed = matcher.allowed()
    for _ in range(TOKENS):
        began = time.perf_counter()
        allowed = matcher.allowed()
        mask_s.append(time.perf_counter() - began)
        choices = (allowed & ~grammars.ends).nonzero().flatten()
        if not len(choices):  # the answer is complete: another one
            matcher = grammar.matcher()
            continue
        token = int(choices[random.randrange(len(choices))])
        began = time.perf_counter()
        matcher.accept([token])
        follow_s.append(time.perf_counter() - began)
    return Cost(compile_s, median(mask_s), quantiles(mask_s, n=100)[98], median(follow_s), allowed)


def _choice(mask: torch.Tensor | None) -> float:
    """Seconds to choose the tokens of a step, each by this mask."""
    logits = torch.randn(ROWS, VOCABULARY)
    draws = [Draw(Sampling(), position, allowed=mask) for position in range(ROWS)]
    return median(_seconds(partial(choose, logits.clone(), draws)) for _ in range(9))


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _tokenizer() -> Tokenizer:
    marks = [AddedToken(mark, special=True, normalized=False) for mark in (SYSTEM_MARK, TURN_MARK, END_MARK)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=marks,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sources = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))[:SOURCES]
    texts = (source.read_text(encoding="utf-8", errors="ignore") for source in sources)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


if __name__ == "__main__":
    main()
