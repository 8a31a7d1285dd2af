"""The suite tested by itself: every saboteur must be caught, no honest backend may be."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from runtime.backend import Device, DeviceConfig, DeviceInfo
from runtime_conformance.case import Case
from runtime_conformance.cases import make_cases
from runtime_conformance.data import Stream
from runtime_conformance.device.checks import check_names, run_check
from runtime_conformance.inprocess import Bench, scale_faults, serve_fault, speed_fault
from runtime_conformance.runner import Lane, Options
from runtime_conformance.saboteurs.backend import TestBackend, make_backend
from runtime_conformance.saboteurs.faults import PRODUCTS, ROWS, Saboteur
from runtime_conformance.saboteurs.faults_device import DEVICES, VIOLENT
from runtime_conformance.saboteurs.faults_laws import LAW_BREAKERS
from runtime_conformance.saboteurs.faults_scale import SCALE
from runtime_conformance.saboteurs.faults_serving import ATTENTION, CACHE, CHOICES
from runtime_conformance.saboteurs.faults_speed import SPEED
from runtime_conformance.saboteurs.precision import PRECISIONS
from runtime_conformance.scale import verdict_on_death
from runtime_conformance.target import Target
from runtime_conformance.verdict import Row, Verdict

SABOTEURS: tuple[Saboteur, ...] = (
    *PRODUCTS,
    *ROWS,
    *ATTENTION,
    *CACHE,
    *CHOICES,
    *DEVICES,
    *LAW_BREAKERS,
    *SCALE,
    *SPEED,
)
REQUIRED_SHARE = 0.97
CASES_PER_HONEST_RUN = 8
VIOLENT_TIMEOUT_S = 8.0
NOTICE_WITHIN_S = 4.0


@dataclass
class SelfTest:
    """What came out. `caught` and `missed` hold names with the first reason; `alarms` are false."""

    caught: dict[str, str] = field(default_factory=dict)
    missed: dict[str, str] = field(default_factory=dict)
    alarms: list[str] = field(default_factory=list)
    honest_runs: int = 0
    seconds: float = 0.0

    @property
    def share(self) -> float:
        """Of the saboteurs that were caught."""
        return len(self.caught) / max(1, len(self.caught) + len(self.missed))

    @property
    def passed(self) -> bool:
        """At least 97 % caught, and no false alarm."""
        return self.share >= REQUIRED_SHARE and not self.alarms


def open_device(backend: TestBackend) -> Device:
    """The device of a test backend, in this process."""
    return backend.runtime_open(backend.probe()[0], DeviceConfig())


def run_selftest(
    seed: int = 7,
    honest_runs: int = 500,
    saboteurs: Sequence[Saboteur] = SABOTEURS,
    *,
    violent: bool = True,
    on_result: Callable[[str, str], None] | None = None,
) -> SelfTest:
    """Run all saboteurs, then `honest_runs` honest runs, each with a seed of its own."""
    started = time.perf_counter()
    result = SelfTest()
    bench = Bench(seed)
    cases: dict[str, list[Case]] = {}
    for saboteur in sorted(saboteurs, key=lambda s: s.op):
        reason = catch(saboteur, bench, cases)
        (result.missed if reason is None else result.caught)[saboteur.name] = reason or saboteur.doc
        if on_result is not None:
            on_result(saboteur.name, reason or "")
    if violent:
        for name, wanted in VIOLENT.items():
            got = _run_violent(name, seed)
            (result.caught if got == wanted else result.missed)[name] = f"verdict {got}, expected {wanted}"
        row = _of_the_deaf(seed)
        (result.caught if row.verdict is Verdict.FAIL else result.missed)["deaf"] = f"{row.verdict}: {row.detail}"
    for run in range(honest_runs):
        result.alarms += honest_run(seed + 1 + run)
        result.honest_runs += 1
    result.seconds = time.perf_counter() - started
    return result


def catch(saboteur: Saboteur, bench: Bench, cases: dict[str, list[Case]]) -> str | None:
    """The first fault that the suite finds in `saboteur`, or None. `cases` remembers those of each operation."""
    device = open_device(saboteur.make())
    if saboteur.op == "device":
        for name in check_names(device.manifest):
            failure = run_check(device, name)
            if failure:
                return f"{name}: {failure}"
        return None
    if saboteur.op == "serve":
        return serve_fault(device, bench.seed)
    if saboteur.op == "speed":
        return speed_fault(device, bench.seed)
    if saboteur.op == "scale":
        return scale_faults(lambda: open_device(saboteur.make()), bench.seed)
    key = " ".join((saboteur.op, *saboteur.flags))  # flags of a manifest decide which laws apply
    if key not in cases:
        cases[key] = list(make_cases(device.manifest, level="L3", budget="pr", ops=(saboteur.op,)))
    for case in cases[key]:
        faults = bench.faults(device, case)
        if faults:
            return f"{case.id}: {faults[0]}"
    return None


def honest_run(seed: int) -> list[str]:
    """A few cases of an honest backend, chosen by the seed: what was wrongly found wrong."""
    stream = Stream("honest", seed)
    names = sorted(PRECISIONS)
    name = names[seed % len(names)]
    device = open_device(_honest(name))
    bench = Bench(seed)
    cases = _honest_cases(name)
    alarms = []
    for index in stream.integers(0, len(cases) - 1, (CASES_PER_HONEST_RUN,)).tolist():
        for fault in bench.faults(device, cases[index]) or ():
            alarms.append(f"{name}, seed {seed}, {cases[index].id} ({cases[index].describe()}): {fault}")
    return alarms


_HONEST: dict[str, TestBackend] = {}
_CASES: dict[str, list[Case]] = {}


def _honest(name: str) -> TestBackend:
    if name not in _HONEST:
        _HONEST[name] = make_backend(PRECISIONS[name])
    return _HONEST[name]


def _honest_cases(name: str) -> list[Case]:
    if name not in _CASES:
        _CASES[name] = list(make_cases(_honest(name).manifest(), level="L3", budget="pr"))
    return _CASES[name]


def _run_violent(name: str, seed: int) -> str:
    """The verdict of a backend that takes its worker down."""
    target = Target("bench", f"runtime_conformance.saboteurs.faults_device:{name}", DeviceInfo(0, "numpy", 1, 0.0))
    manifest = make_backend().manifest()
    case = next(iter(make_cases(manifest, level="L1", budget="smoke", ops=("add@1",))))
    lane = Lane(target, manifest, Options(seed=seed, timeout_s=VIOLENT_TIMEOUT_S))
    lane._is_open = True
    try:
        return str(lane.row(case).verdict)
    finally:
        lane.close()


def _of_the_deaf(seed: int) -> Row:
    """The verdict on a backend that waits for dead peers."""
    target = Target("bench", "runtime_conformance.saboteurs.faults_scale:deaf", DeviceInfo(0, "numpy", 1, 0.0))
    return verdict_on_death(target, make_backend().manifest(), Options(seed=seed), NOTICE_WITHIN_S)


def describe(result: SelfTest) -> Iterator[str]:
    """Lines for a terminal."""
    total = len(result.caught) + len(result.missed)
    share = f"{100 * result.share:.1f} %, at least {100 * REQUIRED_SHARE:.0f} %"
    yield f"saboteurs caught {len(result.caught)}/{total} ({share})"
    for name, doc in result.missed.items():
        yield f"MISSED {name}: {doc}"
    yield f"false alarms {len(result.alarms)} in {result.honest_runs} honest runs of {CASES_PER_HONEST_RUN} cases"
    for alarm in result.alarms[:20]:
        yield f"ALARM {alarm}"
    yield f"{'passed' if result.passed else 'failed'} in {result.seconds:.0f} s"
