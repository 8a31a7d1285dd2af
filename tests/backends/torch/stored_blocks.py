"""Weights as files hold them: blocks of any bytes."""

from __future__ import annotations

import numpy as np

from runtime.dtypes import FORMATS, encode
from runtime_torch.planes import LAYOUTS


def random_blocks(fmt: str, num_rows: int, num_columns: int) -> np.ndarray:
    """Blocks of any bytes, with scales that are finite and of ordinary size."""
    layout, form = LAYOUTS[fmt], FORMATS[fmt]
    if layout.scale == "float8":
        values = np.random.default_rng(8).standard_normal((num_rows, num_columns)).astype(np.float32)
        return np.frombuffer(encode(form, values), np.uint8).reshape(-1, form.block_bytes)
    rng = np.random.default_rng(len(fmt))
    raw = rng.integers(0, 256, (num_rows * num_columns // layout.block_elements, form.block_bytes), np.uint8)
    halves = {"q2_k": (80, 82), "q3_k": (108,), "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,), "mxfp4": ()}
    for at in halves.get(fmt, (0, 2) if layout.has_minimum else (0,)):
        raw[:, at : at + 2] = rng.uniform(-1, 1, len(raw)).astype(np.float16).view(np.uint8).reshape(-1, 2)
    if fmt == "mxfp4":
        raw[:, 0] = rng.integers(0, 140, len(raw))
    return raw
