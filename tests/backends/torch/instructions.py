"""Instructions that a chip issues per weight: a launch as the chip's assembler writes it, and its loop counted."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import launches
import triton
from targets import TARGETS
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from runtime.graph import GraphBuilder

BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)(.*)", re.M)


@dataclass(frozen=True)
class Assembly:
    """What a kernel became. `loop` is its innermost loop over products, or everything where there is none."""

    everything: Counter[str]
    loop: Counter[str]
    registers: int
    spilled_bytes: int
    shared_bytes: int


def assemble(launch: launches.Launch, capability: int = 90) -> Assembly:
    """Compiled for NVIDIA's compute capability, and disassembled by Triton's own tools."""
    attributes = {(i,): [["tt.divisibility", 16]] for i in launch.aligned}
    source = ASTSource(launch.kernel, dict(launch.signature), dict(launch.constants), attributes)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(launch.options))
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


@dataclass(frozen=True)
class Cost:
    """Instructions per weight of a product of few rows: in the loop, and with all that comes before and after it."""

    inside: float
    overall: float


def cost(launch: launches.Launch, made: Assembly) -> Cost:
    """Every weight is one FFMA for each row of x, which says how often the compiler has unrolled the loop.

    On tensor cores a step is not unrolled, and what surrounds the steps depends on how a sum is split: not counted.
    """
    known = dict(launch.constants)
    if launch.kernel.__name__ == "linear_many":
        inside = 32 * sum(made.loop.values()) * dict(launch.options)["num_warps"] / (32 * known["BN"] * known["BU"])
        return Cost(inside, inside)
    if launch.kernel.__name__ == "decode_rows":
        overall = sum(made.everything.values()) * 128 / (32 * known["BN"] * known["BU"])
        return Cost(overall, overall)
    weights = known["BN"] * known["BU"] * _piece(launch) / (32 * dict(launch.options)["num_warps"])
    num_steps = -(-known["K"] // (known["BU"] * _piece(launch)))
    num_weights = 2 if launch.kernel.__name__ == "gate_up_few" else 1
    inside, everything = sum(made.loop.values()), sum(made.everything.values())
    if inside == everything:
        return Cost(*[everything / (weights * num_steps * num_weights)] * 2)
    unrolled = max(1, round(made.loop["FFMA"] / (weights * known["TOKENS"]) - 0.2))
    around = everything - inside
    return Cost(inside / (weights * unrolled), inside / (weights * unrolled) + around / (weights * num_steps))


def _piece(launch: launches.Launch) -> int:
    known, lo = dict(launch.constants), dict(launch.signature)["lo"]
    if known["SCALE"] < 3:
        return 16 if known["LO_BITS"] == 8 else 32
    return {"*fp32": 4, "*fp16": 8, "*bf16": 8, "*i32": 8, "*fp8e4nv": 16}[lo]


def launches_of(fmt: str, num_rows: int, num_columns: int, num_tokens: int = 1) -> list[launches.Launch]:
    """What a linear layer launches on an H200."""
    found: dict[launches.Launch, None] = {}

    def linear(builder: GraphBuilder) -> Any:
        return launches._linear(builder, fmt, num_rows, num_columns)

    with launches.recorded(found):
        launches.Recorder(TARGETS["sm90"].settings()).lower(linear, T=num_tokens)
    return list(found)


def main(wanted: list[str]) -> None:
    """One line for every `FORMAT:ROWSxCOLUMNS` or `FORMAT:ROWSxCOLUMNSxTOKENS`."""
    for text in wanted:
        fmt, _, sizes = text.partition(":")
        for launch in launches_of(fmt, *map(int, sizes.split("x"))):
            if "lo" not in launch.kernel.arg_names:
                continue
            made = assemble(launch)
            found = cost(launch, made)
            most = " ".join(f"{name}={count}" for name, count in made.loop.most_common(9))
            print(
                f"{text} inside={found.inside:.2f} overall={found.overall:.2f} registers={made.registers} "
                f"spilled={made.spilled_bytes} shared={made.shared_bytes} {most}",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
