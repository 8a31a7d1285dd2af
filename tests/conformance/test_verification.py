"""Verified devices: remembered by device, driver and version, preferred under auto, avoided where they failed."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from runtime.registry import Verification, Verifications, choose, discover

SOURCE = """
from runtime.backend import DeviceInfo, KernelBackend

class Fake(KernelBackend):
    name, vendor = "{name}", "test"

    def probe(self):
        return [DeviceInfo(index=0, name="fake", memory_bytes=1024, score={score}, driver="{driver}")]

plugin = Fake()
"""


@pytest.fixture
def two_backends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = []
    for name, score in (("slowfake", 50.0), ("fastfake", 900.0)):
        (site / f"{name}_plugin.py").write_text(SOURCE.format(name=name, score=score, driver="1"))
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[runtime.backends.v1]\n{name} = {name}_plugin:plugin\n")
        names.append(f"{name}_plugin")
    yield
    for name in names:
        sys.modules.pop(name, None)


def remember(name: str, *, passed: bool) -> None:
    backend = discover()[name]
    device = backend.probe().devices[0]
    outcome = Verification(passed, "3/9 checks agree", time.time() - 7300)
    assert Verifications().store(backend, device, outcome)
    assert Verifications().load(backend, device) == outcome


def test_without_verification_the_score_decides(two_backends):
    assert choose(discover()).backend.name == "fastfake"


def test_a_verified_device_is_preferred_and_the_reason_says_so(two_backends):
    remember("slowfake", passed=True)
    choice = choose(discover())
    assert choice.backend.name == "slowfake"
    expected = "verified 2 h ago; fastfake is faster and not verified: runtime verify --backend fastfake"
    assert choice.why == expected


def test_a_device_that_failed_is_avoided_and_the_refusal_says_why(two_backends):
    remember("fastfake", passed=False)
    choice = choose(discover())
    assert choice.backend.name == "slowfake"
    assert "fastfake:0 refused: verification failed: 3/9 checks agree" in map(str, choice.refused)


def test_a_new_driver_is_a_device_that_nobody_has_verified(two_backends):
    from dataclasses import replace

    remember("slowfake", passed=True)
    backend = discover()["slowfake"]
    device = backend.probe().devices[0]
    assert Verifications().load(backend, replace(device, driver="2")) is None


WRONG = """
from runtime.backend import DeviceInfo, KernelBackend, kernel

class Wrong(KernelBackend):
    name, vendor = "wrongfake", "test"

    def probe(self):
        return [DeviceInfo(index=0, name="wrong chip", memory_bytes=1024, score=1e9, driver="1")]

    @kernel("add@1", a=("f32",), b=("f32",))
    def add(self, a, b):
        return a + b * 1.001

plugin = Wrong()
"""


def test_a_device_that_is_wrong_is_found_shown_and_avoided(two_backends, tmp_path, capsys):
    from runtime.cli import main

    site = tmp_path / "site"
    (site / "wrongfake_plugin.py").write_text(WRONG)
    info = site / "wrongfake-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wrongfake\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[runtime.backends.v1]\nwrongfake = wrongfake_plugin:plugin\n")
    assert choose(discover()).backend.name == "wrongfake"
    assert main(["verify", "--backend", "wrongfake"]) == 1
    line = capsys.readouterr().out
    assert line.startswith("WRONG wrongfake:0 (wrong chip, driver 1): ")
    assert "checks of 1 operations agree" in line
    assert "; FAIL add@1/" in line
    assert line.count("\n") == 1
    choice = choose(discover())
    assert choice.backend.name == "fastfake"
    refused = {r.name: r.reason for r in choice.refused}
    assert refused["wrongfake:0"].startswith("verification failed: ")
    main(["doctor", "wrongfake"])
    assert "verification failed just now: " in " ".join(capsys.readouterr().out.split())


def test_doctor_shows_when_a_device_was_verified(two_backends, capsys):
    from runtime.cli import main

    remember("slowfake", passed=True)
    assert main(["doctor", "slowfake"]) == 0
    assert "verified 2 h ago" in " ".join(capsys.readouterr().out.split())
    assert main(["doctor", "fastfake"]) == 0
    assert "verified" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_device_with_nothing_to_compare_is_neither_right_nor_wrong(two_backends, capsys):
    from runtime.cli import main

    assert main(["verify", "--backend", "slowfake"]) == 1
    assert capsys.readouterr().out.startswith("not verified slowfake:0 (fake, driver 1): no check could be run: ")
    assert choose(discover()).backend.name == "fastfake"
