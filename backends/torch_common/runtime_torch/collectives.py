"""Collectives among devices of one kind, over torch.distributed: nccl, rccl, xccl, and gloo on processors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from runtime.backend import Buffer, CollectiveFailed, InvalidArgument, RuntimeFault, TensorSpec, Unsupported
from runtime_torch.accelerator import Accelerator, wait_for
from runtime_torch.errors import first_line
from runtime_torch.memory import DTYPES, TorchBuffer, own

LIBRARIES = {"cpu": "gloo", "cuda": "nccl", "xpu": "xccl"}
"""torch's name of the library by device type; "nccl" is RCCL in a build for ROCm."""
TIMEOUT_S = 60.0


class TorchCommunicator:
    """A group of its own: `group[0]` is "host:port", where rank 0 listens; the other entries name the peers."""

    def __init__(self, accelerator: Accelerator, group: Sequence[str], rank: int) -> None:
        host, separator, port = group[0].rpartition(":") if group else ("", "", "")
        if not separator or not port.isdigit() or not 0 <= rank < len(group):
            raise InvalidArgument(
                f"group {list(group)} with rank {rank}: the first address must be host:port of rank 0, and the rank "
                "one of the group's"
            )
        library = LIBRARIES[accelerator.device.type]
        if not dist.is_available() or not dist.is_backend_available(library):
            raise Unsupported(f"this build of torch has no {library}", remedy="use a build of torch with it")
        self._accelerator = accelerator
        self._rank, self._world_size = rank, len(group)
        self._is_aborted = False
        timeout = timedelta(seconds=TIMEOUT_S)
        try:
            store = dist.TCPStore(host, int(port), len(group), is_master=rank == 0, timeout=timeout)
            self._group: Any = _make_group(library, store, rank, len(group), timeout, accelerator)
        except (RuntimeError, ValueError) as error:
            raise CollectiveFailed(f"rank {rank} cannot join {group[0]} by {library}: {first_line(error)}") from error

    @property
    def rank(self) -> int:
        """Position of this device in the group."""
        return self._rank

    @property
    def world_size(self) -> int:
        """Number of devices in the group."""
        return self._world_size

    def all_reduce(self, buffer: Buffer, spec: TensorSpec) -> CollectiveEvent:
        """Sum over all ranks, in place."""
        tensor = _tensor(buffer, spec)
        return self._start("all_reduce", lambda: self._group.allreduce([tensor]), tensor)

    def all_gather(self, target: Buffer, source: Buffer, spec: TensorSpec) -> CollectiveEvent:
        """Concatenate every rank's `source` (of `spec`) along the outermost dimension."""
        part = _tensor(source, spec)
        parts = list(_flat(target, spec, part.numel() * self._world_size).chunk(self._world_size))
        return self._start("all_gather", lambda: self._group.allgather([parts], [part.reshape(-1)]), (parts, part))

    def reduce_scatter(self, target: Buffer, source: Buffer, spec: TensorSpec) -> CollectiveEvent:
        """Sum of every rank's `source` (of `spec`); each keeps its part of the outermost dimension."""
        whole, size = _tensor(source, spec), self._part(spec)
        kept = _flat(target, spec, size)
        if self._accelerator.is_async:
            parts = list(whole.reshape(-1).chunk(self._world_size))
            return self._start("reduce_scatter", lambda: self._group.reduce_scatter([kept], [parts]), (kept, parts))
        # gloo has no reduce_scatter: everything is summed, and a part kept
        total = whole.clone()
        mine = slice(self._rank * size, (self._rank + 1) * size)

        def finish() -> None:
            kept.copy_(total.reshape(-1)[mine])

        return self._start("reduce_scatter", lambda: self._group.allreduce([total]), total, finish)

    def all_to_all(self, target: Buffer, source: Buffer, spec: TensorSpec) -> CollectiveEvent:
        """Part r of the outermost dimension goes to rank r."""
        self._part(spec)
        sent, got = _tensor(source, spec).reshape(-1), _tensor(target, spec).reshape(-1)
        return self._start("all_to_all", lambda: self._group.alltoall_base(got, sent, [], []), (sent, got))

    def broadcast(self, buffer: Buffer, spec: TensorSpec, root: int) -> CollectiveEvent:
        """Everybody gets the buffer of `root`."""
        tensor = _tensor(buffer, spec)
        options = dist.BroadcastOptions()
        options.rootRank = self._peer(root)
        return self._start("broadcast", lambda: self._group.broadcast([tensor], options), tensor)

    def send(self, buffer: Buffer, spec: TensorSpec, peer: int) -> CollectiveEvent:
        """To one peer."""
        tensor = _tensor(buffer, spec)
        return self._start("send", lambda: self._group.send([tensor], self._peer(peer), 0), tensor)

    def recv(self, buffer: Buffer, spec: TensorSpec, peer: int) -> CollectiveEvent:
        """From one peer."""
        tensor = _tensor(buffer, spec)
        return self._start("recv", lambda: self._group.recv([tensor], self._peer(peer), 0), tensor)

    def abort(self) -> None:
        """Make every pending event raise CollectiveFailed."""
        self._is_aborted = True
        if hasattr(self._group, "abort"):
            self._group.abort()

    @property
    def is_aborted(self) -> bool:
        """Whether `abort` was called."""
        return self._is_aborted

    def close(self) -> None:
        """Leave the group."""
        if self._group is not None and not self._is_aborted and hasattr(self._group, "shutdown"):
            self._group.shutdown()
        self._group = None

    def _start(
        self, what: str, start: Callable[[], Any], keep: Any, finish: Callable[[], Any] | None = None
    ) -> CollectiveEvent:
        if self._is_aborted or self._group is None:
            raise CollectiveFailed(f"{what} on rank {self._rank}: the group was left")
        try:
            with self._accelerator.use():
                work = start()
        except (RuntimeError, ValueError) as error:
            raise CollectiveFailed(f"{what} failed on rank {self._rank}: {first_line(error)}") from error
        return CollectiveEvent(work, f"{what} on rank {self._rank}", self, self._accelerator, keep, finish)

    def _part(self, spec: TensorSpec) -> int:
        shape = spec.resolve({})
        if not shape or shape[0] % self._world_size:
            raise InvalidArgument(f"{spec} has no outermost dimension that {self._world_size} ranks can share evenly")
        size = 1
        for dim in shape:
            size *= dim
        return size // self._world_size

    def _peer(self, rank: int) -> int:
        if not 0 <= rank < self._world_size:
            raise InvalidArgument(f"rank {rank} does not exist: the group has {self._world_size}")
        return rank


class CollectiveEvent:
    """Completion of a collective."""

    def __init__(
        self,
        work: Any,
        what: str,
        group: TorchCommunicator,
        accelerator: Accelerator,
        keep: Any,
        finish: Callable[[], Any] | None,
    ) -> None:
        self._work, self._what, self._group, self._accelerator = work, what, group, accelerator
        self._keep, self._finish = keep, finish

    def done(self) -> bool:
        """Whether `wait` would return or raise at once."""
        return self._work is None or bool(self._work.is_completed())

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when the data are there; raises CollectiveFailed, also after `timeout_s`: a group ends with that."""
        if self._work is None:
            return
        try:
            with self._accelerator.use():
                if timeout_s is None:
                    self._work.wait()
                else:
                    self._work.wait(timedelta(seconds=timeout_s))
            # on a device, waiting for the work lets only the stream wait: the data are there when an event behind is
            wait_for(self._accelerator.mark(), self._what, timeout_s)
        except (RuntimeError, RuntimeFault) as error:
            raise CollectiveFailed(f"{self._what} failed: {first_line(error)}") from error
        if self._group.is_aborted:
            raise CollectiveFailed(f"{self._what}: the group was left")
        if self._finish is not None:
            self._finish()
        self._work = self._keep = self._finish = None


def _make_group(
    library: str, store: Any, rank: int, world_size: int, timeout: timedelta, accelerator: Accelerator
) -> Any:
    if library == "gloo":
        return dist.ProcessGroupGloo(store, rank, world_size, timeout)
    if library == "nccl":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timeout
        group = dist.ProcessGroupNCCL(store, rank, world_size, options)
    else:
        group = dist.ProcessGroupXCCL(store, rank, world_size)
    if hasattr(group, "bound_device_id"):
        group.bound_device_id = accelerator.device
    return group


def _tensor(buffer: Buffer, spec: TensorSpec) -> torch.Tensor:
    return own(buffer).view(_dtype(spec), spec.resolve({}))


def _flat(buffer: Buffer, spec: TensorSpec, size: int) -> torch.Tensor:
    made: TorchBuffer = own(buffer)
    return made.view(_dtype(spec), (size,))


def _dtype(spec: TensorSpec) -> torch.dtype:
    dtype = DTYPES.get(spec.format.name)
    if dtype is None:
        raise InvalidArgument(f"{spec} is in blocks; collectives move plain formats")
    return dtype
