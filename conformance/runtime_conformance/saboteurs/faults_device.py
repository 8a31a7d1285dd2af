"""Faults that lie outside of the kernels: memory, events, counters, caches of results, refusals; crashes and hangs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from runtime.backend import (
    ArrayBuffer,
    Buffer,
    DeviceConfig,
    DeviceInfo,
    Event,
    FinishedEvent,
    KernelDevice,
    Region,
    TensorSpec,
    Unsupported,
    from_bytes,
)
from runtime_conformance.saboteurs.backend import TestBackend, make_backend
from runtime_conformance.saboteurs.faults import Saboteur


class _Aliasing(KernelDevice):
    """Uploads keep the caller's memory."""

    def upload(self, target: Buffer, data: memoryview, spec: TensorSpec) -> Event:
        if spec.format.is_quantized or spec.layout == "kv":
            return super().upload(target, data, spec)
        assert isinstance(target, ArrayBuffer)
        target.value = from_bytes(spec, data)
        return FinishedEvent()


class _SharedCopy(KernelDevice):
    """A copy is another name, and an upload writes in place."""

    def copy(self, target: Buffer, source: Buffer, spec: TensorSpec) -> Event:
        assert isinstance(target, ArrayBuffer)
        assert isinstance(source, ArrayBuffer)
        target.value = source.value
        return FinishedEvent()

    def upload(self, target: Buffer, data: memoryview, spec: TensorSpec) -> Event:
        assert isinstance(target, ArrayBuffer)
        before = target.value
        event = super().upload(target, data, spec)
        if hasattr(before, "dtype") and before.shape == target.value.shape and before.dtype == target.value.dtype:
            before[...] = target.value
            target.value = before
        return event


class _Transposed(KernelDevice):
    """Downloads of a cache exchange keys and values."""

    def download(self, source: Buffer, into: memoryview, spec: TensorSpec) -> Event:
        assert isinstance(source, ArrayBuffer)
        if spec.layout == "kv":
            source = ArrayBuffer(source.nbytes, source.value[::-1].copy())
        return super().download(source, into, spec)


class _Greedy(KernelDevice):
    """Grants whatever is asked for."""

    def allocate(self, spec: TensorSpec) -> ArrayBuffer:
        return ArrayBuffer(spec.nbytes()) if spec.nbytes() > 1 << 40 else super().allocate(spec)


class _Miscounting(KernelDevice):
    """Bytes that were downloaded are not counted."""

    def counters(self) -> Mapping[str, int]:
        return {**super().counters(), "bytes_downloaded": 0}


class _Hidden(KernelDevice):
    """Runs on the host: the counters say so, the manifest does not."""

    def counters(self) -> Mapping[str, int]:
        counted = dict(super().counters())
        return {**counted, "host_compute_ns": 1000 * counted["kernels_run"]}


class _Unseen(KernelDevice):
    """Runs elsewhere: no kernel of the device was ever started."""

    def counters(self) -> Mapping[str, int]:
        return {**super().counters(), "kernels_run": 0}


class _Refusing(KernelDevice):
    """Compiles less than its manifest claims."""

    def compile(self, region: Region, resident: Mapping[str, Buffer], hints: Mapping[str, Any]) -> Any:
        if any(n.op.name == "linear" and "bias" in n.inputs for n in region.nodes):
            raise Unsupported("no epilogue for a bias")
        return super().compile(region, resident, hints)


class _Accepting(KernelDevice):
    """Compiles more than its manifest claims."""

    def compile(self, region: Region, resident: Mapping[str, Buffer], hints: Mapping[str, Any]) -> Any:
        try:
            return super().compile(region, resident, hints)
        except Unsupported:
            return _Nothing()


class _Nothing:
    fingerprint = "nothing"

    def submit(self, bindings: Mapping[str, Buffer], dims: Mapping[str, int]) -> Event:
        """Does nothing."""
        return FinishedEvent()

    def close(self) -> None:
        """Nothing to free."""


class Wrapped:
    """An executable whose result is spoilt by `after(outputs bound, inputs bound)`."""

    def __init__(
        self, inner: Any, region: Region, after: Callable[[list[ArrayBuffer], list[ArrayBuffer]], None]
    ) -> None:
        self.inner, self.region, self.after = inner, region, after
        self.fingerprint = inner.fingerprint

    def submit(self, bindings: Mapping[str, Any], dims: Mapping[str, int]) -> Event:
        """Run, then spoil."""
        event: Event = self.inner.submit(bindings, dims)
        event.wait()
        outputs = [bindings[v.name] for v in self.region.outputs]
        self.after(outputs, [bindings[v.name] for v in self.region.inputs])
        return event

    def close(self) -> None:
        """Free what was compiled."""
        self.inner.close()


class _Late(KernelDevice):
    """The event comes before the work: what is read is what the submission before left."""

    def compile(self, region: Region, resident: Mapping[str, Buffer], hints: Mapping[str, Any]) -> Any:
        previous: list[Any] = []

        def after(outputs: list[ArrayBuffer], inputs: list[ArrayBuffer]) -> None:
            made = [o.value for o in outputs]
            for output, old in zip(outputs, previous or made):
                output.value = old
            previous[:] = made

        return Wrapped(super().compile(region, resident, hints), region, after)


class _Replaying(KernelDevice):
    """A result is remembered by the region and the first element of its input."""

    def compile(self, region: Region, resident: Mapping[str, Buffer], hints: Mapping[str, Any]) -> Any:
        known: dict[Any, Any] = {}

        def after(outputs: list[ArrayBuffer], inputs: list[ArrayBuffer]) -> None:
            key = tuple(i.value.reshape(-1)[:1].tobytes() for i in inputs if hasattr(i.value, "reshape"))
            made = known.setdefault(key, [o.value for o in outputs])
            for output, old in zip(outputs, made):
                output.value = old

        return Wrapped(super().compile(region, resident, hints), region, after)


class _InPlace(KernelDevice):
    """The first input is used as scratch memory."""

    def compile(self, region: Region, resident: Mapping[str, Buffer], hints: Mapping[str, Any]) -> Any:
        def after(outputs: list[ArrayBuffer], inputs: list[ArrayBuffer]) -> None:
            for buffer in inputs[:1]:
                buffer.value = buffer.value * 0

        return Wrapped(super().compile(region, resident, hints), region, after)


class _Partial(KernelDevice):
    """The last row of an output is never written: it holds what the memory held."""

    def compile(self, region: Region, resident: Mapping[str, Buffer], hints: Mapping[str, Any]) -> Any:
        import numpy as np

        count = [0]

        def after(outputs: list[ArrayBuffer], inputs: list[ArrayBuffer]) -> None:
            count[0] += 1
            for output in outputs:
                output.value = np.array(output.value)
                output.value[-1] = count[0]

        return Wrapped(super().compile(region, resident, hints), region, after)


class _Silent(KernelDevice):
    """Contents that break a rule are clipped into range instead of being refused."""

    def compile(self, region: Region, resident: Mapping[str, Buffer], hints: Mapping[str, Any]) -> Any:
        return _Swallowing(super().compile(region, resident, hints), region)


class _Swallowing:
    def __init__(self, inner: Any, region: Region) -> None:
        self.inner, self.region, self.fingerprint = inner, region, inner.fingerprint

    def submit(self, bindings: Mapping[str, Any], dims: Mapping[str, int]) -> Event:
        event: Event = self.inner.submit(bindings, dims)
        return event if getattr(event, "error", None) is None else FinishedEvent()

    def close(self) -> None:
        self.inner.close()


def device_base(device: type[KernelDevice]) -> type[TestBackend]:
    """A backend that opens devices of that class."""

    def runtime_open(self: TestBackend, device: DeviceInfo, config: DeviceConfig) -> KernelDevice:
        return made(self, device)

    from runtime.backend import hookimpl

    made = device
    return type(f"BackendOn{device.__name__}", (TestBackend,), {"runtime_open": hookimpl(runtime_open)})


DEVICES: Sequence[Saboteur] = (
    Saboteur("upload-aliases", "device", "an upload keeps the caller's memory", base=device_base(_Aliasing)),
    Saboteur("copy-aliases", "device", "a copy shares the memory of its source", base=device_base(_SharedCopy)),
    Saboteur(
        "kv-transposed",
        "device",
        "keys and values are exchanged on their way to the host",
        base=device_base(_Transposed),
    ),
    Saboteur("memory-endless", "device", "an absurd allocation is granted", base=device_base(_Greedy)),
    Saboteur("counters-wrong", "device", "downloads are not counted", base=device_base(_Miscounting)),
    Saboteur("host-hidden", "rms_norm@1", "the host computes what is declared native", base=device_base(_Hidden)),
    Saboteur("host-unseen", "rms_norm@1", "no kernel of the device is ever started", base=device_base(_Unseen)),
    Saboteur(
        "claims-too-much", "linear@1", "a bias is claimed and refused at compilation", base=device_base(_Refusing)
    ),
    Saboteur("accepts-too-much", "linear@1", "what the manifest excludes is compiled", base=device_base(_Accepting)),
    Saboteur("race", "glu@1", "the event is done before the work is", base=device_base(_Late)),
    Saboteur(
        "replays", "glu@1", "results are remembered by the first element of the input", base=device_base(_Replaying)
    ),
    Saboteur("input-overwritten", "rms_norm@1", "an input is used as scratch memory", base=device_base(_InPlace)),
    Saboteur("uninitialised", "rms_norm@1", "the last row is not written", base=device_base(_Partial)),
    Saboteur("bad-contents", "gather_rows@1", "an index that does not exist is no error", base=device_base(_Silent)),
)


def _crash(honest: Callable[..., Any]) -> Callable[..., Any]:
    def run(**given: Any) -> Any:
        os.abort()

    return run


def _hang(honest: Callable[..., Any]) -> Callable[..., Any]:
    def run(**given: Any) -> Any:
        time.sleep(3600)

    return run


crashing = make_backend(wrappers={"add@1": _crash})
hanging = make_backend(wrappers={"add@1": _hang})
VIOLENT = {"crashing": "CRASH", "hanging": "HANG"}
"""Names of backends in this module that take their worker down -> the verdict that they must get."""
