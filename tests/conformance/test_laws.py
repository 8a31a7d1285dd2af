"""Laws: each is found broken by a backend that only it can tell from an honest one; what cannot be tested is counted."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.backend import DeviceConfig, Manifest, Numerics, OneOf, Rule
from runtime.ops import CATALOGUE
from runtime_conformance.cases import make_cases
from runtime_conformance.device.laws import EVERYWHERE, LAWS, laws_of, run_law, untested_laws
from runtime_conformance.device.token_laws import chi_square_deviate
from runtime_conformance.inprocess import Bench
from runtime_conformance.saboteurs.backend import make_backend
from runtime_conformance.saboteurs.faults_laws import LAW_BREAKERS
from runtime_conformance.saboteurs.precision import PRECISIONS

ONLY = {
    "norm-saturates": "scale_invariant",
    "norm-one-pass": "shift_invariant",
    "rope-unreduced": "norm_preserving",
    "rope-table-end": "scores_depend_on_distance",
    "tail-after-prefill": "sequences_may_be_permuted",
    "padding-counted": "padding_rows_change_nothing",
    "draft-lenient": "speculative_equals_greedy",
    "sample-few-numbers": "frequencies_follow_probabilities",
    "region-reuse": "fused_equals_expanded",
    "capture-bakes": "captured_equals_eager",
}


def opened(backend):
    return backend.runtime_open(backend.probe()[0], DeviceConfig())


QUICK = ("norm-one-pass", "rope-unreduced", "draft-lenient")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in ONLY])
def test_a_law_finds_what_no_case_of_the_oracle_shows(name: str):
    saboteur = next(s for s in LAW_BREAKERS if s.name == name)
    device, bench = opened(saboteur.make()), Bench(7)
    cases = list(make_cases(device.manifest, level="L3", budget="pr", ops=(saboteur.op,)))
    looked_at = [c for c in cases if c.law == ONLY[name]] + [c for c in cases if c.law != ONLY[name]][::6]
    assert {c.law for c in looked_at if bench.faults(device, c)} == {ONLY[name]}


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_honest_backend_keeps_every_law(precision: str):
    device, bench = opened(make_backend(PRECISIONS[precision], flags=("capturable",))), Bench(11)
    laws = set()
    for case in make_cases(device.manifest, level="L3", budget="smoke"):
        if case.law:
            laws.add(case.law)
            assert not bench.faults(device, case), case.describe()
    assert laws >= set(ONLY.values())


def test_every_declared_law_has_a_test():
    assert {law for op in CATALOGUE for law in laws_of(op.key)} <= set(LAWS)
    assert {law for op in CATALOGUE for law in op.laws} <= {*LAWS, *EVERYWHERE}


def test_a_law_that_cannot_be_tested_says_why():
    device = opened(make_backend(PRECISIONS["int8"]))
    case = next(c for c in make_cases(device.manifest, ops=("softmax",)) if c.law == "shift_invariant")
    outcome = run_law(device, case, 7)
    assert outcome.status == "vacuous"
    assert outcome.reason == (
        "law shift_invariant cannot be tested: activations are declared i8/32: a shift changes their scales"
    )


def test_laws_without_a_case_are_listed():
    rule = Rule("softmax@1", (OneOf("x.format", ("f16",)), OneOf("log", (True,))), Numerics())
    manifest = Manifest("m", rules=(rule,))
    cases = list(make_cases(manifest, budget="smoke", ops=("softmax",)))
    assert list(untested_laws(manifest, cases)) == [("softmax@1", "rows_sum_to_one")]


def test_frequencies_that_follow_their_probabilities_are_within_the_limit():
    rng = np.random.default_rng(5)
    p = np.array([0.5, 0.3, 0.15, 0.0499, 0.0001])
    for _ in range(50):
        assert chi_square_deviate(rng.multinomial(4096, p), p * 4096) < 6
    assert chi_square_deviate(rng.multinomial(4096, np.roll(p, 1)), p * 4096) > 6
    assert chi_square_deviate(np.array([2300, 1100, 560, 135, 1]), p * 4096) > 6
