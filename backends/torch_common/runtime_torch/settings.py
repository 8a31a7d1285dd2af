"""What differs between devices: operands of products, sizes of tiles, capture. Everything else is one code."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from runtime.backend import InvalidArgument

Precision = Literal["f32", "half"]


@dataclass(frozen=True)
class Tiles:
    """Sizes of what one program of a kernel works on; powers of two.

    A program on a chip has a few registers per thread; a program in the interpreter costs milliseconds whatever it
    holds, so there tiles are as large as they can be. The kernels are the same.
    """

    few_rows: int = 8
    few_units: int = 64
    few_pieces: int = 128
    """Pieces of 16 bytes, of a row of the weight in a product of few rows: one to a thread."""
    many_tokens: int = 64
    """Of a tile of products grouped by expert, with so many rows and units of the weight; see `lower_moe`."""
    many_rows: int = 64
    many_units: int = 8
    product_tokens: int = 64
    """Of a tile of a product with a weight in blocks; by rows of the weight, twice as many where tokens are many."""
    product_rows: int = 64
    product_units: int = 16
    product_tile: int = 1 << 14
    """Elements of x that a step of such a product holds, while as many are on their way."""
    whole_tokens: int = 256
    """From more rows of x on, weights in blocks are decoded into memory for products, see `products_many`."""
    piece_bytes: int = 32 << 20
    """Of a weight so decoded at a time: it is read again from the cache of the device."""
    decode_units: int = 512
    expert_sums: int = 1 << 13
    """Of a tile of grouped products: pairs times rows of the weight, or of both weights where two are gated."""
    min_dot: int = 16
    """Smallest side of a product on tensor cores."""
    attention_rows: int = 64
    attention_keys: int = 64
    least_part: int = 128
    """Keys of a part, where sequences are split: less would not be worth the merging."""
    attention_stages: int = 0
    """Triton's num_stages where single queries are read for: what is on its way; 0 leaves it to the compiler."""
    tile_bytes: int = 1 << 15
    """Of the queries of a program, and twice those of its keys or values: they share a multiprocessor's memory."""
    elements: int = 1024
    """Of an elementwise program."""
    row_elements: int = 8192
    """Of a program that holds whole rows: short rows are taken several at a time."""
    tokens: int = 1
    """Whose heads one program rotates."""
    programs: int = 512
    """Programs that fill the device: few rows are split along K, and few queries along the keys, up to so many."""
    max_splits: int = 16
    sampled: int = 2048
    """Elements of a program that looks at rows of logits."""
    drawn: int = 1024
    """Of one that looks at all that may be drawn, mostly a short list, again and again."""
    candidates: int = 1 << 14
    """Of a row that may survive its filters, where they are listed: room for so many at least."""
    listed: int = 1 << 20
    """Of all rows together, where they are few: there a list may be longer. What has no room is not listed."""
    compared: int = 64
    """Tokens that a program of `penalize` compares with as many others."""


INTERPRETED = Tiles(
    few_rows=1024,
    few_units=32,
    few_pieces=256,
    many_tokens=256,
    many_rows=512,
    many_units=8,
    product_tokens=256,
    product_rows=256,
    product_tile=1 << 16,
    decode_units=1 << 12,
    expert_sums=1 << 17,
    attention_rows=256,
    attention_keys=128,
    least_part=128,
    tile_bytes=1 << 30,
    elements=1 << 16,
    row_elements=1 << 17,
    tokens=64,
    programs=1,
    max_splits=2,
    sampled=1 << 20,
    drawn=1 << 20,
    compared=1024,
)
"""For Triton's interpreter."""


def in_float32(tiles: Tiles) -> Tiles:
    """Tiles for products without tensor cores: operands of twice the size, which every thread keeps in registers."""
    return replace(
        tiles,
        many_tokens=32,
        many_rows=32,
        many_units=1,
        product_tokens=32,
        product_rows=32,
        product_units=2,
        product_tile=1 << 10,
        expert_sums=1 << 11,
        attention_rows=min(32, tiles.attention_rows),
        tile_bytes=min(1 << 14, tiles.tile_bytes),
    )


@dataclass(frozen=True)
class Settings:
    """How a device of one kind is used.

    backend       the name that users know
    device_type   torch's: "cuda" (also ROCm's), "xpu", or "cpu", which runs the kernels in Triton's interpreter
    precision     half: products on tensor cores, operands in bf16 where weights or cache are, in f16 elsewhere;
                  f32: products in float32
    wide_output   whether torch.mm of halves can give its float32 sums (`out_dtype`), see `products.has_wide_output`
    capture       whether steps of few tokens are captured and replayed
    buckets       numbers of tokens that captured steps are padded to
    fp8           whether weights in 8-bit floats are kept as they are
    """

    backend: str
    device_type: str
    precision: Precision = "half"
    tiles: Tiles = field(default_factory=Tiles)
    wide_output: bool = True
    capture: bool = False
    buckets: tuple[int, ...] = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
    max_graphs: int = 64
    fp8: bool = False

    @property
    def is_interpreted(self) -> bool:
        """Whether kernels run in Triton's interpreter: it does not round to bf16, so that is done by hand there."""
        return self.device_type == "cpu"

    def with_options(self, options: dict[str, str]) -> Settings:
        """As a user asked: `precision` f32 or half, `capture` on or off. Raises InvalidArgument."""
        changed = self
        for name, value in options.items():
            if name == "precision" and value == "half":
                changed = replace(changed, precision="half")
            elif name == "precision" and value == "f32":
                tiles = self.tiles if self.is_interpreted else in_float32(self.tiles)
                changed = replace(changed, precision="f32", tiles=tiles)
            elif name == "capture" and value in ("on", "off"):
                changed = replace(changed, capture=value == "on")
            elif name in ("precision", "capture"):
                allowed = "f32, half" if name == "precision" else "on, off"
                raise InvalidArgument(f"option {name} = {value!r} of backend {self.backend}; allowed: {allowed}")
        return changed


def num_warps(elements: int) -> int:
    """Warps of a program that accumulates a tile of so many float32: four hold half of their registers in 64 x 64."""
    return 8 if elements >= 1 << 13 else 4


def row_warps(elements: int) -> int:
    """Warps of a program that holds so many float32 once: 16 in a thread are four loads on their way."""
    return max(1, min(16, elements >> 9))


def power_below(size: int) -> int:
    """The largest power of two that is at most `size`, which is at least 1: few variants of a kernel are built."""
    return 1 << (size.bit_length() - 1)


def next_power(size: int) -> int:
    """The smallest power of two that is at least `size`, and at least 1."""
    return 1 << max(0, size - 1).bit_length()
