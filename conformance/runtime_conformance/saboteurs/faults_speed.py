"""Backends that are fast where the clock runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runtime.backend import ArrayBuffer, Buffer, DeviceInfo, Event, FinishedEvent, KernelDevice, Region, TensorSpec
from runtime_conformance.saboteurs.faults import Saboteur
from runtime_conformance.saboteurs.faults_device import device_base

_HONEST_RUNS = 3
"""A case that is not timed is submitted so often."""


class _Tiring(KernelDevice):
    """From the fourth submission on, an executable gives its last result again."""

    def compile(self, region: Region, resident: Mapping[str, Buffer], hints: Mapping[str, Any]) -> Any:
        return _Tired(super().compile(region, resident, hints))


class _Tired:
    def __init__(self, inner: Any) -> None:
        self.inner, self.fingerprint, self.count = inner, inner.fingerprint, 0

    def submit(self, bindings: Mapping[str, Any], dims: Mapping[str, int]) -> Event:
        self.count += 1
        if self.count > _HONEST_RUNS:
            return FinishedEvent()
        event: Event = self.inner.submit(bindings, dims)
        return event

    def close(self) -> None:
        self.inner.close()


class _Foreseeing(KernelDevice):
    """Computes when an input is uploaded; a submission only hands over what is there already."""

    def __init__(self, backend: Any, info: DeviceInfo) -> None:
        super().__init__(backend, info)
        self.latest: _Foreseen | None = None

    def upload(self, target: Buffer, data: memoryview, spec: TensorSpec) -> Event:
        event = super().upload(target, data, spec)
        if self.latest is not None:
            self.latest.compute()
        return event

    def compile(self, region: Region, resident: Mapping[str, Buffer], hints: Mapping[str, Any]) -> Any:
        self.latest = _Foreseen(super().compile(region, resident, hints), region)
        return self.latest


class _Foreseen:
    def __init__(self, inner: Any, region: Region) -> None:
        self.inner, self.fingerprint = inner, inner.fingerprint
        self._outputs = [v.name for v in region.outputs]
        self._asked: tuple[Mapping[str, Any], Mapping[str, int]] | None = None
        self._made: dict[str, Any] = {}

    def compute(self) -> None:
        """Ahead of time, into buffers of its own."""
        if self._asked is None:
            return
        bindings, dims = self._asked
        if any(b.value is None for n, b in bindings.items() if n not in self._outputs):
            return
        own = {n: ArrayBuffer(bindings[n].nbytes) for n in self._outputs}
        self.inner.submit({**bindings, **own}, dims)
        self._made = {n: b.value for n, b in own.items()}

    def submit(self, bindings: Mapping[str, Any], dims: Mapping[str, int]) -> Event:
        if self._asked is None or any(self._asked[0][n] is not b for n, b in bindings.items()):
            self._asked = (dict(bindings), dict(dims))
            self.compute()
        for name, value in self._made.items():
            bindings[name].value = value
        return FinishedEvent()

    def close(self) -> None:
        self._asked = None
        self.inner.close()


SPEED: Sequence[Saboteur] = (
    Saboteur("speed-replayed", "speed", "results are replayed while the clock runs", base=device_base(_Tiring)),
    Saboteur("speed-foreseen", "speed", "the work is done before the clock starts", base=device_base(_Foreseeing)),
)
