"""Memory of the native device: step inputs and outputs, KV caches, and weights in the forms that operations read."""

from __future__ import annotations

import ctypes
import mmap
from typing import TYPE_CHECKING, Any

from runtime.backend import InvalidArgument, OutOfMemory, TensorSpec, WeightSlot, host_memory
from runtime_cpu.native import Library
from runtime_cpu.program import KvCacheStruct, WeightStruct

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GGML_TYPES = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 6,
    "q5_1": 7,
    "q8_0": 8,
    "q2_k": 10,
    "q3_k": 11,
    "q4_k": 12,
    "q5_k": 13,
    "q6_k": 14,
    "iq4_nl": 20,
    "iq4_xs": 23,
    "bf16": 30,
    "mxfp4": 39,
}
"""Formats that the library can decode, by the numbers that it knows them by."""
MAX_CACHE_SIZE = 2**31 - 1
"""What the library's own counters of a KV cache hold."""


class NativeBuffer:
    """Memory of the system, on request in large pages; untouched pages take nothing."""

    def __init__(self, library: Library, nbytes: int, what: str, *, large_pages: bool = False) -> None:
        self._library = library
        self._nbytes = max(nbytes, 1)
        available, total = host_memory()
        # what is not written takes no memory, so only a request that the whole host could not hold is refused here
        address = library.rt_allocate(self._nbytes, large_pages) if self._nbytes <= total else None
        if not address:
            raise OutOfMemory(
                f"{what} takes {nbytes} bytes, the host has {available} available",
                remedy="ask for a shorter context or fewer sequences",
                requested_bytes=nbytes,
                available_bytes=available,
            )
        self.address: int = address

    @property
    def nbytes(self) -> int:
        """Bytes that it occupies when all of it is used."""
        return self._nbytes

    def close(self) -> None:
        """Free it; closing twice is harmless."""
        if self.address:
            self._library.rt_free(self.address, self._nbytes)
            self.address = 0

    def write(self, data: memoryview) -> None:
        """Copy `data` to the start of the buffer."""
        if data.nbytes > self._nbytes:
            raise InvalidArgument(f"{data.nbytes} bytes were written to a buffer of {self._nbytes}")
        if data.nbytes <= 1 << 16:  # the copy in between is cheaper than finding the address of foreign memory
            ctypes.memmove(self.address, bytes(data), data.nbytes)
        else:
            ctypes.memmove(self.address, address_of(data), data.nbytes)

    def read(self, into: memoryview) -> None:
        """Copy the start of the buffer to `into`."""
        if into.nbytes > self._nbytes:
            raise InvalidArgument(f"{into.nbytes} bytes were read from a buffer of {self._nbytes}")
        if into.nbytes:
            ctypes.memmove(ctypes.addressof(ctypes.c_char.from_buffer(into)), self.address, into.nbytes)


class NativeCache(NativeBuffer):
    """A layer's KV cache in the library's own layout, all zeros at first."""

    def __init__(self, library: Library, spec: TensorSpec) -> None:
        _, num_blocks, block_size, num_heads, head_dim = spec.resolve({})
        if block_size % 32 or spec.format.name not in ("f32", "f16", "bf16", "q8_0"):
            raise InvalidArgument(
                f"a KV cache {spec} has no native layout; block_size must be a multiple of 32, the format f32, f16, "
                "bf16 or q8_0"
            )
        # compared before the library is asked, whose counters have 32 bits
        nbytes = spec.nbytes()
        available, _ = host_memory()
        if nbytes <= available:
            sizes = (num_blocks, block_size, num_heads, head_dim)
            if max(sizes) > MAX_CACHE_SIZE:
                raise InvalidArgument(f"a KV cache {spec} has a size above {MAX_CACHE_SIZE}")
            self.struct = KvCacheStruct(None, GGML_TYPES[spec.format.name], *sizes)
            nbytes = library.rt_cache_bytes(ctypes.byref(self.struct))
        if nbytes > available:
            raise OutOfMemory(
                f"a KV cache {spec} takes {nbytes} bytes, the host has {available} available",
                remedy="ask for a shorter context or fewer sequences",
                requested_bytes=nbytes,
                available_bytes=available,
            )
        super().__init__(library, nbytes, f"a KV cache {spec}", large_pages=True)  # read in blocks here and there
        self.struct.data = self.address
        self.spec = spec

    @property
    def pointer(self) -> int:
        """Address of the `rt::KvCache`."""
        return ctypes.addressof(self.struct)


class NativeWeight:
    """A weight as stored, and what was made of it: packed panels for products, f32 for everything else.

    The stored bytes are used in place; whoever mapped them keeps them valid until `close`. Packing goes on while the
    caller does something else, and ends before a program runs. Pages of a mapped file are given back once they are
    packed. With a `slot`, packed panels are taken from there, or offered to it.
    """

    def __init__(
        self, library: Library, device: int, spec: TensorSpec, data: memoryview, slot: WeightSlot | None = None
    ) -> None:
        self.spec = spec
        self._library = library
        self._device = device
        self._data: memoryview | None = data
        self._slot = slot
        self._packed: NativeBuffer | None = None
        self._cached: memoryview | None = None
        self._structs: Any = None
        self._decoded: NDArray[np.float32] | None = None
        self._rows: Any = None
        self.packed_format = -1
        """Number of the format that was packed; see `packed`."""
        self.decoded_to: str | None = None
        """The format that the weight was decoded to before packing, where its own has no kernels."""

    @property
    def nbytes(self) -> int:
        """Bytes as stored, or what was made of them."""
        made = 0 if self._packed is None else self._packed.nbytes
        return made or self.spec.nbytes()

    @property
    def was_packed(self) -> bool:
        """Whether this process packed it: not where it came out of a slot."""
        return self._packed is not None

    def close(self) -> None:
        """Free what was made; the stored bytes belong to whoever mapped them."""
        if self._packed is not None:
            self._library.rt_device_wait(self._device)  # it may still be written
            self._packed.close()
        self._data = self._packed = self._cached = self._structs = self._decoded = self._rows = None

    def values(self) -> int:
        """Address of all elements in f32."""
        if self._decoded is None:
            self._decoded = self._decode()
        return int(self._decoded.ctypes.data)

    def table(self) -> tuple[int, int, int]:
        """Address of the rows, their format, and bytes of a row: as stored, or decoded where the library
        cannot read the stored form."""
        if self._rows is None:
            name = self.spec.format.name
            assert self._data is not None, "the weight is closed"
            if name not in GGML_TYPES:
                name, self._rows = as_f16_or_f32(self._decode())
            else:
                self._rows = self._data
            self._rows_format = name
        rows = 1
        for size in self.spec.resolve({})[:-1]:
            rows *= size
        data = memoryview(self._rows).cast("B")
        return address_of(data), GGML_TYPES[self._rows_format], data.nbytes // max(1, rows)

    def packed(self) -> int:
        """Address of the `rt::Weight` of a matrix [n, k], or of the first of a stack [e, n, k]."""
        if self._structs is None:
            self._pack()
        return ctypes.addressof(self._structs)

    def _pack(self) -> None:
        shape = self.spec.resolve({})
        count, (n, k) = (shape[0] if len(shape) == 3 else 1), shape[-2:]
        found = None if self._slot is None else self._slot.find()
        name = self.spec.format.name if found is None else found[0]
        address = 0 if found is None else self._use_cached(*found, count, n, k)
        if not address:
            name, address = self._pack_now(count, n, k)
        number, one = GGML_TYPES[name], self._packed_bytes(name, n, k)
        if name != self.spec.format.name:
            self.decoded_to = name
        self._structs = (WeightStruct * count)(*(WeightStruct(number, n, k, address + i * one) for i in range(count)))
        self.packed_format = number

    def _use_cached(self, form: str, data: memoryview, count: int, n: int, k: int) -> int:
        """Address of the panels that an earlier process packed, or 0 where they do not fit."""
        if form not in GGML_TYPES or data.nbytes != self._packed_bytes(form, n, k) * count or not data.nbytes:
            return 0
        address = address_of(data)
        self._cached = data if address % 64 == 0 else None
        return address if self._cached is not None else 0

    def _pack_now(self, count: int, n: int, k: int) -> tuple[str, int]:
        """Hand the weight over to be packed; the format that it is packed from, and where the panels will lie."""
        assert self._data is not None, "the weight is closed"
        name, data, made = self.spec.format.name, self._data, None
        if not self._packable(name, k):
            name, made = as_f16_or_f32(self._decode())
            data = memoryview(made).cast("B")
        nbytes = self._packed_bytes(name, n, k) * count
        packed = NativeBuffer(self._library, nbytes + 64, f"weight {self.spec}")
        job = (GGML_TYPES[name], address_of(data), data.nbytes // count, count, n, k, packed.address, is_mapped(data))
        while not self._library.rt_device_pack(self._device, *job):
            self._library.rt_device_wait(self._device)
        if made is not None:
            self._library.rt_device_wait(self._device)  # before the decoded values go
        self._packed = packed
        if self._slot is not None:
            panels = memoryview((ctypes.c_char * nbytes).from_address(packed.address)).cast("B")
            self._slot.keep(name, panels, lambda: self._library.rt_device_wait(self._device))
        return name, packed.address

    def _packed_bytes(self, name: str, n: int, k: int) -> int:
        return int(self._library.rt_device_packed_bytes(self._device, GGML_TYPES[name], n, k))

    def _packable(self, name: str, k: int) -> bool:
        number = GGML_TYPES.get(name)
        return number is not None and self._library.rt_device_packed_bytes(self._device, number, 16, k) > 0

    def _decode(self) -> NDArray[np.float32]:
        import numpy as np

        assert self._data is not None, "the weight is closed"
        decoded = self.spec.format.decode(self._data, self.spec.resolve({}))
        return np.ascontiguousarray(decoded, dtype=np.float32)


def as_f16_or_f32(values: NDArray[np.float32]) -> tuple[str, Any]:
    """`values` in f16 where that keeps every one of them, otherwise as they are: the manifest promises exact weights.

    bf16 is no choice: its products round their activations to bf16.
    """
    import numpy as np

    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # what does not fit shows in the comparison
        halves = values.astype(np.float16)
    if np.array_equal(halves, values):
        return "f16", np.ascontiguousarray(halves)
    return "f32", np.ascontiguousarray(values)


def is_mapped(data: memoryview) -> bool:
    """Whether the bytes are those of a file, mapped for reading: then their pages may be given back."""
    if not isinstance(data.obj, mmap.mmap) or not data.readonly:
        return False
    try:
        data.obj.size()
    except (OSError, ValueError):  # anonymous memory, which would be lost
        return False
    return True


def address_of(data: memoryview) -> int:
    """Where the bytes of a buffer lie; it must be kept alive by the caller."""
    import numpy as np

    return int(np.frombuffer(data, dtype=np.uint8).ctypes.data)
