"""Products of one or two rows, which are bound by memory: from nodes to calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from runtime_torch.calls import Call, Planes, Site, cdiv, clamp, launch
from runtime_torch.kernels import linear, linear_few
from runtime_torch.settings import Tiles, next_power, power_below

FEW_TOKENS = 2
"""Up to here the rows of x stay in registers, beside the codes that both of them meet."""
ALPHA, LIMIT = 1.702, 7.0
"""Of swiglu_oai within a feed-forward network."""
STEPS = ((1, 1.0), (2, 1.05), (4, 1.3))
"""Parts of the longest step along a row, and what a shorter one costs: fewer threads load less at a time."""


@dataclass(frozen=True)
class FewTiles:
    """What `kernels.dot_few` is told of sizes: BN rows of a weight, BU pieces of 16 bytes, warps that cover them.

    BU depends on the row alone, and so does the order of a sum.
    """

    rows: int
    pieces: int
    num_warps: int

    def constants(self, num_columns: int, num_tokens: int, *num_rows: int) -> dict[str, Any]:
        """For weights of so many rows."""
        sizes = {"K": num_columns, "TOKENS": num_tokens, "BN": self.rows, "BU": self.pieces}
        return {**sizes, "EVEN": all(n % self.rows == 0 for n in num_rows), "num_warps": self.num_warps}


def few_tiles(tiles: Tiles, planes: Planes, num_rows: int, num_columns: int, num_tokens: int) -> FewTiles:
    """So many rows that half of the programs which the device holds are there, up to what fits registers."""
    num_pieces = cdiv(num_columns, piece_elements(planes))
    most = min(tiles.few_pieces, next_power(num_pieces))
    # a step that reaches beyond the end of the row costs as much as any other
    costs = {max(1, most // part): penalty for part, penalty in STEPS}
    pieces = min(costs, key=lambda size: costs[size] * cdiv(num_pieces, size) * size)
    # two rows of x and codes in two planes leave registers for half as many rows
    most_rows = max(1, tiles.few_rows // 2) if num_tokens > 1 and planes.constants["HI_BITS"] else tiles.few_rows
    rows = power_below(clamp(num_rows // max(1, tiles.programs // 2), 1, most_rows))
    return FewTiles(rows, pieces, clamp(pieces // 32, 1, 8))


def piece_elements(planes: Planes) -> int:
    """Elements of what one thread takes at a time, see `kernels.dot_few`."""
    if planes.constants["SCALE"] >= 3:
        return 16 // int(planes.pointers[0].dtype.itemsize)
    return 16 if planes.constants["LO_BITS"] == 8 else 32


def few_pointers(planes: Planes) -> tuple[torch.Tensor, ...]:
    """As `kernels.dot_few` reads them: codes of 8 bits four to a word, bf16 two to a word."""
    lo, *others = planes.pointers
    is_words = lo.dtype == torch.int8 or (lo.dtype == torch.bfloat16 and lo.shape[1] % 2 == 0)
    return (lo.view(torch.int32) if is_words else lo, *others)


@dataclass(frozen=True)
class Product:
    """A weight [N, K] that x meets, what is added, and where y [T, N] goes."""

    planes: Planes
    bias: torch.Tensor | None
    y: torch.Tensor

    @property
    def num_rows(self) -> int:
        """N."""
        return int(self.y.shape[1])

    @property
    def kind(self) -> tuple[str, bool]:
        """What has to be alike in products of one launch."""
        return self.planes.fmt, self.bias is not None

    @property
    def added(self) -> torch.Tensor:
        """The bias, or what a kernel is given in its place and does not read."""
        return self.y if self.bias is None else self.bias


def few_calls(site: Site, planes: Planes, x: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor) -> list[Call]:
    """The product of x [T, K] with a weight in planes or dense, into y [T, N]."""
    return together_calls(site, x, [Product(planes, bias, y)])


def together_calls(site: Site, x: torch.Tensor, products: Sequence[Product]) -> list[Call]:
    """Up to three products of x [T, K], those of one kind in one launch."""
    if not x.shape[0]:
        return []
    kinds = dict.fromkeys(product.kind for product in products)
    return [_launch(site, x, [product for product in products if product.kind == kind]) for kind in kinds]


def _launch(site: Site, x: torch.Tensor, alike: Sequence[Product]) -> Call:
    first, rows = alike[0], [product.num_rows for product in alike]
    tiles = few_tiles(site.settings.tiles, first.planes, sum(rows), x.shape[1], x.shape[0])
    constants = {**first.planes.constants, **tiles.constants(x.shape[1], x.shape[0], *rows)}
    constants |= {"HAS_BIAS": first.bias is not None}
    grid = (sum(cdiv(n, tiles.rows) for n in rows),)
    if len(alike) == 1:
        arguments = (*few_pointers(first.planes), first.added, first.y, first.num_rows)
        return launch(linear_few.linear_few, grid, x, *arguments, **constants)
    three = [*alike, alike[-1]][:3]
    *_, table = first.planes.pointers
    pointers = [pointer for product in three for pointer in few_pointers(product.planes)[:-1]]
    targets = (*(product.added for product in three), *(product.y for product in three))
    return launch(linear_few.linear_few_of_three, grid, x, *pointers, table, *targets, *[*rows, 0][:3], **constants)


def gate_up_calls(site: Site, x: torch.Tensor, gate: Product, up: Product, kind: int) -> list[Call]:
    """gate.y = kind(gate) * up, for products of one kind; `kind` as kernels number them."""
    if not x.shape[0]:
        return []
    rows = gate.num_rows
    tiles = few_tiles(site.settings.tiles, gate.planes, rows, x.shape[1], x.shape[0])
    constants = {**gate.planes.constants, **tiles.constants(x.shape[1], x.shape[0], rows)}
    constants |= {"HAS_BIAS": gate.bias is not None, "KIND": kind}
    *gate_pointers, table = few_pointers(gate.planes)
    *up_pointers, _ = few_pointers(up.planes)
    arguments = (x, *gate_pointers, *up_pointers, table, gate.added, up.added, gate.y, rows, ALPHA, LIMIT)
    return [launch(linear_few.gate_up_few, (cdiv(rows, tiles.rows),), *arguments, **constants)]


def sum_calls(site: Site, partial: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor, splits: int) -> list[Call]:
    """y = the sum of partial [splits, T, N], plus the bias; nothing where there is one split."""
    if splits == 1:
        return []
    size, block = y.numel(), site.settings.tiles.elements
    arguments = (partial, y if bias is None else bias, y, size, y.shape[1])
    constants = {"SPLITS": splits, "HAS_BIAS": bias is not None, "BLOCK": block}
    return [launch(linear.sum_splits, (cdiv(size, block),), *arguments, **constants)]
