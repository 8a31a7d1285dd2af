"""Tensors of the host as numpy arrays: buffers, finished events, and the way between arrays and stored bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.backend.contract import Buffer, Communicator, DeviceInfo, Event
from runtime.dtypes import Format, TensorSpec, encode
from runtime.errors import InvalidArgument, OutOfMemory, RuntimeFault

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VIEWED = {
    "f64": "<f8",
    "f32": "<f4",
    "f16": "<f2",
    "i8": "<i1",
    "i16": "<i2",
    "i32": "<i4",
    "i64": "<i8",
    "u8": "<u1",
    "u16": "<u2",
    "u32": "<u4",
    "u64": "<u8",
    "bool": "|b1",
}
"""Formats whose stored bytes numpy understands. Other plain formats (bf16, f8) become float32 arrays."""


@dataclass(frozen=True)
class QuantizedTensor:
    """A tensor in a block format: `data` is uint8 [..., bytes per row]; `shape` counts elements."""

    format: Format
    shape: tuple[int, ...]
    data: NDArray[np.uint8]

    def decode(self) -> NDArray[Any]:
        """The exact values, float32 of `shape`."""
        import numpy as np

        return self.format.decode(np.ascontiguousarray(self.data), self.shape)


class FinishedEvent:
    """The event of a call that blocked: it is done, and carries the error of that call if there was one."""

    def __init__(self, error: RuntimeFault | None = None) -> None:
        self.error = error

    def wait(self, timeout_s: float | None = None) -> None:
        """Return at once, or raise the error."""
        if self.error is not None:
            raise self.error

    def done(self) -> bool:
        """Always."""
        return True


class ArrayBuffer:
    """A place for one tensor: whatever its device calls an array, exchanged as a whole."""

    def __init__(self, nbytes: int, value: Any = None) -> None:
        self._nbytes = nbytes
        self.value = value

    @property
    def nbytes(self) -> int:
        """Bytes of the largest tensor that it was allocated for."""
        return self._nbytes

    def close(self) -> None:
        """Let go of the array."""
        self.value = None


class HostDevice:
    """What devices share whose tensors are numpy arrays: buffers, transfers, counters; subclasses compile and load."""

    def __init__(self, info: DeviceInfo) -> None:
        self._info = info
        self._counters = {"kernels_run": 0, "bytes_uploaded": 0, "bytes_downloaded": 0, "host_compute_ns": 0}

    @property
    def info(self) -> DeviceInfo:
        """Which device this is."""
        return self._info

    def to_device(self, array: Any) -> Any:
        """Bring a numpy array into the device's own memory; here that is the host's."""
        return array

    def to_host(self, value: Any) -> NDArray[Any]:
        """Bring one of the device's arrays back as a numpy array."""
        array: NDArray[Any] = value
        return array

    def allocate(self, spec: TensorSpec) -> ArrayBuffer:
        """A place for a tensor; a KV cache is made of zeros at once. Raises OutOfMemory."""
        nbytes = spec.nbytes()
        if spec.layout != "kv":
            return ArrayBuffer(nbytes)
        import numpy as np

        dtype = kv_dtype(spec.format)
        requested = nbytes // spec.format.block_bytes * spec.format.group_size * np.dtype(dtype).itemsize
        available, _ = host_memory()
        if requested > available:
            raise OutOfMemory(
                f"a KV cache {spec} takes {requested} bytes as {dtype} on the host, {available} are available",
                remedy="ask for a shorter context or fewer sequences",
                requested_bytes=requested,
                available_bytes=available,
            )
        return ArrayBuffer(requested, self.to_device(np.zeros(spec.resolve({}), dtype)))

    def upload(self, target: Buffer, data: memoryview, spec: TensorSpec) -> Event:
        """Host to device; the bytes are copied."""
        target = _own(target)
        array = from_bytes(spec, data)
        if isinstance(array, QuantizedTensor):
            target.value = QuantizedTensor(array.format, array.shape, self.to_device(array.data.copy()))
        elif spec.layout == "kv":
            target.value = self.to_device(array.astype(kv_dtype(spec.format)))
        else:
            target.value = self.to_device(array.copy())
        self._counters["bytes_uploaded"] += data.nbytes
        return FinishedEvent()

    def download(self, source: Buffer, into: memoryview, spec: TensorSpec) -> Event:
        """Device to host, in the stored form of `spec`."""
        value = _own(source).value
        if value is None:
            raise InvalidArgument(f"a buffer for {spec} was read before anything was written to it")
        if isinstance(value, QuantizedTensor):
            value = QuantizedTensor(value.format, value.shape, self.to_host(value.data))
        else:
            value = self.to_host(value)
        store_bytes(spec, value, into)
        self._counters["bytes_downloaded"] += into.nbytes
        return FinishedEvent()

    def copy(self, target: Buffer, source: Buffer, spec: TensorSpec) -> Event:
        """From one buffer to another."""
        import copy

        _own(target).value = copy.deepcopy(_own(source).value)
        return FinishedEvent()

    def communicator(self, group: Sequence[str], rank: int) -> Communicator | None:
        """A rank among processes of this host; see `runtime.backend.collectives`."""
        from runtime.backend.collectives import HostCommunicator

        return HostCommunicator(self, group, rank)

    def memory(self) -> Mapping[str, tuple[int, int]]:
        """Pool -> (free, total)."""
        return {"host": host_memory()}

    def counters(self) -> Mapping[str, int]:
        """kernels_run, bytes_uploaded, bytes_downloaded, host_compute_ns: since the device was opened."""
        return dict(self._counters)

    def close(self) -> None:
        """Nothing is held beyond the buffers."""


def _own(buffer: Buffer) -> ArrayBuffer:
    if not isinstance(buffer, ArrayBuffer):
        raise InvalidArgument(f"a {type(buffer).__name__} was given to a device that did not allocate it")
    return buffer


def kv_dtype(fmt: Format) -> str:
    """The array type that holds a KV cache of `fmt`: float16 for f16, otherwise float32, which holds every value."""
    return "float16" if fmt.name == "f16" else "float32"


def from_bytes(spec: TensorSpec, data: Any) -> NDArray[Any] | QuantizedTensor:
    """Stored bytes as an array of the resolved `spec`: without a copy where numpy knows the format or it has blocks."""
    import numpy as np

    shape = spec.resolve({})
    expected = spec.nbytes()
    raw = np.frombuffer(data, dtype=np.uint8)
    if raw.size != expected:
        raise InvalidArgument(f"{spec} takes {expected} bytes, {raw.size} were given")
    if spec.format.name in VIEWED:
        return raw.view(VIEWED[spec.format.name]).reshape(shape)
    if spec.format.is_quantized and spec.layout != "kv":
        row_bytes = spec.format.nbytes(shape[-1:])
        return QuantizedTensor(spec.format, shape, raw.reshape((*shape[:-1], row_bytes)))
    return spec.format.decode(raw, shape)


def store_bytes(spec: TensorSpec, value: Any, into: memoryview) -> None:
    """Write an array of the resolved `spec` into `into` in its stored form."""
    import numpy as np

    target = np.frombuffer(into, dtype=np.uint8)
    if target.size != spec.nbytes():
        raise InvalidArgument(f"{spec} takes {spec.nbytes()} bytes, the target has {target.size}")
    if isinstance(value, QuantizedTensor):
        target[:] = value.data.reshape(-1)
    elif spec.format.name in VIEWED:
        target.view(VIEWED[spec.format.name])[:] = np.asarray(value).reshape(-1)
    else:
        target[:] = np.frombuffer(encode(spec.format, value), dtype=np.uint8)


def to_bytes(spec: TensorSpec, value: Any) -> memoryview:
    """The stored form of an array of the resolved `spec`."""
    data = memoryview(bytearray(spec.nbytes()))
    store_bytes(spec, value, data)
    return data


def as_format(fmt: Format, array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any] | QuantizedTensor:
    """A computed array in the form that buffers hold for `fmt`; block formats come as uint8 rows."""
    if fmt.is_quantized:
        return QuantizedTensor(fmt, shape, array)
    return array.astype(VIEWED.get(fmt.name, "float32"), copy=False)


def host_memory() -> tuple[int, int]:
    """(available, total) bytes of this machine, within the limits of the process's control group and all above it."""
    return within_groups(*_system_memory(), Path("/"))


def within_groups(available: int, total: int, root: Path) -> tuple[int, int]:
    """The least of both, and of what each control group of this process allows and leaves; `root` is where /proc is."""
    for folder, limit, usage in _memory_groups(root):
        try:
            allowed = int((folder / limit).read_text())
            used = int((folder / usage).read_text())
        except (OSError, ValueError):  # not this version of control groups, or "max"
            continue
        total = min(total, allowed)
        available = min(available, max(0, allowed - used))
    return available, total


def _memory_groups(root: Path) -> Iterator[tuple[Path, str, str]]:
    """Folder of every control group (v2 and v1) that limits the memory of this process, and the names of its files."""
    base = root / "sys/fs/cgroup"
    kinds = {"": (base, "memory.max", "memory.current")}
    kinds["memory"] = (base / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8", "replace").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        for name in set(names.split(",")) & kinds.keys():
            mount, limit, usage = kinds[name]
            # in a container the path may be one of the host, which is not visible: then the root is our own group
            folder = mount / path.strip("/")
            while folder != mount and mount in folder.parents:
                yield folder, limit, usage
                folder = folder.parent
            yield mount, limit, usage


def _system_memory() -> tuple[int, int]:
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024, int(fields["MemTotal"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass  # not Linux
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        total = 4 << 30
    return total // 2, total


__all__ = [
    "ArrayBuffer",
    "FinishedEvent",
    "HostDevice",
    "QuantizedTensor",
    "as_format",
    "from_bytes",
    "host_memory",
    "kv_dtype",
    "store_bytes",
    "to_bytes",
]
