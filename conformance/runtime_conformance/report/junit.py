"""junit.xml: a test suite per level, a test case per row, as CI servers read it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from xml.sax.saxutils import escape, quoteattr

from runtime_conformance.levels import LEVEL_NAMES, LEVELS
from runtime_conformance.runner import Report
from runtime_conformance.verdict import Row, Verdict

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd]")
_SKIPPED = (Verdict.UNSUPPORTED_OPTIONAL, Verdict.VACUOUS, Verdict.WAIVED)
_ERRORS = (Verdict.CRASH, Verdict.HANG, Verdict.SUITE_ERROR)


def junit(report: Report) -> str:
    """The document."""
    suites = [(level, [r for r in report.rows if r.level == level]) for level in LEVELS]
    body = "".join(_suite(f"{level} {LEVEL_NAMES[level]}", rows, report) for level, rows in suites if rows)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<testsuites name="runtime conformance">\n{body}</testsuites>\n'


def _suite(name: str, rows: Iterable[Row], report: Report) -> str:
    rows = list(rows)
    failures = sum(r.verdict not in (Verdict.PASS, *_SKIPPED, *_ERRORS) for r in rows)
    errors = sum(r.verdict in _ERRORS for r in rows)
    skipped = sum(r.verdict in _SKIPPED for r in rows)
    seconds = sum(r.seconds for r in rows)
    head = (
        f'<testsuite name={_attr(name)} tests="{len(rows)}" failures="{failures}" errors="{errors}" '
        f'skipped="{skipped}" time="{seconds:.3f}">\n'
    )
    return head + "".join(_case(r, report.target.name) for r in rows) + "</testsuite>\n"


def _case(row: Row, backend: str) -> str:
    name = f"{row.case_id} {row.title}"
    head = f'<testcase classname={_attr(f"{backend}.{row.op}")} name={_attr(name)} time="{row.seconds:.3f}"'
    if row.verdict is Verdict.PASS:
        return head + "/>\n"
    detail = row.detail + (f" ({row.waiver})" if row.waiver else "")
    tag = "skipped" if row.verdict in _SKIPPED else "error" if row.verdict in _ERRORS else "failure"
    message = f"{row.verdict}: {detail}"
    return f"{head}>\n<{tag} message={_attr(message)}>{escape(_clean(message))}</{tag}>\n</testcase>\n"


def _attr(text: str) -> str:
    return quoteattr(_clean(text))


def _clean(text: str) -> str:
    return _NOT_XML.sub("?", text)
