"""Work models that several operations share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

from runtime.dtypes import TensorSpec
from runtime.ops.declare import Attrs, Specs, Work


def total_nbytes(specs: Mapping[str, TensorSpec]) -> int:
    """Bytes of all tensors together; shapes must be resolved."""
    return sum(spec.nbytes() for spec in specs.values())


def rows_nbytes(spec: TensorSpec, num_rows: int) -> int:
    """Bytes of `num_rows` rows of a tensor whose innermost dimension is the row."""
    row = spec.resolve({})[-1]
    return spec.format.nbytes((num_rows, row))


def elementwise(operations_per_element: int) -> Callable[[Specs, Specs, Attrs], Work]:
    """Reads every input once, writes every output once, `operations_per_element` per element of the first output.

    An elementary function such as exp or tanh counts as one operation.
    """

    def work(inputs: Specs, outputs: Specs, attrs: Attrs) -> Work:
        size = prod(next(iter(outputs.values())).resolve({}))
        return Work(operations_per_element * size, total_nbytes(inputs), total_nbytes(outputs))

    return work
