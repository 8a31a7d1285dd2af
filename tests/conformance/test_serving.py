"""Programs of L2: a small decoder run as an engine runs it, two ways with one answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from runtime.backend import DeviceConfig, ReferenceDevice
from runtime_conformance.device.serving import PROGRAMS, judge_logits, run_program
from runtime_conformance.saboteurs.backend import make_backend
from runtime_conformance.saboteurs.precision import F32, PRECISIONS
from runtime_conformance.selftest import SABOTEURS


def outcome(device, name):
    answer, (raw,) = run_program(device, name, "bench", 7)
    numerics = [r.numerics for r in device.manifest.rules]
    logits = raw.view(np.float32).reshape(answer["shape"])
    return answer["failure"], judge_logits(logits, numerics, 7, "f16")


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_reference_device_serves(name: str):
    assert run_program(ReferenceDevice(name="bench"), name, "bench", 7)[0] == {"failure": "", "shape": [4, 320]}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_honest_backend_serves(precision: str):
    backend = make_backend(PRECISIONS[precision])
    device = backend.runtime_open(backend.probe()[0], DeviceConfig())
    assert outcome(device, "in_a_batch") == ("", [])


@pytest.mark.parametrize(
    ("fault", "program"),
    [("stale-after-preemption", "in_blocks_of_another"), ("table-first-row", "in_a_batch"), ("mask-none", "straight")],
)
def test_faults_of_kernels_show_in_a_program(fault: str, program: str):
    saboteur = next(s for s in SABOTEURS if s.name == fault)
    backend = replace(saboteur, precision=F32).make()
    failure, reasons = outcome(backend.runtime_open(backend.probe()[0], DeviceConfig()), program)
    assert failure or reasons
