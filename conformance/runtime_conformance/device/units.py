"""How coarse a format is."""

from __future__ import annotations

_UNITS = {"f16": 2.0**-11, "bf16": 2.0**-8, "f8_e4m3": 2.0**-4, "f8_e5m2": 2.0**-3, "q8_0": 2.0**-8}


def unit(fmt: str) -> float:
    """Largest relative error of rounding to a format, as coarsely as it may be used."""
    return _UNITS.get(fmt, 2.0**-8 if fmt.startswith("i8/") else 2.0**-24)
