"""Check every backend and logits processor afresh, and say what to do about those that cannot be used."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from runtime.cli.arguments import add_probe_timeout
from runtime.cli.output import EXIT_ERROR, SEPARATOR, emit, human_bytes, paint, plural, table, wrap

if TYPE_CHECKING:
    from runtime.cli.machine import Machine
    from runtime.cli.plugins import ProcessorReport, Report

INDENT = "         "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="only this backend")
    add_probe_timeout(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object for the machine and for each backend")
    parser.add_argument("-v", "--verbose", action="store_true", help="with tracebacks and what a failed probe wrote")


def run(args: argparse.Namespace) -> int:
    """Execute the verb; returns 2 when NAME, or without a name everything, cannot be used."""
    from runtime.cli.machine import describe_machine
    from runtime.cli.plugins import examine, find_plugins, find_processors

    found = find_plugins(args.name)
    machine = describe_machine()
    if args.json:
        emit({"event": "machine", **asdict(machine)})
    else:
        print(_machine_lines(machine))
    reports = examine(found, use_cache=False, timeout_s=args.timeout)
    processors = find_processors() if args.name is None else []
    if args.json:
        for report in reports:
            emit({"event": "backend", **report.to_json()})
        for processor in processors:
            emit({"event": "logits_processor", **asdict(processor)})
    else:
        print()
        _print_reports(reports, verbose=args.verbose)
        _print_processors(processors, verbose=args.verbose)
    return 0 if any(r.state == "ok" for r in reports) else EXIT_ERROR


def _machine_lines(machine: Machine) -> str:
    cores = f"{machine.num_usable_cores} of {machine.num_cores} ({machine.cores_reason})"
    memory = "unknown"
    if machine.memory_bytes is not None:
        available = "" if machine.available_bytes is None else f"{human_bytes(machine.available_bytes)} available of "
        memory = f"{available}{human_bytes(machine.memory_bytes)} ({machine.memory_reason})"
    packages = ", ".join(f"{name} {version or 'MISSING'}" for name, version in machine.packages.items())
    rows = [
        ("runtime", machine.runtime),
        ("python", machine.python),
        ("system", machine.system),
        ("cores", cores),
        ("memory", memory),
        ("packages", packages),
    ]
    return table([(paint(name, "2", sys.stdout), text) for name, text in rows])


def _print_reports(reports: list[Report], *, verbose: bool) -> None:
    if not reports:
        print("no backend is installed; reinstall hal-runtime, whose cpu backend runs everywhere")
        return
    rows = [(r.name, r.painted_state, r.origin, _stage(r), _finding(r)) for r in reports]
    for line, report in zip(_row_texts(rows), reports):
        print(line)
        if report.remedy:
            print(wrap(report.remedy, first=f"{INDENT}-> "))
        if verbose and report.detail:
            print(paint(textwrap.indent(report.detail.rstrip(), INDENT), "2", sys.stdout))
    if not any(r.state == "ok" for r in reports):
        what = (
            f"backend '{reports[0].name}' cannot be used here" if len(reports) == 1 else "no backend can be used here"
        )
        print(f"\n{paint(what, '31;1', sys.stdout)}")
    elif not verbose and any(r.detail for r in reports):
        print(paint("\ntracebacks: runtime doctor -v", "2", sys.stdout))


def _print_processors(processors: list[ProcessorReport], *, verbose: bool) -> None:
    if not processors:
        return
    print("\nlogits processors")
    rows = [(p.name, p.painted_state, f"{p.distribution} {p.version}", p.stage, p.reason) for p in processors]
    for line, processor in zip(_row_texts(rows), processors):
        print(line)
        if processor.remedy:
            print(wrap(processor.remedy, first=f"{INDENT}-> "))
        if verbose and processor.detail:
            print(paint(textwrap.indent(processor.detail.rstrip(), INDENT), "2", sys.stdout))


def _row_texts(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows of one table, each with its wrapped lines, so that more can be printed between them."""
    texts: list[str] = []
    for line in table(rows).splitlines():
        if line.startswith(" ") and texts:
            texts[-1] += f"\n{line}"
        else:
            texts.append(line)
    return texts


def _stage(report: Report) -> str:
    return f"api {report.api_level}" if report.state == "ok" else report.stage


def _finding(report: Report) -> str:
    if report.state != "ok":
        return report.reason
    from runtime.cli.plugins import device_facts, verification_fact

    devices = []
    for device in report.devices:
        index = f":{device.index} " if len(report.devices) > 1 else ""
        what = f"{index}{device.name}, {human_bytes(device.memory_bytes)}"
        verified = verification_fact(report.verifications.get(device.index))
        devices.append(SEPARATOR.join([what, *device_facts(device), *verified]))
    rules = [] if report.num_rules is None else [plural(report.num_rules, "rule") + " in its manifest"]
    return SEPARATOR.join([*devices, *report.notices, *rules])
