"""Products of some and of many rows: rounding of their operands, and weights decoded by tiles or whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from stored_blocks import random_blocks

from runtime.backend import DeviceConfig, TensorSpec
from runtime.dtypes import FORMATS
from runtime.graph import GraphBuilder, make_region
from runtime_torch.planes import LAYOUTS

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # the interpreter is numpy, which warns of infinities
]

ROWS, COLUMNS = 160, 512


@pytest.fixture(scope="module", params=["by tiles", "whole"])
def halves(request: Any) -> Iterator:
    """A device that rounds as tensor cores do; weights decoded by tiles, or in two pieces for torch's product."""
    import runtime_torch_cpu

    settings = runtime_torch_cpu.rounded.settings
    if request.param == "whole":
        settings = replace(settings, tiles=replace(settings.tiles, whole_tokens=2, piece_bytes=2 * 128 * COLUMNS))
    opened = runtime_torch_cpu.TorchCpuBackend(settings).runtime_open(runtime_torch_cpu.INFO, DeviceConfig())
    yield opened
    opened.close()


def product(device: Any, fmt: str, raw: np.ndarray, x: np.ndarray) -> np.ndarray:
    """x times a weight of ROWS rows."""
    spec = TensorSpec(FORMATS[fmt], (ROWS, COLUMNS))
    builder = GraphBuilder("linear", {})
    given = builder.input("x", "f32", x.shape)
    y = builder.op("linear", x=given, weight=builder.weight("w", spec))
    builder.output("y", y)
    weight = device.load_weight(spec, memoryview(raw).cast("B"), {})
    executable = device.compile(make_region("linear", list(builder.build().nodes), {}, [y]), {"w": weight}, {})
    bound = {"x": device.allocate(given.spec), y.name: device.allocate(y.spec)}
    device.upload(bound["x"], memoryview(x).cast("B"), given.spec).wait()
    executable.submit(bound, {}).wait()
    got = np.empty((len(x), ROWS), np.float32)
    device.download(bound[y.name], memoryview(got).cast("B"), y.spec).wait()
    executable.close()
    return got


def rows_of_all_sizes() -> np.ndarray:
    """Rows of ordinary numbers, of tiny, huge and subnormal ones, of mixed sizes, and of zeros."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((9, COLUMNS))
    sizes = (1.0, 1e-20, 1e20, 1e-42, 1e33, 1e-7, 3e4)
    x[:7] *= np.array(sizes)[:, None]
    x[7] *= np.exp(6 * rng.standard_normal(COLUMNS))
    x[8] = 0.0
    return x.astype(np.float32)


@pytest.mark.parametrize("fmt", LAYOUTS)
def test_rows_of_any_size_keep_the_precision_of_f16(halves: Any, fmt: str):
    raw = random_blocks(fmt, ROWS, COLUMNS)
    if fmt == "mxfp4":  # rows that f16 would not hold: of scales near 2^-120, and near 2^110
        scales = raw.reshape(ROWS, -1, 17)[:, :, 0]
        scales[:] = np.random.default_rng(6).integers(120, 134, scales.shape)
        scales[3], scales[5] = 7, 237
    weight = np.asarray(FORMATS[fmt].decode(raw, (ROWS, COLUMNS)), np.float64)
    x = rows_of_all_sizes()
    expected, sizes = x @ weight.T, np.abs(x.astype(np.float64)) @ np.abs(weight.T)
    error = np.abs(product(halves, fmt, raw, x) - expected)
    is_number = sizes < 1e38
    # each operand is rounded to 11 bits, by 2^-12 of itself on average and 2^-11 at most
    assert (error[is_number] <= 2.0**-10 * sizes[is_number] + 1e-44).all()
    assert (error[is_number].sum() <= 2.0**-12 * sizes[is_number].sum()).all()


@pytest.mark.parametrize("num_rows", [2, 5])
@pytest.mark.parametrize("fmt", LAYOUTS)
def test_single_weights_come_out_in_float32(device: Any, fmt: str, num_rows: int):
    raw = random_blocks(fmt, ROWS, COLUMNS)
    weight = np.asarray(FORMATS[fmt].decode(raw, (ROWS, COLUMNS)), np.float64)
    columns = np.arange(num_rows) * 67 + 3
    got = product(device, fmt, raw, np.eye(COLUMNS, dtype=np.float32)[columns])
    error = np.abs(got - weight[:, columns].T)
    # a code times its scale, and a minimum, which may nearly cancel: each half a unit in the last place
    block = np.abs(weight).reshape(ROWS, -1, 16).max(2).repeat(16, axis=1)[:, columns].T
    assert (error <= 2.0**-22 * block).all()


@pytest.mark.parametrize("fmt", ["q4_k", "q6_k", "mxfp4"])
def test_infinities_and_nan_come_out_where_they_belong_and_nowhere_else(halves: Any, fmt: str):
    raw = random_blocks(fmt, ROWS, COLUMNS)
    if fmt == "mxfp4":  # an element 2^19 times smaller than another of its row may count as zero
        raw[:, 0] = raw[:, 0] % 16 + 120
    weight = np.asarray(FORMATS[fmt].decode(raw, (ROWS, COLUMNS)), np.float64)
    x = np.ones((5, COLUMNS), np.float32)
    x[0, 7], x[1, 100], x[2, 9], x[3, 3], x[3, 4] = np.inf, -np.inf, np.nan, np.inf, -np.inf
    got = product(halves, fmt, raw, x)
    expected = (x @ weight.T).astype(np.float32)
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(expected))
    np.testing.assert_array_equal(got[:4], expected[:4])


def test_rows_of_ordinary_size_are_rounded_and_others_are_moved_by_powers_of_two():
    import torch

    from runtime_torch.kernels import rounding

    x = torch.zeros((4, 64))
    x[0, :3] = torch.tensor([1.0, 2.0**-6, 1.0 + 2.0**-11 + 2.0**-20])
    x[1, :2] = torch.tensor([2.0**-7, 2.0**-40])
    x[2, :3] = torch.tensor([2.0**100, torch.inf, torch.nan])
    rounded, exponents = torch.empty((4, 64), dtype=torch.float16), torch.empty(4, dtype=torch.int32)
    for whole, block in ((True, 64), (False, 32)):
        sizes = {"KIND": -1, "W": 32, "MODE": 2, "TOP": 15, "WHOLE": whole, "BR": 2, "BLOCK": block}
        rounding.round_rows[(2,)](x, x, rounded, exponents, 4, 64, 64, 1.702, 7.0, **sizes)
        assert exponents.tolist() == [0, -21, 86, 0]
        assert rounded[0, :3].tolist() == [1.0, 2.0**-6, 1.0 + 2.0**-10]
        assert rounded[1, :2].tolist() == [2.0**14, 2.0**-19]
        assert rounded[2, :2].tolist() == [2.0**14, torch.inf]
        assert rounded[2, 2].isnan()
        assert not rounded[3].any()


def test_parts_of_units_are_put_together_and_padded_with_zeros():
    import torch

    from runtime_torch.kernels import rounding

    x = torch.arange(64, dtype=torch.float32).reshape(1, 64)
    rounded, exponents = torch.full((1, 8, 16), 99, dtype=torch.float16), torch.empty(1, dtype=torch.int32)
    sizes = {"KIND": -1, "W": 4, "MODE": 2, "TOP": 15, "WHOLE": True, "BR": 1, "BLOCK": 128}
    rounding.round_rows[(1,)](x, x, rounded, exponents, 1, 64, 16, 1.702, 7.0, **sizes)
    assert rounded[0, 0].tolist() == [0, 1, 2, 3, 32, 33, 34, 35] + [0] * 8
    assert rounded[0, 7].tolist() == [28, 29, 30, 31, 60, 61, 62, 63] + [0] * 8


def test_products_of_one_matrix_share_what_it_is_rounded_to(halves: Any):
    spec = TensorSpec(FORMATS["q4_k"], (256, 256))
    builder = GraphBuilder("ffn", {})
    x = builder.input("x", "f32", (5, 256))
    weights = {part: builder.weight(part, spec) for part in ("gate", "up", "down")}
    y = builder.op("swiglu_ffn", x=x, attrs={"kind": "silu"}, **{f"{part}_weight": w for part, w in weights.items()})
    builder.output("y", y)
    loaded = {p: halves.load_weight(spec, memoryview(random_blocks("q4_k", 256, 256)).cast("B"), {}) for p in weights}
    executable = halves.compile(make_region("ffn", list(builder.build().nodes), {}, [y]), loaded, {})
    bound = {"x": halves.allocate(x.spec), y.name: halves.allocate(y.spec)}
    halves.upload(bound["x"], memoryview(np.ones((5, 256), np.float32)).cast("B"), x.spec).wait()
    before = halves.counters()["kernels_run"]
    executable.submit(bound, {}).wait()
    # x rounded, two products, gate and up rounded together, one product; whole weights are decoded, in two pieces,
    # and what they give is finished
    is_whole = halves.settings.tiles.whole_tokens == 2
    assert halves.counters()["kernels_run"] - before == (2 + 3 * 3 if is_whole else 5)
    executable.close()
