"""Data of cases: bytes from a counter-based generator keyed by (seed, case, tensor), the same on every machine.

Only integer arithmetic and correctly rounded operations are used, so that no library's version shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from runtime.dtypes import FORMATS, can_encode, encode
from runtime.errors import InvalidArgument
from runtime_conformance.case import Case, Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[Any]

SCALE_OFFSETS: dict[str, tuple[int, ...]] = {
    "q2_k": (80, 82),
    "q3_k": (108,),
    "q4_k": (0, 2),
    "q5_k": (0, 2),
    "q6_k": (208,),
    "iq1_s": (0,),
    "iq2_xxs": (0,),
    "iq2_xs": (0,),
    "iq2_s": (0,),
    "iq3_xxs": (0,),
    "iq3_s": (0,),
    "iq4_nl": (0,),
    "iq4_xs": (0,),
}
"""Where blocks without an encoder hold their float16 scales; all other bits of such a block may be anything."""


class Stream:
    """Random numbers of one tensor: Philox 4x64 (Salmon et al. 2011) under a key of 128 bits."""

    def __init__(self, *key: object) -> None:
        import numpy as np

        digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
        self._bits = np.random.Philox(key=int.from_bytes(digest[:16], "little"))

    def words(self, count: int) -> NDArray[np.uint64]:
        """Random 64-bit words."""
        return self._bits.random_raw(count)

    def bytes(self, count: int) -> NDArray[np.uint8]:
        """Random bytes."""
        import numpy as np

        return self.words(-(-count // 8)).astype("<u8").view(np.uint8)[:count]

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """Whole numbers low .. high, both included."""
        import numpy as np

        words = self.words(_size(shape)) >> np.uint64(33)
        numbers: NDArray[np.int64] = (words % np.uint64(high - low + 1)).astype(np.int64).reshape(shape) + low
        return numbers

    def uniform(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """In [0, 1), multiples of 2^-24, so that float32 holds them."""
        import numpy as np

        numbers: NDArray[np.float64] = (self.words(_size(shape)) >> np.uint64(40)).astype(np.float64) * 2.0**-24
        return numbers.reshape(shape)

    def bell(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Nearly normal, variance 1: the sum of four 16-bit integers, scaled."""
        import numpy as np

        parts = self.words(_size(shape)).astype("<u8").view("<u2").reshape(-1, 4).astype(np.int64)
        centred: NDArray[np.float64] = (parts.sum(1) - 2 * 65535).astype(np.float64) / 37837.0
        return centred.reshape(shape)


Filler = Callable[..., Any]


def _normal(s: Stream, shape: tuple[int, ...], scale: float = 1.0, offset: float = 0.0) -> Array:
    return s.bell(shape) * scale + offset


def _uniform(s: Stream, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Array:
    return low + s.uniform(shape) * (high - low)


def _outlier(s: Stream, shape: tuple[int, ...], scale: float = 1.0) -> Array:
    """One channel 25 times as large as the others, like the residual stream of a real model."""
    x = s.bell(shape) * scale
    x[..., 17 % shape[-1]] *= 25
    return x


def _wide(s: Stream, shape: tuple[int, ...], scale: float = 1.0, reach: int = 6) -> Array:
    import numpy as np

    return s.bell(shape) * scale * np.ldexp(1.0, s.integers(-reach, reach, shape))


def _denormal(s: Stream, shape: tuple[int, ...], scale: float = 1.0) -> Array:
    """Every other row below the smallest normal float32."""
    x = s.bell(shape) * scale
    x[1::2] *= 2.0**-130
    return x


def _nonfinite(s: Stream, shape: tuple[int, ...], scale: float = 1.0) -> Array:
    """NaN in the second row, infinity in the third, minus infinity in the fourth; all other rows are ordinary."""
    x = s.bell(shape) * scale
    for row, value in ((1, float("nan")), (2, float("inf")), (3, float("-inf"))):
        if row < shape[0]:
            x[row, (5 * row) % shape[-1]] = value
    return x


def _cancel(s: Stream, shape: tuple[int, ...], scale: float = 1.0) -> Array:
    """Neighbours of nearly opposite value: their sum is small, their size is not."""
    x = s.bell(shape) * scale
    width = shape[-1] // 2
    x[..., 1 : 2 * width : 2] = x[..., 1 : 2 * width : 2] / 64 - x[..., 0 : 2 * width : 2]
    return x


def _paired(s: Stream, shape: tuple[int, ...], scale: float = 1.0) -> Array:
    """Neighbours of equal value: what multiplies `cancel`."""
    x = s.bell(shape) * scale
    width = shape[-1] // 2
    x[..., 1 : 2 * width : 2] = x[..., 0 : 2 * width : 2]
    return x


def _integers(s: Stream, shape: tuple[int, ...], low: int = -3, high: int = 3, factor: float = 1.0) -> Array:
    """Whole numbers without zero, times a power of two."""
    x = s.integers(low, high, shape)
    x[x == 0] = high
    return x * factor


def _sparse(s: Stream, shape: tuple[int, ...], every: int = 8, value: float = 127.0) -> Array:
    """Zero but for plus or minus `value` at a few places of each row, its last element among them.

    8-bit integers with a scale per group hold it exactly.
    """
    import numpy as np

    x = np.zeros(shape)
    chosen = s.integers(0, shape[-1] - 1, (*shape[:-1], every))
    chosen[..., 0] = shape[-1] - 1
    signs = s.integers(0, 1, chosen.shape) * 2 - 1
    np.put_along_axis(x, chosen, signs * value, -1)
    return x


def _values(s: Stream, shape: tuple[int, ...], *numbers: float) -> Array:
    import numpy as np

    return np.array(numbers).reshape(shape)


def _constant(s: Stream, shape: tuple[int, ...], value: float) -> Array:
    import numpy as np

    return np.full(shape, value)


def _indices(s: Stream, shape: tuple[int, ...], size: int) -> Array:
    """Any of 0 .. size - 1; the first and the last occur where there is room."""
    x = s.integers(0, size - 1, shape)
    flat = x.reshape(-1)
    flat[-1:] = size - 1
    if flat.size > 2:
        flat[0] = 0
    return x


def _distinct(s: Stream, shape: tuple[int, ...], size: int) -> Array:
    """Different numbers of 0 .. size - 1 within each innermost row."""
    import numpy as np

    keys = s.words(_size(shape[:-1]) * size).reshape(*shape[:-1], size)
    return np.argsort(keys, axis=-1, kind="stable")[..., : shape[-1]]


def _steps(s: Stream, shape: tuple[int, ...], distance: float = 0.25) -> Array:
    """Different values within each row, in random order, `distance` apart: sorting has one answer."""
    return (_distinct(s, shape, shape[-1]) - shape[-1] // 2) * distance


def _ties(s: Stream, shape: tuple[int, ...], levels: int = 5) -> Array:
    """Few different values, so that most of them tie."""
    return s.integers(0, levels - 1, shape).astype(float)


def _probabilities(s: Stream, shape: tuple[int, ...]) -> Array:
    weights = s.integers(1, 1 << 12, shape).astype(float)
    shares: Array = weights / weights.sum(-1, keepdims=True)
    return shares


FILLERS: dict[str, Filler] = {
    "normal": _normal,
    "uniform": _uniform,
    "outlier": _outlier,
    "wide": _wide,
    "denormal": _denormal,
    "nonfinite": _nonfinite,
    "cancel": _cancel,
    "paired": _paired,
    "integers": _integers,
    "sparse": _sparse,
    "values": _values,
    "constant": _constant,
    "indices": _indices,
    "distinct": _distinct,
    "steps": _steps,
    "ties": _ties,
    "probabilities": _probabilities,
}


def make_data(case: Case, seed: int) -> dict[str, Any]:
    """Input -> its stored bytes (a numpy array of uint8)."""
    made: dict[str, Any] = {}
    for name, tensor in case.inputs.items():
        made[name] = _bytes_of(case, name, tensor, Stream(seed, case.id, name), made)
    return made


def _bytes_of(case: Case, name: str, tensor: Tensor, stream: Stream, before: Mapping[str, Any]) -> Any:
    import numpy as np

    filler, *arguments = tensor.data
    fmt = FORMATS[tensor.format]
    if fmt.is_quantized and not can_encode(fmt):
        return _random_blocks(stream, tensor, is_exact=filler in ("integers", "paired"))
    if filler.startswith("kv_"):
        from runtime_conformance.cases.attention_data import fill_kv

        values = fill_kv(case, stream, before)
    elif filler == "attention_query":
        from runtime_conformance.cases.attention_data import exact_query

        values = exact_query(case)
    else:
        try:
            fill = FILLERS[filler]
        except KeyError:
            raise InvalidArgument(f"case {case.op}: input '{name}' has unknown data '{filler}'") from None
        values = fill(stream, tensor.shape, *arguments)
    if tensor.format not in ("f64",) and values.dtype.kind == "f":
        values = values.astype(np.float64)
    return np.frombuffer(encode(fmt, values.astype(np.float32) if fmt.is_quantized else values), dtype=np.uint8)


def _random_blocks(stream: Stream, tensor: Tensor, *, is_exact: bool) -> Any:
    """Blocks of random bits with sane scales: powers of two where sums must be exact."""
    import numpy as np

    fmt = FORMATS[tensor.format]
    num_blocks = fmt.nbytes(tensor.shape) // fmt.block_bytes
    raw = stream.bytes(num_blocks * fmt.block_bytes).reshape(num_blocks, fmt.block_bytes).copy()
    offsets = SCALE_OFFSETS.get(fmt.name)
    if offsets is None:
        return _redrawn(stream, fmt, raw).reshape(-1)
    for offset in offsets:
        scales = np.full(num_blocks, 2.0**-10) if is_exact else 2.0**-11 * (1 + stream.uniform((num_blocks,)))
        raw[:, offset : offset + 2] = scales.astype("<f2").view(np.uint8).reshape(-1, 2)
    return raw.reshape(-1)


def _redrawn(stream: Stream, fmt: Any, raw: Any) -> Any:
    """Blocks are drawn anew until they decode to numbers of ordinary size."""
    import numpy as np

    for _ in range(1000):
        with np.errstate(all="ignore"):
            values = np.abs(fmt.decode_blocks(raw).astype(np.float64))
        bad = ~(np.isfinite(values).all(1) & (values.max(1) < 8) & (values.max(1) > 2.0**-10))
        if not bad.any():
            return raw
        raw[bad] = stream.bytes(int(bad.sum()) * fmt.block_bytes).reshape(-1, fmt.block_bytes)
    raise InvalidArgument(f"no ordinary blocks of {fmt.name} found; its float16 scales need an entry in the suite")


def decode_data(case: Case, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Input -> its values as a reference takes them: float64, or int64."""
    import numpy as np

    decoded = {}
    for name, data in stored.items():
        tensor = case.inputs[name]
        values = FORMATS[tensor.format].decode(np.ascontiguousarray(data), tensor.shape)
        decoded[name] = values.astype(np.float64 if values.dtype.kind == "f" else np.int64)
    return decoded


def make_decoy(case: Case, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Other contents of the same shapes: step inputs of floats with half of their elements negated.

    It is run first, so that whoever replays an earlier result gives the wrong one.
    """
    import numpy as np

    decoys = dict(stored)
    for name, tensor in case.inputs.items():
        if (
            tensor.role == "input"
            and FORMATS[tensor.format].kind == "float"
            and tensor.format in ("f32", "f16", "bf16")
        ):
            size = FORMATS[tensor.format].block_bytes
            raw = np.array(stored[name]).reshape(-1, size)
            raw[1::2, -1] ^= 0x80
            decoys[name] = raw.reshape(-1)
    return decoys


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
