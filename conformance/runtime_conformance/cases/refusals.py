"""Contents that every implementation must refuse, from the declarations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from runtime.ops import Op
from runtime.ops.shapes import port_of
from runtime_conformance.case import Case, Role, Tensor


def refusal_cases(op: Op) -> Iterator[Case]:
    """One case per refusal that concerns contents; those that concern specs are refused before a device is asked."""
    for refusal in op.refusals:
        if not refusal.values:
            continue
        inputs = {}
        for name, (fmt, shape) in refusal.specs.items():
            port = port_of(op, name)
            assert port is not None
            is_weight = "*" in port.formats and port.layout == "plain"
            role: Role = "weight" if is_weight else "state" if port.layout == "kv" else "input"
            data: tuple[Any, ...] = ("constant", 0)
            if name in refusal.values:
                data = ("values", *_flat(refusal.values[name]))
            elif name == "uniform":
                data = ("uniform",)
            inputs[name] = Tensor(fmt, shape, role, data, port.layout)
        yield Case(op.key, inputs, dict(refusal.attrs), "values", "refuse", origin="refusal", note=refusal.rule)


def _flat(values: Any) -> Iterator[Any]:
    if isinstance(values, (list, tuple)):
        for value in values:
            yield from _flat(value)
    else:
        yield values
