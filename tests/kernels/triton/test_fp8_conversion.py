"""The conversion of fp8 that is written in PTX, which Triton's interpreter does not know: its few
instructions are done here as the PTX manual defines them.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch

from kernels.triton_ops.linear import FP8_TO_BF16


def permuted(low: int, high: int, selector: int) -> int:
    """Byte i is the one that the i-th digit of `selector` names: 0 to 3 of `low`, 4 to 7 of `high`."""
    both = low | high << 32
    return sum((both >> 8 * (selector >> 4 * i & 7) & 0xFF) << 8 * i for i in range(4))


def halves(word: int) -> torch.Tensor:
    """The two bf16 numbers of a word, the lower half's first."""
    bits = [half - (half >> 15 << 16) for half in (word & 0xFFFF, word >> 16)]
    return torch.tensor(bits, dtype=torch.int16).view(torch.bfloat16)


def fused(a: int, b: int, c: int) -> int:
    """a · b + c of pairs, each rounded once, subnormal numbers kept."""
    found = (halves(a).double() * halves(b) + halves(c)).bfloat16().view(torch.int16)
    return (int(found[0]) & 0xFFFF) | (int(found[1]) & 0xFFFF) << 16


INSTRUCTIONS: dict[str, Callable[..., int]] = {
    "mov.b32": lambda a: a,
    "shl.b32": lambda a, count: a << count & 0xFFFFFFFF,
    "shr.u32": lambda a, count: a >> count,
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "prmt.b32": permuted,
    "fma.rn.bf16x2": fused,
}


def run(program: str, operand: int) -> tuple[int, int]:
    """What the program writes to $0 and $1 for $2."""
    values = {"$2": operand}
    for name, target, rest in re.findall(r"^([a-z]\S+) ([\w$]+), (.*);$", program, re.MULTILINE):
        if not name.startswith(".reg"):
            sources = [values[s] if s in values else int(s, 0) for s in rest.split(", ")]
            values[target] = INSTRUCTIONS[name](*sources)
    return values["$0"], values["$1"]


def test_every_number_is_exact_in_every_place() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes[codes % 128 != 127]  # no numbers
    for shift in range(4):
        stored = codes.roll(shift)[: len(codes) // 4 * 4].reshape(-1, 4)
        for four in stored:
            first, second = run(FP8_TO_BF16.value, int(four.view(torch.int32)) & 0xFFFFFFFF)
            got = torch.cat([halves(first), halves(second)])
            # Bits, not values: zeros keep their signs.
            exact = four.view(torch.float8_e4m3fn).bfloat16()
            assert got.view(torch.int16).tolist() == exact.view(torch.int16).tolist()
