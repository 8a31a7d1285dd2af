"""Brings weights and constants onto devices: in place where a device adopts host memory, decoded where planned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from runtime.backend import Buffer, Device
from runtime.dtypes import TensorSpec, encode
from runtime.errors import InvalidArgument
from runtime.graph import Region, Value

WeightSource = Callable[[str], tuple[TensorSpec, Any]]
"""Name of a weight -> its spec and its stored bytes (any buffer), which must stay valid while it is used."""
Progress = Callable[[int, int], None]
"""(bytes done, bytes in all)."""


def load_constant(device: Device, value: Value) -> Buffer:
    """The data of a constant, in its format, on `device`."""
    assert value.data is not None
    data = memoryview(encode(value.spec.format, value.data))
    return device.load_weight(value.spec, data, {"name": value.name})


def load_weight(device: Device, value: Value, source: WeightSource, stored_name: str, use: Mapping[str, Any]) -> Buffer:
    """The weight `value` on `device`; decoded first if the plan wants another format than the stored one."""
    spec, data = source(stored_name)
    wanted = value.spec
    if spec.shape != wanted.shape:
        raise InvalidArgument(f"weight '{stored_name}' is {spec}, the graph expects {wanted}")
    view = memoryview(data).cast("B")
    if spec.format.name != wanted.format.name:
        if stored_name == value.name:
            raise InvalidArgument(f"weight '{stored_name}' is {spec}, the graph expects {wanted}")
        shape = spec.resolve({})
        view = memoryview(encode(wanted.format, spec.format.decode(view, shape)))
    adopted = device.adopt_host(view, wanted)
    return device.load_weight(wanted, view, use) if adopted is None else adopted


def first_uses(regions: list[Region]) -> dict[Value, dict[str, str]]:
    """Weight -> name, operation and port of its first use."""
    uses: dict[Value, dict[str, str]] = {}
    for region in regions:
        for node in region.nodes:
            for port, value in node.inputs.items():
                if value.kind == "weight":
                    uses.setdefault(value, {"name": value.name, "op": node.op.key, "port": port})
    return uses
