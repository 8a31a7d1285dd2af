"""Between the caller's numpy arrays and the contiguous bytes that devices exchange."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.backend import Buffer, Device, QuantizedTensor, from_bytes, to_bytes
from runtime.dtypes import TensorSpec
from runtime.errors import InvalidArgument

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NUMPY_NAMES = {"f64": "<f8", "f32": "<f4", "f16": "<f2", "i8": "<i1", "i16": "<i2", "i32": "<i4", "i64": "<i8"}


@dataclass(frozen=True)
class KeptOutput:
    """An output of a run that stays on its device, valid until the executor that made it runs again.

    `numpy` fetches it; as an input of another run on the same device it is copied there.
    """

    device: Device
    buffer: Buffer
    spec: TensorSpec

    def memory(self) -> memoryview:
        """Its bytes, downloaded. Raises what the device raises."""
        data = empty_memory(self.spec)
        self.device.download(self.buffer, data, self.spec).wait()
        return data

    def numpy(self) -> NDArray[Any]:
        """A new array with its content."""
        return from_memory(self.spec, self.memory())


def resolved(spec: TensorSpec, sizes: Mapping[str, int], name: str) -> TensorSpec:
    """`spec` with sizes in place of symbolic dimensions; raises InvalidArgument where one has no value."""
    for dim in spec.shape:
        if isinstance(dim, str) and dim not in sizes:
            raise InvalidArgument(f"'{name}' is {spec}, and dimension '{dim}' has no value; given: {dict(sizes)}")
    return TensorSpec(spec.format, spec.resolve(sizes), spec.layout)


def as_memory(name: str, spec: TensorSpec, array: NDArray[Any]) -> memoryview:
    """An array as the stored bytes of `spec`, without a copy where its type and order fit already."""
    import numpy as np

    if tuple(array.shape) != spec.shape:
        raise InvalidArgument(f"input '{name}' has shape {list(array.shape)}, the step needs {spec}")
    if (array.dtype.kind in "iu") != (spec.format.kind in ("int", "uint")):
        raise InvalidArgument(f"input '{name}' has type {array.dtype}, the step needs {spec}")
    dtype = _NUMPY_NAMES.get(spec.format.name)
    if dtype is None:
        return to_bytes(spec, array)
    flat = np.ascontiguousarray(array, dtype=dtype).reshape(-1)
    return flat.view(np.uint8).data


def empty_memory(spec: TensorSpec) -> memoryview:
    """Writable bytes for a tensor of the resolved `spec`."""
    import numpy as np

    return np.empty(spec.nbytes(), np.uint8).data


def from_memory(spec: TensorSpec, data: memoryview) -> NDArray[Any]:
    """Stored bytes as an array: of the format's own type, or decoded to float32 where numpy has no such type."""
    array = from_bytes(spec, data)
    return array.decode() if isinstance(array, QuantizedTensor) else array
