"""`KernelBackend`: a whole backend out of a table of kernels that are plain Python callables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runtime.backend.contract import BackendInfo, Buffer, Communicator, DeviceConfig, DeviceInfo, hookimpl
from runtime.backend.host import VIEWED, ArrayBuffer, HostDevice, QuantizedTensor, from_bytes, kv_dtype
from runtime.backend.interpret import InterpretedRegion, resolve_spec
from runtime.backend.kernel_table import Kernel, kernels_of
from runtime.backend.manifest import KVLayout, Manifest
from runtime.dtypes import Span, TensorSpec
from runtime.errors import ExecutionFailed, InvalidArgument, RuntimeFault, Unsupported
from runtime.graph import Node, Region

if TYPE_CHECKING:
    from numpy.typing import NDArray


class KernelBackend:
    """Base of a backend whose kernels are methods marked with `@kernel`; an instance of a subclass is the plugin.

    The base makes manifest, hooks, device and executables. What has no kernel runs on the host.

    Kernels take and return arrays, by default numpy's:

    f64 f32 f16, integers   arrays of that type; weights are views of the mapped file, not to be written to
    bf16, f8                float32 arrays
    block formats           `QuantizedTensor` (format, shape, data: uint8 rows); its `decode()` gives float32
    KV caches               [2, blocks, block_size, num_kv_heads, head_dim], float16 for f16, otherwise float32; a
                            kernel changes them in place and returns them, or returns a new array

    A backend with memory of its own overrides `to_device` and `to_host`; its kernels then take and return its own
    arrays, which need `.shape` and `.dtype`.
    """

    name: str
    vendor: str
    version: str = "0"
    api_level: int = 1
    homepage: str = ""
    probe_key: str = ""
    """See `BackendInfo.probe_key`."""
    kv_layouts: tuple[KVLayout, ...] = (KVLayout(formats=("f16", "f32")),)
    step_dims: Mapping[str, Span] = {}
    """Limits of a step, see `Manifest.dims`."""

    def __init__(self) -> None:
        for attribute in ("name", "vendor"):
            if not isinstance(getattr(self, attribute, None), str):
                raise InvalidArgument(f"backend {type(self).__name__} must set '{attribute}' to a string")
        self._kernels: list[Kernel] | None = None

    def probe(self) -> Sequence[DeviceInfo]:
        """The devices that are present and work. It should run a real kernel on each."""
        raise InvalidArgument(f"backend {self.name} must define probe(): it says which devices are present")

    def to_device(self, array: NDArray[Any]) -> Any:
        """A numpy array in the device's own memory."""
        return array

    def to_host(self, value: Any) -> NDArray[Any]:
        """One of the device's arrays as a numpy array."""
        array: NDArray[Any] = value
        return array

    @property
    def kernels(self) -> Sequence[Kernel]:
        """All kernels; raises InvalidArgument where a declaration does not fit its operation."""
        if self._kernels is None:
            self._kernels = kernels_of(self)
        return self._kernels

    def manifest(self) -> Manifest:
        """One rule per kernel."""
        return Manifest(
            self.name,
            api_level=self.api_level,
            rules=tuple(k.rule for k in self.kernels),
            kv_layouts=self.kv_layouts,
            dims=self.step_dims,
        )

    @hookimpl
    def runtime_backend_info(self) -> BackendInfo:
        """Static facts."""
        return BackendInfo(self.name, self.vendor, self.version, self.api_level, self.homepage, self.probe_key)

    @hookimpl
    def runtime_manifest(self) -> Manifest:
        """See `manifest`."""
        return self.manifest()

    @hookimpl
    def runtime_probe(self) -> Sequence[DeviceInfo]:
        """See `probe`."""
        return self.probe()

    @hookimpl
    def runtime_open(self, device: DeviceInfo, config: DeviceConfig) -> KernelDevice:
        """A device that runs the kernels."""
        return KernelDevice(self, device)


class KernelDevice(HostDevice):
    """The device of a `KernelBackend`: runs a region kernel by kernel; calls return when the work is done."""

    def __init__(self, backend: KernelBackend, info: DeviceInfo) -> None:
        super().__init__(info)
        self._backend = backend
        self._manifest = backend.manifest()
        self._kernel_of_rule = {id(k.rule): k for k in backend.kernels}
        self._has_own_memory = type(backend).to_device is not KernelBackend.to_device

    @property
    def manifest(self) -> Manifest:
        """The manifest of the backend."""
        return self._manifest

    def to_device(self, array: Any) -> Any:
        """As the backend does it."""
        return self._backend.to_device(array)

    def to_host(self, value: Any) -> NDArray[Any]:
        """As the backend does it."""
        return self._backend.to_host(value)

    def adopt_host(self, data: memoryview, spec: TensorSpec) -> ArrayBuffer | None:
        """In place, unless the backend has memory of its own."""
        return None if self._has_own_memory else ArrayBuffer(spec.nbytes(), from_bytes(spec, data))

    def load_weight(self, spec: TensorSpec, data: memoryview, use: Mapping[str, Any]) -> ArrayBuffer:
        """A copy in the device's memory."""
        buffer = ArrayBuffer(spec.nbytes())
        self.upload(buffer, data, spec)
        return buffer

    def communicator(self, group: Sequence[str], rank: int) -> Communicator | None:
        """Among processes of this host; None where tensors lie in memory of the backend's own."""
        return None if self._has_own_memory else super().communicator(group, rank)

    def compile(self, region: Region, resident: Mapping[str, Buffer], hints: Mapping[str, Any]) -> InterpretedRegion:
        """Find the kernel of every node; raises Unsupported where there is none."""
        chosen: dict[Node, Kernel] = {}
        for node in region.nodes:
            match = self._manifest.match(node.op.key, node.facts(region.dims))
            if match.coverage != "full" or match.rule is None:
                raise Unsupported(
                    f"{self._backend.name} has no kernel for node {node.name} ({node.op.key}): "
                    f"{'; '.join(match.reasons)}",
                    reasons=match.reasons,
                )
            chosen[node] = self._kernel_of_rule[id(match.rule)]

        def run_node(node: Node, inputs: dict[str, Any], dims: Mapping[str, int]) -> Sequence[Any]:
            self._counters["kernels_run"] += 1
            return run_kernel(chosen[node], node, inputs, dims)

        fingerprint = f"{self._backend.name} {self._backend.version}: "
        fingerprint += ", ".join(dict.fromkeys(k.name for k in chosen.values()))
        return InterpretedRegion(region, resident, run_node, fingerprint)


def run_kernel(kernel: Kernel, node: Node, inputs: Mapping[str, Any], dims: Mapping[str, int]) -> list[Any]:
    """Call `kernel` for `node` and check what it returns; raises ExecutionFailed naming kernel and node."""
    try:
        result = kernel.function(**kernel.arguments(node, inputs))
    except RuntimeFault:
        raise
    except Exception as error:  # a kernel is foreign code: whatever it raises becomes a typed error with its cause
        given = ", ".join(f"{port} {resolve_spec(v.spec, dims)}" for port, v in node.inputs.items())
        raise ExecutionFailed(
            f"kernel {kernel.name} failed at node {node.name} ({node.op.key}) with {given}: "
            f"{type(error).__name__}: {error}"
        ) from error
    made = list(result) if isinstance(result, (tuple, list)) else [result]
    if len(made) != len(node.outputs):
        raise ExecutionFailed(
            f"kernel {kernel.name} returned {len(made)} outputs at node {node.name}; "
            f"{node.op.key} has {len(node.outputs)}"
        )
    return [_checked(kernel, node, array, resolve_spec(v.spec, dims)) for array, v in zip(made, node.outputs)]


def _checked(kernel: Kernel, node: Node, array: Any, spec: TensorSpec) -> Any:
    shape = spec.resolve({})
    allowed: tuple[str, ...]
    wrap: Callable[[Any], Any] | None = None
    if spec.layout == "kv":
        allowed = (kv_dtype(spec.format),)
    elif spec.format.is_quantized:
        allowed = ("uint8",)
        array = array.data if isinstance(array, QuantizedTensor) else array
        expected_shape = (*shape[:-1], spec.format.nbytes(shape[-1:]))
        shape, wrap = expected_shape, lambda data: QuantizedTensor(spec.format, spec.resolve({}), data)
    else:
        allowed = (_dtype_name(spec.format.name),)
        if spec.format.name not in VIEWED:
            allowed += ("bfloat16",) if spec.format.name == "bf16" else ()
    dtype = str(getattr(array, "dtype", type(array).__name__)).rsplit(".", 1)[-1]
    given = tuple(getattr(array, "shape", ()))
    if given != shape or dtype not in allowed:
        raise ExecutionFailed(
            f"kernel {kernel.name} returned {dtype}{list(given)} at node {node.name} ({node.op.key}), "
            f"expected {allowed[0]}{list(shape)} for {spec}"
        )
    return wrap(array) if wrap else array


def _dtype_name(fmt: str) -> str:
    kinds = {"f": "float", "i": "int", "u": "uint", "b": "bool"}
    view = VIEWED.get(fmt, "<f4")
    return "bool" if view[1] == "b" else f"{kinds[view[1]]}{8 * int(view[2:])}"
