"""The backend torch-cpu, for tests: `runtime_torch` on torch's cpu with Triton's interpreter, not for users.

It has no entry point of the distribution; tests that want it put this folder and an entry point on the path.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from runtime.backend import BackendInfo, Device, DeviceConfig, DeviceInfo, Manifest, hookimpl
from runtime_torch.manifest import make_manifest
from runtime_torch.settings import INTERPRETED, Settings

SETTINGS = Settings("torch-cpu", "cpu", precision="f32", tiles=INTERPRETED, wide_output=False, fp8=True)
INFO = DeviceInfo(0, "torch on the processor", 8 << 30, 0.0)


class TorchCpuBackend:
    """One device; not chosen by itself."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        self.settings = settings

    @hookimpl
    def runtime_backend_info(self) -> BackendInfo:
        """See `BackendHooks`."""
        return BackendInfo(self.settings.backend, "hal-runtime", "0")

    @hookimpl
    def runtime_manifest(self) -> Manifest:
        """See `BackendHooks`."""
        return make_manifest(self.settings)

    @hookimpl
    def runtime_probe(self) -> Sequence[DeviceInfo]:
        """See `BackendHooks`."""
        return [INFO]

    @hookimpl
    def runtime_open(self, device: DeviceInfo, config: DeviceConfig) -> Device:
        """See `BackendHooks`."""
        prepare_interpreter()
        from runtime_torch.device import TorchDevice

        settings = self.settings.with_options(dict(config.options))
        opened = TorchDevice(device, settings, config)
        if settings.capture:
            from runtime_torch_graph import capture

            opened._accelerator.has_graphs = True
            opened._accelerator.capture = lambda work, pool: capture(work)
            opened._accelerator.graph_pool = lambda: None
        return opened


def prepare_interpreter() -> None:
    """Kernels are interpreted in this process from here on; Triton must not have been imported before."""
    os.environ["TRITON_INTERPRET"] = "1"
    import torch
    import triton.language as tl
    from triton.runtime import interpreter

    torch.set_num_threads(1)
    if getattr(interpreter, "is_patched_once", False) or not hasattr(interpreter, "_LangPatchScope"):
        return  # done, or another release of Triton: then it is only slower
    # the interpreter exchanges the language's functions at every call of every function, which takes longer than
    # small kernels; here nothing is ever compiled, so once is enough
    scope = interpreter._LangPatchScope()

    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    interpreter._patch_lang = lambda fn: scope
    interpreter.InterpreterBuilder.cast_impl = _cast_as_chips_do(interpreter, tl)
    interpreter.is_patched_once = True


def _cast_as_chips_do(interpreter: Any, tl: Any) -> Any:
    """float32 to bfloat16 to nearest, and back with its smallest numbers; the interpreter cuts, and loses them."""
    import numpy as np

    cast = interpreter.InterpreterBuilder.cast_impl

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        kinds = source.dtype.scalar, target.scalar
        if kinds == (tl.float32, tl.bfloat16):
            bits = np.ascontiguousarray(source.data).view(np.uint32)
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            data = np.where(np.isnan(source.data), (bits >> 16) | 0x40, rounded).astype(np.uint16)
        elif kinds == (tl.bfloat16, tl.float32):
            data = (source.data.astype(np.uint32) << 16).view(np.float32)
        else:
            return cast(self, source, target)
        return interpreter.TensorHandle(data, target.scalar)

    return cast_impl


plugin = TorchCpuBackend()
rounded = TorchCpuBackend(replace(SETTINGS, precision="half"))
"""The numerics of tensor cores: operands rounded to halves."""
captured = TorchCpuBackend(replace(SETTINGS, capture=True))
"""Steps are padded to buckets, captured and replayed, by a graph of torch's operations and interpreted launches."""
