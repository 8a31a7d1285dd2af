"""A backend out of a table of kernels: what follows from its declarations, and what it may not do."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.backend import (
    BackendInfo,
    Device,
    DeviceConfig,
    DeviceInfo,
    KernelBackend,
    Numerics,
    OneOf,
    QuantizedTensor,
    Range,
    kernel,
)
from runtime.dtypes import FORMATS, Span, TensorSpec, encode
from runtime.errors import ExecutionFailed, InvalidArgument, Unsupported
from runtime.executor import Executor, make_plan
from runtime.graph import GraphBuilder, make_region

F32 = FORMATS["f32"]


class Example(KernelBackend):
    name, vendor, api_level = "example", "example.org", 1

    def probe(self):
        return [DeviceInfo(index=0, name="numpy", memory_bytes=1 << 30, score=0)]

    @kernel("linear@1", weight=("f32", "f16"), numerics=Numerics(activation="f32", accumulate="f32"))
    def linear(self, x, weight, bias=None):
        y = x @ weight.T
        return y if bias is None else y + bias


plugin = Example()


def open_device(backend):
    return backend.runtime_open(backend.probe()[0], DeviceConfig())


def graph_of(op, shapes, attrs=None, formats=None):
    b = GraphBuilder("case", {"T": Span(1, 64)})
    inputs = {name: b.input(name, (formats or {}).get(name, "f32"), shape) for name, shape in shapes.items()}
    b.output("y", b.op(op, name="node", attrs=attrs, **inputs))
    return b.build()


def run(backend, graph, inputs):
    plan = make_plan(graph, {backend.name: backend.manifest()}, fallback="forbid")
    executor = Executor(plan, {backend.name: open_device(backend)})
    return executor.run(inputs, {"T": len(next(iter(inputs.values())))})["y"]


def test_the_smallest_backend_is_a_plugin():
    assert plugin.runtime_backend_info() == BackendInfo("example", "example.org", "0", 1)
    assert [d.name for d in plugin.runtime_probe()] == ["numpy"]
    assert isinstance(open_device(plugin), Device)
    (rule,) = plugin.runtime_manifest().rules
    assert rule.op == "linear@1"
    assert rule.when == (OneOf("weight.format", ("f32", "f16")),)
    assert rule.numerics.accumulate == "f32"


def test_the_hooks_are_found_by_pluggy():
    import pluggy

    from runtime.backend import BackendHooks

    manager = pluggy.PluginManager("runtime")
    manager.add_hookspecs(BackendHooks)
    manager.register(plugin, name="example")
    manager.check_pending()
    assert manager.hook.runtime_backend_info().name == "example"
    assert manager.hook.runtime_manifest().backend == "example"


def test_one_kernel_runs_and_the_rest_is_on_the_host():
    b = GraphBuilder("half", {"T": Span(1, 4)})
    x = b.input("x", "f32", ("T", 2))
    h = b.op("linear", x=x, weight=b.weight("w", TensorSpec(F32, (3, 2))))
    b.output("y", b.op("activation", x=h, attrs={"kind": "relu"}))
    plan = make_plan(b.build(), {"example": plugin.manifest()})
    weight = np.array([[1, 2], [3, 4], [-5, 6]], np.float32)
    device = open_device(plugin)
    executor = Executor(plan, {"example": device}, lambda name: (TensorSpec(F32, (3, 2)), weight))
    assert executor.run({"x": np.array([[1.0, 0.5]])}, {"T": 1})["y"].tolist() == [[2.0, 5.0, 0.0]]
    assert device.counters()["kernels_run"] == 1
    assert device.counters()["host_compute_ns"] == 0


def test_an_input_without_a_parameter_must_be_absent():
    class NoBias(Example):
        @kernel("linear@1", N=(1, 64), K=Range("", step=8))
        def linear(self, x, weight):
            return x @ weight.T

    (rule,) = NoBias().manifest().rules
    assert rule.when == (Range("N", 1, 64), Range("K", step=8), OneOf("has.bias", (False,)))


def test_an_attribute_without_a_parameter_must_have_its_default():
    class Plain(Example):
        linear = None

        @kernel("softmax@1")
        def softmax(self, x):
            e = np.exp(x - x.max(-1, keepdims=True))
            return e / e.sum(-1, keepdims=True)

    backend = Plain()
    (rule,) = backend.manifest().rules
    assert rule.when == (OneOf("log", (False,)), OneOf("scale", (1.0,)))
    shapes = {"x": ("T", 4)}
    y = run(backend, graph_of("softmax", shapes), {"x": np.zeros((1, 4), np.float32)})
    assert y.tolist() == [[0.25, 0.25, 0.25, 0.25]]
    graph = graph_of("softmax", shapes, {"scale": 2.0})
    match = backend.manifest().match("softmax@1", graph.nodes[0].facts(graph.dims))
    assert match.reasons == ("scale 2.0 is not one of 1.0",)


def test_attributes_come_by_name():
    class Caps(Example):
        linear = None

        @kernel("softcap@1")
        def softcap(self, x, cap):
            return np.clip(x, -cap, cap)

    y = run(Caps(), graph_of("softcap", {"x": ("T", 2)}, {"cap": 2.0}), {"x": np.array([[1.0, 5.0]])})
    assert y.tolist() == [[1.0, 2.0]]


def test_variadic_inputs_come_as_a_list():
    class Joins(Example):
        linear = None

        @kernel("concat@1")
        def concat(self, x):
            return np.concatenate(x, axis=1)

    graph = graph_of("concat", {"x0": ("T", 2), "x1": ("T", 1)})
    assert run(Joins(), graph, {"x0": np.array([[1.0, 2.0]]), "x1": np.array([[3.0]])}).tolist() == [[1.0, 2.0, 3.0]]


def test_block_formats_come_as_stored():
    seen = []

    class Quantized(Example):
        @kernel("linear@1", weight="q8_0")
        def linear(self, x, weight):
            seen.append((type(weight), weight.format.name, weight.shape, weight.data.shape))
            return x @ weight.decode().T

    b = GraphBuilder("quantized", {"T": Span(1, 4)})
    spec = TensorSpec(FORMATS["q8_0"], (4, 64))
    b.output("y", b.op("linear", x=b.input("x", "f32", ("T", 64)), weight=b.weight("w", spec)))
    values = np.arange(256, dtype=np.float32).reshape(4, 64)
    data = encode(FORMATS["q8_0"], values)
    backend = Quantized()
    plan = make_plan(b.build(), {"example": backend.manifest()}, fallback="forbid")
    executor = Executor(plan, {"example": open_device(backend)}, lambda name: (spec, data))
    y = executor.run({"x": np.ones((1, 64), np.float32)}, {"T": 1})["y"]
    np.testing.assert_allclose(y, values.sum(1)[None], rtol=1e-2)
    assert seen == [(QuantizedTensor, "q8_0", (4, 64), (4, 68))]


def test_a_backend_with_its_own_memory_sees_only_its_own_arrays():
    class Boxed:
        def __init__(self, array):
            self.array, self.shape, self.dtype = array, array.shape, array.dtype

    class Far(Example):
        def to_device(self, array):
            return Boxed(np.array(array))

        def to_host(self, value):
            return value.array

        @kernel("linear@1")
        def linear(self, x, weight):
            assert isinstance(x, Boxed)
            assert isinstance(weight, Boxed)
            return Boxed(x.array @ weight.array.T)

    graph = graph_of("linear", {"x": ("T", 2), "weight": (2, 2)})
    y = run(Far(), graph, {"x": np.array([[1.0, 2.0]]), "weight": np.array([[0.0, 1.0], [1.0, 0.0]])})
    assert y.tolist() == [[2.0, 1.0]]


def returns(value):
    class Wrong(Example):
        @kernel("linear@1")
        def linear(self, x, weight):
            return value

    return Wrong()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((1, 3), np.float32), r"returned float32\[1, 3\] at node node \(linear@1\), expected float32\[1, 2\]"),
        (
            np.zeros((1, 2)),
            r"returned float64\[1, 2\] at node node \(linear@1\), expected float32\[1, 2\] for f32\[1, 2\]",
        ),
        (None, r"returned NoneType\[\] at node node"),
        ((np.zeros((1, 2), np.float32),) * 2, "returned 2 outputs at node node; linear@1 has 1"),
    ],
)
def test_what_a_kernel_returns_is_checked(value, message):
    graph = graph_of("linear", {"x": ("T", 2), "weight": (2, 2)})
    with pytest.raises(ExecutionFailed, match=message):
        run(returns(value), graph, {"x": np.zeros((1, 2)), "weight": np.zeros((2, 2))})


def test_a_misspelt_parameter_is_refused():
    class Misspelt(Example):
        @kernel("linear@1")
        def linear(self, x, wieght):
            return x

    with pytest.raises(
        InvalidArgument, match=r"Misspelt\.linear has a parameter 'wieght', which linear@1 does not know"
    ):
        Misspelt().manifest()


def test_a_missing_parameter_is_refused():
    class Missing(Example):
        @kernel("linear@1")
        def linear(self, x):
            return x

    with pytest.raises(InvalidArgument, match="has no parameter 'weight', an input that linear@1 always has"):
        Missing().manifest()


def test_a_condition_on_something_else_is_refused():
    class Confused(Example):
        @kernel("linear@1", colour=("red",))
        def linear(self, x, weight):
            return x

    with pytest.raises(InvalidArgument, match=r"colour=\('red',\) is no condition on linear@1; it has the inputs"):
        Confused().manifest()


def test_an_unknown_operation_is_refused():
    class Unknown(Example):
        @kernel("lineal@1")
        def linear(self, x, weight):
            return x

    with pytest.raises(InvalidArgument, match="is for 'lineal@1', which is no known operation"):
        Unknown().manifest()


def test_a_backend_without_a_name_is_refused():
    class Nameless(KernelBackend):
        vendor = "example.org"

    with pytest.raises(InvalidArgument, match="backend Nameless must set 'name' to a string"):
        Nameless()


def test_compiling_what_has_no_kernel_is_refused_with_reasons():
    graph = graph_of("softcap", {"x": ("T", 2)}, {"cap": 1.0})
    region = make_region("r", graph.nodes, graph.dims, list(graph.outputs.values()))
    with pytest.raises(Unsupported, match=r"example has no kernel for node node \(softcap@1\): no rule in manifest"):
        open_device(plugin).compile(region, {}, {})


def test_the_kernel_with_the_highest_preference_is_taken():
    class Two(Example):
        @kernel("linear@1")
        def linear(self, x, weight):
            return np.zeros((len(x), len(weight)), np.float32)

        @kernel("linear@1", preference=1, K=Range("", step=2))
        def even(self, x, weight):
            return np.ones((len(x), len(weight)), np.float32)

    for k, expected in ((4, 1.0), (3, 0.0)):
        graph = graph_of("linear", {"x": ("T", k), "weight": (1, k)})
        assert run(Two(), graph, {"x": np.zeros((1, k)), "weight": np.zeros((1, k))}).tolist() == [[expected]]


def test_a_functional_kernel_may_return_a_new_cache():
    class Functional(Example):
        @kernel("kv_write@1")
        def kv_write(self, kv, k, v, slot_mapping):
            fresh = kv.copy()
            flat = fresh.reshape(2, -1, *kv.shape[3:])
            flat[0, slot_mapping] = k.reshape(len(k), *kv.shape[3:])
            flat[1, slot_mapping] = v.reshape(len(v), *kv.shape[3:])
            return fresh

        @kernel("kv_export@1")
        def kv_export(self, kv, block_ids):
            return kv[:, block_ids].astype(np.float32)

    b = GraphBuilder("functional", {"T": Span(1, 8), "B": Span(1, 4), "N": Span(1, 4)})
    x = b.input("x", "f32", ("T", 2))
    kv = b.state("kv", TensorSpec(F32, (2, "B", 2, 1, 2), "kv"))
    kv = b.op("kv_write", kv=kv, k=x, v=x, slot_mapping=b.input("slots", "i32", ("T",)))
    b.output("data", b.op("kv_export", kv=kv, block_ids=b.input("ids", "i32", ("N",))))
    backend = Functional()
    plan = make_plan(b.build(), {"example": backend.manifest()}, fallback="forbid")
    executor = Executor(plan, {"example": open_device(backend)}, None, {"B": 2})
    ids = np.array([0], np.int32)
    executor.run({"x": np.array([[1.0, 2.0]]), "slots": np.array([0], np.int32), "ids": ids}, {"T": 1, "N": 1})
    data = executor.run({"x": np.array([[3.0, 4.0]]), "slots": np.array([1], np.int32), "ids": ids}, {"T": 1, "N": 1})
    assert data["data"][0, 0, :, 0].tolist() == [[1.0, 2.0], [3.0, 4.0]]
