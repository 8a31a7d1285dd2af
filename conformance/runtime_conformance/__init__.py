"""The conformance suite: whether a backend is right, complete and as fast as it claims.

`runtime conformance` runs it for vendors and plugin authors, `runtime verify` in short for everybody; see
docs/conformance.md for verdicts, exit codes and the schema of the report.
"""

from __future__ import annotations

SUITE_VERSION = 1
"""Changes when a run of the same backend may give another verdict."""
SCHEMA_VERSION = 1
"""Of result.json: fields are only added within a version."""
DEFAULT_SEED = 7
