"""The `runtime` command: one file per verb, imported only when the verb is used."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from runtime import __version__

VERBS = {
    "run": "answer a prompt, or chat",
    "serve": "serve a model over HTTP, behind the OpenAI interface",
    "backends": "list backends and devices, and why others were refused",
    "doctor": "check every backend stage by stage",
    "inspect": "show what a model file holds, by its header alone",
    "tokenize": "show the tokens of a text",
    "plan": "show where a model would run and what memory it takes",
    "bench": "measure prefill and decoding beside the limits of the machine",
    "bench serve": "load a server as users do: first token, gaps, tokens per second",
    "plugin": "begin a backend of your own",
}

VERB_GROUP = "runtime.verbs"
"""Entry-point group of verbs that other packages bring: name -> module."""
SUITE_VERBS = {
    "conformance": "test a backend: whether it is right, complete and as fast as it claims",
    "verify": "compare this machine's device with the reference, in half a minute",
}
"""Help of the verbs that come in the same wheel, so that --help imports nothing."""


class Parser(argparse.ArgumentParser):
    """Usage errors are reported like every other error: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Print the error and how to get help; exit with 2."""
        self.exit(2, f"error: {message}\n       see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command; returns the exit code (0 done, 2 refused or failed, 130 interrupted)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    size = 2 if " ".join(arguments[:2]) in VERBS else 1
    verb = " ".join(arguments[:size]) or "--help"
    module = import_module(f"runtime.cli.{verb.replace(' ', '_')}") if verb in VERBS else _installed_verb(verb)
    if module is None:
        return _top_level(arguments)
    parser = Parser(prog=f"runtime {verb}", description=module.__doc__, formatter_class=argparse.RawTextHelpFormatter)
    module.add_arguments(parser)
    from runtime.cli.output import guarded

    args = parser.parse_args(arguments[size:])
    return guarded(lambda: module.run(args), as_json=getattr(args, "json", False))


def _installed_verb(verb: str) -> Any:
    """The module of a verb that another package brings, or None; it has a docstring, add_arguments and run."""
    if not verb.isidentifier():
        return None
    from importlib.metadata import entry_points  # takes as long as all else; the verbs above need it only if they run

    found = next(iter(entry_points(group=VERB_GROUP, name=verb)), None)
    return None if found is None else found.load()


def _top_level(arguments: Sequence[str]) -> int:
    from importlib.metadata import entry_points

    others = {e.name: f"from {e.value.partition('.')[0]}" for e in entry_points(group=VERB_GROUP)}
    known = VERBS | {name: SUITE_VERBS.get(name, text) for name, text in sorted(others.items()) if name not in VERBS}
    width = max(map(len, known))
    verbs = "\n".join(f"  {name:{width}}  {text}" for name, text in known.items())
    parser = Parser(
        prog="runtime",
        usage="runtime VERB [options]",
        description="Runs large language models on whatever hardware is present.",
        epilog=f"verbs:\n{verbs}\n\nruntime VERB --help tells the options of a verb.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"runtime {__version__}")
    _, rest = parser.parse_known_args(arguments)
    if not arguments or arguments == ["help"]:
        parser.print_help()
        return 0
    unknown: str = next((a for a in rest if not a.startswith("-")), rest[0] if rest else "")
    return parser.error(f"'{unknown}' is no verb; verbs are {', '.join(known)}")
