"""Compare the device that would be used with the reference, in half a minute, and remember the outcome."""

from __future__ import annotations

import argparse
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.add_argument("-m", "--model", metavar="PATH", help="verify the operations of this model first")
    parser.add_argument("--backend", default="auto", metavar="NAME", help="auto, a backend, or backend:device (auto)")
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="host threads (as many as it may use)")
    parser.add_argument("--seed", type=int, default=7, metavar="N", help="of all data (7)")
    parser.add_argument("--json", action="store_true", help="the outcome as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Execute the verb: 0 when the device agrees with the reference, 1 when it does not, or has nothing to compare."""
    import time

    from runtime.cli.output import emit
    from runtime.registry import Verification, Verifications, choose, discover
    from runtime_conformance.target import Target
    from runtime_conformance.verify import verify

    choice = choose(discover(), args.backend)
    backend, device = choice.backend, choice.device
    target = Target(
        backend.name, backend.entry_point.value, device, backend.distribution, backend.version, args.threads
    )
    result = verify(target, _cases_of_model(args, target) if args.model else (), seed=args.seed)
    outcome = Verification(result.passed, result.summary, time.time())
    is_remembered = bool(result.executed) and Verifications().store(backend, device, outcome)
    word = "verified" if result.passed else "WRONG" if result.executed else "not verified"
    if args.json:
        emit(
            {
                "event": "verified",
                "backend": backend.name,
                "device": device.name,
                "driver": device.driver,
                "passed": result.passed,
                "summary": result.summary,
                "seconds": round(result.seconds, 2),
                "cases_left_out": result.num_left,
                "remembered": is_remembered,
            }
        )
    else:
        driver = f", driver {device.driver}" if device.driver else ""
        kept = "" if is_remembered or not result.executed else "; not remembered: the cache folder cannot be written"
        print(
            f"{word} {backend.name}:{device.index} ({device.name}{driver}): {result.summary} · "
            f"{result.seconds:.0f} s{kept}"
        )
    return 0 if result.passed else 1


def _cases_of_model(args: argparse.Namespace, target: Any) -> list[Any]:
    """Operations of the model's graph; raises what opening the model raises."""
    from runtime.engine.config import EngineConfig
    from runtime.engine.files import open_for_engine
    from runtime.engine.loading import plan_model
    from runtime_conformance.model_cases import model_cases

    manifest = target.manifest()
    model = open_for_engine(args.model)
    try:
        config = EngineConfig(model=args.model, backend=target.name)
        plan, _, _ = plan_model(model, config, {target.name: manifest}, free_bytes={})
        return list(model_cases(plan.graph, manifest))
    finally:
        model.file.close()
