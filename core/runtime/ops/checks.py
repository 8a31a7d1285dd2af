"""Rules that operations share: indices in range, dimensions that must divide or agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.dtypes import Dim
from runtime.errors import InvalidArgument

if TYPE_CHECKING:
    from numpy.typing import NDArray


def check_indices(
    op_key: str, name: str, indices: NDArray[Any], size: int, *, what: str, padding: bool = False
) -> None:
    """Raise InvalidArgument unless every index is in 0 .. size-1; with `padding`, -1 is allowed as well.

    `what` says what is counted, in the plural: "rows of x".
    """
    if not indices.size:
        return
    wrong = (indices < (-1 if padding else 0)) | (indices >= size)
    if wrong.any():
        first = int(wrong.reshape(-1).argmax())
        allowed = f"0 .. {size - 1}" if size else "none"
        raise InvalidArgument(
            f"{op_key} {name}[{first}] = {int(indices.reshape(-1)[first])} does not exist: there are {size} {what}, "
            f"allowed are {allowed}{' and -1 for nothing' if padding else ''}"
        )


def check_distinct(op_key: str, name: str, indices: NDArray[Any]) -> None:
    """Raise InvalidArgument where an index occurs twice: the result would depend on the order of writing."""
    import numpy as np

    ordered = np.sort(indices, axis=None)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if twice.size:
        raise InvalidArgument(f"{op_key} {name} holds {int(twice[0])} more than once; every target is written once")


def check_multiple(op_key: str, name: str, size: Dim, divisor: Dim, rule: str) -> None:
    """Raise InvalidArgument unless `size` is a multiple of `divisor`; `rule` says why it must be.

    Symbolic sizes are refused: a width must be known when the graph is built.
    """
    if fixed(op_key, name, size) % fixed(op_key, name, divisor):
        raise InvalidArgument(f"{op_key} {name} = {size} is not a multiple of {divisor}; {rule}")


def check_equal(op_key: str, name: str, size: Dim, expected: Dim, rule: str) -> None:
    """Raise InvalidArgument unless `size` is `expected`; two sizes of which one is symbolic pass."""
    if isinstance(size, int) and isinstance(expected, int) and size != expected:
        raise InvalidArgument(f"{op_key} {name} = {size}, expected {expected}; {rule}")


def fixed(op_key: str, name: str, size: Dim) -> int:
    """`size` as an int; raises InvalidArgument where it is a symbolic dimension."""
    if isinstance(size, int) and size > 0:
        return size
    raise InvalidArgument(f"{op_key} {name} = {size}; it must be a fixed size of at least 1")
