"""Compiles every kernel for chips that need not be present; prints one line per kernel and target. Run as a program.

Triton compiles as far as the chip's own assembler: what does not fit a chip's language or registers fails here.
"""

from __future__ import annotations

import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from runtime_torch.kernels import attention, cache, checks, elementwise, embed, linear, moe, norm, rope

TARGETS = {
    "sm80": GPUTarget("cuda", 80, 32),
    "sm90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx1100": GPUTarget("hip", "gfx1100", 32),
}
PLANES = {"lo": "*u8", "hi": "*i32", "scale": "*i8", "above": "*fp16", "low": "*i8", "low_above": "*fp16"}
POINTERS = {
    **PLANES,
    **dict.fromkeys(("table", "bias", "x", "y", "q", "k", "v", "weight", "total", "residual", "gate", "up"), "*fp32"),
    **dict.fromkeys(("partial", "largest", "sums", "sinks", "slopes", "inv_freq", "q_gain", "k_gain"), "*fp32"),
    **dict.fromkeys(("token_ids", "positions", "slot_mapping", "block_table", "query_start_loc"), "*i32"),
    **dict.fromkeys(("seq_lens", "expert_ids", "order", "borders", "indices", "others", "sizes"), "*i32"),
    **dict.fromkeys(("source_ids", "target_ids"), "*i32"),
    "source": "*fp32",
    "target": "*fp16",
    "kv": "*bf16",
    "fault": "*i64",
}
FLOATS = ("eps", "weight_offset", "factor", "factor_rest", "scale", "softcap", "alpha", "limit")
Q5_K = {"LO_BITS": 4, "HI_BITS": 1, "OFFSET": 0, "GROUPS": 1, "SCALE": 1, "MINIMUM": True, "CODEBOOK": False}
Q2_K = Q5_K | {"LO_BITS": 2, "HI_BITS": 0, "GROUPS": 2}
Q6_K = Q5_K | {"HI_BITS": 2, "OFFSET": 32, "GROUPS": 2, "MINIMUM": False}
Q8_0 = Q5_K | {"LO_BITS": 8, "HI_BITS": 0, "SCALE": 0, "MINIMUM": False}
IQ4 = Q5_K | {"HI_BITS": 0, "SCALE": 0, "MINIMUM": False, "CODEBOOK": True}
MXFP4 = IQ4 | {"SCALE": 2}
DENSE = Q8_0 | {"SCALE": 3}
FORMATS = (Q5_K, Q2_K, Q6_K, Q8_0, IQ4, MXFP4, DENSE)
HEADS = {"HEAD_DIM": 96, "NUM_FREQS": 32, "INTERLEAVED": False, "BF": 32, "BD": 32}
ATTENTION = {"BLOCK_SIZE": 16, "NUM_KV_HEADS": 8, "GROUP": 4, "HEAD_DIM": 128, "WINDOW": 0, "CAUSAL": True}
ATTENTION |= {"SOFTCAP": False, "SINKS": False, "SLOPES": False, "SPLITS": 1, "MODE": 1, "SEQS": 64}
ATTENTION |= {"BQ": 16, "BM": 64, "BK": 64, "BD": 128}
RICH = ATTENTION | {"WINDOW": 128, "SOFTCAP": True, "SINKS": True, "SLOPES": True, "SPLITS": 8, "BM": 16, "BQ": 4}


def signature(kernel: Any, constants: dict[str, Any], changed: dict[str, str]) -> dict[str, str]:
    """Types of all parameters."""
    types = {}
    for name in kernel.arg_names:
        is_scalar_scale = name == "scale" and "LO_BITS" not in kernel.arg_names
        default = "fp32" if name in FLOATS and (name != "scale" or is_scalar_scale) else "i32"
        types[name] = "constexpr" if name in constants else changed.get(name, default)
        if types[name] == "i32" and name in POINTERS and not is_scalar_scale:
            types[name] = POINTERS[name]
    return types


def cases() -> list[tuple[Any, dict[str, Any], dict[str, str]]]:
    """Every kernel with the constants and types of real use."""
    bf16 = {"x": "*bf16"}
    made: list[tuple[Any, dict[str, Any], dict[str, str]]] = []
    for fmt in FORMATS:
        made.append((linear.linear_few, {**fmt, "HAS_BIAS": True, "SPLITS": 1, "BN": 8, "BU": 16}, {}))
        many = {**fmt, "HAS_BIAS": True, "SPLITS": 2, "MODE": 1, "BM": 64, "BN": 64, "BU": 4}
        made.append((linear.linear_many, many, bf16))
        made.append((moe.moe_few, {**fmt, "HAS_BIAS": True, "BN": 8, "BU": 16}, {}))
        grouped = {**fmt, "HAS_BIAS": False, "MODE": 1, "EXPERTS": 128, "BM": 16, "BN": 64, "BU": 4}
        made.append((moe.moe_many, grouped, bf16))
        made.append((embed.embed_blocks, {**fmt, "SCALED": True, "BT": 1, "BU": 32}, {}))
    fp8 = {"x": "*bf16", "lo": "*fp8e4nv"}
    made += [
        (linear.linear_many, {**DENSE, "HAS_BIAS": False, "SPLITS": 1, "MODE": 1, "BM": 64, "BN": 64, "BU": 4}, fp8),
        (linear.sum_splits, {"SPLITS": 4, "HAS_BIAS": True, "BLOCK": 1024}, {}),
        (norm.rms_norm, {"HAS_RESIDUAL": True, "BR": 1, "BLOCK": 4096}, {}),
        (norm.layer_norm, {"HAS_BIAS": True, "BR": 1, "BLOCK": 4096}, {}),
        (rope.rope, HEADS | {"BR": 16}, {}),
        (rope.qkv_rope_write, HEADS | {"Q_NORM": True, "K_NORM": True, "BR": 16, "BLOCK": 128}, {}),
        (cache.kv_write, {"BR": 8, "BLOCK": 1024}, {}),
        (cache.move_blocks, {"HAS_SOURCE_IDS": True, "HAS_TARGET_IDS": False, "BLOCK": 1024}, {}),
        (elementwise.activation, {"KIND": 1, "BLOCK": 1024}, {}),
        (elementwise.glu, {"KIND": 4, "BLOCK": 1024}, {}),
        (elementwise.stage, {"REPEAT_LAST": True, "BO": 64, "BI": 64}, {"source": "*i32", "target": "*i32"}),
        (checks.check_range, {"BLOCK": 1024}, {}),
        (checks.check_apart, {"EARLIER": True, "BLOCK": 256}, {}),
        (checks.check_sequences, {"BLOCK_SIZE": 16, "WINDOW": 64, "CAUSAL": True, "SEQS": 64, "BP": 64}, {}),
        (attention.attention_tiles, ATTENTION, {}),
        (attention.attention_tiles, ATTENTION | {"MODE": 2, "HEAD_DIM": 80}, {"kv": "*fp16"}),
        (attention.attention_tiles, ATTENTION | {"MODE": 0, "BM": 16, "BK": 16, "BQ": 4}, {"kv": "*fp32"}),
        (attention.attention_tiles, RICH, {}),
        (attention.attention_merge, {"HEAD_DIM": 80, "SINKS": True, "SPLITS": 8, "BR": 8, "BD": 128}, {}),
    ]
    return made


def main(names: list[str]) -> int:
    """Compile for the targets in `names`; returns the number of failures."""
    failures = 0
    for name in names:
        for kernel, constants, changed in cases():
            source = ASTSource(fn=kernel, signature=signature(kernel, constants, changed), constexprs=constants)
            try:
                made = triton.compile(source, target=TARGETS[name])
            except Exception as error:  # noqa: BLE001  (whatever the compiler raises is the finding)
                failures += 1
                print(f"FAIL {name} {kernel.__name__} {constants}: {type(error).__name__}: {str(error)[-800:]}")
                continue
            print(f"{name} {kernel.__name__} shared={made.metadata.shared}")
    return failures


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:] or list(TARGETS)) else 0)
