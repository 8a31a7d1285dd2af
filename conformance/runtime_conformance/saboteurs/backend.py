"""A backend out of the honest kernels, of which some may be replaced or wrapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from runtime.backend import DeviceInfo, KernelBackend, KVLayout, Numerics, kernel
from runtime_conformance.saboteurs import kernels, kernels_rows
from runtime_conformance.saboteurs.precision import F32, Precision

Wrapper = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Takes the honest kernel (without its precision) and returns the spoilt one."""

_FLOAT = ("f32", "f16", "bf16")
_WEIGHT = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_k", "q6_k")
CONDITIONS: Mapping[str, Mapping[str, Any]] = {
    "linear@1": {"x": _FLOAT, "weight": _WEIGHT, "K": (1, 8192)},
    "embed@1": {"weight": _WEIGHT},
    "moe_linear@1": {"weight": _WEIGHT},
    "rms_norm_linear@1": {"weight": _WEIGHT},
    "topk@1": {"N": (1, 100_000)},
}
"""Operation -> conditions of its rule."""
_MODULES = {
    kernels: "linear rms_norm_linear embed rms_norm layer_norm rope attention kv_write kv_copy_blocks kv_export "
    "kv_import",
    kernels_rows: "activation glu add mul softcap convert softmax topk argmax gather_rows concat split moe_route "
    "moe_linear sample verify_draft penalize all_reduce",
}
KERNELS: dict[str, Callable[..., Any]] = {
    f"{name}@1": getattr(module, name) for module, names in _MODULES.items() for name in names.split()
}


class TestBackend(KernelBackend):
    """Computes with numpy; instances are made by `make_backend`."""

    __test__ = False
    name, vendor = "bench", "runtime-conformance"
    kv_layouts = (KVLayout(block_sizes=(16,), formats=("f16", "f32")),)
    precision: Precision = F32
    wrappers: Mapping[str, Wrapper] = {}

    def probe(self) -> Sequence[DeviceInfo]:
        """One device, which loses against everybody."""
        return [DeviceInfo(index=0, name="numpy", memory_bytes=1 << 30, score=0.0)]

    def call(self, op_key: str, given: Mapping[str, Any]) -> Any:
        """Run one kernel, spoilt or not."""
        import numpy as np

        def honest(**inputs: Any) -> Any:
            return KERNELS[op_key](self.precision, **inputs)

        wrapper = self.wrappers.get(op_key)
        with np.errstate(all="ignore"):
            return (wrapper(honest) if wrapper else honest)(**given)


def make_backend(
    precision: Precision = F32,
    wrappers: Mapping[str, Wrapper] | None = None,
    *,
    flags: Sequence[str] = (),
    numerics: Numerics | None = None,
    base: type[TestBackend] = TestBackend,
) -> TestBackend:
    """An honest backend, with the kernels of `wrappers` spoilt.

    flags     of all rules
    numerics  declared instead of those of `precision`
    """

    def method(op_key: str) -> Callable[..., Any]:
        def run(self: TestBackend, **given: Any) -> Any:
            return self.call(op_key, given)

        declared = numerics or precision.declared
        return kernel(op_key, numerics=declared, flags=flags, **CONDITIONS.get(op_key, {}))(run)

    members: dict[str, Any] = {key.partition("@")[0]: method(key) for key in KERNELS}
    members |= {"precision": precision, "wrappers": dict(wrappers or {})}
    made = type("TestBackendOf" + precision.name.capitalize(), (base,), members)()
    assert isinstance(made, TestBackend)
    return made


honest_f32 = make_backend()
"""Entry point of an honest backend, for tests through worker processes."""
