"""The judge: honest rounding passes, plain faults do not, and a case must be able to tell them apart."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.backend import KVLayout, Manifest, Numerics, Rule
from runtime_conformance.case import Case, Tensor
from runtime_conformance.cases import make_cases
from runtime_conformance.data import decode_data, make_data
from runtime_conformance.judging.judge import judge
from runtime_conformance.judging.oracle import make_oracle
from runtime_conformance.judging.power import weaknesses
from runtime_conformance.saboteurs.precision import rounded

BF16 = Numerics("bf16", "f32", "bf16", "bf16")
INT8 = Numerics("i8/32", "f32", "f32", "f32")
F32 = Numerics()


def linear(kind: str = "normal", t: int = 8, n: int = 96, k: int = 512) -> Case:
    x, w = {"exact": (("integers",), ("integers", -8, 7, 0.125))}.get(kind, ((kind,), ("normal", 0.05)))
    inputs = {"x": Tensor("f32", (t, k), data=x), "weight": Tensor("f32", (n, k), "weight", w)}
    return Case("linear@1", inputs, {}, kind)


def verdict(case: Case, numerics: Numerics, change):
    inputs = decode_data(case, make_data(case, 7))
    oracle = make_oracle(case, inputs, numerics)
    x, w = inputs["x"].astype(np.float32), inputs["weight"].astype(np.float32)
    return judge(case, [np.asarray(change(x, w), np.float64)], oracle, inputs)


HONEST = {
    "f32": (F32, lambda x, w: x @ w.T),
    "bf16": (BF16, lambda x, w: rounded("bf16", rounded("bf16", x) @ w.T)),
    "int8": (INT8, lambda x, w: rounded("i8/32", x) @ w.T),
    "better than declared": (INT8, lambda x, w: x @ w.T),
}


@pytest.mark.parametrize("kind", ["normal", "outlier"])
@pytest.mark.parametrize("name", HONEST)
def test_honest_arithmetic_passes(name: str, kind: str):
    numerics, compute = HONEST[name]
    judgement = verdict(linear(kind), numerics, compute)
    assert judgement.reasons == []
    assert judgement.figures["nmse"] < 1e-3


WRONG = {
    "last k dropped": (F32, lambda x, w: x[:, :-1] @ w[:, :-1].T),
    "last k dropped, bf16": (BF16, lambda x, w: rounded("bf16", rounded("bf16", x[:, :-1]) @ w[:, :-1].T)),
    "gain of 0.3 %": (F32, lambda x, w: x @ w.T * np.float32(1.003)),
    "gain of 2 %, int8": (INT8, lambda x, w: rounded("i8/32", x) @ w.T * np.float32(1.02)),
    "int8 declared bf16": (BF16, lambda x, w: rounded("bf16", rounded("i8/32", x) @ w.T)),
    "int4 declared int8": (INT8, lambda x, w: rounded("i4/32", x) @ w.T),
    "bf16 declared f32": (F32, lambda x, w: rounded("bf16", x) @ w.T),
    "zeros": (BF16, lambda x, w: 0 * (x @ w.T)),
    "NaN": (BF16, lambda x, w: np.where(np.arange(len(w)) == 3, np.nan, x @ w.T)),
}


@pytest.mark.parametrize("name", WRONG)
def test_plain_faults_are_rejected(name: str):
    numerics, compute = WRONG[name]
    assert not verdict(linear("outlier" if "int8" in name else "normal"), numerics, compute).passed


def test_exact_cases_must_match_bit_for_bit():
    assert verdict(linear("exact"), BF16, lambda x, w: x @ w.T).passed
    judgement = verdict(linear("exact"), F32, lambda x, w: np.nextafter(x @ w.T, np.float32(np.inf)))
    assert judgement.reasons[0].startswith("768 of 768 elements differ, all must be equal; first wrong element [0, 0]:")


def test_whole_numbers_are_not_exact_for_a_device_that_quantises_them():
    case = linear("exact")
    inputs = decode_data(case, make_data(case, 7))
    assert make_oracle(case, inputs, F32).is_exact
    assert not make_oracle(case, inputs, INT8).is_exact


def test_nan_must_be_where_it_belongs():
    case = linear("nonfinite")
    assert verdict(case, F32, lambda x, w: x @ w.T).passed
    judgement = verdict(case, F32, lambda x, w: np.nan_to_num(x) @ w.T)
    assert "NaN or infinity at" in judgement.reasons[0]


def test_a_message_says_limits_rows_and_the_first_wrong_element():
    judgement = verdict(linear(), F32, lambda x, w: np.where(np.arange(96) == 5, 0, x @ w.T))
    assert "max |z|" in judgement.reasons[0]
    assert "(limit 7)" in judgement.reasons[0]
    assert "8 of 8 rows; first wrong element [0, 5]: 0, expected" in judgement.reasons[0]


def test_a_case_without_power_is_known():
    case = Case("softcap@1", {"x": Tensor("bf16", (2, 64), data=("normal", 0.01))}, {"cap": 50.0})
    inputs = decode_data(case, make_data(case, 7))
    oracle = make_oracle(case, inputs, F32)
    assert weaknesses(case, oracle, inputs) == ["copied input"]
    assert weaknesses(linear(), make_oracle(linear(), *_inputs(linear())), _inputs(linear())[0]) == []


def _inputs(case: Case):
    return decode_data(case, make_data(case, 7)), F32


def test_ties_of_topk_may_fall_either_way():
    case = Case("topk@1", {"x": Tensor("f32", (1, 6), data=("values", 1.0, 3.0, 3.0, 2.0, 0.0, 3.0))}, {"k": 2})
    inputs = decode_data(case, make_data(case, 7))
    oracle = make_oracle(case, inputs, F32)
    values = np.array([[3.0, 3.0]])
    assert judge(case, [values, np.array([[1, 2]])], oracle, inputs).passed
    assert judge(case, [values, np.array([[5, 2]])], oracle, inputs).passed
    assert not judge(case, [values, np.array([[2, 2]])], oracle, inputs).passed
    assert not judge(case, [values, np.array([[1, 3]])], oracle, inputs).passed


def test_slots_that_are_not_written_do_not_hide_that_those_which_are_are_off_by_one_unit():
    layout = KVLayout(block_sizes=(16,), formats=("f16",))
    manifest = Manifest("bench", rules=(Rule("qkv_rope_write@1", numerics=F32),), kv_layouts=(layout,))
    cases = make_cases(manifest, budget="pr", ops=("qkv_rope_write",))
    case = next(c for c in cases if c.kind == "normal" and not c.law and c.expect == "run")
    inputs = decode_data(case, make_data(case, 7))
    oracle = make_oracle(case, inputs, F32, 7)
    q, kv = (expected.value for expected in oracle.outputs)
    written = (kv != inputs["kv"]).any(-1)
    assert written.mean() < 0.5
    q = q.astype(np.float32).astype(float)
    nearest = kv.astype(np.float16)
    assert judge(case, [q, nearest.astype(float)], oracle, inputs).passed
    off = np.where(written[..., None], np.nextafter(nearest, np.float16(np.inf)), nearest).astype(float)
    judgement = judge(case, [q, off], oracle, inputs)
    assert judgement.figures["max_z"] < 7
    assert "rms z" in judgement.reasons[0]
