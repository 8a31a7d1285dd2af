"""The arithmetic of honest test backends: float32, bfloat16, or 8-bit integers with a scale per 32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runtime.backend import Numerics


@dataclass(frozen=True)
class Precision:
    """Which formats a backend computes with; `declared` is what it says in its manifest."""

    name: str
    activation: str
    output: str
    declared: Numerics

    def act(self, x: Any) -> Any:
        """`x` as it enters a product: float32."""
        return rounded(self.activation, x)

    def out(self, y: Any, like: Any) -> Any:
        """`y` as it is written, in the type of `like`."""
        return rounded(self.output, y).astype(like.dtype)


def rounded(fmt: str, x: Any) -> Any:
    """float32 `x` rounded to nearest in `fmt`."""
    import numpy as np

    x = np.asarray(x, np.float32)
    if fmt == "bf16":
        bits = x.view(np.uint32)
        moved = (bits + ((bits >> 16) & 1) + np.uint32(0x7FFF)) & np.uint32(0xFFFF0000)
        return np.where(np.isnan(x), x, moved.view(np.float32))
    if fmt == "f16":
        return x.astype(np.float16).astype(np.float32)
    if fmt.startswith("i"):
        bits_, group = fmt[1:].split("/")
        return _grouped(x, 2 ** (int(bits_) - 1) - 1, int(group))
    return x


def _grouped(x: Any, largest: int, group: int) -> Any:
    import numpy as np

    width = x.shape[-1]
    padded = np.zeros((*x.shape[:-1], -(-width // group) * group), np.float32)
    padded[..., :width] = x
    groups = padded.reshape(*x.shape[:-1], -1, group)
    scale = np.abs(groups).max(-1, keepdims=True) / np.float32(largest)
    whole = np.rint(groups / np.where(scale == 0, np.float32(1), scale))
    return (whole * scale).reshape(padded.shape)[..., :width]


F32 = Precision("f32", "f32", "f32", Numerics("f32", "f32", "f32", "f32", order="fixed"))
BF16 = Precision("bf16", "bf16", "bf16", Numerics("bf16", "f32", "bf16", "bf16", order="fixed"))
INT8 = Precision("int8", "i8/32", "f32", Numerics("i8/32", "f32", "f32", "f32", order="fixed"))
PRECISIONS = {p.name: p for p in (F32, BF16, INT8)}
