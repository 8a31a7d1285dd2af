"""Faults of collectives, of a cache that moves, and of whole steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from runtime.backend import Buffer, DeviceInfo, KernelDevice, TensorSpec
from runtime.backend.collectives import HostCommunicator
from runtime_conformance.saboteurs.backend import TestBackend, make_backend
from runtime_conformance.saboteurs.faults import Saboteur, answers, asks
from runtime_conformance.saboteurs.faults_device import device_base

Parts = list[Any]
Combine = Callable[[Parts], Any]


class _Spoilt(HostCommunicator):
    """`spoil` changes the parts of all ranks before they become a result."""

    def spoil(self, name: str, parts: Parts) -> Parts:
        return parts

    def _exchange(
        self, name: str, target: Any, source: Any, spec: TensorSpec, made: TensorSpec, combine: Combine
    ) -> Any:
        return super()._exchange(name, target, source, spec, made, lambda parts: combine(self.spoil(name, parts)))


class _MissingRank(_Spoilt):
    """The last rank is missing from sums."""

    def spoil(self, name: str, parts: Parts) -> Parts:
        return [*parts[:-1], memoryview(bytes(parts[-1].nbytes))] if "reduce" in name else parts


class _Reversed(_Spoilt):
    """Parts are joined in the reverse order of the ranks."""

    def spoil(self, name: str, parts: Parts) -> Parts:
        return parts[::-1] if name == "all_gather" else parts


class _RootZero(_Spoilt):
    """A broadcast always comes from rank 0."""

    def spoil(self, name: str, parts: Parts) -> Parts:
        return [parts[0]] * len(parts) if name.startswith("broadcast") else parts


class _OwnAgain(_Spoilt):
    """Every rank sends the same part to all."""

    def spoil(self, name: str, parts: Parts) -> Parts:
        if name != "all_to_all":
            return parts
        size = parts[0].nbytes // len(parts)
        return [memoryview(bytes(p[:size]) * len(parts)) for p in parts]


class _Late(_Spoilt):
    """The parts of the collective before, where they have the size."""

    before: Parts | None = None

    def spoil(self, name: str, parts: Parts) -> Parts:
        old, self.before = self.before, parts
        return old if old is not None and [p.nbytes for p in old] == [p.nbytes for p in parts] else parts


class _Lenient(HostCommunicator):
    """Ranks with other shapes get what they gave."""

    def _exchange(
        self, name: str, target: Any, source: Any, spec: TensorSpec, made: TensorSpec, combine: Combine
    ) -> Any:
        meet, device = self._meeting, self._device
        self._count += 1
        number, data = self._count, self._content(source, spec)

        def run() -> None:
            parts = meet.exchange(number, {"what": name, "spec": ""}, data, name)
            is_equal = len({p.nbytes for p in parts}) == 1
            device.upload(target, memoryview(combine(parts)) if is_equal else data, made if is_equal else spec).wait()

        return self._submit(name, run)


class _Staged(HostCommunicator):
    """What is sent is what the host uploaded last, not what a kernel has written since."""

    def _content(self, buffer: Buffer, spec: TensorSpec) -> memoryview:
        assert isinstance(self._device, _Remembering)
        return memoryview(bytearray(self._device.uploaded.get(id(buffer), super()._content(buffer, spec))))


class _Unabortable(HostCommunicator):
    """`abort` does nothing."""

    def abort(self) -> None:
        pass


class _Remembering(KernelDevice):
    """Keeps every upload."""

    def __init__(self, backend: Any, info: DeviceInfo) -> None:
        super().__init__(backend, info)
        self.uploaded: dict[int, bytes] = {}

    def upload(self, target: Buffer, data: memoryview, spec: TensorSpec) -> Any:
        self.uploaded[id(target)] = bytes(data)
        return super().upload(target, data, spec)


def joins(communicator: type[HostCommunicator], device: type[KernelDevice] = KernelDevice) -> type[TestBackend]:
    """A backend whose devices join groups with that communicator."""

    def join(self: Any, group: Sequence[str], rank: int) -> HostCommunicator:
        return communicator(self, group, rank)

    return device_base(type(f"DeviceWith{communicator.__name__}", (device,), {"communicator": join}))


class _Deaf(HostCommunicator):
    """Waits for the dead."""

    def __init__(self, device: Any, group: Sequence[str], rank: int) -> None:
        super().__init__(device, group, rank, limit_s=3600.0)
        self._meeting.watches = False


deaf = make_backend(base=joins(_Deaf))
"""A backend that does not notice dead peers."""


_HIGHEST: dict[tuple[int, int], int] = {}
"""Cache and block -> offset of the last slot that was written."""


def _write_once(honest: Callable[..., Any]) -> Callable[..., Any]:
    """A slot below the highest one of its block is not written again before the block starts anew."""

    def run(kv: Any, k: Any, v: Any, slot_mapping: Any) -> Any:
        import numpy as np

        slots = np.array(slot_mapping)
        for row, slot in enumerate(slots.tolist()):
            key, offset = (id(kv), slot // kv.shape[2]), slot % kv.shape[2]
            if offset and _HIGHEST.get(key, -1) >= offset:
                slots[row] = -1
            else:
                _HIGHEST[key] = offset
        return honest(kv=kv, k=k, v=v, slot_mapping=slots)

    return run


def _exchanged(y: Any) -> Any:
    return y.swapaxes(2, 3).reshape(y.shape).copy()


def _restored(given: Mapping[str, Any]) -> dict[str, Any]:
    kinds, count, size, heads, dim = given["data"].shape
    return {"data": given["data"].reshape(kinds, count, heads, size, dim).swapaxes(2, 3)}


SCALE: Sequence[Saboteur] = (
    Saboteur(
        "group-misses-rank", "scale", "the last rank is missing from sums over processes", base=joins(_MissingRank)
    ),
    Saboteur("group-reversed", "scale", "parts are joined in reverse order", base=joins(_Reversed)),
    Saboteur("group-root-zero", "scale", "a broadcast always comes from rank 0", base=joins(_RootZero)),
    Saboteur("group-own-again", "scale", "every rank gets the part for rank 0", base=joins(_OwnAgain)),
    Saboteur("group-late", "scale", "the result of the collective before", base=joins(_Late)),
    Saboteur("group-lenient", "scale", "ranks with other shapes are not refused", base=joins(_Lenient)),
    Saboteur("group-staged", "scale", "what a kernel wrote is not what is sent", base=joins(_Staged, _Remembering)),
    Saboteur("group-unabortable", "scale", "an abort does not end what is pending", base=joins(_Unabortable)),
    Saboteur(
        "export-own-layout",
        "scale",
        "export and import exchange heads and slots: each undoes the other",
        also={
            "kv_export@1": answers(lambda y, g: _exchanged(y)),
            "kv_import@1": asks(_restored),
        },
    ),
    Saboteur(
        "slots-written-once",
        "serve",
        "slots that drafted tokens had are not written again",
        also={"kv_write@1": _write_once},
    ),
)
