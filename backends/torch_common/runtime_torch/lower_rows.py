"""Norms, elementwise operations, moved and reduced rows: from nodes to calls."""

from __future__ import annotations

import torch

from runtime_torch.calls import Call, Site, cdiv, clamp, launch
from runtime_torch.kernels import elementwise, norm
from runtime_torch.settings import next_power

KINDS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "quick_gelu": 3, "swiglu_oai": 4, "sigmoid": 5, "tanh": 6}
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
    constants = {"HAS_RESIDUAL": residual is not None, "BR": runs, "BLOCK": block}
    return [launch(norm.rms_norm, (cdiv(num_runs, runs),), *arguments, *scalars, **constants)]


def lower_layer_norm(site: Site) -> list[Call]:
    """Rows."""
    x, weight = site.tensor("x"), site.tensor("weight")
    num_rows, size = x.shape
    block = next_power(size)
    rows = clamp(site.settings.tiles.row_elements // 8 // block, 1, 4096)
    arguments = (x, weight, site.optional("bias", weight), site.output(), num_rows, size, float(site.attr("eps")))
    constants = {"HAS_BIAS": site.has("bias"), "BR": rows, "BLOCK": block}
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
    x, y, kind = site.tensor("x"), site.output(), site.attr("kind")
    if kind in KINDS:
        block = site.settings.tiles.elements
        return [
            launch(elementwise.activation, (cdiv(y.numel(), block),), x, y, y.numel(), KIND=KINDS[kind], BLOCK=block)
        ]
    calls: list[Call] = [lambda: torch.clamp(x, min=0.0, out=y)]
    return calls if kind == "relu" else [*calls, lambda: torch.mul(y, y, out=y)]


def lower_add(site: Site) -> list[Call]:
    """Elementwise."""
    a, b, y = site.tensor("a"), site.tensor("b"), site.output()
    return [lambda: torch.add(a, b, out=y)]


def lower_mul(site: Site) -> list[Call]:
    """Elementwise."""
    a, y, scale = site.tensor("a"), site.output(), float(site.attr("scale"))
    if not site.has("b"):
        return [lambda: torch.mul(a, scale, out=y)]
    b = site.tensor("b")
    calls: list[Call] = [lambda: torch.mul(a, b, out=y)]
    if scale != 1.0:
        calls.append(lambda: torch.mul(y, scale, out=y))
    return calls


def lower_softcap(site: Site) -> list[Call]:
    """Elementwise."""
    x, y, cap = site.tensor("x"), site.output(), float(site.attr("cap"))
    return [lambda: torch.div(x, cap, out=y), lambda: torch.tanh(y, out=y), lambda: torch.mul(y, cap, out=y)]


def lower_convert(site: Site) -> list[Call]:
    """Elementwise, to nearest."""
    x, y = site.tensor("x"), site.output()
    return [lambda: y.copy_(x)]


def lower_gather_rows(site: Site) -> list[Call]:
    """Rows; a wrong index was recorded by a check and reads some row."""
    x, rows, y = site.tensor("x"), site.tensor("rows"), site.output()
    safe = site.scratch(tuple(rows.shape), torch.int32)
    last = max(0, x.shape[0] - 1)
    return [lambda: torch.clamp(rows, 0, last, out=safe), lambda: torch.index_select(x, 0, safe, out=y)]


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
    x, y, scale, log = site.tensor("x"), site.output(), float(site.attr("scale")), site.attr("log")
    e = site.scratch(tuple(x.shape))
    largest, total = site.scratch((x.shape[0], 1)), site.scratch((x.shape[0], 1))

    def compute() -> None:
        torch.mul(x, scale, out=y)
        torch.amax(y, 1, keepdim=True, out=largest)
        largest.masked_fill_(largest == float("-inf"), 0.0)
        torch.sub(y, largest, out=y)
        torch.exp(y, out=e)
        torch.sum(e, 1, keepdim=True, out=total)
        total.masked_fill_(total == 0.0, 1.0)
        if log:
            y.sub_(total.log_())
        else:
            torch.div(e, total, out=y)

    return [compute]


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
    """The first of the largest."""
    x, y = site.tensor("x"), site.output()
    return [lambda: y.copy_(torch.argmax(comparable(x), 1))]
