"""Collectives among processes of one host, through files in memory: for devices whose tensors the host can reach.

An address is the path of a file that does not exist yet, in a folder that all ranks see. Beside it lie what this rank
tells the others:

    PATH.alive   locked for as long as the rank lives
    PATH.N       its part of collective number N: a line of JSON, then the bytes
    PATH.R.N     its N-th message to rank R, which removes it
    PATH.abort   somebody called `abort`

Part N - 1 of a rank is removed when all parts N are there: whoever wrote one has read all parts N - 1. What is left at
the end goes with the folder, which belongs to the caller.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from runtime.backend.contract import Buffer, Event
from runtime.backend.host import VIEWED
from runtime.dtypes import TensorSpec, encode
from runtime.errors import CollectiveFailed, InvalidArgument, RuntimeFault, TimedOut

if TYPE_CHECKING:
    from numpy.typing import NDArray

LIMIT_S = 30.0
"""A rank that has not taken part after this time has failed."""
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 2e-5, 2e-3

Parts = list[memoryview]


class Transfers(Protocol):
    """What is needed of a device."""

    def upload(self, target: Buffer, data: memoryview, spec: TensorSpec) -> Event:
        """Host to device."""

    def download(self, source: Buffer, into: memoryview, spec: TensorSpec) -> Event:
        """Device to host."""


class PendingEvent:
    """The event of a collective that another thread completes."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._is_done = threading.Event()
        self._error: RuntimeFault | None = None

    def settle(self, error: RuntimeFault | None) -> None:
        """Called once, by whoever does the work."""
        self._error = error
        self._is_done.set()

    def done(self) -> bool:
        """Whether `wait` would return or raise at once."""
        return self._is_done.is_set()

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when the work is done; raise its error, or TimedOut."""
        if not self._is_done.wait(timeout_s):
            raise TimedOut(f"{self._what} is not done after {timeout_s:g} s")
        if self._error is not None:
            raise self._error


class HostCommunicator:
    """One rank of a group of processes on this host.

    Sums are made in float64 in the order of the ranks and rounded once: every rank gets the same bits in every run.
    After a failure the group is broken: every later call fails too, and a new group has to be joined.
    """

    def __init__(self, device: Transfers, group: Sequence[str], rank: int, *, limit_s: float = LIMIT_S) -> None:
        if not 0 <= rank < len(group) or len(set(group)) < len(group):
            raise InvalidArgument(
                f"rank {rank} cannot join the group {list(group)}: addresses are distinct, one per rank"
            )
        self._device = device
        self._meeting = Meeting(group, rank, limit_s)
        self._count = 0
        self._sent: dict[int, int] = {}
        self._received: dict[int, int] = {}
        self._jobs: queue.SimpleQueue[tuple[Callable[[], None], PendingEvent] | None] = queue.SimpleQueue()
        name = f"collectives of {group[rank]}"
        threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True).start()
        weakref.finalize(self, self._jobs.put, None)

    @property
    def rank(self) -> int:
        """Position of this device in the group."""
        return self._meeting.rank

    @property
    def world_size(self) -> int:
        """Number of devices in the group."""
        return len(self._meeting.group)

    def all_reduce(self, buffer: Buffer, spec: TensorSpec) -> Event:
        """Sum over all ranks, in place."""
        return self._exchange("all_reduce", buffer, buffer, spec, spec, lambda parts: _sum(parts, spec))

    def all_gather(self, target: Buffer, source: Buffer, spec: TensorSpec) -> Event:
        """Concatenate every rank's `source`, a `spec`, along the outermost dimension."""
        return self._exchange("all_gather", target, source, spec, self._resized(spec, self.world_size, 1), b"".join)

    def reduce_scatter(self, target: Buffer, source: Buffer, spec: TensorSpec) -> Event:
        """Sum `source`, a `spec`, over all ranks; each keeps its part of the outermost dimension."""
        kept = self._resized(spec, 1, self.world_size)

        def own(parts: Parts) -> memoryview:
            return self._cut([memoryview(_sum(parts, spec))])[0][self.rank]

        return self._exchange("reduce_scatter", target, source, spec, kept, own)

    def all_to_all(self, target: Buffer, source: Buffer, spec: TensorSpec) -> Event:
        """Part r of the outermost dimension of `source`, a `spec`, goes to rank r."""
        self._resized(spec, 1, self.world_size)

        def swapped(parts: Parts) -> bytes:
            return b"".join(pieces[self.rank] for pieces in self._cut(parts))

        return self._exchange("all_to_all", target, source, spec, spec, swapped)

    def broadcast(self, buffer: Buffer, spec: TensorSpec, root: int) -> Event:
        """Everybody gets the buffer of `root`."""
        self._check_peer(root)
        return self._exchange(f"broadcast from {root}", buffer, buffer, spec, spec, lambda parts: parts[root])

    def send(self, buffer: Buffer, spec: TensorSpec, peer: int) -> Event:
        """To one peer; done when the buffer may be used again."""
        self._check_peer(peer)
        number = self._sent[peer] = self._sent.get(peer, -1) + 1
        data, header = self._content(buffer, spec), {"what": "send", "spec": str(spec)}
        path = f"{self._meeting.group[self.rank]}.{peer}.{number}"
        return self._submit(f"send {spec} to rank {peer}", lambda: self._meeting.post(path, header, data))

    def recv(self, buffer: Buffer, spec: TensorSpec, peer: int) -> Event:
        """From one peer."""
        self._check_peer(peer)
        number = self._received[peer] = self._received.get(peer, -1) + 1
        path, what = f"{self._meeting.group[peer]}.{self.rank}.{number}", f"recv {spec} from rank {peer}"

        def run() -> None:
            header, data = self._meeting.read(path, peer, what)
            Path(path).unlink()
            _check_equal(what, {peer: header, self.rank: {"what": "send", "spec": str(spec)}})
            self._device.upload(buffer, data, spec).wait()

        return self._submit(what, run)

    def abort(self) -> None:
        """Make every pending event raise CollectiveFailed, here and on all peers."""
        self._meeting.abort()

    def _exchange(
        self,
        name: str,
        target: Buffer,
        source: Buffer,
        spec: TensorSpec,
        made: TensorSpec,
        combine: Callable[[Parts], Any],
    ) -> Event:
        """Everybody posts its part; `combine` makes the bytes of `made` out of all of them."""
        number, what = self._count, f"{name} of {spec}"
        self._count += 1
        data = self._content(source, spec)

        def run() -> None:
            parts = self._meeting.exchange(number, {"what": name, "spec": str(spec)}, data, what)
            self._device.upload(target, memoryview(combine(parts)), made).wait()

        return self._submit(what, run)

    def _content(self, buffer: Buffer, spec: TensorSpec) -> memoryview:
        data = memoryview(bytearray(spec.nbytes()))
        self._device.download(buffer, data, spec).wait()
        return data

    def _submit(self, what: str, run: Callable[[], None]) -> Event:
        event = PendingEvent(f"{what} on rank {self.rank}")
        self._jobs.put((run, event))
        return event

    def _cut(self, parts: Parts) -> list[list[memoryview]]:
        """Every part in as many equal pieces as there are ranks."""
        size = parts[0].nbytes // self.world_size
        return [[part[i * size : (i + 1) * size] for i in range(self.world_size)] for part in parts]

    def _resized(self, spec: TensorSpec, times: int, parts: int) -> TensorSpec:
        """`spec` with another outermost dimension; raises InvalidArgument where it cannot be divided."""
        rows, *rest = spec.resolve({})
        if rows % parts:
            raise InvalidArgument(f"{spec} cannot be divided among {parts} ranks along its outermost dimension")
        return TensorSpec(spec.format, (rows * times // parts, *rest), spec.layout)

    def _check_peer(self, peer: int) -> None:
        if not 0 <= peer < self.world_size:
            raise InvalidArgument(f"there is no rank {peer}, ranks are 0 to {self.world_size - 1}")


class Meeting:
    """The files of a group, seen by one rank."""

    def __init__(self, group: Sequence[str], rank: int, limit_s: float) -> None:
        self.group, self.rank, self.limit_s = list(group), rank, limit_s
        self.watches = True
        self._failure: str | None = None
        self._failed_rank: int | None = None
        self._lock = _Lock(f"{group[rank]}.alive")

    def exchange(self, number: int, header: Mapping[str, str], data: memoryview, what: str) -> Parts:
        """Post this rank's part and wait for those of all others; raises CollectiveFailed."""
        self.post(f"{self.group[self.rank]}.{number}", header, data)
        found = [self.read(f"{address}.{number}", rank, what) for rank, address in enumerate(self.group)]
        with contextlib.suppress(FileNotFoundError):
            Path(f"{self.group[self.rank]}.{number - 1}").unlink()
        headers = {rank: h for rank, (h, _) in enumerate(found)}
        try:
            _check_equal(what, headers)
        except CollectiveFailed as error:
            self._failure, self._failed_rank = error.message, None
            raise
        return [body for _, body in found]

    def post(self, path: str, header: Mapping[str, str], data: memoryview) -> None:
        """Make a message appear at `path`, whole."""
        self._check(f"a message of rank {self.rank}")
        hidden = f"{path}.new"
        with Path(hidden).open("wb") as file:
            file.write(json.dumps(header).encode() + b"\n")
            file.write(data)
        Path(hidden).replace(path)

    def read(self, path: str, rank: int, what: str) -> tuple[dict[str, str], memoryview]:
        """The message of `rank` at `path`, once it is there; raises CollectiveFailed."""
        for is_last in self._attempts(what, rank):
            with contextlib.suppress(FileNotFoundError):
                line, _, data = Path(path).read_bytes().partition(b"\n")
                return json.loads(line), memoryview(data)
            if is_last:
                break
        raise self._fail(f"{what}: rank {rank} is gone", rank)

    def abort(self) -> None:
        """For this rank and all peers."""
        self._failure = self._failure or "the group was aborted"
        Path(f"{self.group[self.rank]}.abort").touch()

    def _attempts(self, what: str, rank: int) -> Iterator[bool]:
        """Yields until time is over; True once the peer is known to be dead, for a last look."""
        started, pause = time.monotonic(), _SHORTEST_PAUSE_S
        while True:
            is_slow = pause >= _LONGEST_PAUSE_S and rank != self.rank
            is_dead = is_slow and self.watches and _is_dead(f"{self.group[rank]}.alive")
            self._check(what)
            yield is_dead
            if time.monotonic() - started > self.limit_s:
                raise self._fail(f"{what}: rank {rank} did not take part within {self.limit_s:g} s", rank)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _check(self, what: str) -> None:
        for rank, address in enumerate(self.group):
            if self._failure is None and Path(f"{address}.abort").exists():
                self._failure, self._failed_rank = f"rank {rank} aborted the group", rank
        if self._failure is not None:
            raise self._fail(f"{what}: {self._failure}", self._failed_rank)

    def _fail(self, message: str, rank: int | None) -> CollectiveFailed:
        if self._failure is None:
            self._failure, self._failed_rank = message, rank
        return CollectiveFailed(message, rank=rank, remedy="join a new group with the ranks that are left")


def _work(jobs: queue.SimpleQueue[tuple[Callable[[], None], PendingEvent] | None]) -> None:
    """One collective after the other, in the order of the calls."""
    while (job := jobs.get()) is not None:
        run, event = job
        try:
            run()
        except RuntimeFault as error:
            event.settle(error)
        except Exception as error:  # noqa: BLE001  a full disk, say: it belongs to whoever waits for the event
            event.settle(CollectiveFailed(f"{type(error).__name__}: {error}"))
        else:
            event.settle(None)
        del job, run, event


def _check_equal(what: str, headers: Mapping[int, Mapping[str, str]]) -> None:
    if len({(h["what"], h["spec"]) for h in headers.values()}) > 1:
        said = ", ".join(f"rank {rank} {h['what']} of {h['spec']}" for rank, h in headers.items())
        raise CollectiveFailed(f"{what}: ranks do not agree: {said}")


def _sum(parts: Parts, spec: TensorSpec) -> bytes | memoryview:
    import numpy as np

    total: NDArray[Any]
    if spec.format.name in VIEWED and spec.format.kind != "float":
        whole = [np.frombuffer(p, VIEWED[spec.format.name]) for p in parts]
        total = np.sum(whole, axis=0, dtype=np.int64).astype(whole[0].dtype)
        return total.tobytes()
    shape = spec.resolve({})
    total = np.zeros(shape)
    for part in parts:
        total = total + spec.format.decode(np.frombuffer(part, np.uint8), shape).astype(np.float64)
    with np.errstate(over="ignore"):
        return encode(spec.format, total)


class _Lock:
    """A file that is locked for as long as this object, or its process, lives; it appears when it is locked."""

    def __init__(self, path: str) -> None:
        file = os.open(f"{path}.new", os.O_CREAT | os.O_WRONLY, 0o600)
        self.close = weakref.finalize(self, os.close, file)
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except ImportError:  # no such locks on this system: a dead peer is then noticed by the time limit
            pass
        Path(f"{path}.new").replace(path)


def _is_dead(path: str) -> bool:
    """Whether the rank that locked `path` has ended; one that has not come yet is not dead."""
    try:
        import fcntl

        with Path(path).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (ImportError, FileNotFoundError, BlockingIOError):
        return False
    return True
