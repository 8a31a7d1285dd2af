"""What is put on a queue, and what a node's calls are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from runtime.backend import InvalidArgument, Node, TensorSpec
from runtime_opencl.memory import DeviceBuffer

Size = tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """One kernel over `num_items` work-items, in groups of `group`; None leaves the groups to the driver.

    Arguments are `DeviceBuffer`s and numpy scalars. Sizes are whole groups; kernels guard what lies beyond.
    """

    file: str
    kernel: str
    arguments: tuple[Any, ...]
    num_items: Size
    group: Size | None = None
    definitions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Copy:
    """`nbytes` bytes from one buffer to another."""

    target: DeviceBuffer
    source: DeviceBuffer
    nbytes: int


@dataclass
class Checks:
    """Rules about contents that kernels of a region test: the number of a check -> its message."""

    messages: list[str] = field(default_factory=list)

    def add(self, *messages: str) -> int:
        """Number of the first of `messages`, from 1; they contain {index} and {value}."""
        self.messages += messages
        return len(self.messages) - len(messages) + 1

    def fault(self, record: Any) -> InvalidArgument | None:
        """The error that a fault record stands for."""
        number, index, value = (int(v) for v in record[:3])
        if number == 0:
            return None
        return InvalidArgument(self.messages[number - 1].format(index=index, value=value))


@dataclass(frozen=True)
class Site:
    """A node with everything that its calls need: buffers by port, and specs with all sizes known."""

    node: Node
    inputs: Mapping[str, DeviceBuffer]
    outputs: tuple[DeviceBuffer, ...]
    dims: Mapping[str, int]
    fault: DeviceBuffer
    num_lanes: int
    group_size: int

    def shape(self, port: str) -> Size:
        """Sizes of an input."""
        return self.node.inputs[port].spec.resolve(self.dims)

    def spec(self, port: str) -> TensorSpec:
        """Spec of an input."""
        return self.node.inputs[port].spec

    def output_shape(self, index: int = 0) -> Size:
        """Sizes of an output."""
        return self.node.outputs[index].spec.resolve(self.dims)

    def attr(self, name: str) -> Any:
        """An attribute, or its default."""
        default = next(a.default for a in self.node.op.attrs if a.name == name)
        value = self.node.attrs.get(name)
        return default if value is None else value

    def optional(self, port: str) -> tuple[DeviceBuffer, np.int32]:
        """An optional input and whether it is there; an absent one is some buffer that is not read."""
        buffer = self.inputs.get(port)
        return (self.fault, i32(0)) if buffer is None else (buffer, i32(1))


i32 = np.int32
"""An int argument."""
u64 = np.uint64
"""A ulong argument."""
f32 = np.float32
"""A float argument."""


def split_f32(value: float) -> tuple[np.float32, np.float32]:
    """A float64 as the sum of two floats."""
    high = np.float32(value)
    return high, np.float32(value - float(high))


def whole(size: int, group: int) -> int:
    """`size` rounded up to whole groups."""
    return -(-size // group) * group
