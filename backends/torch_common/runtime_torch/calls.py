"""What a step is made of: kernels with their arguments bound, and the node that they compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch

from runtime.backend import InvalidArgument, Node, TensorSpec
from runtime_torch.memory import DTYPES, TorchBuffer
from runtime_torch.planes import LAYOUTS
from runtime_torch.settings import Settings, next_power

Size = tuple[int, ...]
Call = Callable[[], Any]
"""One launch, or one operation of torch into a given tensor; it neither allocates nor waits."""

NO_FAULT = 0x7FFFFFFFFFFFFFFF
"""See `kernels.checks`."""


def launch(kernel: Any, grid: Size, *arguments: Any, **constants: Any) -> Call:
    """A Triton kernel over `grid`, bound; an empty grid is nothing to do."""
    if not all(grid):
        return lambda: None
    bound = kernel[grid]
    return lambda: bound(*arguments, **constants)


class Workspace:
    """Memory for what lives during one node, shared by all nodes; addresses that were given out stay valid."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory: list[torch.Tensor] = []
        self._used = 0
        self._zeros = torch.zeros(1 << 10, dtype=torch.int32, device=device)

    def reset(self) -> None:
        """The next node begins."""
        self._used = 0

    def take(self, shape: Size, dtype: torch.dtype) -> torch.Tensor:
        """Undefined content; for this node only."""
        nbytes = -(-max(1, prod(shape) * dtype.itemsize) // 256) * 256
        if not self._memory or self._used + nbytes > self._memory[-1].numel():
            size = max(nbytes, 2 * self._memory[-1].numel() if self._memory else 1 << 16)
            self._memory.append(torch.empty(size, dtype=torch.uint8, device=self._device))
            self._used = 0
        start = self._used
        self._used += nbytes
        return self._memory[-1][start : start + prod(shape) * dtype.itemsize].view(dtype).view(shape)

    def zeros(self, count: int) -> torch.Tensor:
        """int32 [count or more] of zeros, which whoever changes them leaves as zeros; all nodes share them."""
        if count > self._zeros.numel():
            self._zeros = torch.zeros(next_power(count), dtype=torch.int32, device=self._device)
        return self._zeros


@dataclass
class Checks:
    """Rules about contents that kernels test: the number of a rule -> its message."""

    messages: list[str] = field(default_factory=list)

    def add(self, *messages: str) -> int:
        """Number of the first of `messages`, from 0; they contain {index} and {value}."""
        self.messages += messages
        return len(self.messages) - len(messages)

    def fault(self, record: int) -> InvalidArgument | None:
        """The error that a fault record stands for."""
        if record == NO_FAULT:
            return None
        number, index, value = record >> 52, (record >> 32) & 0xFFFFF, record & 0xFFFFFFFF
        value -= (value >> 31) << 32
        return InvalidArgument(self.messages[number].format(index=index, value=value))


@dataclass(frozen=True)
class Shared:
    """What all nodes of an executable use."""

    settings: Settings
    device: torch.device
    workspace: Workspace
    fault: torch.Tensor
    tables: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Site:
    """A node with its memory and all sizes known."""

    node: Node
    inputs: Mapping[str, TorchBuffer]
    outputs: tuple[TorchBuffer, ...]
    dims: Mapping[str, int]
    shared: Shared

    @property
    def settings(self) -> Settings:
        """Of the device."""
        return self.shared.settings

    @property
    def fault(self) -> torch.Tensor:
        """The fault record, int64 [1]."""
        return self.shared.fault

    def shape(self, port: str) -> Size:
        """Sizes of an input."""
        return self.node.inputs[port].spec.resolve(self.dims)

    def spec(self, port: str) -> TensorSpec:
        """Spec of an input."""
        return self.node.inputs[port].spec

    def has(self, port: str) -> bool:
        """Whether an optional input is there."""
        return port in self.inputs

    def tensor(self, port: str) -> torch.Tensor:
        """A plain input (or a cache, as it lies)."""
        return self.inputs[port].view(DTYPES[self.spec(port).format.name], self.shape(port))

    def optional(self, port: str, instead: torch.Tensor) -> torch.Tensor:
        """An optional input, or what a kernel is given in its place and does not read."""
        return self.tensor(port) if port in self.inputs else instead

    def output(self, index: int = 0) -> torch.Tensor:
        """A plain output (or a cache)."""
        spec = self.node.outputs[index].spec
        return self.outputs[index].view(DTYPES[spec.format.name], spec.resolve(self.dims))

    def attr(self, name: str) -> Any:
        """An attribute, or its default."""
        value = self.node.attrs.get(name)
        return next(a.default for a in self.node.op.attrs if a.name == name) if value is None else value

    def scratch(self, shape: Size, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Memory until the next node."""
        return self.shared.workspace.take(shape, dtype)


@dataclass(frozen=True)
class Planes:
    """A weight as kernels take it: pointers in order, and what selects its decoder."""

    pointers: tuple[torch.Tensor, ...]
    constants: Mapping[str, Any]
    fmt: str
    width: int
    """Elements of a unit that one part has."""


_SCALES = {"half": 0, "super": 1, "exponent": 2, "float8": 4}
"""3 are dense weights, see `kernels.blocks`."""


def planes_of(site: Site, port: str = "weight") -> Planes:
    """The weight at `port`, in blocks or dense."""
    fmt = site.spec(port).format.name
    buffer = site.inputs[port]
    table = site.shared.tables.get(fmt, site.fault)
    if fmt not in LAYOUTS:
        shape = site.shape(port)
        dense = buffer.view(DTYPES[fmt], (prod(shape[:-1]), shape[-1]))
        constants = {"LO_BITS": 8, "HI_BITS": 0, "OFFSET": 0, "GROUPS": 1, "SCALE": 3}
        return Planes((dense, *([site.fault] * 5), table), {**constants, "MINIMUM": False, "CODEBOOK": False}, fmt, 32)
    if buffer.planes is None:
        raise InvalidArgument(f"node {site.node.name}: {fmt} at '{port}' was not loaded as a weight")
    return block_planes(fmt, buffer.planes, table)


def block_planes(fmt: str, planes: Mapping[str, torch.Tensor], table: torch.Tensor) -> Planes:
    """A weight in blocks; `table` is the codebook, or anything where the format has none."""
    layout = LAYOUTS[fmt]
    pointers = tuple(planes.get(name, planes["lo"]) for name in ("lo", "hi", "scale", "super", "low", "low_super"))
    constants = {
        "LO_BITS": layout.lo_bits,
        "HI_BITS": layout.hi_bits,
        "OFFSET": layout.offset,
        "GROUPS": layout.groups_per_unit,
        "SCALE": _SCALES[layout.scale],
        "MINIMUM": layout.has_minimum,
        "CODEBOOK": bool(layout.codebook),
    }
    return Planes((*pointers, table), constants, fmt, layout.width)


def cdiv(size: int, step: int) -> int:
    """How many steps cover `size`."""
    return -(-size // step)


def clamp(size: int, lo: int, hi: int) -> int:
    """`size` within lo .. hi."""
    return max(lo, min(size, hi))
