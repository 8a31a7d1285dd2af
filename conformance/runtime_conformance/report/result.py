"""result.json: a stable schema (docs/conformance.md), the same bytes for the same seed apart from `times`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.errors import InvalidArgument
from runtime_conformance import SCHEMA_VERSION, SUITE_VERSION
from runtime_conformance.runner import Report
from runtime_conformance.verdict import count


def to_json(report: Report) -> dict[str, Any]:
    """The whole run as plain data."""
    options = report.options
    return {
        "schema": SCHEMA_VERSION,
        "suite": SUITE_VERSION,
        "fingerprint": report.target.fingerprint(),
        "options": {
            "level": options.level,
            "profiles": [p.name for p in options.profiles],
            "ops": list(options.ops),
            "seed": options.seed,
            "budget": options.budget,
        },
        "conformant": report.exit_code == 0,
        "exit_code": report.exit_code,
        "counts": count(report.rows),
        "manifest": report.manifest.to_json(),
        "rows": [r.to_json() for r in report.rows],
        "notes": list(report.notes),
        "expired_waivers": [
            {"pattern": w.pattern, "url": w.url, "expires": w.expires.isoformat()} for w in report.expired
        ],
        "performance": report.performance,
        "times": {"seconds": round(report.seconds, 3)},
    }


def dump(data: Mapping[str, Any]) -> str:
    """Its text."""
    return json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n"


def without_times(data: Any) -> Any:
    """What must be equal in two runs: everything that is not under a key `times` or `performance`."""
    if isinstance(data, dict):
        return {k: without_times(v) for k, v in data.items() if k not in ("times", "performance")}
    if isinstance(data, list):
        return [without_times(v) for v in data]
    return data


def load(path: str | Path) -> dict[str, Any]:
    """A result.json; raises InvalidArgument when it is none, or of a newer schema."""
    try:
        data = json.loads(Path(path).read_text("utf-8"))
        schema = data["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidArgument(f"{path} is no result of the suite: {type(error).__name__}: {error}") from error
    if schema != SCHEMA_VERSION:
        raise InvalidArgument(f"{path} has schema {schema}, this suite reads {SCHEMA_VERSION}")
    return dict(data)
