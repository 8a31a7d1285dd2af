"""Products of chosen experts: from nodes to calls, one by one or a whole gated network of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from runtime_torch.calls import Call, Planes, Site, cdiv, clamp, launch, planes_of
from runtime_torch.kernels import moe as kernels
from runtime_torch.kernels import moe_few as few_kernels
from runtime_torch.kernels.blocks import BF16, BF16_EMULATED, F16, F32
from runtime_torch.lower_route import group_calls
from runtime_torch.lower_rows import KINDS
from runtime_torch.operands import Operands, Rounded
from runtime_torch.products_few import few_pointers, few_tiles
from runtime_torch.settings import next_power, num_warps

FEW_PAIRS = 32
"""Up to here every (token, expert) pair reads its expert by itself: few experts are chosen twice."""
GROUP_TILES = 8
"""Tiles of pairs that go through all rows of their experts side by side, see `kernels.moe`."""


@dataclass(frozen=True)
class Gate:
    """What makes one product of two: that of `up`, in the same format, and `kind` of `kernels.elementwise.gated`."""

    up: Site
    kind: int
    alpha: float
    limit: float


@dataclass(frozen=True)
class Product:
    """One product of pairs with experts, into y; x is one row for each token, or for each pair."""

    site: Site
    x: torch.Tensor
    expert_ids: torch.Tensor
    y: torch.Tensor
    gate: Gate | None = None
    shares: torch.Tensor | None = None

    @property
    def num_columns(self) -> int:
        """K."""
        return self.site.shape("weight")[2]

    @property
    def is_few(self) -> bool:
        """Whether every pair reads its expert by itself."""
        return bool(self.expert_ids.numel() <= FEW_PAIRS)

    @property
    def mode(self) -> int:
        """What operands of tiles are rounded to, see `kernels.blocks`."""
        fmt, settings = self.site.spec("weight").format.name, self.site.settings
        if settings.precision == "f32" or fmt == "f32":
            return F32
        if fmt != "bf16":
            return F16
        return BF16_EMULATED if settings.is_interpreted else BF16

    @property
    def per_row(self) -> int:
        """Pairs that a row of x is for."""
        return 1 if self.site.attr("per_expert_input") else self.expert_ids.shape[1]

    @property
    def weights(self) -> tuple[Planes, tuple[torch.Tensor, ...]]:
        """The planes, and those of the second weight but for its table (or something in their place)."""
        planes = planes_of(self.site)
        up = planes if self.gate is None else planes_of(self.gate.up)
        return planes, (few_pointers(up) if self.is_few else up.pointers)[:-1]

    @property
    def biases(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of both weights."""
        up = self.site if self.gate is None else self.gate.up
        return self.site.optional("bias", self.x), up.optional("bias", self.x)

    @property
    def factors(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Powers of two of the rows of both weights, where f16 needs them."""
        sites = (self.site, None if self.gate is None else self.gate.up)
        if self.mode != F16:
            return None, None
        gate, up = (None if s is None else (s.inputs["weight"].planes or {}).get("factors") for s in sites)
        return gate, up

    @property
    def glu(self) -> tuple[int, float, float]:
        """Kind, alpha and limit."""
        return (
            (few_kernels.NOT_GATED, 0.0, 0.0)
            if self.gate is None
            else (self.gate.kind, self.gate.alpha, self.gate.limit)
        )


def lower_moe_linear(site: Site) -> list[Call]:
    """Pair by pair, or grouped by expert; with the weighted sum, where one is wanted."""
    shares = site.tensor("expert_weights") if site.has("expert_weights") else None
    return _product_calls(Product(site, site.tensor("x"), site.tensor("expert_ids"), site.output(), shares=shares))


def lower_gated(gate: Site, up: Site, glu: Site) -> list[Call]:
    """y = glu(gate, up), both products in one kernel."""
    return _product_calls(_gated(gate, up, glu))


def lower_experts(gate: Site, up: Site, glu: Site, down: Site) -> list[Call]:
    """The whole network: pairs are grouped once, and halves are written as such where the next product takes them."""
    first = _gated(gate, up, glu)
    last = Product(down, first.y, first.expert_ids, down.output(), shares=down.tensor("expert_weights"))
    if first.is_few:
        return [*_few(first), *_few(last)]
    order, borders, calls = group_calls(gate, first.expert_ids, gate.shape("weight")[0])
    x, rounding = _rounded(first)
    calls += rounding
    if last.mode in (BF16, BF16_EMULATED):
        # in the memory of the output, of which it takes half
        halves = first.y.view(torch.bfloat16).view(-1)[: first.y.numel()]
        h = Rounded(halves.view(-1, 1, last.num_columns), None)
        return [*calls, *_many(replace(first, y=halves), x, order, borders), *_many(last, h, order, borders)]
    calls += _many(first, x, order, borders)
    h, rounding = _rounded(last)
    return [*calls, *rounding, *_many(last, h, order, borders)]


def _product_calls(product: Product) -> list[Call]:
    if product.is_few:
        return _few(product)
    order, borders, calls = group_calls(product.site, product.expert_ids, product.site.shape("weight")[0])
    x, rounding = _rounded(product)
    return [*calls, *rounding, *_many(product, x, order, borders)]


def _rounded(product: Product) -> tuple[Rounded, list[Call]]:
    x = Operands(product.site, product.x.view(-1, product.num_columns))
    return x.rounded(BF16 if product.mode == BF16_EMULATED else product.mode, product.weights[0].width)


def _gated(gate: Site, up: Site, glu: Site) -> Product:
    applied = Gate(up, KINDS[glu.attr("kind")], float(glu.attr("alpha")), float(glu.attr("limit")))
    return Product(gate, gate.tensor("x"), gate.tensor("expert_ids"), glu.output(), applied)


def _few(product: Product) -> list[Call]:
    site, shares = product.site, product.shares
    (_, num_rows, num_columns), (num_tokens, top_k) = site.shape("weight"), product.expert_ids.shape
    planes, up = product.weights
    (bias, up_bias), pointers = product.biases, few_pointers(planes)
    constants = {**planes.constants, "HAS_BIAS": site.has("bias")}
    if shares is not None and product.per_row == 1 and _is_in_words(planes, pointers[0], num_columns):
        tiles = few_tiles(site.settings.tiles, planes, num_rows * num_tokens, num_columns * top_k, 1)
        sizes = tiles.constants(num_columns, 1, num_rows)
        arguments = (product.x, product.expert_ids, shares, *pointers, bias, product.y, site.fault, num_rows)
        constants |= {"TOP_K": top_k, **sizes}
        del constants["TOKENS"]
        return [launch(few_kernels.moe_few_sum, (cdiv(num_rows, tiles.rows), num_tokens), *arguments, **constants)]
    tiles = few_tiles(site.settings.tiles, planes, num_rows * num_tokens * top_k, num_columns, 1)
    constants |= tiles.constants(num_columns, 1, num_rows)
    del constants["TOKENS"]
    made = product.y if shares is None else site.scratch((num_tokens, top_k, num_rows))
    kind, *scalars = product.glu
    kernel = launch(
        few_kernels.moe_few,
        (cdiv(num_rows, tiles.rows), num_tokens * top_k),
        *(product.x, product.expert_ids, made if shares is None else shares, *pointers, bias, *up, up_bias),
        *(made, site.fault, num_rows, product.per_row, *scalars),
        **constants,
        HAS_SHARES=shares is not None,
        KIND=kind,
    )
    return [kernel] if shares is None else [kernel, _sum(product, made)]


def _is_in_words(planes: Planes, codes: torch.Tensor, num_columns: int) -> bool:
    """Whether rows are whole pieces of four words or fewer: blocks, and bf16 in pairs."""
    is_dense = planes.constants["SCALE"] >= 3
    return codes.dtype == torch.int32 and (not is_dense or num_columns % 8 == 0)


def _many(product: Product, x: Rounded, order: torch.Tensor, borders: torch.Tensor) -> list[Call]:
    site = product.site
    (num_experts, num_rows, num_columns), num_pairs = site.shape("weight"), order.numel()
    planes, up = product.weights
    shares, nothing = product.shares, x.values
    factors, biases = product.factors, product.biases
    made = product.y if shares is None else site.scratch((*product.expert_ids.shape, num_rows))
    kind, *scalars = product.glu
    tile = _tile(product, planes)
    constants = {**planes.constants, "HAS_FACTOR": factors[0] is not None, "UP_FACTOR": factors[1] is not None}
    constants |= {"HAS_BIAS": site.has("bias"), "HAS_SHARES": shares is not None, "KIND": kind, "MODE": product.mode}
    constants |= {"W": planes.width, "EXPERTS": next_power(num_experts), "GROUP": GROUP_TILES}
    num_tiles = num_pairs // tile["BM"] + num_experts
    kernel = launch(
        kernels.moe_many,
        (num_tiles * cdiv(num_rows, tile["BN"]),),
        *(x.values, nothing if x.exponents is None else x.exponents, order, borders),
        *(nothing if shares is None else shares, *planes.pointers, nothing if factors[0] is None else factors[0]),
        *(biases[0], *up, nothing if factors[1] is None else factors[1], biases[1], made, site.fault),
        *(num_tiles, num_experts, num_rows, num_columns, cdiv(num_columns, 32), x.stride, product.per_row, *scalars),
        **constants,
        **tile,
    )
    return [kernel] if shares is None else [kernel, _sum(product, made)]


def _tile(product: Product, planes: Planes) -> dict[str, int]:
    """Sizes of a tile by the pairs that an expert has on average: half a tile of them is empty."""
    site, tiles = product.site, product.site.settings.tiles
    num_experts, num_rows, num_columns = site.shape("weight")
    num_products = 1 if product.gate is None else 2
    tokens = clamp(next_power(cdiv(product.expert_ids.numel(), num_experts)), tiles.min_dot, tiles.many_tokens)
    units = min(tiles.many_units, next_power(cdiv(num_columns, 32)))
    sizes = {"BM": tokens}
    if planes.constants["SCALE"] == 3:
        # few pairs wait for memory: then rows in smaller portions spread better, and more columns are on their way
        widest = tiles.many_rows * (2 if tokens > tiles.min_dot else 1)
        rows = min(tiles.expert_sums // (tokens * num_products), widest)
        units = min(units, 4 if tokens < 64 else 2)
        sizes["num_warps"] = num_warps(tokens * rows * num_products)
    else:
        # a warp has the sums and the weights of 16 rows of one product; more would not fit the registers of a thread
        rows = tiles.many_rows * (2 if tokens >= 64 and num_products == 1 else 1)
        most = 8 if tokens * num_products < 256 else 4
        units = min(units, most if planes.width < 32 else most // 2)
        sizes["num_warps"] = 8 if rows >= 128 else 4
        # a table of a codebook would be copied to shared memory ahead of use, number by number
        sizes["num_stages"] = 1 if planes.constants["CODEBOOK"] else 2
    rows = max(min(rows, next_power(num_rows)), tiles.min_dot)
    return sizes | {"BN": rows, "BU": max(units, tiles.min_dot // planes.width)}


def _sum(product: Product, made: torch.Tensor) -> Call:
    (num_tokens, top_k, num_rows), tiles = made.shape, product.site.settings.tiles
    block = min(next_power(num_rows), tiles.elements)
    tokens = clamp(tiles.elements // block, 1, next_power(num_tokens))
    grid = (cdiv(num_tokens, tokens), cdiv(num_rows, block))
    arguments = (made, product.y, product.site.fault, num_tokens, num_rows)
    return launch(kernels.sum_chosen, grid, *arguments, TOP_K=top_k, BT=tokens, BLOCK=block)
