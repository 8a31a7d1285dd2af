"""Programs as data: operations in the layout of csrc/step/program.h, and the places of their operands."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CODES = (
    *("embed", "linear", "rms_norm", "layer_norm", "rope_table", "rope", "attention", "kv_write", "glu", "activation"),
    *("add", "mul", "softcap", "gather_rows", "copy_columns", "softmax", "topk", "argmax", "penalize", "sample"),
    *("moe_route", "moe_linear", "convert", "kv_copy_blocks", "kv_export", "kv_import"),
)
"""Names of `enum Code`, in order."""
MAX_INPUTS, MAX_SIZES, MAX_NUMBERS = 9, 12, 6
ALIGNMENT = 64


class Operand(ctypes.Structure):
    """Where an operand lies."""

    _fields_ = [("place", ctypes.c_int32), ("reserved", ctypes.c_int32), ("value", ctypes.c_int64)]


class Operation(ctypes.Structure):
    """One operation; what its sizes and numbers mean is said where csrc defines it."""

    _fields_ = [
        ("code", ctypes.c_int32),
        ("dim", ctypes.c_int32),
        ("inputs", Operand * MAX_INPUTS),
        ("outputs", Operand * 2),
        ("sizes", ctypes.c_int64 * MAX_SIZES),
        ("numbers", ctypes.c_double * MAX_NUMBERS),
    ]


class KvCacheStruct(ctypes.Structure):
    """`rt::KvCache`."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("format", ctypes.c_int32),
        ("num_blocks", ctypes.c_int32),
        ("block_size", ctypes.c_int32),
        ("num_heads", ctypes.c_int32),
        ("head_dim", ctypes.c_int32),
    ]


class WeightStruct(ctypes.Structure):
    """`rt::Weight`."""

    _fields_ = [
        ("format", ctypes.c_int32),
        ("n", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("data", ctypes.c_void_p),
    ]

    @property
    def address(self) -> int:
        """Where it lies."""
        return ctypes.addressof(self)


@dataclass(frozen=True)
class Pointer:
    """An address that stays valid while the program lives."""

    address: int


@dataclass(frozen=True)
class Binding:
    """An input or output of the region, bound anew for each run."""

    name: str


@dataclass(frozen=True)
class Area:
    """A piece of the program's arena; equal names are the same piece."""

    name: str
    nbytes: int


Place = Pointer | Binding | Area | None


@dataclass
class Step:
    """An operation before areas have offsets. `rows` is a size or the name of a symbolic dimension."""

    code: str
    rows: int | str
    inputs: Sequence[Place]
    outputs: Sequence[Place]
    sizes: Sequence[int] = ()
    numbers: Sequence[float] = ()


@dataclass
class Layout:
    """What `assemble` made: the operations, bytes of the arena, and the order of dimensions and bindings."""

    operations: ctypes.Array[Operation]
    arena_bytes: int
    dims: tuple[str, ...]
    bindings: tuple[str, ...]
    steps: list[Step] = field(default_factory=list)


def assemble(steps: Sequence[Step], dims: Sequence[str], bindings: Sequence[str]) -> Layout:
    """Place all areas in one arena, by liveness, and write the operations."""
    offsets, arena_bytes = _place_areas(steps)
    dim_index = {name: i for i, name in enumerate(dims)}
    binding_index = {name: i for i, name in enumerate(bindings)}

    def operand(place: Place) -> Operand:
        if place is None:
            return Operand(0, 0, 0)
        if isinstance(place, Area):
            return Operand(1, 0, offsets[place.name])
        if isinstance(place, Pointer):
            return Operand(2, 0, place.address)
        return Operand(3, 0, binding_index[place.name])

    operations = (Operation * len(steps))()
    for target, step in zip(operations, steps):
        target.code = CODES.index(step.code)
        if isinstance(step.rows, str):
            target.dim = dim_index[step.rows]
        else:
            target.dim = -1
            target.sizes[MAX_SIZES - 1] = step.rows
        for i, place in enumerate(step.inputs):
            target.inputs[i] = operand(place)
        for i, place in enumerate(step.outputs):
            target.outputs[i] = operand(place)
        for i, size in enumerate(step.sizes):
            target.sizes[i] = size
        for i, number in enumerate(step.numbers):
            target.numbers[i] = number
    return Layout(operations, arena_bytes, tuple(dims), tuple(bindings), list(steps))


def _place_areas(steps: Sequence[Step]) -> tuple[Mapping[str, int], int]:
    """Offsets: the largest area first, each at the lowest place that is free for as long as it is needed.

    Linears that share a loop run at the same time: the areas of all of them live as long as the group.
    """
    group_end = list(range(len(steps)))
    for i in range(len(steps) - 2, -1, -1):
        if steps[i].code == "linear" and steps[i].sizes[1]:
            group_end[i] = group_end[i + 1]
    areas: dict[str, list[Any]] = {}
    start = 0
    for i, step in enumerate(steps):
        if i and group_end[i - 1] < i:
            start = i
        for place in (*step.inputs, *step.outputs):
            if isinstance(place, Area):
                known = areas.setdefault(place.name, [place.nbytes, start, group_end[i]])
                known[0] = max(known[0], place.nbytes)
                known[2] = group_end[i]
    offsets: dict[str, int] = {}
    placed: list[tuple[int, int, int, int]] = []
    for name, (nbytes, first, last) in sorted(areas.items(), key=lambda a: (-a[1][0], a[1][1], a[0])):
        size = -(-max(nbytes, 1) // ALIGNMENT) * ALIGNMENT
        offset = 0
        for begin, end, other_first, other_last in sorted(placed):
            if other_last < first or other_first > last:
                continue
            if offset + size <= begin:
                break
            offset = max(offset, end)
        offsets[name] = offset
        placed.append((offset, offset + size, first, last))
    return offsets, max((end for _, end, _, _ in placed), default=0)
