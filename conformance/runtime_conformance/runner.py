"""Runs cases: device workers compute, judges judge, every case becomes a row."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any

from runtime.backend import Manifest
from runtime.ops import CATALOGUE
from runtime_conformance import DEFAULT_SEED
from runtime_conformance.case import Case
from runtime_conformance.cases import make_cases
from runtime_conformance.device.checks import check_names
from runtime_conformance.device.laws import untested_laws
from runtime_conformance.device.serving import PROGRAMS
from runtime_conformance.levels import Profile, is_required, level_of
from runtime_conformance.process.pool import Worker, WorkerCrashed, WorkerHung
from runtime_conformance.scale import run_scale
from runtime_conformance.target import OPEN_TIMEOUT_S, Target
from runtime_conformance.verdict import Row, Verdict, exit_code, spoken
from runtime_conformance.waivers import Waiver, find_waiver

CASE_TIMEOUT_S = 120.0
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Options:
    """What is run. `timeout_s` is for one case; the first of a worker has time to open the device as well."""

    level: str = "L2"
    profiles: tuple[Profile, ...] = ()
    ops: tuple[str, ...] = ("*",)
    seed: int = DEFAULT_SEED
    budget: str = "pr"
    jobs: int = 1
    timeout_s: float = CASE_TIMEOUT_S
    waivers: tuple[Waiver, ...] = ()
    today: date = date(1970, 1, 1)


@dataclass
class Report:
    """Everything that came out of a run."""

    target: Target
    manifest: Manifest
    options: Options
    rows: list[Row]
    seconds: float = 0.0
    performance: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def expired(self) -> list[Waiver]:
        """Waivers whose day has passed and that a failing case would still need."""
        wrong = [r.case_id for r in self.rows if r.verdict in (Verdict.FAIL, Verdict.FLAKY, Verdict.HOST_EXECUTED)]
        return [w for w in self.options.waivers if w.is_expired(self.options.today) and any(w.covers(c) for c in wrong)]

    @property
    def exit_code(self) -> int:
        """See `runtime_conformance.verdict.exit_code`."""
        unforgiven = [r for r in self.rows if not any(w.covers(r.case_id) for w in self.expired)]
        return exit_code(unforgiven or self.rows, has_expired_waiver=bool(self.expired))


def run_suite(target: Target, options: Options, progress: Progress | None = None) -> Report:
    """Run everything that `options` ask for. Raises ExecutionFailed when the device cannot be opened at all."""
    started = time.perf_counter()
    manifest = target.manifest()
    cases = list(make_cases(manifest, level=options.level, budget=options.budget, ops=options.ops))
    rows = _run_checks(target, manifest, options) if options.ops == ("*",) else []
    rows += run_cases(target, manifest, cases, options, progress)
    rows += _untested(manifest, cases)
    if options.ops == ("*",) and options.level in ("L2", "L3"):
        rows += run_programs(target, manifest, options)
    if options.ops == ("*",) and options.level == "L3":
        rows += run_scale(target, manifest, options)
    rows += _broken_promises(manifest, options)
    report = Report(target, manifest, options, rows)
    report.notes = _notes(rows)
    report.seconds = time.perf_counter() - started
    return report


def run_cases(
    target: Target, manifest: Manifest, cases: Sequence[Case], options: Options, progress: Progress | None = None
) -> list[Row]:
    """One row per case, in order, over `options.jobs` lanes of a device worker and a judge each."""
    rows: list[Row | None] = [None] * len(cases)
    pending = iter(enumerate(cases))
    lock = threading.Lock()
    failure: list[BaseException] = []

    def take() -> tuple[int, Case] | None:
        with lock:
            return None if failure else next(pending, None)

    def work() -> None:
        lane = Lane(target, manifest, options)
        try:
            while (item := take()) is not None:
                rows[item[0]] = lane.row(item[1])
                if progress is not None:
                    with lock:
                        progress(sum(r is not None for r in rows), len(rows))
        except BaseException as error:  # noqa: BLE001  handed to the caller's thread below
            failure.append(error)
        finally:
            lane.close()

    threads = [threading.Thread(target=work) for _ in range(max(1, options.jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failure:
        raise failure[0]
    return [r for r in rows if r is not None]


class Lane:
    """A device worker and a judge."""

    def __init__(self, target: Target, manifest: Manifest, options: Options) -> None:
        self.options = options
        self.computes_on_host = "device" not in manifest.memory_pools and "host" in manifest.memory_pools
        self.device = target.worker()
        self.judge = Worker({"role": "judge"})
        self._is_open = False

    def row(self, case: Case) -> Row:
        """Run and judge one case; a failure is tried once more, to tell wrong from flaky."""
        started = time.perf_counter()
        row = self._once(case)
        if row.verdict is Verdict.FAIL and case.expect == "run":
            again = self._once(case)
            if again.verdict is Verdict.PASS:
                row.verdict = Verdict.FLAKY
                row.detail = f"failed once and passed once: {row.detail}"
        waiver = find_waiver(self.options.waivers, case.id, self.options.today)
        if waiver is not None and row.verdict in (Verdict.FAIL, Verdict.FLAKY, Verdict.HOST_EXECUTED):
            row.verdict, row.waiver = Verdict.WAIVED, waiver.url
        row.seconds = time.perf_counter() - started
        return row

    def _once(self, case: Case) -> Row:
        row = Row(
            case_id=case.id,
            op=case.op,
            level=level_of(case.declaration),
            verdict=Verdict.PASS,
            title=case.describe(),
            required=is_required(case, self.options.level, self.options.profiles),
            kind=case.kind,
            origin=case.origin,
            expect=case.expect,
            formats={n: t.format for n, t in case.inputs.items()},
        )
        question = {"do": "run", "case": case.to_json(), "seed": self.options.seed}
        limit = self.options.timeout_s + (0 if self._is_open else OPEN_TIMEOUT_S)
        try:
            answer, blobs = self.device.ask(question, timeout_s=limit)
            self._is_open = True
        except WorkerCrashed as event:
            row.verdict, row.detail, self._is_open = Verdict.CRASH, str(event), False
            return row
        except WorkerHung as event:
            row.verdict, row.detail, self._is_open = Verdict.HANG, str(event), False
            return row
        if "error" in answer:
            row.verdict, row.detail = Verdict.FAIL, f"the backend raised {answer['error']}"
            return row
        row.numerics = answer.get("numerics") or {}
        self._decide(case, row, answer, blobs)
        return row

    def _decide(self, case: Case, row: Row, answer: dict[str, Any], blobs: list[Any]) -> None:
        status = answer["status"]
        if status == "unsupported":
            wanted = row.required and not case.law and case.expect == "run"
            row.verdict = Verdict.UNSUPPORTED_REQUIRED if wanted else Verdict.UNSUPPORTED_OPTIONAL
            row.detail = answer["reason"]
        elif status == "vacuous":
            row.verdict, row.detail = Verdict.VACUOUS, answer["reason"]
        elif status in ("accepted", "failed"):
            row.verdict, row.detail = Verdict.FAIL, answer["reason"]
        elif status == "ran":
            self._judge(case, row, answer, blobs)

    def _judge(self, case: Case, row: Row, answer: dict[str, Any], blobs: list[Any]) -> None:
        reasons = list(answer["faults"])
        weak: list[str] = []
        if blobs:
            question = {
                "do": "judge",
                "case": case.to_json(),
                "seed": self.options.seed,
                "numerics": answer["numerics"],
                "num_outputs": answer["num_outputs"],
            }
            try:
                verdict, _ = self.judge.ask(question, blobs, timeout_s=10 * self.options.timeout_s)
            except (WorkerCrashed, WorkerHung) as event:
                verdict = {"error": str(event)}
            if "error" in verdict:
                row.verdict, row.detail = Verdict.SUITE_ERROR, f"the judge failed: {verdict['error']}"
                return
            reasons += verdict["reasons"]
            row.figures, weak = verdict["figures"], verdict["weaknesses"]
        if reasons:
            row.verdict, row.detail = Verdict.FAIL, "; ".join(reasons)
        elif answer["host_ns"] > 0 and not self.computes_on_host:
            row.verdict = Verdict.HOST_EXECUTED
            row.detail = "the counters report computation on the host for an operation that is declared native"
        elif answer["kernels_run"] == 0:
            row.verdict, row.detail = Verdict.HOST_EXECUTED, "no kernel of the device ran, by its own counters"
        elif weak:
            row.verdict, row.detail = Verdict.VACUOUS, f"would not notice: {', '.join(weak)}"

    def close(self) -> None:
        """End both processes."""
        self.device.close()
        self.judge.close()


def _run_checks(target: Target, manifest: Manifest, options: Options) -> list[Row]:
    worker = target.worker()
    rows = []
    try:
        for i, name in enumerate(check_names(manifest)):
            row = Row(f"device/{name}", "device", "L0", Verdict.PASS, spoken(name), required=True)
            limit = options.timeout_s + (OPEN_TIMEOUT_S if i == 0 else 0)
            started = time.perf_counter()
            try:
                answer, _ = worker.ask({"do": "checks", "name": name}, timeout_s=limit)
                failure = answer.get("error") or answer.get("failure")
                if failure:
                    row.verdict, row.detail = Verdict.FAIL, str(failure)
            except WorkerCrashed as event:
                row.verdict, row.detail = Verdict.CRASH, str(event)
            except WorkerHung as event:
                row.verdict, row.detail = Verdict.HANG, str(event)
            row.seconds = time.perf_counter() - started
            rows.append(row)
    finally:
        worker.close()
    return rows


def run_programs(
    target: Target, manifest: Manifest, options: Options, names: Iterable[str] = PROGRAMS
) -> Iterator[Row]:
    """Whole steps of a small decoder, as an engine runs them; what the device lacks runs on the host."""
    device, judge = target.worker(), Worker({"role": "judge"})
    numerics = [asdict(n) for n in dict.fromkeys(r.numerics for r in manifest.rules)]
    kv_format = manifest.kv_layouts[0].formats[0] if manifest.kv_layouts else "f16"
    try:
        for name in names:
            row = Row(f"serve/{name}", "serve", "L2", Verdict.PASS, spoken(name), required=True)
            started = time.perf_counter()
            try:
                question = {"do": "program", "name": name, "seed": options.seed}
                answer, blobs = device.ask(question, timeout_s=options.timeout_s + OPEN_TIMEOUT_S)
                failure = answer.get("error") or answer.get("failure")
                if blobs and not failure:
                    question = {"do": "judge_program", "seed": options.seed, "shape": answer["shape"]}
                    question |= {"numerics": numerics, "kv_format": kv_format}
                    judged, _ = judge.ask(question, blobs, timeout_s=10 * options.timeout_s)
                    failure = judged.get("error") or "; ".join(judged["reasons"])
                if failure:
                    row.verdict, row.detail = Verdict.FAIL, str(failure)
            except WorkerCrashed as event:
                row.verdict, row.detail = Verdict.CRASH, str(event)
            except WorkerHung as event:
                row.verdict, row.detail = Verdict.HANG, str(event)
            row.seconds = time.perf_counter() - started
            yield row
    finally:
        device.close()
        judge.close()


def _untested(manifest: Manifest, cases: Sequence[Case]) -> Iterator[Row]:
    """Laws of claimed operations that no case of the budget can show: they are counted, not passed."""
    for op_key, law in untested_laws(manifest, cases):
        row = Row(f"{op_key}/law-{law}", op_key, level_of(CATALOGUE[op_key]), Verdict.VACUOUS, f"law {law}")
        row.detail = "the manifest claims no case with which the law could be tested"
        yield row


def _broken_promises(manifest: Manifest, options: Options) -> Iterator[Row]:
    """Flags that a profile demands and a rule of the level does not declare."""
    for profile in options.profiles:
        for flag in profile.flags:
            missing = sorted({r.op for r in manifest.rules if flag not in r.flags})
            if missing or not manifest.rules:
                yield Row(
                    f"profile/{profile.name}",
                    "manifest",
                    "L1",
                    Verdict.UNSUPPORTED_REQUIRED,
                    f"every rule declares {flag}",
                    required=True,
                    detail=f"rules without it: {', '.join(missing) or 'there are none'}",
                )


def _notes(rows: Sequence[Row]) -> list[str]:
    """Numerics that are declared worse than delivered."""
    by_rule: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row.verdict is Verdict.PASS and "rms_z" in row.figures:
            key = (row.op, " ".join(f"{k}={v}" for k, v in row.numerics.items() if k != "order"))
            by_rule.setdefault(key, []).append(row.figures["rms_z"])
    notes = []
    for (op, numerics), figures in by_rule.items():
        if len(figures) >= 3 and max(figures) < 0.1:
            notes.append(f"{op} is more exact than declared ({numerics}): rms z at most {max(figures):.2g}")
    return notes
