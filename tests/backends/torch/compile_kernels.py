"""Compiles kernels for chips that need not be present; prints what each takes. Run as a program.

    compile_kernels.py                  what the lowering of seven models launches, for every target (20 minutes)
    compile_kernels.py sm90:models      for one
    compile_kernels.py sm75:largest     of these only the largest tiles of each kernel
    compile_kernels.py sm90             every kernel once

Triton compiles as far as the chip's own assembler: what does not fit a chip's language or registers fails here, and so
does what needs more shared memory than a block of the chip has. It must not be imported for the interpreter.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import launches
import triton
from targets import TARGETS, Target
from triton.compiler import ASTSource

from runtime_torch.kernels import (
    attention,
    cache,
    checks,
    elementwise,
    embed,
    linear,
    linear_few,
    moe,
    moe_few,
    moe_route,
    norm,
    rope,
    rounding,
    rows,
)

F32 = 0
"""Of MODE, see `kernels.blocks`."""
PLANES = {"lo": "*i32", "hi": "*i32", "scale": "*i8", "above": "*fp16", "low": "*i8", "low_above": "*fp16"}
POINTERS = {
    **PLANES,
    **{f"up_{name}": kind for name, kind in PLANES.items()},
    **dict.fromkeys(("up_bias", "shares", "made", "logits", "weights", "up_factors"), "*fp32"),
    **dict.fromkeys(
        ("table", "bias", "x", "y", "a", "b", "q", "k", "v", "weight", "total", "residual", "gate", "up"), "*fp32"
    ),
    **dict.fromkeys(("partial", "largest", "sums", "sinks", "slopes", "inv_freq", "q_gain", "k_gain"), "*fp32"),
    **dict.fromkeys(("token_ids", "positions", "slot_mapping", "block_table", "query_start_loc"), "*i32"),
    **dict.fromkeys(("seq_lens", "expert_ids", "order", "borders", "indices", "others", "arrivals", "packed"), "*i32"),
    **dict.fromkeys(("staged", "places"), "*i32"),
    "rules": "*i64",
    **dict.fromkeys(("source_ids", "target_ids"), "*i32"),
    "source": "*fp32",
    "target": "*fp16",
    "kv": "*bf16",
    "fault": "*i64",
    "exponents": "*i32",
    **dict.fromkeys(("up", "factors"), "*fp32"),
}
FLOATS = ("eps", "weight_offset", "factor", "factor_rest", "scale", "softcap", "sign", "alpha", "limit", "cap")
Q5_K = {"LO_BITS": 4, "HI_BITS": 1, "OFFSET": 0, "GROUPS": 1, "SCALE": 1, "MINIMUM": True, "CODEBOOK": False}
Q2_K = Q5_K | {"LO_BITS": 2, "HI_BITS": 0, "GROUPS": 2}
Q6_K = Q5_K | {"HI_BITS": 2, "OFFSET": 32, "GROUPS": 2, "MINIMUM": False}
Q8_0 = Q5_K | {"LO_BITS": 8, "HI_BITS": 0, "SCALE": 0, "MINIMUM": False}
IQ4 = Q5_K | {"HI_BITS": 0, "SCALE": 0, "MINIMUM": False, "CODEBOOK": True}
MXFP4 = IQ4 | {"SCALE": 2}
DENSE = Q8_0 | {"SCALE": 3}
FORMATS = (Q5_K, Q2_K, Q6_K, Q8_0, IQ4, MXFP4, DENSE)
ROUTE = {"TOP_K": 8, "SCORE": 0, "NORMALIZE": True, "HAS_BIAS": True}
HEADS = {"HEAD_DIM": 96, "NUM_FREQS": 32, "INTERLEAVED": False, "BF": 32, "BD": 32}
ATTENTION = {"BLOCK_SIZE": 16, "NUM_KV_HEADS": 8, "GROUP": 4, "HEAD_DIM": 128, "WINDOW": 0, "CAUSAL": True}
ATTENTION |= {"SOFTCAP": False, "SINKS": False, "SLOPES": False, "MODE": 1, "SEQS": 64}
ATTENTION |= {"BQ": 16, "BM": 64, "BK": 64, "BD": 128, "LEAST_STEPS": 2, "PHASES": True}
RICH = ATTENTION | {"WINDOW": 128, "SOFTCAP": True, "SINKS": True, "SLOPES": True, "BM": 16, "BQ": 4, "PHASES": False}


@dataclass(frozen=True)
class Case:
    """A kernel to be compiled."""

    name: str
    source: Any
    options: Mapping[str, int]
    constants: Mapping[str, Any]

    @property
    def tile_size(self) -> int:
        """Product of the sizes of its blocks, by the bytes of operands: grows with the memory that it takes."""
        width = 4 if self.constants.get("MODE") == F32 else 2
        return width * prod(v for n, v in self.constants.items() if n.startswith("B") and type(v) is int)


def signature(kernel: Any, constants: dict[str, Any], changed: dict[str, str]) -> dict[str, str]:
    """Types of all parameters."""
    types = {}
    for name in kernel.arg_names:
        is_scalar_scale = name == "scale" and "LO_BITS" not in kernel.arg_names
        default = "fp32" if name in FLOATS and (name != "scale" or is_scalar_scale) else "i32"
        types[name] = "constexpr" if name in constants else changed.get(name, default)
        pointer = name.removesuffix("_1").removesuffix("_2")
        if types[name] == "i32" and pointer in POINTERS and not is_scalar_scale:
            types[name] = POINTERS[pointer]
    return types


def expert_cases(fmt: dict[str, Any], lo: dict[str, str]) -> list[tuple[Any, dict[str, Any], dict[str, str]]]:
    """Products of experts: one by one, gated, summed; grouped, into operands and into what is summed."""
    few = {**fmt, "HAS_BIAS": True, "K": 2048, "EVEN": True, "BN": 8, "BU": 64}
    words = {"lo": "*i32", "up_lo": "*i32"}
    both = {n: t for p, t in lo.items() for n in (p, f"up_{p}")}
    is_dense, width = fmt == DENSE, fmt["LO_BITS"] if fmt["LO_BITS"] < 8 else 32
    many = {**fmt, "HAS_BIAS": False, "HAS_FACTOR": not is_dense, "UP_FACTOR": False, "MODE": 1 if is_dense else 2}
    # where a table is, loops are lowered without the stages that are the default here
    rows = 32 if fmt["CODEBOOK"] else 64
    many |= {"W": width, "EXPERTS": 128, "BM": 16, "BN": rows, "BU": max(2, 16 // width), "GROUP": 8}
    operand = "*bf16" if is_dense else "*fp16"
    return [
        (moe_few.moe_few, few | {"KIND": -1, "HAS_SHARES": True}, words),
        (moe_few.moe_few, few | {"KIND": 0, "HAS_SHARES": False}, words),
        (moe_few.moe_few_sum, few | {"TOP_K": 8}, words),
        (moe.moe_many, many | {"KIND": 4, "HAS_SHARES": False}, both | {"x": operand, "y": operand}),
        (moe.moe_many, many | {"KIND": -1, "HAS_SHARES": True}, both | {"x": operand}),
    ]


def cases() -> list[tuple[Any, dict[str, Any], dict[str, str]]]:
    """Every kernel with the constants and types of real use."""
    f16 = {"x": "*fp16", "made": "*fp16"}
    made: list[tuple[Any, dict[str, Any], dict[str, str]]] = []
    for fmt in FORMATS:
        lo = {"lo": "*i32" if fmt["LO_BITS"] < 8 else "*bf16" if fmt == DENSE else "*i8"}
        few = {**fmt, "HAS_BIAS": True, "K": 2048, "TOKENS": 2, "EVEN": False, "BN": 4, "BU": 32}
        words = dict.fromkeys(("lo", "lo_1", "lo_2"), "*i32")
        made.append((linear_few.linear_few, few, words))
        made.append((linear_few.linear_few_of_three, few | {"TOKENS": 1, "EVEN": True}, words))
        made.append((linear_few.gate_up_few, few | {"KIND": 4}, words))
        width = {"W": min(32, fmt["LO_BITS"] if fmt["LO_BITS"] < 8 else 32), "HAS_FACTOR": True, "MODE": 2}
        many = {**fmt, **width, "HAS_BIAS": True, "SPLITS": 2, "BM": 64, "BN": 64}
        many["BU"] = 8 if fmt["LO_BITS"] == 2 else 4
        made.append((linear.linear_many, many, f16 | lo))
        made.append((linear.decode_rows, {**fmt, **width, "BN": 4, "BU": 128}, f16 | lo))
        made += expert_cases(fmt, lo)
        made.append((embed.embed_blocks, {**fmt, "SCALED": True, "BT": 1, "BU": 32}, lo))
    few = {**DENSE, "HAS_BIAS": False, "K": 1000, "TOKENS": 1, "EVEN": True, "BN": 8, "BU": 64}
    made += [(linear_few.linear_few, few, {"lo": lo}) for lo in ("*fp32", "*fp16", "*bf16", "*fp8e4nv")]
    fp8 = {**DENSE, "HAS_FACTOR": False, "HAS_BIAS": False, "SPLITS": 1, "MODE": 2, "W": 32, "BM": 64, "BN": 64}
    finish = {"HAS_EXPONENT": True, "HAS_FACTOR": False, "HAS_BIAS": False, "IN_PLACE": True, "BT": 2, "BLOCK": 1024}
    whole = {"KIND": -1, "W": 4, "MODE": 2, "TOP": 15, "WHOLE": True, "BR": 1, "BLOCK": 4096}
    parts = whole | {"KIND": 0, "WHOLE": False}
    made += [
        (linear.linear_many, {**fp8, "BU": 4}, {"x": "*fp16", "lo": "*fp8e4nv"}),
        (rounding.finish, finish, {"made": "*fp32"}),
        (rounding.finish, finish | {"HAS_FACTOR": True, "HAS_BIAS": True, "IN_PLACE": False}, {"made": "*fp16"}),
        (rounding.round_rows, whole, {"y": "*fp16"}),
        (rounding.round_rows, parts, {"y": "*fp16"}),
        (rounding.round_rows, parts | {"W": 32, "MODE": 1}, {"y": "*bf16"}),
        (linear.sum_splits, {"SPLITS": 4, "HAS_BIAS": True, "BLOCK": 1024}, {}),
        (moe.sum_chosen, {"TOP_K": 8, "BT": 1, "BLOCK": 1024}, {}),
        (moe_route.moe_route, ROUTE | {"BR": 4, "BLOCK": 128, "BK": 8}, {}),
        (moe_route.moe_route, ROUTE | {"TOP_K": 32, "SCORE": 1, "BR": 1, "BLOCK": 1024, "BK": 32}, {}),
        (moe_route.group_pairs, {"BE": 1, "BLOCK": 1024}, {}),
        (norm.rms_norm, {"HAS_RESIDUAL": True, "BR": 1, "BLOCK": 4096}, {}),
        (norm.layer_norm, {"HAS_BIAS": True, "BR": 1, "BLOCK": 4096}, {}),
        (rope.rope, HEADS | {"BT": 1, "BR": 16}, {}),
        (rope.qkv_rope_write, HEADS | {"Q_NORM": True, "K_NORM": True, "BT": 1, "BR": 16, "BLOCK": 128}, {}),
        (cache.kv_write, {"BR": 8, "BLOCK": 1024}, {}),
        (cache.move_blocks, {"HAS_SOURCE_IDS": True, "HAS_TARGET_IDS": False, "BLOCK": 1024}, {}),
        (elementwise.activation, {"KIND": 1, "BLOCK": 1024}, {}),
        (elementwise.glu, {"KIND": 4, "BLOCK": 1024}, {}),
        (elementwise.softcap, {"BLOCK": 1024}, {}),
        (elementwise.product, {"BLOCK": 1024}, {}),
        (elementwise.unpack, {"BLOCK": 1024}, {}),
        (rows.gather_rows, {"BLOCK": 4096}, {"rows": "*i32"}),
        (rows.argmax, {"BLOCK": 2048, "PARTS": 64}, {}),
        (rows.softmax, {"LOG": True, "BLOCK": 8192}, {}),
        (checks.check, {"BLOCK": 256, "SEQS": 64, "BP": 64}, {}),
        (attention.attention_tiles, ATTENTION, {}),
        (attention.attention_tiles, ATTENTION | {"MODE": 2, "HEAD_DIM": 80}, {"kv": "*fp16"}),
        (attention.attention_tiles, ATTENTION | {"MODE": 0, "BM": 16, "BK": 16, "BQ": 4}, {"kv": "*fp32"}),
        (attention.attention_tiles, RICH, {}),
        (attention.attention_tiles, RICH | {"BM": 64, "BQ": 16, "PHASES": True}, {}),
    ]
    return made


FORMATS_OF_MODELS = ("bf16", "q4_k", "q6_k", "f8_e4m3_g128")
SHAPES = (
    (launches.Shapes(), FORMATS_OF_MODELS, (1, 16, 64, 128, 4096)),
    (launches.Shapes(2048, 768, 32, 4, 128, 128, kv="bf16"), ("q4_k", "bf16", "f16"), (1, 64, 4096)),
    (launches.Shapes(3072, 8192, 32, 32, 96), ("q8_0",), (1, 4096)),
    (launches.Shapes(2560, 10240, 32, 32, 80), ("q8_0",), (1,)),
    (launches.Shapes(3584, 14336, 16, 8, 256, window=4096), ("q6_k",), (1, 4096)),
    (launches.Shapes(2048, 8192, 8, 1, 256, kv="f32"), ("q8_0",), (1, 4096)),
    (launches.Shapes(2880, 2880, 64, 8, 64, 32, 4, window=128, sinks=True), ("mxfp4",), (1, 4096)),
)
"""Llama-3.1-8B, Qwen3-30B-A3B, Phi-3 mini, Phi-2, Gemma 2 9B, Gemma 2B over a cache in f32, gpt-oss 20B."""


def model_cases(target: Target) -> Iterator[Case]:
    """What models launch on a chip."""
    settings = target.settings()
    found: dict[launches.Launch, None] = {}
    for shapes, formats, tokens in SHAPES:
        formats = tuple(f for f in formats if settings.fp8 or not f.startswith("f8"))
        found.update(dict.fromkeys(launches.model_launches(settings, shapes, formats, tokens)))
    found.update(dict.fromkeys(launches.sampling_launches(settings)))
    # how many ways a sum is split changes nothing but a bound of a loop
    alike = {(m.name.split(" SPLITS=")[0], m.signature, m.options, "SPLITS=1 " in m.name): m for m in found}
    for made in alike.values():
        attributes = {(i,): [["tt.divisibility", 16]] for i in made.aligned}
        source = ASTSource(made.kernel, dict(made.signature), dict(made.constants), attributes)
        yield Case(made.name, source, dict(made.options), dict(made.constants))


def largest_cases(target: Target, each: int = 2) -> list[Case]:
    """Of what models launch, the largest tiles of every kernel that multiplies them."""
    by_kernel: dict[str, list[Case]] = {}
    for case in model_cases(target):
        if "MODE" in case.constants:
            by_kernel.setdefault(case.name.split(" ")[0], []).append(case)
    return [c for cases in by_kernel.values() for c in sorted(cases, key=lambda c: c.tile_size)[-each:]]


def kernel_cases() -> Iterator[Case]:
    """Every kernel."""
    for kernel, constants, changed in cases():
        types = signature(kernel, constants, changed)
        yield Case(kernel.__name__, ASTSource(fn=kernel, signature=types, constexprs=constants), {}, constants)


@dataclass(frozen=True)
class Used:
    """What a compiled kernel takes: bytes of shared memory, registers of a lane, bytes that a lane spills."""

    shared: int
    registers: int
    spilled: int


def used_by(made: Any, target: Target) -> Used:
    """By the chip's own assembler."""
    if target.gpu.backend == "cuda":
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(made.asm["cubin"])
            file.flush()
            command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        registers, spilled = (int(n) for n in re.search(r"REG:(\d+) STACK:(\d+)", text).groups())
    else:
        text = made.asm["amdgcn"]
        registers, spilled = (
            int(re.search(rf"\.{n}:\s+(\d+)", text)[1]) for n in ("vgpr_count", "private_segment_fixed_size")
        )
    return Used(made.metadata.shared, registers, spilled)


def compile_all(name: str, cases: Iterable[Case], target: Target) -> int:
    """Print a line for each, and what the worst use; returns the number of failures."""
    failures, worst = 0, {"shared": (0, ""), "registers": (0, ""), "spilled": (0, "")}
    for case in cases:
        try:
            made = triton.compile(case.source, target=target.gpu, options=case.options)
        except Exception as error:  # noqa: BLE001  (whatever the compiler raises is the finding)
            failures += 1
            print(f"FAIL {name} {case.name}: {type(error).__name__}: {str(error)[-800:]}", flush=True)
            continue
        used = used_by(made, target)
        # an Arc A has no float64
        runs = used.shared <= target.shared_bytes and "f64" not in made.asm["ttir"]
        failures += not runs
        line = " ".join(f"{n}={v}" for n, v in asdict(used).items())
        float64 = " computes in float64" if "f64" in made.asm["ttir"] else ""
        print(f"{'' if runs else 'FAIL '}{name} {case.name} {line}{float64}", flush=True)
        worst = {n: max(worst[n], (v, case.name)) for n, v in asdict(used).items()}
    for what, (most, where) in worst.items():
        print(f"worst {name} {what}={most} of {target.shared_bytes if what == 'shared' else ''} {where}", flush=True)
    return failures


def main(names: list[str]) -> int:
    """Compile for the targets in `names`; returns the number of failures."""
    failures = 0
    warnings.simplefilter("ignore")
    for name in names:
        chip, _, what = name.partition(":")
        target = TARGETS[chip]
        cases = {"": kernel_cases, "models": lambda: model_cases(target), "largest": lambda: largest_cases(target)}  # noqa: B023
        failures += compile_all(name, cases[what](), target)
    return failures


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:] or [f"{name}:models" for name in TARGETS]) else 0)
