"""The left side of products: a matrix, and what tensor cores take of it, made once however many products read it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from runtime_torch.calls import Call, Site, cdiv, clamp, launch
from runtime_torch.kernels import rounding
from runtime_torch.kernels.blocks import BF16, F16, F32
from runtime_torch.lower_rows import KINDS, glu_call
from runtime_torch.settings import next_power

UNIT = 32
TYPES = {F32: torch.float32, BF16: torch.bfloat16, F16: torch.float16}


@dataclass(frozen=True)
class Rounded:
    """Rows of x as operands.

    values     [T, parts, stride]: part p of all units of a row is contiguous, and zeros follow
    exponents  int32 [T], or None where nothing was scaled: a row of x is its values times 2^exponent
    """

    values: torch.Tensor
    exponents: torch.Tensor | None

    @property
    def stride(self) -> int:
        """Elements of a part of a row."""
        return int(self.values.shape[2])

    @property
    def rows(self) -> torch.Tensor:
        """values as a matrix [T, parts * stride]."""
        return self.values.view(self.values.shape[0], -1)


class Operands:
    """x [T, K] float32; with `up` and `kind`, kind(x) * up."""

    def __init__(self, site: Site, x: torch.Tensor, up: torch.Tensor | None = None, kind: str = "") -> None:
        self._site = site
        self._x, self._up, self._kind = x, up, kind
        self._plain = x if up is None else None
        self._rounded: dict[tuple[int, int, int, int], Rounded] = {}

    @property
    def shape(self) -> tuple[int, int]:
        """(T, K)."""
        return self._x.shape[0], self._x.shape[1]

    def plain(self) -> tuple[torch.Tensor, list[Call]]:
        """As float32 [T, K], and the calls that make it so: none where somebody asked before."""
        if self._plain is not None:
            return self._plain, []
        assert self._up is not None
        self._plain = self._site.scratch(self.shape)
        return self._plain, [glu_call(self._site, self._x, self._up, self._plain, self._kind)]

    def rounded(self, mode: int, width: int = UNIT, step: int = 16, top: int = 15) -> tuple[Rounded, list[Call]]:
        """In the type `mode`, units in parts of `width` elements, runs padded to `step`; and the calls that make it.

        `top`: rows in f16 are below 2^top, see `kernels.rounding.shift_of`.
        """
        num_tokens, num_columns = self.shape
        parts = UNIT // width
        stride = cdiv(cdiv(num_columns, UNIT) * width if parts > 1 else num_columns, step) * step
        if mode == F32 and parts == 1 and stride == num_columns:
            plain, calls = self.plain()
            return Rounded(plain.view(num_tokens, 1, stride), None), calls
        key = (mode, width, stride, top if mode == F16 else 0)
        if key in self._rounded:
            return self._rounded[key], []
        values = self._site.scratch((num_tokens, parts, stride), TYPES[mode])
        exponents = self._site.scratch((num_tokens,), torch.int32) if mode == F16 else None
        made = self._rounded[key] = Rounded(values, exponents)
        return made, [self._round(made, mode, width, top)]

    def _round(self, made: Rounded, mode: int, width: int, top: int) -> Call:
        num_tokens, num_columns = self.shape
        most = 2 * self._site.settings.tiles.row_elements
        block = min(next_power(made.rows.shape[1]), most)
        rows = clamp(most // 2 // block, 1, next_power(num_tokens))
        x = self._x if self._plain is None else self._plain
        is_gated = self._plain is None
        exponents = values = made.values
        if made.exponents is not None:
            exponents = made.exponents
        arguments = (
            x,
            self._up if is_gated else x,
            values,
            exponents,
            num_tokens,
            num_columns,
            made.stride,
            1.702,
            7.0,
        )
        return launch(
            rounding.round_rows,
            (cdiv(num_tokens, rows),),
            *arguments,
            KIND=KINDS[self._kind] if is_gated else -1,
            W=width,
            MODE=mode,
            TOP=top,
            WHOLE=made.rows.shape[1] <= block,
            BR=rows,
            BLOCK=block,
            num_warps=clamp(rows * block // 1024, 4, 16),
        )


def as_operands(site: Site, x: torch.Tensor | Operands) -> Operands:
    """x, or what was made of it before."""
    return x if isinstance(x, Operands) else Operands(site, x)
