"""How one weight of the graph is made from tensors of the file: which bytes, and what is done to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from runtime.dtypes import FORMATS, TensorSpec
from runtime.models.rope import inverse_frequencies
from runtime.models.spec import RopeParameters

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FP8_GROUP = 128
"""Elements of a row under one scale in f8_e4m3_g128."""
Transform = Literal["concat", "columns", "stride", "mxfp4", "fp8", "f32", "inv_freq"]


@dataclass(frozen=True)
class Piece:
    """A run of bytes of one tensor of the file."""

    tensor: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class WeightRecipe:
    """Makes a weight of `spec` out of `pieces`.

    concat     the pieces one after the other; a single piece is a view of the file, nothing is copied
    columns    [E, in, out] -> [E, every `step`-th out from `start`, in]
    stride     [E, out] -> [E, every `step`-th out from `start`]
    mxfp4      blocks uint8 [E, out, G, 16] and scales uint8 [E, out, G] -> ggml's mxfp4 of every `step`-th row
    fp8        codes f8_e4m3 [N, K] and their scales, part by part: of a tensor, of rows [N, 1], or of squares of 128
               -> f8_e4m3_g128; `source` is that of the first scales
    f32        decoded to float32
    inv_freq   rotary divisors -> inverse frequencies of `rope`

    `source` is the tensor that a transform reads: its format and its whole shape.
    """

    spec: TensorSpec
    pieces: tuple[Piece, ...]
    transform: Transform = "concat"
    source: TensorSpec | None = None
    start: int = 0
    step: int = 1
    rope: RopeParameters | None = None

    @property
    def is_view(self) -> bool:
        """Whether the bytes are those of the file, in place."""
        return self.transform == "concat" and len(self.pieces) == 1


def load_weight_bytes(recipe: WeightRecipe, data: Callable[[str], memoryview]) -> memoryview:
    """The bytes of a weight, contiguous and little-endian, `recipe.spec.nbytes()` of them.

    `data` maps a tensor's name to its bytes; a view of it is returned where nothing has to be moved.
    """
    views = [data(p.tensor).cast("B")[p.offset : p.offset + p.nbytes] for p in recipe.pieces]
    if recipe.transform == "concat":
        return views[0] if len(views) == 1 else memoryview(b"".join(views))
    result = _TRANSFORMS[recipe.transform](recipe, views)
    return result.reshape(-1).view("u1").data.toreadonly()


def _columns(recipe: WeightRecipe, views: Sequence[memoryview]) -> NDArray[Any]:
    import numpy as np

    source = _elements(recipe, views[0])
    out = np.empty(recipe.spec.resolve({}), source.dtype)
    for expert, matrix in enumerate(source):
        out[expert] = matrix[:, recipe.start :: recipe.step].T
    return out


def _stride(recipe: WeightRecipe, views: Sequence[memoryview]) -> NDArray[Any]:
    import numpy as np

    return np.ascontiguousarray(_elements(recipe, views[0])[..., recipe.start :: recipe.step])


def _mxfp4(recipe: WeightRecipe, views: Sequence[memoryview]) -> NDArray[Any]:
    """Hugging Face packs neighbours (2j, 2j+1) into byte j; ggml packs (j, j+16) and puts the scale in front."""
    import numpy as np

    assert recipe.source is not None
    shape = recipe.source.resolve({})
    blocks = np.frombuffer(views[0], np.uint8).reshape(shape)
    scales = np.frombuffer(views[1], np.uint8).reshape(shape[:-1])
    rows = slice(recipe.start, None, recipe.step)
    num_rows = len(range(shape[1])[rows])
    out = np.empty((shape[0], num_rows, shape[2], 17), np.uint8)
    for expert in range(shape[0]):
        packed = blocks[expert, rows]
        elements = np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], 32)
        out[expert, ..., 0] = scales[expert, rows]
        out[expert, ..., 1:] = elements[..., :16] | (elements[..., 16:] << 4)
    return out


def _fp8(recipe: WeightRecipe, views: Sequence[memoryview]) -> NDArray[Any]:
    import numpy as np

    assert recipe.source is not None
    shape, (num_rows, num_columns) = recipe.source.resolve({}), recipe.spec.resolve({})[-2:]
    groups = num_columns // FP8_GROUP
    out = np.empty((len(views) // 2, num_rows, groups, 4 + FP8_GROUP), np.uint8)
    for part, codes, stored in zip(out, views[::2], views[1::2]):
        scales = recipe.source.format.decode(stored, shape).astype("<f4")
        if shape[-2:] == fp8_squares((num_rows, num_columns)):
            scales = np.repeat(scales, FP8_GROUP, axis=0)[:num_rows]
        else:
            scales = np.broadcast_to(scales.reshape(-1, 1), (num_rows, groups))
        part[..., :4] = np.ascontiguousarray(scales)[..., None].view(np.uint8)
        part[..., 4:] = np.frombuffer(codes, np.uint8).reshape(num_rows, groups, FP8_GROUP)
    return out


def fp8_squares(shape: Sequence[int]) -> tuple[int, int]:
    """Scales of a matrix [N, K] that has one for every square of 128 x 128."""
    return -(-shape[0] // FP8_GROUP), -(-shape[1] // FP8_GROUP)


def _f32(recipe: WeightRecipe, views: Sequence[memoryview]) -> NDArray[Any]:
    import numpy as np

    assert recipe.source is not None
    decoded = recipe.source.format.decode(views[0], recipe.source.resolve({}))
    return np.ascontiguousarray(decoded, dtype="<f4")


def _inv_freq(recipe: WeightRecipe, views: Sequence[memoryview]) -> NDArray[np.float32]:
    assert recipe.rope is not None
    return inverse_frequencies(recipe.rope, 0, _f32(recipe, views).astype("f8").reshape(-1))[0]


def _elements(recipe: WeightRecipe, view: memoryview) -> NDArray[Any]:
    """The source as an array of elements whose bits are only moved."""
    import numpy as np

    assert recipe.source is not None
    size = recipe.source.format.block_bytes
    return np.frombuffer(view, dtype=f"<u{size}").reshape(recipe.source.resolve({}))


_TRANSFORMS: dict[str, Callable[[WeightRecipe, Sequence[memoryview]], NDArray[Any]]] = {
    "columns": _columns,
    "stride": _stride,
    "mxfp4": _mxfp4,
    "fp8": _fp8,
    "f32": _f32,
    "inv_freq": _inv_freq,
}

F32 = FORMATS["f32"]
