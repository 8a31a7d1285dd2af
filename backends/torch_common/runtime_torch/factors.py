"""Powers of two that bring rows of a weight into the range of f16, found once when it is loaded."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from runtime_torch.planes import LAYOUTS, PlaneLayout

LOWEST, HIGHEST = -5, 15
"""Rows whose elements are below 2^HIGHEST, the largest not below 2^(LOWEST - 1), are taken as they are."""


def row_factors(fmt: str, planes: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """{"factors": float32 [rows]}: what rows of a weight in planes are multiplied by before f16; {} where all are 1.

    What f16 cuts off a row, all below 2^-25, is then less than a 2^18th of a bound of its elements. (An infinity of x
    that meets such an element gives NaN, as it does with zero.)
    """
    bound = _bounds(LAYOUTS[fmt], planes).clamp_(max=torch.finfo(torch.float32).max)
    _, exponent = torch.frexp(bound)
    # a row of zeros, and one whose scales are no numbers
    is_kept = (bound == 0) | bound.isnan() | ((exponent >= LOWEST) & (exponent <= HIGHEST))
    if not bound.is_meta and bool(is_kept.all()):
        return {}
    shift = torch.where(is_kept, 0, (HIGHEST - exponent).clamp(-113, 126))
    return {"factors": torch.ldexp(torch.ones_like(bound), shift)}


def _bounds(layout: PlaneLayout, planes: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """float32 [rows]: no element of the row is larger."""
    scale = planes["scale"]
    if layout.scale == "exponent":
        # half of 2 ** (e - 127), as the codebook is doubled
        scale = torch.ldexp(torch.ones_like(scale, dtype=torch.float32), scale.to(torch.int32) - 128)
    largest = _times(scale, planes.get("super")) * _largest_code(layout)
    if layout.has_minimum:
        largest += _times(planes["low"], planes.get("low_super"))
    return largest.amax(1)


def _times(scale: torch.Tensor, above: torch.Tensor | None) -> torch.Tensor:
    sizes = scale.to(torch.float32).abs()
    if above is None:
        return sizes
    return (sizes.view(*above.shape, -1) * above.to(torch.float32).abs()[:, :, None]).flatten(1)


def _largest_code(layout: PlaneLayout) -> float:
    if layout.scale == "float8":
        return 448.0
    if layout.codebook:
        return float(max(map(abs, layout.codebook)))
    most = (1 << (layout.lo_bits + layout.hi_bits)) - 1
    return float(max(layout.offset, most - layout.offset)) if layout.lo_bits < 8 else 128.0
