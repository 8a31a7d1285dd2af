"""Instructions that a chip issues per weight: a launch as the chip's assembler writes it, and its loop counted."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)(.*)", re.M)


@dataclass(frozen=True)
class Assembly:
    """What a kernel became. `loop` is the innermost loop with most products, or everything where there is none."""

    everything: Counter[str]
    loop: Counter[str]
    registers: int
    spilled_bytes: int
    shared_bytes: int


def assemble(kernel: Any, signature: Any, constants: Any, aligned: Any, options: Any, capability: int = 90) -> Assembly:
    """Compiled for NVIDIA's compute capability, and disassembled by Triton's own tools."""
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(kernel, dict(signature), dict(constants), attributes)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(options))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(made.asm["cubin"])
        text = _run("nvdisasm", "-c", path)
        usage = _run("cuobjdump", "-res-usage", path)
    registers = int(re.findall(r"REG:(\d+)", usage)[0])
    stack = int(re.findall(r"STACK:(\d+)", usage)[0])
    return Assembly(_count(text), _count(_loop(text)), registers, stack, made.metadata.shared)


def _run(program: str, *arguments: object) -> str:
    command = [str(BINARIES / program), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _count(text: str) -> Counter[str]:
    return Counter(name.split(".")[0] for _, name, _ in _LINE.findall(text) if name != "NOP")


def _loop(text: str) -> str:
    labels = {m[1]: m.start() for m in re.finditer(r"^(\.L_\w+):", text, re.M)}
    found = [text]
    for branch in re.finditer(r"BRA(?:\.\w+)* [^\n]*?`?\(?(\.L_\w+)\)?", text):
        start = labels.get(branch[1], branch.start())
        body = text[start : branch.end()]
        if start < branch.start() and body.count("FFMA") + body.count("MMA") > 4:
            found.append(body)
    return min(found, key=len)


def describe(name: str, made: Assembly, weights: float, num_steps: int) -> str:
    """One line; `weights` are those of a thread in one of `num_steps` steps."""
    return (
        f"{name:28} {per_weight(made, weights):5.2f} a weight in the loop, {overall(made, weights, num_steps):5.2f} with "
        f"what is around it; registers {made.registers}, spilled {made.spilled_bytes}, shared {made.shared_bytes}; "
        + " ".join(f"{n}={c}" for n, c in made.loop.most_common(9))
    )


def _steps(made: Assembly, weights: float) -> int:
    """How often the compiler has unrolled the loop: every weight is one product, or two for two rows of x."""
    return max(1, int(made.loop["FFMA"] // weights)) if made.loop["FFMA"] < 2 * weights or weights < 64 else 1


def per_weight(made: Assembly, weights: float) -> float:
    """Instructions of the loop per weight."""
    return sum(made.loop.values()) / (weights * _steps(made, weights))


def overall(made: Assembly, weights: float, num_steps: int) -> float:
    """Instructions per weight of a program that takes `num_steps` steps."""
    inside, everything = sum(made.loop.values()), sum(made.everything.values())
    if inside == everything:
        return everything / (weights * num_steps)
    rounds = num_steps / _steps(made, weights)
    return (everything - inside + inside * rounds) / (weights * num_steps)
