"""What the native device refuses: nodes beyond its manifest, data of a wrong size, more memory than there is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from runtime.dtypes import FORMATS, Span, TensorSpec
from runtime.errors import InvalidArgument, OutOfMemory, Unsupported
from runtime.executor import make_plan
from runtime.graph import Graph, GraphBuilder
from runtime_cpu.device import NativeDevice


def activation(fmt: str) -> Graph:
    builder = GraphBuilder("activation", {"T": Span(1, 8)})
    builder.output("y", builder.op("activation", x=builder.input("x", fmt, ("T", 32)), attrs={"kind": "relu"}))
    return builder.build()


@pytest.mark.parametrize("fmt", ["f16", "bf16"])
def test_a_node_that_the_manifest_does_not_cover_is_not_compiled(device: NativeDevice, fmt: str) -> None:
    boundless = dataclasses.replace(
        device.manifest, rules=tuple(dataclasses.replace(r, when=()) for r in device.manifest.rules)
    )
    (placed,) = make_plan(activation(fmt), {"cpu": boundless}, fallback="forbid").regions
    with pytest.raises(Unsupported, match=f"x.format {fmt} is not one of f32") as refused:
        device.compile(placed.region, {}, {})
    assert refused.value.reasons


@pytest.mark.parametrize("rows", [2, 4])
def test_an_upload_of_another_size_than_its_tensor_is_refused(device: NativeDevice, rows: int) -> None:
    spec = TensorSpec(FORMATS["f32"], (3, 64))
    buffer = device.allocate(spec)
    data = memoryview(np.ones(rows * 64, np.float32)).cast("B")
    with pytest.raises(InvalidArgument, match=f"takes 768 bytes, {rows * 256} were given"):
        device.upload(buffer, data, spec)
    buffer.close()


def test_a_cache_is_exchanged_in_its_own_shape_only(device: NativeDevice) -> None:
    cache = device.allocate(TensorSpec(FORMATS["f16"], (2, 4, 64, 1, 32), "kv"))
    other = TensorSpec(FORMATS["f16"], (2, 2, 64, 1, 32), "kv")
    data = memoryview(bytearray(other.nbytes()))
    with pytest.raises(InvalidArgument, match="both must have one shape"):
        device.upload(cache, data, other)
    with pytest.raises(InvalidArgument, match="both must have one shape"):
        device.download(cache, data, other)
    cache.close()


@pytest.mark.parametrize("num_blocks", [1 << 34, (1 << 32) + 1, 1 << 62])
@pytest.mark.parametrize("fmt", ["f16", "q8_0"])
def test_a_cache_beyond_all_memory_is_refused(device: NativeDevice, fmt: str, num_blocks: int) -> None:
    spec = TensorSpec(FORMATS[fmt], (2, num_blocks, 64, 8, 128), "kv")
    with pytest.raises(OutOfMemory) as refused:
        device.allocate(spec)
    assert refused.value.requested_bytes == spec.nbytes()


@pytest.mark.parametrize("size", [1 << 50, 1 << 62, (1 << 62) + 8])
def test_a_tensor_beyond_all_memory_is_refused(device: NativeDevice, size: int) -> None:
    with pytest.raises(OutOfMemory, match=str(4 * size)):
        device.allocate(TensorSpec(FORMATS["f32"], (size,)))
