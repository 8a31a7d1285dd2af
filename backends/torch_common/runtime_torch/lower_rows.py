"""Norms, elementwise operations, moved and reduced rows: from nodes to calls."""

from __future__ import annotations

import torch

from runtime_torch.calls import Call, Site, cdiv, clamp, launch
from runtime_torch.kernels import elementwise, norm
from runtime_torch.kernels import rows as row_kernels
from runtime_torch.settings import next_power, row_warps

KINDS = {
    name: number
    for number, name in enumerate(
        ("silu", "gelu", "gelu_tanh", "quick_gelu", "swiglu_oai", "sigmoid", "tanh", "relu", "relu2")
    )
}
"""As kernels number them."""


def lower_rms_norm(site: Site) -> list[Call]:
    """Runs of a row, each by itself."""
    return rms_norm_calls(site, site.tensor("x"), None, None)


def rms_norm_calls(
    site: Site, x: torch.Tensor, residual: torch.Tensor | None, total: torch.Tensor | None
) -> list[Call]:
    """The norm of x, or of total = x + residual."""
    weight, y = site.tensor("weight"), site.output()
    (size,) = weight.shape
    num_runs = x.numel() // size
    block = next_power(size)
    runs = clamp(site.settings.tiles.row_elements // 8 // block, 1, 4096)
    arguments = (x, x if residual is None else residual, weight, y if total is None else total, y, num_runs, size)
    scalars = (float(site.attr("eps")), float(site.attr("weight_offset")))
    constants = {"HAS_RESIDUAL": residual is not None, "BR": runs, "BLOCK": block, "num_warps": row_warps(runs * block)}
    return [launch(norm.rms_norm, (cdiv(num_runs, runs),), *arguments, *scalars, **constants)]


def lower_layer_norm(site: Site) -> list[Call]:
    """Rows."""
    x, weight = site.tensor("x"), site.tensor("weight")
    num_rows, size = x.shape
    block = next_power(size)
    rows = clamp(site.settings.tiles.row_elements // 8 // block, 1, 4096)
    arguments = (x, weight, site.optional("bias", weight), site.output(), num_rows, size, float(site.attr("eps")))
    constants = {"HAS_BIAS": site.has("bias"), "BR": rows, "BLOCK": block, "num_warps": row_warps(rows * block)}
    return [launch(norm.layer_norm, (cdiv(num_rows, rows),), *arguments, **constants)]


def lower_glu(site: Site) -> list[Call]:
    """Elementwise."""
    gate, up, y = site.tensor("gate"), site.tensor("up"), site.output()
    return [glu_call(site, gate, up, y, site.attr("kind"), float(site.attr("alpha")), float(site.attr("limit")))]


def glu_call(
    site: Site,
    gate: torch.Tensor,
    up: torch.Tensor,
    y: torch.Tensor,
    kind: str,
    alpha: float = 1.702,
    limit: float = 7.0,
) -> Call:
    """y = kind(gate) * up."""
    block = site.settings.tiles.elements
    arguments = (gate, up, y, y.numel(), alpha, limit)
    return launch(elementwise.glu, (cdiv(y.numel(), block),), *arguments, KIND=KINDS[kind], BLOCK=block)


def lower_activation(site: Site) -> list[Call]:
    """Elementwise."""
    x, y = site.tensor("x"), site.output()
    block, kind = site.settings.tiles.elements, KINDS[site.attr("kind")]
    return [launch(elementwise.activation, (cdiv(y.numel(), block),), x, y, y.numel(), KIND=kind, BLOCK=block)]


def lower_add(site: Site) -> list[Call]:
    """Elementwise."""
    a, b, y = site.tensor("a"), site.tensor("b"), site.output()
    return [lambda: torch.add(a, b, out=y)]


def lower_mul(site: Site) -> list[Call]:
    """Elementwise."""
    a, y, scale = site.tensor("a"), site.output(), float(site.attr("scale"))
    if not site.has("b"):
        return [lambda: torch.mul(a, scale, out=y)]
    b, block = site.tensor("b"), site.settings.tiles.elements
    if scale == 1.0:
        return [lambda: torch.mul(a, b, out=y)]
    return [launch(elementwise.product, (cdiv(y.numel(), block),), a, b, y, y.numel(), scale, BLOCK=block)]


def lower_softcap(site: Site) -> list[Call]:
    """Elementwise."""
    x, y, block = site.tensor("x"), site.output(), site.settings.tiles.elements
    arguments = (x, y, y.numel(), float(site.attr("cap")))
    return [launch(elementwise.softcap, (cdiv(y.numel(), block),), *arguments, BLOCK=block)]


def lower_convert(site: Site) -> list[Call]:
    """Elementwise, to nearest."""
    x, y = site.tensor("x"), site.output()
    return [lambda: y.copy_(x)]


def lower_gather_rows(site: Site) -> list[Call]:
    """Rows; a wrong index was recorded by a check and reads some row."""
    x, rows, y = site.tensor("x"), site.tensor("rows"), site.output()
    size = x.numel() // max(1, x.shape[0])
    block = min(next_power(size), 4 * site.settings.tiles.elements)
    grid = (rows.shape[0], cdiv(size, block))
    return [launch(row_kernels.gather_rows, grid, x, rows, y, rows.shape[0], size, x.shape[0], BLOCK=block)]


def lower_concat(site: Site) -> list[Call]:
    """Columns side by side."""
    parts = [site.tensor(f"x{i}") for i in range(len(site.inputs))]
    y = site.output()
    return [lambda: torch.cat(parts, 1, out=y)]


def lower_split(site: Site) -> list[Call]:
    """Columns apart."""
    x, start = site.tensor("x"), 0
    calls: list[Call] = []
    for i, width in enumerate(site.attr("sizes")):
        calls.append(_copy(site.output(i), x[:, start : start + width]))
        start += width
    return calls


def _copy(target: torch.Tensor, source: torch.Tensor) -> Call:
    return lambda: target.copy_(source)


def lower_softmax(site: Site) -> list[Call]:
    """Rows; one of nothing but -inf has no probability."""
    x, y, log = site.tensor("x"), site.output(), site.attr("log")
    num_rows, size = x.shape
    block = min(next_power(size), site.settings.tiles.row_elements)
    arguments = (x, y, size, float(site.attr("scale")))
    return [launch(row_kernels.softmax, (num_rows,), *arguments, LOG=log, BLOCK=block, num_warps=row_warps(block))]


def comparable(x: torch.Tensor) -> torch.Tensor:
    """NaN counts as -inf."""
    return x.masked_fill(torch.isnan(x), float("-inf"))


def lower_topk(site: Site) -> list[Call]:
    """By a stable sort: among equals the lower index first, which torch.topk does not promise."""
    x, values, indices, k = site.tensor("x"), site.output(0), site.output(1), site.attr("k")

    def compute() -> None:
        order = torch.sort(comparable(x), dim=1, descending=True, stable=True).indices[:, :k]
        torch.gather(x, 1, order, out=values)
        indices.copy_(order)

    return [compute]


def lower_argmax(site: Site) -> list[Call]:
    """The first of the largest: parts of a row side by side, of which the last one to finish compares all."""
    x, y, tiles = site.tensor("x"), site.output(), site.settings.tiles
    num_rows, size = x.shape
    block = min(next_power(size), tiles.row_elements // 4)
    parts = cdiv(size, block)
    largest, places = site.scratch((num_rows, parts)), site.scratch((num_rows, parts), torch.int32)
    arguments = (x, y, largest, places, site.shared.workspace.zeros(num_rows), size, parts)
    return [launch(row_kernels.argmax, (num_rows, parts), *arguments, BLOCK=block, PARTS=next_power(parts))]
