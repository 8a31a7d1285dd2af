"""What the parts of `runtime conformance` do."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from runtime.errors import InvalidArgument
from runtime.ops import CATALOGUE
from runtime_conformance.case import Case
from runtime_conformance.cases import make_cases
from runtime_conformance.device.laws import laws_of
from runtime_conformance.levels import profile
from runtime_conformance.report import diff as difference
from runtime_conformance.report.html import html
from runtime_conformance.report.junit import junit
from runtime_conformance.report.matrix import markdown
from runtime_conformance.report.result import dump, load, to_json
from runtime_conformance.report.text import text
from runtime_conformance.runner import Options, Report, run_suite
from runtime_conformance.target import Target, find_target
from runtime_conformance.waivers import load_waivers


def _options(args: argparse.Namespace) -> Options:
    return Options(
        level=args.level,
        profiles=tuple(profile(name) for name in getattr(args, "profile", [])),
        ops=_patterns(getattr(args, "ops", "*")),
        seed=args.seed,
        budget=args.budget,
        jobs=getattr(args, "jobs", 1),
        timeout_s=args.timeout,
        waivers=load_waivers(getattr(args, "waivers", None)),
        today=datetime.now(timezone.utc).date(),
    )


def _patterns(text_: str) -> tuple[str, ...]:
    return tuple(p.strip() for p in text_.split(",") if p.strip()) or ("*",)


def _progress() -> Callable[[int, int], None] | None:
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        end = "\r\x1b[K" if done == total else ""
        print(f"\r{done}/{total}{end}", end="", file=sys.stderr, flush=True)

    return show


def run(args: argparse.Namespace) -> int:
    """Run the suite, write the report, print the verdict."""
    baseline = load(args.baseline) if args.baseline else None
    target = find_target(args.backend, args.threads)
    report = run_suite(target, _options(args), _progress())
    if args.perf:
        from runtime_conformance.perf import measure

        report.performance = measure(target, report.manifest, report.options)
    if args.out:
        write_report(report, Path(args.out))
    for line in text(report, args.out):
        print(line)
    code = report.exit_code
    if baseline is not None:
        for line in difference.describe(baseline, to_json(report)):
            print(line)
    return code


def write_report(report: Report, folder: Path) -> None:
    """index.html, result.json, junit.xml and support.md; raises InvalidArgument where they cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").write_text(dump(to_json(report)), "utf-8")
        (folder / "junit.xml").write_text(junit(report), "utf-8")
        (folder / "index.html").write_text(html(report), "utf-8")
        (folder / "support.md").write_text(markdown(report), "utf-8")
    except OSError as error:
        raise InvalidArgument(f"the report cannot be written to {folder}: {error}") from error


def list_(args: argparse.Namespace) -> int:
    """Ids and descriptions of all cases, without running any."""
    manifest = find_target(args.backend, args.threads).manifest()
    for case in make_cases(manifest, level=args.level, budget=args.budget):
        print(f"{case.id}  {case.expect if case.expect != 'run' else case.origin}  {case.describe()}")
    return 0


def show(args: argparse.Namespace) -> int:
    """One operation: documentation, rules of the backend, laws, cases."""
    key = args.op if "@" in args.op else f"{args.op}@1"
    op = CATALOGUE[key]
    manifest = find_target(args.backend, args.threads).manifest()
    print(f"{op.key}: {op.doc}\njudged by: {op.check.metric}; laws: {', '.join(laws_of(key, manifest)) or 'none'}")
    rules = [r for r in manifest.rules if r.op == key]
    for rule in rules:
        when = ", ".join(f"{c.fact} {getattr(c, 'values', None) or c}" for c in rule.when) or "always"
        print(f"rule: {when}; {rule.numerics}; flags: {', '.join(sorted(rule.flags)) or 'none'}")
    if not rules:
        print("no rule in the manifest")
    for case in make_cases(manifest, level="L3", budget=args.budget, ops=(op.key,)):
        print(f"{case.id}  {case.describe()}")
    return 0


def find_case(target: Target, args: argparse.Namespace) -> Case:
    """The case with the id `args.case`, or the one that the file of that name holds."""
    path = Path(args.case)
    if path.suffix == ".json" and path.exists():
        return Case.from_json(json.loads(path.read_text("utf-8")))
    op = args.case.partition("/")[0]
    manifest = target.manifest()
    for budget in ("smoke", "pr", "full"):
        for case in make_cases(manifest, level="L3", budget=budget, ops=(op,)):
            if case.id == args.case:
                return case
    raise InvalidArgument(
        f"there is no case '{args.case}' for backend {target.name}",
        remedy=f"see runtime conformance list --backend {target.name} --budget full",
    )


def repro(args: argparse.Namespace) -> int:
    """Run one case and show everything about it."""
    from runtime_conformance.device.serving import PROGRAMS
    from runtime_conformance.runner import run_cases, run_programs

    target = find_target(args.backend, args.threads)
    program = args.case.removeprefix("serve/")
    if program != args.case and program in PROGRAMS:
        (row,) = run_programs(target, target.manifest(), _options(args), (program,))
        print(f"{row.verdict} {row.case_id}\n  {row.title}")
    else:
        case = find_case(target, args)
        (row,) = run_cases(target, target.manifest(), [case], _options(args))
        print(f"{row.verdict} {case.id}\n  {case.describe()}\n  expects: {case.expect}; origin: {case.origin}")
    if row.numerics:
        print("  numerics: " + ", ".join(f"{k}={v}" for k, v in row.numerics.items()))
    if row.figures:
        print("  figures: " + ", ".join(f"{k} {v:g}" for k, v in row.figures.items()))
    for sentence in filter(None, row.detail.split("; ")):
        print(f"  {sentence}")
    report = Report(target, target.manifest(), _options(args), [row])
    return report.exit_code


def shrink(args: argparse.Namespace) -> int:
    """The smallest failing case, as a script."""
    from runtime_conformance.shrink import script, shrink_case

    target = find_target(args.backend, args.threads)
    case = find_case(target, args)
    smallest, row = shrink_case(target, case, _options(args))
    if row is None:
        print(f"{case.id} passes: there is nothing to shrink")
        return 0
    print(script(smallest, row, target.name, args.seed))
    return 1


def perf(args: argparse.Namespace) -> int:
    """Measure, and compare with a baseline."""
    from runtime_conformance.perf import measure, table

    target = find_target(args.backend, args.threads)
    options = _options(args)
    entries = measure(target, target.manifest(), options)
    for line in table(entries):
        print(line)
    data = {"schema": 1, "fingerprint": target.fingerprint(), "rows": [], "performance": entries}
    if args.out:
        Path(args.out).write_text(dump(data), "utf-8")
    wrong = any(e["verdict"] != "ok" for e in entries)
    if args.baseline:
        lines = list(difference.drifts(load(args.baseline), data))
        for line in lines:
            print(line)
        wrong |= any(line.startswith("SLOWER") for line in lines)
    return 1 if wrong else 0


def diff(args: argparse.Namespace) -> int:
    """Compare two results; exit code 1 where something broke or became slower."""
    lines = list(difference.describe(load(args.before), load(args.after)))
    for line in lines:
        print(line)
    return 1 if any(line.startswith(("BROKEN", "SLOWER", "LOST")) for line in lines) else 0


def support(args: argparse.Namespace) -> int:
    """The support matrix, from a run and short measurements."""
    from runtime_conformance.perf import measure

    target = find_target(args.backend, args.threads)
    report = run_suite(target, _options(args), _progress())
    report.performance = measure(target, report.manifest, report.options, budget_s=0.1)
    print(markdown(report), end="")
    return 0


def selftest(args: argparse.Namespace) -> int:
    """Saboteurs that must be caught, honest backends that must not be."""
    from runtime_conformance.selftest import describe, run_selftest

    result = run_selftest(seed=args.seed, honest_runs=args.honest)
    for line in describe(result):
        print(line)
    return 0 if result.passed else 1
