"""Parts of the kernels that the interpreter's large tiles never reach: splits, small tiles, every block format."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest

from runtime.backend import DeviceConfig
from runtime.dtypes import FORMATS, encode
from runtime_conformance.cases import make_cases
from runtime_conformance.inprocess import Bench
from runtime_torch.planes import LAYOUTS
from runtime_torch.settings import Tiles

pytestmark = [pytest.mark.oracle, pytest.mark.slow, pytest.mark.timeout(400)]

SMALL = Tiles(
    few_rows=16,
    few_units=1,
    many_tokens=16,
    many_rows=32,
    many_units=1,
    product_tokens=16,
    product_rows=32,
    product_units=1,
    whole_tokens=48,
    piece_bytes=1 << 14,
    attention_rows=16,
    attention_keys=16,
    least_part=16,
    elements=256,
    row_elements=1024,
    programs=64,
    max_splits=3,
)


def random_blocks(fmt: str, num_rows: int, num_columns: int) -> np.ndarray:
    """Blocks of any bytes, with scales that are finite and of ordinary size."""
    layout, form = LAYOUTS[fmt], FORMATS[fmt]
    if layout.scale == "float8":
        values = np.random.default_rng(8).standard_normal((num_rows, num_columns)).astype(np.float32)
        return np.frombuffer(encode(form, values), np.uint8).reshape(-1, form.block_bytes)
    rng = np.random.default_rng(len(fmt))
    raw = rng.integers(0, 256, (num_rows * num_columns // layout.block_elements, form.block_bytes), np.uint8)
    halves = {"q2_k": (80, 82), "q3_k": (108,), "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,), "mxfp4": ()}
    for at in halves.get(fmt, (0, 2) if layout.has_minimum else (0,)):
        raw[:, at : at + 2] = rng.uniform(-1, 1, len(raw)).astype(np.float16).view(np.uint8).reshape(-1, 2)
    if fmt == "mxfp4":
        raw[:, 0] = rng.integers(0, 140, len(raw))
    return raw


@pytest.mark.parametrize("fmt", LAYOUTS)
def test_a_row_of_every_block_format_is_decoded_as_the_gguf_package_or_the_core_does(device: Any, fmt: str):
    from runtime.backend import TensorSpec
    from runtime.graph import GraphBuilder, make_region

    raw = random_blocks(fmt, 5, 512)
    spec = TensorSpec(FORMATS[fmt], (5, 512))
    builder = GraphBuilder("embed", {})
    ids = builder.input("ids", "i32", (3,))
    y = builder.op("embed", token_ids=ids, weight=builder.weight("w", spec))
    builder.output("y", y)
    graph = builder.build()
    weight = device.load_weight(spec, memoryview(raw).cast("B"), {})
    region = make_region("embed", list(graph.nodes), {}, [y])
    executable = device.compile(region, {"w": weight}, {})
    bound = {"ids": device.allocate(ids.spec), y.name: device.allocate(y.spec)}
    device.upload(bound["ids"], memoryview(np.array([4, 0, 2], np.int32)).cast("B"), ids.spec).wait()
    executable.submit(bound, {}).wait()
    got = np.empty((3, 512), np.float32)
    device.download(bound[y.name], memoryview(got).cast("B"), y.spec).wait()
    if LAYOUTS[fmt].scale == "float8":
        expected = FORMATS[fmt].decode(raw, (5, 512))
    else:
        expected = gguf.quants.dequantize(raw.reshape(5, -1), gguf.GGMLQuantizationType[fmt.upper()])
    np.testing.assert_array_equal(got, expected[[4, 0, 2]])
    executable.close()


@pytest.mark.parametrize(("fmt", "code", "hi"), [("q5_0", 0x17, [1 << 13]), ("q6_k", 0x27, [2 << 14, 0])])
def test_element_13_is_field_3_of_word_1_and_its_high_bits_lie_as_those_of_word_1_do(
    fmt: str, code: int, hi: list[int]
):
    import torch

    from runtime_torch.repack import _pack_codes

    codes = torch.zeros((1, 32), dtype=torch.uint8)
    codes[0, 13] = code
    planes = _pack_codes(LAYOUTS[fmt], codes)
    assert planes["lo"].reshape(-1).tolist() == [0, 7 << 12, 0, 0]
    assert planes["hi"].reshape(-1).tolist() == hi


FEW = replace(SMALL, few_rows=4, few_pieces=8, programs=4)


def weights(fmt: str, num_rows: int, num_columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Random ones as stored, and what they are worth, by the gguf package, the core or torch."""
    import torch

    if fmt not in LAYOUTS:
        dense = torch.randn((num_rows, num_columns), generator=torch.Generator().manual_seed(1))
        kept = dense.to({"f8_e4m3": torch.float8_e4m3fn, "bf16": torch.bfloat16, "f16": torch.float16}.get(fmt))
        return kept.view(torch.uint8).numpy(), kept.double().numpy()
    raw = random_blocks(fmt, num_rows, num_columns)
    if LAYOUTS[fmt].scale == "float8":
        return raw, FORMATS[fmt].decode(raw, (num_rows, num_columns)).astype(np.float64)
    kind = gguf.GGMLQuantizationType[fmt.upper()]
    return raw, gguf.quants.dequantize(raw.reshape(num_rows, -1), kind).astype(np.float64)


def run_few(device: Any, op: str, x: np.ndarray, stored: dict[str, tuple[str, np.ndarray]], **attrs: Any) -> np.ndarray:
    """The one output of a node over x and weights (format, bytes)."""
    from runtime.backend import TensorSpec
    from runtime.graph import GraphBuilder, make_region

    builder = GraphBuilder("few", {})
    ports, loaded = {"x": builder.input("x", "f32", x.shape)}, {}
    for port, (fmt, raw) in stored.items():
        num_rows = len(raw)
        num_elements = raw.size // FORMATS[fmt].block_bytes * FORMATS[fmt].group_size
        spec = TensorSpec(FORMATS[fmt], (num_rows, num_elements // num_rows))
        ports[port] = builder.weight(port, spec)
        loaded[port] = device.load_weight(spec, memoryview(np.ascontiguousarray(raw)).cast("B"), {})
    y = builder.op(op, attrs=attrs, **ports)
    builder.output("y", y)
    executable = device.compile(make_region("few", list(builder.build().nodes), {}, [y]), loaded, {})
    bound = {"x": device.allocate(ports["x"].spec), y.name: device.allocate(y.spec)}
    device.upload(bound["x"], memoryview(x).cast("B"), ports["x"].spec).wait()
    executable.submit(bound, {}).wait()
    made = np.empty(y.spec.shape, np.float32)
    device.download(bound[y.name], memoryview(made).cast("B"), y.spec).wait()
    executable.close()
    return made


@pytest.fixture(scope="module")
def narrow() -> Any:
    """Four rows and eight pieces at a time: several steps along a row, and rows that do not fill a program."""
    import runtime_torch_cpu

    settings = replace(runtime_torch_cpu.SETTINGS, tiles=FEW)
    opened = runtime_torch_cpu.TorchCpuBackend(settings).runtime_open(runtime_torch_cpu.INFO, DeviceConfig())
    yield opened
    opened.close()


@pytest.mark.parametrize("fmt", [*LAYOUTS, "f32", "f16", "bf16", "f8_e4m3"])
def test_one_row_and_two_meet_weights_of_every_format_as_exactly_as_float32_adds(narrow: Any, fmt: str):
    raw, exact = weights(fmt, 6, 768)
    x = np.random.default_rng(4).standard_normal((2, 768)).astype(np.float32)
    stored = {"weight": (fmt, raw.reshape(6, -1))}
    both, first = run_few(narrow, "linear", x, stored), run_few(narrow, "linear", x[:1], stored)
    np.testing.assert_array_equal(both[0], first[0])
    size = np.abs(x.astype(np.float64)) @ np.abs(exact).T
    assert (np.abs(both - x.astype(np.float64) @ exact.T) / size).max() < 2e-7


@pytest.mark.parametrize("num_tokens", [1, 2])
def test_products_that_share_a_launch_have_the_bits_of_those_that_do_not(narrow: Any, num_tokens: int):
    import torch

    from runtime_torch.calls import block_planes
    from runtime_torch.kernels import elementwise
    from runtime_torch.products_few import ALPHA, LIMIT, Product, few_calls, gate_up_calls, together_calls
    from runtime_torch.repack import repack

    x = torch.randn((num_tokens, 768), generator=torch.Generator().manual_seed(2))
    site: Any = SimpleNamespace(settings=narrow.settings)
    products = []
    for seed, num_rows in enumerate((10, 6, 6)):
        raw = torch.from_numpy(random_blocks("q6_k", num_rows + seed, 768)[3 * seed :])
        planes = block_planes("q6_k", repack("q6_k", raw, num_rows, 768), x)
        products.append(Product(planes, torch.randn(num_rows), torch.zeros((num_tokens, num_rows))))
    calls = together_calls(site, x, products)
    assert len(calls) == 1
    calls[0]()
    alone = [torch.zeros_like(product.y) for product in products]
    for product, y in zip(products, alone):
        few_calls(site, product.planes, x, product.bias, y)[0]()
        assert torch.equal(product.y, y)
        assert y.all()
    _, gate, up = products
    expected = torch.zeros_like(gate.y)
    elementwise.glu[(1,)](alone[1], alone[2], expected, expected.numel(), ALPHA, LIMIT, KIND=4, BLOCK=16)
    gate_up_calls(site, x, gate, up, 4)[0]()
    assert torch.equal(gate.y, expected)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter is numpy, which warns of infinities in the data
@pytest.mark.parametrize("ops", [("linear",), ("attention",), ("moe_linear", "rms_norm", "rope", "kv_write", "qkv*")])
def test_small_tiles_and_splits_pass_the_same_cases(ops: tuple[str, ...]):
    import runtime_torch_cpu

    settings = replace(runtime_torch_cpu.SETTINGS, tiles=SMALL)
    device = runtime_torch_cpu.TorchCpuBackend(settings).runtime_open(runtime_torch_cpu.INFO, DeviceConfig())
    bench, faults, num_run = Bench(7), [], 0
    try:
        for case in make_cases(device.manifest, budget="smoke", ops=ops):
            rows = max(t.shape[0] for t in case.inputs.values())
            if case.expect != "run" or case.law or rows > 64:
                continue
            found = bench.faults(device, case)
            num_run += found is not None
            faults += [f"{case.id} {case.describe()}: {f}" for f in found or ()]
    finally:
        device.close()
    assert faults == []
    assert num_run >= 3
