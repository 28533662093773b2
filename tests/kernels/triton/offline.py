"""Compiles what a call would launch, without a device: the launches are caught, specialised as Triton's
launcher does it, and translated for a GPU that need not be there.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

# Bytes of shared memory that one program may have (CUDA programming guide, compute capabilities).
SHARED_LIMIT = {86: 99 << 10, 90: 227 << 10}
# 32-bit registers of a multiprocessor.
REGISTER_FILE = 65536

_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.bool: "i1",
    torch.int8: "i8",
    torch.uint8: "u8",
}
_OPTIONS = {"num_warps", "num_stages", "num_ctas", "maxnreg", "launch_pdl"}


@dataclass(frozen=True)
class Compiled:
    """What ptxas says of one kernel on one architecture."""

    arch: int
    warps: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    ptx: str

    def widest_access(self, instruction: str) -> int:
        """Bytes of the widest access of each lane by `ld.global` or `st.global`, scalar accesses of one
        number included.
        """
        found = re.findall(rf"{re.escape(instruction)}[.\w:]*?(?:\.v(\d))?\.b(\d+)", self.ptx)
        return max((int(count or 1) * int(bits) // 8 for count, bits in found), default=0)

    @property
    def programs(self) -> int:
        """Programs of one multiprocessor, as far as registers and shared memory allow."""
        by_registers = REGISTER_FILE // (max(self.registers, 1) * self.warps * 32)
        by_shared = SHARED_LIMIT[self.arch] // max(self.shared_bytes, 1)
        return min(by_registers, by_shared, (64 if self.arch == 90 else 48) // self.warps)

    def row(self, launch: Launch) -> str:
        """One line of a table."""
        load, store = self.widest_access("ld.global"), self.widest_access("st.global")
        return (
            f"{launch.name:26} sm_{self.arch} grid {launch.grid!s:16} warps {self.warps}"
            f" registers {self.registers:3} spilled {self.spilled_bytes} shared {self.shared_bytes:5}"
            f" programs/SM {self.programs:2} load {load:2} store {store:2} wgmma {'wgmma' in self.ptx}"
        )


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel."""

    kernel: JITFunction[Any]
    grid: tuple[int, ...]
    arguments: dict[str, object]
    options: dict[str, int] = field(default_factory=dict)

    @cached_property
    def name(self) -> str:
        return str(self.kernel.fn.__name__)

    def compile(self, arch: int) -> Compiled:
        """Translates for `sm_<arch>` and assembles; raises what Triton raises."""
        target = GPUTarget("cuda", arch, 32)
        compiled = triton.compile(self._source(), target=target, options=dict(self.options))
        registers, spilled = _assemble(compiled.asm["ptx"], arch)
        return Compiled(
            arch, self.options["num_warps"], registers, spilled, compiled.metadata.shared, compiled.asm["ptx"]
        )

    def key(self, arch: int) -> tuple[object, ...]:
        """Equal for launches that compile to the same."""
        return self._source().hash(), tuple(sorted(self.options.items())), arch

    def choices(self) -> tuple[object, ...]:
        """What the caller chose to compile: constants, options and number types."""
        constants = [self.arguments[p.name] for p in self.kernel.params if p.is_constexpr]
        types = [value.dtype for value in self.arguments.values() if isinstance(value, Tensor)]
        return self.name, *constants, *types, *sorted(self.options.items())

    def _source(self) -> ASTSource:
        signature: dict[str, str] = {}
        constants: dict[str, object] = {}
        attributes: dict[tuple[int, ...], list[list[object]]] = {}
        for number, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            special = not parameter.do_not_specialize
            aligned = special and not parameter.do_not_specialize_on_alignment
            if parameter.is_constexpr or (special and isinstance(value, int) and value == 1):
                signature[parameter.name], constants[parameter.name] = "constexpr", value
            elif isinstance(value, Tensor):
                signature[parameter.name] = "*" + _TYPES[value.dtype]
                # The allocator aligns by far more; a view may begin anywhere.
                if aligned and value.storage_offset() * value.element_size() % 16 == 0:
                    attributes[(number,)] = [["tt.divisibility", 16]]
            elif isinstance(value, int):
                signature[parameter.name] = "i32" if value < 1 << 31 else "i64"
                if aligned and value % 16 == 0:
                    attributes[(number,)] = [["tt.divisibility", 16]]
            else:
                signature[parameter.name] = "fp32"
        return ASTSource(self.kernel, signature, constants, attributes)


@contextmanager
def caught() -> Iterator[list[Launch]]:
    """Catches launches instead of running them. Tensors may be on the device `meta`."""
    launches: list[Launch] = []

    def catch(kernel: JITFunction[Any], *args: object, grid: Any, warmup: bool, **named: object) -> None:
        assert not warmup
        options = {name: named.pop(name) for name in _OPTIONS & named.keys()}
        arguments = dict(zip((p.name for p in kernel.params), args, strict=False)) | named
        launches.append(Launch(kernel, tuple(grid), arguments, options))  # type: ignore[arg-type]

    original = JITFunction.run
    JITFunction.run = catch
    try:
        yield launches
    finally:
        JITFunction.run = original


def _assemble(ptx: str, arch: int) -> tuple[int, int]:
    """Registers of a lane, and bytes that it spills."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "kernel.ptx"
        source.write_text(ptx)
        name = "sm_90a" if arch == 90 else f"sm_{arch}"
        done = subprocess.run(
            [tool, "-v", f"--gpu-name={name}", str(source), "-o", f"{directory}/kernel.cubin"],
            capture_output=True,
            text=True,
            check=True,
        )
    registers = re.search(r"Used (\d+) registers", done.stderr)
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", done.stderr)
    assert registers is not None, done.stderr
    return int(registers[1]), sum(map(int, spills))
