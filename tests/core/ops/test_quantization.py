"""quantize and dequantize against the gguf package and literal bytes."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.dtypes import FORMATS, TensorSpec
from runtime.errors import Unsupported
from runtime.ops.quantization import DEQUANTIZE, QUANTIZE
from runtime.ops.rounding import EXACT, Rounding


def quantize(x, fmt):
    return QUANTIZE.run_reference(EXACT, {"x": x}, {"format": fmt})[0]


def test_q8_0_rows_are_a_scale_and_thirty_two_integers():
    x = np.zeros((1, 32))
    x[0, :3] = [127.0, -127.0, 5.0]
    y = quantize(x, "q8_0")
    assert y.dtype == np.uint8
    # float16 one is 0x3C00
    assert y.tolist() == [[0x00, 0x3C, 127, 129, 5, *[0] * 29]]


@pytest.mark.parametrize("fmt", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4"])
def test_bytes_equal_those_of_the_gguf_package(fmt):
    import gguf

    x = np.random.default_rng(0).normal(size=(3, 64))
    expected = gguf.quants.quantize(x.astype(np.float32), gguf.GGMLQuantizationType[fmt.upper()])
    np.testing.assert_array_equal(quantize(x, fmt), expected)


def test_the_shape_stays_and_the_format_changes():
    x = TensorSpec(FORMATS["f32"], ("T", 64))
    assert QUANTIZE.infer_specs({"x": x}, {"format": "q4_0"}) == (TensorSpec(FORMATS["q4_0"], ("T", 64)),)
    y = TensorSpec(FORMATS["q4_k"], ("T", 256))
    assert DEQUANTIZE.infer_specs({"x": y}, {}) == (TensorSpec(FORMATS["f32"], ("T", 256)),)
    assert DEQUANTIZE.infer_specs({"x": y}, {"format": "bf16"}) == (TensorSpec(FORMATS["bf16"], ("T", 256)),)


def test_a_format_without_an_encoder_is_unsupported_by_name():
    with pytest.raises(Unsupported, match=r"quantize@1 cannot encode iq1_s; formats with an encoder: .*q8_0"):
        QUANTIZE.infer_specs({"x": TensorSpec(FORMATS["f32"], (1, 256))}, {"format": "iq1_s"})


def test_dequantize_passes_decoded_values_and_rounds_once():
    x = np.array([[1.0 + 2**-20, 0.1]])
    assert DEQUANTIZE.run_reference(EXACT, {"x": x}, {}) == (x,)
    nearest = Rounding({"output": "f16"}, "nearest")
    y = DEQUANTIZE.run_reference(nearest, {"x": x}, {"format": "f16"})[0]
    assert y.tolist() == [[1.0, 0.0999755859375]]


def test_work_reads_the_packed_bytes():
    packed, plain = TensorSpec(FORMATS["q8_0"], (2, 64)), TensorSpec(FORMATS["f32"], (2, 64))
    work = DEQUANTIZE.work({"x": packed}, {"y": plain}, {})
    assert (work.operations, work.bytes_read, work.bytes_written) == (128, 136, 512)
