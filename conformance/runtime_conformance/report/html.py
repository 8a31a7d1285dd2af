"""index.html: the whole run on one self-contained page; no script is needed to read it, no file is fetched."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from runtime_conformance.levels import LEVEL_NAMES, LEVELS
from runtime_conformance.report.matrix import supports
from runtime_conformance.report.page import STYLE
from runtime_conformance.report.text import headline
from runtime_conformance.runner import Report
from runtime_conformance.verdict import Row, Verdict, count

_ORDER = (
    *(Verdict.CRASH, Verdict.HANG, Verdict.SUITE_ERROR, Verdict.FAIL, Verdict.FLAKY, Verdict.HOST_EXECUTED),
    *(Verdict.UNSUPPORTED_REQUIRED, Verdict.WAIVED, Verdict.VACUOUS, Verdict.UNSUPPORTED_OPTIONAL, Verdict.PASS),
)
_CLASS = {
    Verdict.PASS: "good",
    Verdict.WAIVED: "fair",
    Verdict.VACUOUS: "fair",
    Verdict.UNSUPPORTED_OPTIONAL: "dim",
    Verdict.UNSUPPORTED_REQUIRED: "gap",
}
_NOT_RUN = (Verdict.UNSUPPORTED_OPTIONAL, Verdict.UNSUPPORTED_REQUIRED, Verdict.VACUOUS)


def html(report: Report) -> str:
    """The document."""
    title = f"{report.target.name} · conformance"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body><main>'
        f"{''.join(_body(report))}</main></body></html>\n"
    )


def _body(report: Report) -> Iterator[str]:
    ok = report.exit_code == 0
    word = "Conformant" if ok else "Not conformant"
    yield f'<header><p class="eyebrow">runtime conformance · level {report.options.level}</p>'
    yield f'<h1>{escape(report.target.name)} <span class="badge {"good" if ok else "bad"}">{word}</span></h1>'
    yield f'<p class="sub">{escape(headline(report))}</p></header>'
    yield from _cards(report)
    wrong = [r for v in _ORDER[:7] for r in report.rows if r.verdict is v]
    if wrong:
        yield f"<h2>What is wrong <small>{len(wrong)}</small></h2><div class='faults'>"
        yield from (_fault(r, report.target.name) for r in wrong[:200])
        yield "</div>"
    yield from _matrix(report)
    yield from _performance(report)
    yield from _all_rows(report)
    yield from _footer(report)


def _cards(report: Report) -> Iterator[str]:
    yield '<section class="cards">'
    for level in LEVELS:
        rows = [r for r in report.rows if r.level == level and r.verdict not in _NOT_RUN]
        if not rows:
            continue
        passed = sum(r.verdict is Verdict.PASS for r in rows)
        share = 100 * passed / len(rows)
        yield (
            f'<div class="card"><b>{level} {LEVEL_NAMES[level]}</b><span class="num">{passed}<i>/{len(rows)}</i></span>'
            f'<div class="bar"><div style="width:{share:.1f}%"></div></div></div>'
        )
    counts = count(report.rows)
    for name, label in (
        ("UNSUPPORTED_REQUIRED", "required, missing"),
        ("UNSUPPORTED_OPTIONAL", "optional, missing"),
        ("HOST_EXECUTED", "done by the host"),
        ("VACUOUS", "no verdict (vacuous)"),
    ):
        yield f'<div class="card"><b>{label}</b><span class="num">{counts[name]}</span></div>'
    yield "</section>"


def _fault(row: Row, backend: str) -> str:
    command = f"runtime conformance repro {row.case_id} --backend {backend}"
    repeat = f"<code>{escape(command)}</code>" if "@" in row.op else ""
    return (
        f'<article class="fault"><p><span class="tag {_CLASS.get(row.verdict, "bad")}">{row.verdict}</span> '
        f"<b>{escape(row.case_id)}</b> {escape(row.title)}</p><p>{escape(row.detail)}</p>{repeat}</article>"
    )


def _matrix(report: Report) -> Iterator[str]:
    yield "<h2>Support</h2><div class='scroll'><table><thead><tr><th>operation<th>runs<th class='n'>cases<th>formats"
    yield "<th class='n'>rms z<th class='n'>NMSE<th class='n'>of the roofline</tr></thead><tbody>"
    for s in supports(report):
        css = {"native": "good", "wrong": "bad", "host": "dim", "expanded": "dim"}[s.state]
        formats = " ".join(f"<span class='f'>{escape(f)}</span>" for f in s.formats)
        formats += " ".join(f" <span class='f no'>{escape(f)}</span>" for f in s.missing)
        figures = "".join(f"<td class='n'>{'–' if v is None else f'{v:.2g}'}" for v in (s.rms_z, s.nmse))
        cases = f"{s.passed}/{s.tested}" if s.tested else "–"
        yield (
            f"<tr><td><b>{escape(s.op)}</b><td><span class='tag {css}'>{s.state}</span><td class='n'>{cases}"
            f"<td>{formats or '–'}{figures}<td class='n'>{s.speed or '–'}</tr>"
        )
    yield "</tbody></table></div>"


def _performance(report: Report) -> Iterator[str]:
    if not report.performance:
        return
    yield "<h2>Performance</h2><div class='scroll'><table><thead><tr><th>case<th>phase<th class='n'>median"
    yield "<th class='n'>spread<th class='n'>GB/s<th class='n'>G op/s<th class='n'>of the roofline"
    yield "<th></tr></thead><tbody>"
    for e in report.performance:
        if "median_s" not in e:
            yield f"<tr><td>{escape(e['title'])}<td>{e['phase']}<td colspan=6>{escape(e['detail'])}</tr>"
            continue
        share = "–" if e["share"] is None else f"{100 * e['share']:.0f} %"
        verdict = "" if e["verdict"] == "ok" else f"<span class='tag bad'>{escape(e['verdict'])}</span>"
        yield (
            f"<tr><td>{escape(e['title'])}<td>{e['phase']}<td class='n'>{e['median_s'] * 1e6:.1f} µs"
            f"<td class='n'>{100 * e['spread']:.0f} %<td class='n'>{e['bytes_per_s'] / 1e9:.2f}"
            f"<td class='n'>{e['operations_per_s'] / 1e9:.2f}<td class='n'>{share}<td>{verdict}</tr>"
        )
    yield "</tbody></table></div>"


def _all_rows(report: Report) -> Iterator[str]:
    yield f"<h2>All cases <small>{len(report.rows)}</small></h2>"
    for op in dict.fromkeys(r.op for r in report.rows):
        rows = [r for r in report.rows if r.op == op]
        counted = count(rows)
        words = [f"{counted[v.value]} {v.value.lower().replace('_', ' ')}" for v in _ORDER[::-1] if counted[v.value]]
        yield f"<details><summary><b>{escape(op)}</b> {', '.join(words)}</summary>"
        yield "<div class='scroll'><table>"
        yield "<thead><tr><th>case<th>verdict<th>what<th class='n'>max |z|"
        yield "<th class='n'>rms z<th>detail</tr></thead><tbody>"
        for row in sorted(rows, key=lambda r: _ORDER.index(r.verdict)):
            figures = "".join(
                f"<td class='n'>{f'{row.figures[n]:.2g}' if n in row.figures else '–'}" for n in ("max_z", "rms_z")
            )
            yield (
                f"<tr><td><code>{escape(row.case_id.partition('/')[2])}</code>"
                f"<td><span class='tag {_CLASS.get(row.verdict, 'bad')}'>{row.verdict}</span>"
                f"<td class='what'>{escape(row.title)}{figures}<td class='what'>{escape(row.detail)}</tr>"
            )
        yield "</tbody></table></div></details>"


def _footer(report: Report) -> Iterator[str]:
    yield "<h2>Fingerprint</h2><dl>"
    for name, value in report.target.fingerprint().items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        yield f"<dt>{escape(name.replace('_', ' '))}<dd>{escape(shown) or '–'}"
    yield f"<dt>seed<dd>{report.options.seed}<dt>budget<dd>{report.options.budget}"
    yield f"<dt>profiles<dd>{escape(', '.join(p.name for p in report.options.profiles)) or '–'}"
    yield f"<dt>took<dd>{report.seconds:.1f} s</dl>"
    for note in report.notes:
        yield f"<p class='sub'>note: {escape(note)}</p>"
