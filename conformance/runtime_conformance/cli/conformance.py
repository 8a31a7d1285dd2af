"""Test a backend: whether it is right, complete, and as fast as it claims."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

VERBS = {
    "run": "run the suite and write the report",
    "list": "list the cases of a backend",
    "show": "show an operation: its cases, rules and laws",
    "repro": "repeat one case and show everything about it",
    "shrink": "find the smallest case that still fails, printed as a script",
    "perf": "measure operations against the roofline of the same device",
    "diff": "compare two results: what broke, what was repaired, what became slower",
    "support": "print the support matrix",
    "selftest": "run the suite against its own saboteurs",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    verbs = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    made = {name: verbs.add_parser(name, help=text, description=text) for name, text in VERBS.items()}
    for name in ("run", "list", "show", "repro", "shrink", "perf", "support"):
        _add_common(made[name])
    for name in ("run", "support"):
        _add_run(made[name])
    made["run"].add_argument("--out", metavar="DIR", help="write index.html, result.json, junit.xml, support.md there")
    made["run"].add_argument("--baseline", metavar="FILE", help="result.json of an earlier run, to compare with")
    made["run"].add_argument("--perf", action="store_true", help="measure as well")
    made["show"].add_argument("op", metavar="OP", help="operation, e.g. linear@1")
    for name in ("repro", "shrink"):
        made[name].add_argument("case", metavar="CASE", help="id of a case, e.g. attention@1/9c1f4e, or its file")
    made["perf"].add_argument("--baseline", metavar="FILE", help="result.json of an earlier run, to compare with")
    made["perf"].add_argument("--out", metavar="FILE", help="write the measurements as JSON")
    made["perf"].add_argument("--ops", metavar="PATTERNS", default="*", help="operations, comma separated")
    made["diff"].add_argument("before", metavar="BEFORE", help="result.json")
    made["diff"].add_argument("after", metavar="AFTER", help="result.json")
    made["selftest"].add_argument("--honest", type=int, default=500, metavar="N", help="honest runs (500)")
    made["selftest"].add_argument("--seed", type=int, default=7, metavar="N")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", required=True, metavar="NAME", help="backend, or backend:device")
    parser.add_argument("--seed", type=int, default=7, metavar="N", help="of all data (7)")
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="host threads of the device")
    parser.add_argument("--level", default="L2", choices=("L0", "L1", "L2", "L3"), help="what is claimed (L2)")
    parser.add_argument("--budget", default="pr", choices=("smoke", "pr", "full"), help="how many cases (pr)")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="S", help="for one case, in seconds (120)")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", action="append", default=[], metavar="NAME", help="may be repeated")
    parser.add_argument("--ops", metavar="PATTERNS", default="*", help="operations, comma separated: 'attention*'")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="workers at the same time (1)")
    parser.add_argument("--waivers", metavar="FILE", help="JSON list of pattern, url, expires")


def run(args: argparse.Namespace) -> int:
    """Execute the verb; returns the exit code (docs/conformance.md)."""
    from runtime_conformance.cli import actions

    action = actions.list_ if args.action == "list" else getattr(actions, args.action)
    return int(action(args))


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m runtime_conformance`."""
    from runtime.cli.output import guarded

    parser = argparse.ArgumentParser(prog="runtime conformance", description=__doc__)
    add_arguments(parser)
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: run(args), as_json=False)
