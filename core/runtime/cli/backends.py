"""List backends and their devices, and why others cannot be used."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from runtime.cli.arguments import add_probe_timeout
from runtime.cli.output import SEPARATOR, emit, human_bytes, paint, table
from runtime.errors import InvalidArgument

if TYPE_CHECKING:
    from runtime.cli.plugins import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="only this backend")
    parser.add_argument("--manifest", action="store_true", help="print what backend NAME can do, as JSON")
    add_probe_timeout(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object per backend")


def run(args: argparse.Namespace) -> int:
    """Execute the verb; returns the exit code."""
    if args.manifest:
        return _print_manifest(args.name)
    from runtime.cli.plugins import examine, find_plugins

    reports = examine(find_plugins(args.name), timeout_s=args.timeout)
    if args.json:
        for report in reports:
            emit({"event": "backend", **report.to_json()})
    elif reports:
        print(_table(reports))
    else:
        print("no backend is installed; reinstall hal-runtime, whose cpu backend runs everywhere")
    return 0


def _print_manifest(name: str | None) -> int:
    if name is None:
        raise InvalidArgument("--manifest needs the name of a backend", remedy="e.g. runtime backends cpu --manifest")
    from runtime.registry import discover

    print(json.dumps(discover()[name].manifest().to_json(), indent=2, ensure_ascii=False))
    return 0


def _table(reports: list[Report]) -> str:
    from runtime.cli.plugins import device_facts

    rows = [tuple(paint(h, "2", sys.stdout) for h in ("name", "state", "package", "device", "memory", "score", ""))]
    for report in reports:
        common = (report.name, report.painted_state, report.origin)
        if not report.devices:
            rows.append((*common, "", "", "", f"{report.stage}: {report.reason}"))
        for device in report.devices:
            name = report.name if device.index == 0 else f"{report.name}:{device.index}"
            about = SEPARATOR.join([*device.notices, *device_facts(device)])
            memory = human_bytes(device.memory_bytes)
            rows.append((name, *common[1:], device.name, memory, f"{device.score:.4g}", about))
    return table(rows)
