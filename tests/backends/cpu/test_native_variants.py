"""Variants that no ordinary build holds: code of instruction sets that this processor may lack, by other instructions.

avx512-256 is the code of avxvnni, its dot product encoded for AVX-512; amx-emulated is that of amx over tiles in memory.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from runtime.dtypes import FORMATS

sys.path.insert(0, str(Path(__file__).parent))
from native_library import NativeLinear, build
from test_native_linear import (  # collected here too: the same tests over another library
    assert_close,
    ggml_type,
    random_activations,
    random_weight,
    test_a_linear_is_the_product_of_decoded_weights_and_rounded_activations,
    test_a_row_gives_the_same_bits_alone_and_in_any_batch,
    test_an_activation_that_is_not_finite_shows_in_its_row_alone,
    test_bias_and_residual_are_added_after_the_product,
    test_every_instruction_set_gives_the_same_bits,
    test_gathered_rows_are_weighted_and_added_where_they_are_scattered,
)

__all__ = [
    "test_a_linear_is_the_product_of_decoded_weights_and_rounded_activations",
    "test_a_row_gives_the_same_bits_alone_and_in_any_batch",
    "test_an_activation_that_is_not_finite_shows_in_its_row_alone",
    "test_bias_and_residual_are_added_after_the_product",
    "test_every_instruction_set_gives_the_same_bits",
    "test_gathered_rows_are_weighted_and_added_where_they_are_scattered",
]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # the first test waits for the compiler


@pytest.fixture(scope="session")
def native() -> NativeLinear:
    variants = "avx512;avx512bf16;avx512_256;amx_emulated"
    made = NativeLinear(build(f"-DRT_VARIANTS={variants}", name="variant-tests"))
    if not {"avx512-256", "amx-emulated"} <= set(made.isas):
        pytest.skip("this processor lacks AVX-512 with VNNI and BF16, which both are built with")
    return made


@pytest.mark.parametrize(("k", "rows"), [(32, 1), (32, 17), (2048, 33), (1504, 300)])
def test_bf16_tiles_sum_what_the_other_variants_sum(native: NativeLinear, k: int, rows: int) -> None:
    fmt = FORMATS["bf16"]
    raw, x = random_weight(fmt, 35, k), random_activations(rows, k)
    y = native.linear("amx-emulated", ggml_type(fmt), native.pack("base", ggml_type(fmt), raw, 35, k), x, 35)
    assert_close(fmt, y, raw, x)
    alone = native.linear("amx-emulated", ggml_type(fmt), native.pack("base", ggml_type(fmt), raw, 35, k), x[-1:], 35)
    np.testing.assert_array_equal(alone[0], y[-1])
