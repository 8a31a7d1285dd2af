"""Memory, transfers, events and errors of an opened device."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.backend import DeviceConfig, ExecutionFailed, InvalidArgument, OutOfMemory, TensorSpec, TimedOut
from runtime.dtypes import FORMATS

F32 = FORMATS["f32"]


def upload(device, values: np.ndarray):
    spec = TensorSpec(F32, values.shape)
    buffer = device.allocate(spec)
    device.upload(buffer, memoryview(values.tobytes()), spec).wait()
    return buffer, spec


def download(device, buffer, spec: TensorSpec) -> np.ndarray:
    data = bytearray(spec.nbytes())
    event = device.download(buffer, memoryview(data), spec)
    event.wait()
    assert event.done()
    return np.frombuffer(data, np.float32).reshape(spec.resolve({}))


def test_what_is_uploaded_comes_back_and_can_be_copied(device) -> None:
    values = np.arange(35, dtype=np.float32).reshape(5, 7)
    buffer, spec = upload(device, values)
    other = device.allocate(spec)
    device.copy(other, buffer, spec).wait()
    np.testing.assert_array_equal(download(device, other, spec), values)
    smaller = TensorSpec(F32, (2, 7))
    np.testing.assert_array_equal(download(device, buffer, smaller), values[:2])
    for each in (buffer, other):
        each.close()
        each.close()


def test_counters_count_bytes_and_memory_is_given_back(device) -> None:
    before, (free, total) = device.counters(), device.memory()["device"]
    buffer, spec = upload(device, np.zeros((256,), np.float32))
    download(device, buffer, spec)
    after = device.counters()
    assert after["bytes_uploaded"] - before["bytes_uploaded"] == 1024
    assert after["bytes_downloaded"] - before["bytes_downloaded"] == 1024
    assert after["host_compute_ns"] == 0
    assert device.memory()["device"] == (free - 1024, total)
    buffer.close()
    assert device.memory()["device"] == (free, total)


def test_a_new_kv_cache_is_zero(device) -> None:
    spec = TensorSpec(F32, (2, 3, 4, 2, 8), "kv")
    buffer = device.allocate(spec)
    assert not download(device, buffer, TensorSpec(F32, (384,))).any()
    buffer.close()


def test_wrong_sizes_and_strange_buffers_are_refused(device) -> None:
    buffer, spec = upload(device, np.zeros((4,), np.float32))
    with pytest.raises(InvalidArgument, match=r"f32\[4\] takes 16 bytes, the host side has 12"):
        device.upload(buffer, memoryview(bytes(12)), spec)
    with pytest.raises(InvalidArgument, match=r"f32\[5\] takes 20 bytes, the buffer has 16"):
        device.download(buffer, memoryview(bytearray(20)), TensorSpec(F32, (5,)))
    with pytest.raises(InvalidArgument, match="object was given to an OpenCL device"):
        device.copy(buffer, object(), spec)
    buffer.close()
    with pytest.raises(InvalidArgument, match="a closed buffer of 16 bytes was used"):
        device.upload(buffer, memoryview(bytes(16)), spec)


def test_too_much_memory_is_an_error_with_figures(device) -> None:
    with pytest.raises(OutOfMemory, match="on the OpenCL device; ask for a shorter context") as caught:
        device.allocate(TensorSpec(F32, (1 << 40,)))
    assert caught.value.requested_bytes == 1 << 42
    assert 0 < caught.value.available_bytes < 1 << 42


def test_a_device_keeps_to_the_memory_that_it_was_given_and_frees_it_when_closed(opencl_info) -> None:
    from runtime_opencl.plugin import plugin

    device = plugin.runtime_open(opencl_info, DeviceConfig(memory_bytes=4096))
    buffer = device.allocate(TensorSpec(F32, (768,)))
    assert device.memory() == {"device": (1024, 4096)}
    with pytest.raises(OutOfMemory, match="takes 2048 bytes, 1024 are free"):
        device.allocate(TensorSpec(F32, (512,)))
    device.close()
    device.close()
    assert device.memory() == {"device": (4096, 4096)}
    buffer.close()


def test_an_event_can_be_waited_for_with_a_limit(device) -> None:
    import pyopencl as cl

    from runtime_opencl.event import CommandEvent

    user = cl.UserEvent(device._queue.context)
    event = CommandEvent(user, "a step")
    assert not event.done()
    with pytest.raises(TimedOut, match=r"a step is not done after 0\.01 s"):
        event.wait(0.01)
    user.set_status(cl.command_execution_status.COMPLETE)
    event.wait(1.0)
    assert event.done()


def test_an_event_carries_the_error_of_the_driver(device) -> None:
    import pyopencl as cl

    from runtime_opencl.event import CommandEvent

    user = cl.UserEvent(device._queue.context)
    event = CommandEvent(user, "a step")
    user.set_status(-14)  # EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST
    for _ in range(2):
        with pytest.raises(ExecutionFailed, match="a step failed on the OpenCL device: EXEC_STATUS_ERROR"):
            event.wait()


def test_a_device_that_changed_since_the_probe_is_refused(opencl_info) -> None:
    from dataclasses import replace

    from runtime.backend import PluginRejected
    from runtime_opencl.plugin import plugin

    with pytest.raises(PluginRejected, match=r"OpenCL device 99 .* is gone"):
        plugin.runtime_open(replace(opencl_info, index=99), DeviceConfig())
    with pytest.raises(PluginRejected, match="the probe found another there"):
        plugin.runtime_open(replace(opencl_info, name="another"), DeviceConfig())
