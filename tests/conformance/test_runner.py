"""Whole runs through worker processes: verdicts, crashes, reports, exit codes, and two equal runs."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from datetime import date
from html.parser import HTMLParser

import pytest

from runtime.backend import DeviceInfo
from runtime.errors import InvalidArgument
from runtime_conformance.case import Case, Tensor
from runtime_conformance.report.diff import describe
from runtime_conformance.report.html import html
from runtime_conformance.report.junit import junit
from runtime_conformance.report.matrix import markdown, supports
from runtime_conformance.report.result import dump, to_json, without_times
from runtime_conformance.report.text import text
from runtime_conformance.runner import Options, Report, run_cases, run_suite
from runtime_conformance.shrink import smallest
from runtime_conformance.target import Target
from runtime_conformance.verdict import Row, Verdict, exit_code
from runtime_conformance.waivers import Waiver, load_waivers

DEVICE = DeviceInfo(0, "numpy", 1 << 30, 0.0, driver="1.0")
ADD = Case("add@1", {"a": Tensor("f32", (5, 64)), "b": Tensor("f32", (5, 64))})
MUL = Case("mul@1", {"a": Tensor("f32", (5, 64))}, {"scale": 2.0})


def target(attribute: str, module: str = "backend") -> Target:
    return Target("bench", f"runtime_conformance.saboteurs.{module}:{attribute}", DEVICE, "bench", "1")


@pytest.fixture(scope="module")
def report() -> Report:
    options = Options(budget="smoke", ops=("add", "argmax", "gather_rows"), today=date(2026, 1, 1))
    return run_suite(target("honest_f32"), options)


def test_an_honest_backend_is_conformant(report: Report):
    assert report.exit_code == 0
    assert {r.verdict for r in report.rows} <= {Verdict.PASS, Verdict.UNSUPPORTED_OPTIONAL}
    assert sum(r.verdict is Verdict.PASS for r in report.rows) >= 15


def test_the_same_seed_gives_the_same_bytes_apart_from_times(report: Report):
    again = run_suite(report.target, report.options)
    assert dump(without_times(to_json(again))) == dump(without_times(to_json(report)))


def test_reports_of_one_run_agree(report: Report):
    data = json.loads(dump(to_json(report)))
    document = ET.fromstring(junit(report))
    assert len(data["rows"]) == len(report.rows) == len(document.findall(".//testcase"))
    assert data["counts"]["PASS"] == sum(r.verdict is Verdict.PASS for r in report.rows)
    assert data["fingerprint"]["driver"] == "1.0"
    assert "| add@1 | native |" in markdown(report)
    lines = list(text(report, "out"))
    assert lines[0] == "bench:0 (driver 1.0) · suite 1 · seed 7 · numerics act=f32 acc=f32"
    assert lines[-1] == "conformant · out/index.html out/junit.xml out/result.json"


def test_a_format_that_is_rightly_refused_is_not_called_supported():
    wrong = Row("add@1/1", "add@1", "L1", Verdict.PASS, "", expect="outside", formats={"a": "f16"})
    right = Row("add@1/2", "add@1", "L1", Verdict.PASS, "", formats={"a": "f32"})
    bench = target("honest_f32")
    (found,) = (s for s in supports(Report(bench, bench.manifest(), Options(), [wrong, right])) if s.op == "add@1")
    assert (found.formats, found.missing) == (("f32",), ("f16",))


def test_the_page_is_whole_and_fetches_nothing(report: Report):
    outside = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag, attrs):
            outside.extend(v for n, v in attrs if n in ("src", "href"))

    page = html(report)
    Checker().feed(page)
    assert outside == []
    assert "Conformant" in page
    assert all(r.case_id.partition("/")[2] in page for r in report.rows)


def test_a_crash_is_a_row_and_the_next_case_runs():
    rows = run_cases(
        target("crashing", "faults_device"), target("honest_f32").manifest(), [MUL, ADD, MUL], Options(timeout_s=20)
    )
    assert [r.verdict for r in rows] == [Verdict.PASS, Verdict.CRASH, Verdict.PASS]
    assert rows[1].detail == "signal SIGABRT (6)"


def test_a_waived_failure_is_counted_apart_until_it_expires():
    waiver = Waiver("mul@1/*", "https://example.org/1", date(2026, 6, 30))
    wrong = Row("mul@1/1", "mul@1", "L1", Verdict.FAIL, "", detail="wrong")
    right = Row("add@1/1", "add@1", "L1", Verdict.PASS, "")
    manifest = target("honest_f32").manifest()
    late = Report(target("x"), manifest, Options(waivers=(waiver,), today=date(2026, 7, 1)), [right, wrong])
    assert late.expired == [waiver]
    assert late.exit_code == 5


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        (["PASS"], 0),
        (["PASS", "WAIVED", "VACUOUS", "UNSUPPORTED_OPTIONAL"], 0),
        (["PASS", "FAIL", "UNSUPPORTED_REQUIRED"], 1),
        (["PASS", "FLAKY"], 1),
        (["PASS", "HOST_EXECUTED"], 1),
        (["PASS", "UNSUPPORTED_REQUIRED"], 2),
        (["FAIL", "CRASH"], 3),
        (["HANG"], 3),
        (["CRASH", "SUITE_ERROR"], 4),
        (["UNSUPPORTED_OPTIONAL", "VACUOUS"], 1),
        ([], 1),
    ],
)
def test_exit_codes(verdicts: list[str], code: int):
    assert exit_code([Row("a", "a", "L1", Verdict(v), "") for v in verdicts]) == code


def test_waivers_need_a_pattern_an_address_and_a_day(tmp_path):
    path = tmp_path / "waivers.json"
    path.write_text('[{"pattern": "linear@1/*", "url": "https://example.org/7", "expires": "2030-01-31"}]')
    assert load_waivers(str(path)) == (Waiver("linear@1/*", "https://example.org/7", date(2030, 1, 31)),)
    path.write_text('[{"pattern": "linear@1/*", "url": "later", "expires": "2030-01-31"}]')
    with pytest.raises(InvalidArgument, match="has the url 'later'; it must begin with https://"):
        load_waivers(str(path))
    path.write_text('[{"pattern": "linear@1/*"}]')
    with pytest.raises(InvalidArgument, match="cannot be read: KeyError: 'url'"):
        load_waivers(str(path))


def test_a_difference_names_what_broke_and_what_was_repaired(report: Report):
    before = to_json(report)
    after = json.loads(json.dumps(before))
    after["rows"][0] |= {"verdict": "FAIL", "detail": "off by one"}
    before["rows"][1]["verdict"] = "FAIL"
    lines = list(describe(before, after))
    assert lines[0].startswith(f"BROKEN {before['rows'][0]['id']} PASS -> FAIL: off by one")
    assert lines[1].startswith(f"REPAIRED {before['rows'][1]['id']} FAIL -> PASS")
    assert lines[-1] == "1 broken, 1 repaired, 0 lost, 0 new"


def test_a_slower_measurement_is_a_drift():
    fast = {"id": "linear@1/1", "phase": "decode", "title": "q", "median_s": 1e-4, "spread": 0.02}
    lines = list(describe({"performance": [fast]}, {"performance": [{**fast, "median_s": 1.3e-4}]}))
    assert lines[0] == "SLOWER linear@1/1 (decode, q): 100 us -> 130 us, 1.30 times"


def test_shrinking_finds_the_smallest_case_that_still_fails():
    inputs = {
        "x": Tensor("f32", (16, 256)),
        "weight": Tensor("f32", (64, 256), "weight", ("normal", 0.05)),
        "bias": Tensor("f32", (64,)),
    }
    small = smallest(Case("linear@1", inputs), lambda c: c.inputs["x"].shape[1] >= 40)
    assert {n: t.shape for n, t in small.inputs.items()} == {"x": (1, 40), "weight": (1, 40)}
