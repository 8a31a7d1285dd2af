"""A device: a thread that does what is put into its queue, in order, and memory that only it touches."""

import queue
import threading

import numpy as np

from loom_rt.weaving import KV_VIEW, VIEW, weave
from runtime.backend import (
    DeviceLost,
    ExecutionFailed,
    InvalidArgument,
    OutOfMemory,
    RuntimeFault,
    TimedOut,
    Unsupported,
)


class Thread:
    """The event of one piece of work."""

    def __init__(self):
        self._ended = threading.Event()
        self._error = None

    def end(self, error=None):
        self._error = error
        self._ended.set()

    def wait(self, timeout_s=None):
        if not self._ended.wait(timeout_s):
            raise TimedOut(f"the loom did not finish within {timeout_s} s")
        if self._error is not None:
            raise self._error

    def done(self):
        return self._ended.is_set()


class Bobbin:
    """A buffer: raw bytes, or a weight or cache as the loom arranges it."""

    def __init__(self, loom, nbytes, held=None):
        self._loom = loom
        self.nbytes = nbytes
        self.held = np.zeros(nbytes, np.uint8) if held is None else held

    def array(self, spec, shape):
        """The beginning of the buffer as an array."""
        if self.held is None:
            raise InvalidArgument(f"a buffer for {spec} was used after it was closed")
        if self.held.dtype != np.uint8 or spec.layout == "kv":
            return self.held
        count = spec.format.nbytes(shape)
        return self.held[:count].view(VIEW[spec.format.name]).reshape(shape)

    def close(self):
        if self.held is not None:
            self._loom.used -= self.nbytes
            self.held = None


class Cloth:
    """An executable: the region as one list of calls."""

    def __init__(self, loom, region, resident):
        self._loom = loom
        self._region = region
        self._calls = [weave(node) for node in region.nodes]
        self._resident = dict(resident)
        self.fingerprint = f"loom 1.0.0: {len(self._calls)} calls"

    def submit(self, bindings, dims):
        bound = dict(bindings)
        return self._loom.put(lambda: self._run(bound, dict(dims)))

    def close(self):
        self._resident = {}

    def _run(self, bindings, dims):
        region, threads = self._region, {}
        for value in region.resident:
            threads[value.name] = self._resident[value.name].array(value.spec, value.spec.resolve(dims))
        for value in region.inputs:
            threads[value.name] = bindings[value.name].array(value.spec, value.spec.resolve(dims))
        for made, state in region.aliases.items():
            threads[made.name] = threads[state.name]
        for node, call in zip(region.nodes, self._calls):
            made = call({port: threads[value.name] for port, value in node.inputs.items()}, node.attrs)
            self._loom.count("kernels_run", 1)
            threads[node.outputs[0].name] = made
        for value in region.outputs:
            shape = value.spec.resolve(dims)
            bindings[value.name].array(value.spec, shape)[...] = threads[value.name].reshape(shape)


class Loom:
    """The device."""

    def __init__(self, info, manifest, config):
        self.info = info
        self.manifest = manifest
        self.used = 0
        self._limit = config.memory_bytes or info.memory_bytes
        self._counters = {"kernels_run": 0, "bytes_uploaded": 0, "bytes_downloaded": 0, "host_compute_ns": 0}
        self._queue = queue.Queue()
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()

    def put(self, task):
        """Do `task` after everything that was put before."""
        if self._worker is None:
            raise DeviceLost("the loom is closed")
        event = Thread()
        self._queue.put((task, event))
        return event

    def count(self, what, number):
        self._counters[what] += number

    def allocate(self, spec):
        if spec.layout == "kv":
            two, blocks, block_size, heads, head_dim = spec.resolve({})
            dtype = np.dtype(KV_VIEW[spec.format.name])
            nbytes = two * blocks * block_size * heads * head_dim * dtype.itemsize
            self._take(nbytes, spec)
            # its own order: a head's keys of one block lie together
            return Bobbin(self, nbytes, np.zeros((blocks, heads, two, block_size, head_dim), dtype))
        nbytes = spec.nbytes()
        self._take(nbytes, spec)
        return Bobbin(self, nbytes)

    def adopt_host(self, data, spec):
        return None

    def load_weight(self, spec, data, use):
        array = np.ascontiguousarray(spec.format.decode(bytes(data), spec.resolve({})))
        self._take(array.nbytes, spec)
        self.count("bytes_uploaded", data.nbytes)
        return Bobbin(self, array.nbytes, array)

    def upload(self, target, data, spec):
        source = np.frombuffer(data, np.uint8)
        if source.size != spec.nbytes():
            raise InvalidArgument(f"{spec} takes {spec.nbytes()} bytes, {source.size} were given")

        def task():
            if spec.layout == "kv":
                target.held[...] = (
                    source.view(KV_VIEW[spec.format.name]).reshape(spec.resolve({})).transpose(1, 3, 0, 2, 4)
                )
            else:
                target.held[: source.size] = source
            self.count("bytes_uploaded", source.size)

        return self.put(task)

    def download(self, source, into, spec):
        target = np.frombuffer(into, np.uint8)
        if target.size != spec.nbytes():
            raise InvalidArgument(f"{spec} takes {spec.nbytes()} bytes, the target has {target.size}")

        def task():
            if spec.layout == "kv":
                target.view(KV_VIEW[spec.format.name]).reshape(spec.resolve({}))[...] = source.held.transpose(
                    2, 0, 3, 1, 4
                )
            else:
                target[:] = source.held[: target.size]
            self.count("bytes_downloaded", target.size)

        return self.put(task)

    def copy(self, target, source, spec):
        def task():
            if spec.layout == "kv":
                target.held[...] = source.held
            else:
                target.held[: spec.nbytes()] = source.held[: spec.nbytes()]

        return self.put(task)

    def compile(self, region, resident, hints):
        for node in region.nodes:
            match = self.manifest.match(node.op.key, node.facts(region.dims))
            if match.coverage != "full":
                why = "; ".join(match.reasons)
                raise Unsupported(f"the loom cannot weave {node.name} ({node.op.key}): {why}", reasons=match.reasons)
        return Cloth(self, region, resident)

    def communicator(self, group, rank):
        return None

    def memory(self):
        return {"loom": (self._limit - self.used, self._limit)}

    def counters(self):
        return dict(self._counters)

    def close(self):
        if self._worker is not None:
            self._queue.put(None)
            self._worker.join()
            self._worker = None

    def weaves_rightly(self):
        """Whether bytes that go in come out, through the queue."""
        bobbin, back = Bobbin(self, 4), bytearray(4)
        self.used += 4
        self.put(lambda: bobbin.held.__setitem__(slice(None), (1, 2, 3, 4))).wait(5.0)
        self.put(lambda: back.__setitem__(slice(None), bobbin.held.tobytes())).wait(5.0)
        bobbin.close()
        return bytes(back) == b"\x01\x02\x03\x04" and self.used == 0

    def _take(self, nbytes, spec):
        free = self._limit - self.used
        if nbytes > free:
            raise OutOfMemory(
                f"{spec} takes {nbytes} bytes, the loom has {free}",
                remedy="ask for a shorter context",
                requested_bytes=nbytes,
                available_bytes=free,
            )
        self.used += nbytes

    def _work(self):
        for task, event in iter(self._queue.get, None):
            try:
                with np.errstate(all="ignore"):
                    task()
            except RuntimeFault as error:
                event.end(error)
            except Exception as error:
                event.end(ExecutionFailed(f"the loom tore: {type(error).__name__}: {error}"))
            else:
                event.end()
