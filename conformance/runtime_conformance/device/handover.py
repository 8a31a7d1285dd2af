"""L3: the cache of a sequence goes from one backend to another, which continues the sequence."""

from __future__ import annotations

from typing import Any

from runtime.backend import Device, TensorSpec
from runtime.dtypes import FORMATS
from runtime.executor import Executor
from runtime.graph import GraphBuilder, make_region
from runtime_conformance.device.laws import NotEvaluable
from runtime_conformance.device.run import TIMEOUT_S
from runtime_conformance.device.serving import LAYERS, PROMPT, Engine

HANDOVERS = ("cache_goes_to_the_reference", "cache_comes_from_the_reference")
_FIRST, _OTHER = 0, 2
"""Places of the sequence before and after: the blocks move as well."""


def give(device: Device, backend: str, seed: int, block_size: int | None = None) -> list[Any]:
    """Compute the prompt and export its blocks, per layer [2, N, C, H, D] f32 as bytes."""
    engine = Engine(device, backend, seed, block_size)
    try:
        sequence = engine.fresh(PROMPT, _FIRST)
        engine.step((sequence, len(PROMPT)))
        return [_export(engine.executor, device, backend, i, sequence.blocks) for i in range(LAYERS)]
    finally:
        engine.executor.close()


def take(device: Device, backend: str, seed: int, caches: list[Any], block_size: int | None = None) -> Any:
    """Import what `give` gave and continue the sequence: logits of all later steps, float32."""
    import numpy as np

    engine = Engine(device, backend, seed, block_size)
    try:
        sequence = engine.fresh(PROMPT, _OTHER)
        for i, data in enumerate(caches):
            _import(engine.executor, device, backend, i, sequence.blocks, data)
        sequence.num_computed = len(PROMPT)
        return np.concatenate(engine.finish(sequence, 3)).astype(np.float32)
    finally:
        engine.executor.close()


def _export(executor: Executor, device: Device, backend: str, layer: int, blocks: list[int]) -> Any:
    import numpy as np

    cache, spec = _cache(executor, backend, layer)
    shape = (2, len(blocks), *spec.resolve({})[2:])
    made = TensorSpec(FORMATS["f32"], shape)
    target = device.allocate(made)
    _run(device, "kv_export", spec, cache, blocks, None, target)
    data = np.empty(made.nbytes(), np.uint8)
    device.download(target, data.data, made).wait(TIMEOUT_S)
    target.close()
    return data


def _import(executor: Executor, device: Device, backend: str, layer: int, blocks: list[int], data: Any) -> None:
    cache, spec = _cache(executor, backend, layer)
    made = TensorSpec(FORMATS["f32"], (2, len(blocks), *spec.resolve({})[2:]))
    source = device.allocate(made)
    device.upload(source, data.data, made).wait(TIMEOUT_S)
    _run(device, "kv_import", spec, cache, blocks, source, None)
    source.close()


def _cache(executor: Executor, backend: str, layer: int) -> tuple[Any, TensorSpec]:
    """The buffer of a layer's cache on the device itself."""
    where, buffer, spec = executor.state(f"kv.{layer}")
    if where != backend:
        raise NotEvaluable("the cache of a decoder is not on the device: it does not claim all that touches the cache")
    return buffer, spec


def _run(device: Device, op: str, spec: TensorSpec, cache: Any, blocks: list[int], source: Any, target: Any) -> None:
    """One kv_export or kv_import over the cache of an executor."""
    import numpy as np

    builder = GraphBuilder(op, {})
    kv = builder.state("kv", spec)
    inputs: dict[str, Any] = {"kv": kv, "block_ids": builder.input("block_ids", "i32", (len(blocks),))}
    if source is not None:
        inputs["data"] = builder.input("data", "f32", (2, len(blocks), *spec.resolve({})[2:]))
    builder.output("made", builder.op(op, **inputs))
    graph = builder.build()
    node = graph.nodes[0]
    found = device.manifest.match(node.op.key, node.facts(graph.dims))
    if found.coverage != "full":
        raise NotEvaluable(f"the device does not claim {op}: {'; '.join(found.reasons)}")
    region = make_region(op, graph.nodes, graph.dims, list(graph.outputs.values()), graph.state_aliases())
    executable = device.compile(region, {"kv": cache}, {})
    ids = TensorSpec(FORMATS["i32"], (len(blocks),))
    buffer = device.allocate(ids)
    device.upload(buffer, np.array(blocks, "<i4").view(np.uint8).data, ids).wait(TIMEOUT_S)
    (output,) = graph.outputs.values()
    bindings = {"block_ids": buffer} | ({"data": source} if target is None else {output.name: target})
    try:
        executable.submit(bindings, {}).wait(TIMEOUT_S)
    finally:
        executable.close()
        buffer.close()
