"""L0: the device itself, without any operation: memory, copies, layouts, events, counters, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runtime.backend import Device, InvalidArgument, Manifest, OutOfMemory, RuntimeFault, TensorSpec
from runtime.dtypes import FORMATS, can_encode, encode
from runtime_conformance.data import Stream

_PLAIN = ("f32", "f16", "bf16", "i32")
_BLOCKS = ("q8_0", "q4_0")
_SHAPES = ((1, 32), (3, 64), (5, 32))

Check = Callable[[Device, str], "str | None"]


def _bytes(fmt: str, shape: tuple[int, ...], salt: str = "") -> Any:
    import numpy as np

    values = Stream("L0", fmt, shape, salt).bell(shape)
    if FORMATS[fmt].kind == "int":
        values = (values * 1000).astype(np.int64)
    kind = FORMATS[fmt]
    if kind.is_quantized and not can_encode(kind):
        raise InvalidArgument(f"{fmt} has no encoder")
    return np.frombuffer(encode(kind, values.astype(np.float32) if kind.is_quantized else values), np.uint8)


def _download(device: Device, buffer: Any, spec: TensorSpec) -> Any:
    import numpy as np

    data = np.zeros(spec.nbytes(), np.uint8)
    device.download(buffer, data.data, spec).wait(30)
    return data


def _info(device: Device, what: str) -> str | None:
    info = device.info
    if not info.name:
        return "DeviceInfo.name is empty"
    return None if info.memory_bytes > 0 else f"DeviceInfo.memory_bytes is {info.memory_bytes}"


def _manifest(device: Device, what: str) -> str | None:
    manifest = device.manifest
    back = Manifest.from_json(manifest.to_json())
    if back.to_json() != manifest.to_json():
        return "the manifest is not the same after it was written to JSON and read back"
    return None if manifest.rules else "the manifest has no rule: the device claims to be able to do nothing"


def _memory(device: Device, what: str) -> str | None:
    pools = device.memory()
    wrong = {n: p for n, p in pools.items() if not 0 <= p[0] <= p[1]}
    if wrong:
        return f"memory() reports more free than there is: {wrong}"
    return None if pools else "memory() reports no pool"


def _counters(device: Device, what: str) -> str | None:
    missing = {"kernels_run", "bytes_uploaded", "bytes_downloaded", "host_compute_ns"} - set(device.counters())
    if missing:
        return f"counters() lacks {', '.join(sorted(missing))}"
    spec = TensorSpec(FORMATS["f32"], (4, 32))
    before = device.counters()
    buffer = device.allocate(spec)
    device.upload(buffer, memoryview(_bytes("f32", (4, 32))), spec).wait(30)
    _download(device, buffer, spec)
    after = device.counters()
    buffer.close()
    fell = [n for n in before if after.get(n, 0) < before[n]]
    if fell:
        return f"counter {fell[0]} fell"
    moved = after["bytes_downloaded"] - before["bytes_downloaded"]
    return None if moved == spec.nbytes() else f"bytes_downloaded grew by {moved} for {spec.nbytes()} bytes"


def _round_trip(device: Device, what: str) -> str | None:
    import numpy as np

    for shape in _SHAPES:
        spec = TensorSpec(FORMATS[what], shape)
        buffer = device.allocate(spec)
        data = _bytes(what, shape)
        device.upload(buffer, memoryview(data), spec).wait(30)
        back = _download(device, buffer, spec)
        buffer.close()
        if not np.array_equal(back, data):
            return f"{spec} came back changed: {int((back != data).sum())} of {data.size} bytes differ"
    return None


def _upload_copies(device: Device, what: str) -> str | None:
    import numpy as np

    spec = TensorSpec(FORMATS[what], (3, 64))
    data = np.array(_bytes(what, (3, 64)))
    buffer = device.allocate(spec)
    device.upload(buffer, data.data, spec).wait(30)
    wanted, data[:] = data.copy(), 0
    back = _download(device, buffer, spec)
    buffer.close()
    return None if np.array_equal(back, wanted) else "the buffer changed with the host memory it was uploaded from"


def _copy(device: Device, what: str) -> str | None:
    import numpy as np

    spec = TensorSpec(FORMATS[what], (3, 64))
    source, target = device.allocate(spec), device.allocate(spec)
    first, second = _bytes(what, (3, 64)), _bytes(what, (3, 64), "other")
    device.upload(source, memoryview(first), spec).wait(30)
    device.copy(target, source, spec).wait(30)
    device.upload(source, memoryview(second), spec).wait(30)
    back = _download(device, target, spec)
    source.close()
    target.close()
    return (
        None if np.array_equal(back, first) else "a copy does not hold what its source held, or still shares its memory"
    )


def _buffers_are_apart(device: Device, what: str) -> str | None:
    import numpy as np

    spec = TensorSpec(FORMATS[what], (5, 32))
    buffers = [device.allocate(spec) for _ in range(4)]
    contents = [_bytes(what, (5, 32), str(i)) for i in range(4)]
    for buffer, data in zip(buffers, contents):
        device.upload(buffer, memoryview(data), spec).wait(30)
    wrong = [i for i, (b, d) in enumerate(zip(buffers, contents)) if not np.array_equal(_download(device, b, spec), d)]
    for buffer in buffers:
        buffer.close()
    return f"buffer {wrong[0]} of 4 holds something else after its neighbours were written" if wrong else None


def _kv_round_trip(device: Device, what: str) -> str | None:
    fmt, size = what.split("/")
    shape = (2, 3, int(size), 2, 64)
    spec = TensorSpec(FORMATS[fmt], shape, "kv")
    data = _bytes(fmt, shape)
    buffer = device.allocate(spec)
    device.upload(buffer, memoryview(data), spec).wait(30)
    back = _download(device, buffer, spec)
    buffer.close()
    a, b = (FORMATS[fmt].decode(d, shape) for d in (back, data))
    limit = 0.02 if FORMATS[fmt].is_quantized else 0.0
    error = float(abs(a.astype(float) - b.astype(float)).max())
    return None if error <= limit else f"a KV cache came back changed, by up to {error:.3g}"


def _kv_starts_clean(device: Device, what: str) -> str | None:
    import numpy as np

    fmt, size = what.split("/")
    shape = (2, 2, int(size), 1, 64)
    spec = TensorSpec(FORMATS[fmt], shape, "kv")
    buffer = device.allocate(spec)
    values = FORMATS[fmt].decode(_download(device, buffer, spec), shape)
    buffer.close()
    return None if np.isfinite(values.astype(float)).all() else "a fresh KV cache holds NaN or infinity"


def _close_twice(device: Device, what: str) -> str | None:
    buffer = device.allocate(TensorSpec(FORMATS["f32"], (2, 32)))
    buffer.close()
    buffer.close()
    return None


def _events(device: Device, what: str) -> str | None:
    spec = TensorSpec(FORMATS["f32"], (3, 64))
    buffer = device.allocate(spec)
    event = device.upload(buffer, memoryview(_bytes("f32", (3, 64))), spec)
    event.wait(30)
    done = event.done()
    event.wait(30)
    buffer.close()
    return None if done else "an event that was waited for says that it is not done"


def _wrong_size(device: Device, what: str) -> str | None:
    spec = TensorSpec(FORMATS["f32"], (3, 64))
    buffer = device.allocate(spec)
    try:
        device.upload(buffer, memoryview(_bytes("f32", (2, 64))), spec).wait(30)
    except RuntimeFault:
        return None
    finally:
        buffer.close()
    return "an upload of 512 bytes into a tensor of 768 was accepted"


def _out_of_memory(device: Device, what: str) -> str | None:
    layout = device.manifest.kv_layouts[0]
    spec = TensorSpec(FORMATS[layout.formats[0]], (2, 1 << 34, layout.block_sizes[0], 8, 128), "kv")
    try:
        device.allocate(spec).close()
    except OutOfMemory:
        return None
    return f"a KV cache of {spec.nbytes() / 2**40:.0f} TiB was granted; OutOfMemory must be raised"


def _still_works(device: Device, what: str) -> str | None:
    _wrong_size(device, what)  # whether it is refused is another check
    return _round_trip(device, "f32")


_CHECKS: dict[str, tuple[Check, tuple[str, ...]]] = {
    "info_is_complete": (_info, ("",)),
    "manifest_survives_json": (_manifest, ("",)),
    "memory_adds_up": (_memory, ("",)),
    "counters_count": (_counters, ("",)),
    "upload_then_download_is_the_identity": (_round_trip, (*_PLAIN, *_BLOCKS)),
    "upload_takes_a_copy": (_upload_copies, _PLAIN),
    "copy_is_independent": (_copy, (*_PLAIN, *_BLOCKS)),
    "buffers_do_not_overlap": (_buffers_are_apart, _PLAIN),
    "close_twice_is_harmless": (_close_twice, ("",)),
    "events_stay_done": (_events, ("",)),
    "wrong_size_is_refused": (_wrong_size, ("",)),
    "works_after_an_error": (_still_works, ("",)),
}
_KV_CHECKS: dict[str, Check] = {
    "kv_upload_then_download_is_the_identity": _kv_round_trip,
    "kv_starts_finite": _kv_starts_clean,
}


def check_names(manifest: Manifest) -> list[str]:
    """Names of all checks, `name` or `name[subject]`."""
    names = [f"{name}[{s}]" if s else name for name, (_, subjects) in _CHECKS.items() for s in subjects]
    caches = dict.fromkeys(f"{f}/{s}" for k in manifest.kv_layouts for f in k.formats for s in k.block_sizes)
    names += [f"{name}[{c}]" for name in _KV_CHECKS for c in caches]
    if manifest.kv_layouts:
        names.append("too_much_is_out_of_memory")
    return names


def run_check(device: Device, name: str) -> str | None:
    """Run one check; returns what is wrong, or None."""
    base, _, subject = name.partition("[")
    subject = subject.rstrip("]")
    if base == "too_much_is_out_of_memory":
        check: Check = _out_of_memory
    else:
        check = _KV_CHECKS[base] if base in _KV_CHECKS else _CHECKS[base][0]
    try:
        return check(device, subject)
    except RuntimeFault as error:
        return f"{type(error).__name__}: {error}"
