"""Discovery and probing: a broken plugin is reported with stage and reason, and nobody else notices."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime.backend import API_LEVEL, DeviceConfig, DeviceInfo
from runtime.dtypes import FormatRegistry
from runtime.errors import OutOfMemory, PluginRejected
from runtime.ops import Catalogue
from runtime.registry import Discovery, Rejected, discover, probe_all

from .conftest import InstallPlugin, plugin_source


def rejected(discovery: Discovery, name: str) -> Rejected:
    return next(r for r in discovery.rejected if r.name == name)


def names(discovery: Discovery) -> list[str]:
    return [b.name for b in discovery.loaded]


def test_four_broken_plugins_are_reported_and_the_good_one_works(install_plugin: InstallPlugin) -> None:
    install_plugin("good", plugin_source("good"))
    install_plugin("acme", "import ctypes\nctypes.CDLL('libacme.so.4')\n")
    install_plugin("typo", plugin_source("typo").replace("runtime_probe", "runtime_prob"))
    install_plugin("slow", plugin_source("slow", probe="import time\ntime.sleep(60)"))
    install_plugin("crash", plugin_source("crash", probe="import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)"))

    found = discover()

    assert rejected(found, "acme").stage == "import"
    assert rejected(found, "acme").reason == "libacme.so.4: cannot open shared object file: No such file or directory"
    assert "CDLL" in rejected(found, "acme").traceback
    assert rejected(found, "typo").stage == "validate"
    assert rejected(found, "typo").reason == "unknown hook runtime_prob; did you mean 'runtime_probe'?"
    assert {"good", "slow", "crash"} <= set(names(found))
    slow = found["slow"].probe(timeout_s=1)
    good, crash = found["good"].probe(), found["crash"].probe()
    assert [d.name for d in good.devices] == ["fake"]
    assert good.refusal is None
    assert slow.refusal == "no answer within 1 s"
    assert crash.refusal == "crashed with SIGSEGV (signal 11)"
    assert "runtime_probe" in crash.detail  # the interpreter's own account of where it was
    with pytest.raises(PluginRejected, match=r"'acme' \(fake-acme 1.0\) was rejected at stage import: libacme"):
        found["acme"]


@pytest.mark.parametrize(
    ("source", "stage", "reason"),
    [
        ("import no_such_module", "import", "No module named 'no_such_module'"),
        ("raise SystemExit(3)", "import", "called sys.exit(3)"),
        ("def f(:", "import", "SyntaxError: invalid syntax (fake_fake_bad.py, line 1)"),
        ("x = 1", "import", "AttributeError: module 'fake_fake_bad' has no attribute 'plugin'"),
        ("plugin = None", "validate", "has no runtime_backend_info, runtime_manifest, runtime_open; required"),
        ("class plugin: pass", "validate", "is a class; the entry point must name an instance"),
        (plugin_source("bad").replace("device, config", "device, configuration"), "validate", "{'configuration'}"),
        (plugin_source("bad").replace("@hookimpl", "", 1), "validate", "runtime_backend_info lacks the decorator"),
        (plugin_source("bad").replace("runtime_manifest", "manifest"), "validate", "unknown hook 'manifest'"),
        (plugin_source("other"), "info", "the entry point is called 'bad', its BackendInfo says 'other'"),
        (plugin_source("bad", api_level=0), "info", "api_level 0 is not a number from 1 to"),
        (
            plugin_source("bad", api_level=3),
            "info",
            f"needs API level 3, this core has {API_LEVEL}: upgrade hal-runtime",
        ),
        (
            plugin_source("bad", api_level=3).replace("runtime_probe", "runtime_from_the_future"),
            "info",
            f"needs API level 3, this core has {API_LEVEL}: upgrade hal-runtime",
        ),
        (
            plugin_source("bad").replace("return BackendInfo", "return str() and BackendInfo"),
            "info",
            "returned a str, not a BackendInfo",
        ),
    ],
)
def test_each_fault_has_its_stage_and_reason(
    install_plugin: InstallPlugin, source: str, stage: str, reason: str
) -> None:
    install_plugin("bad", source)
    fault = rejected(discover(), "bad")
    assert (fault.stage, fault.distribution, fault.version) == (stage, "fake-bad", "1.0")
    assert reason in fault.reason
    assert "Traceback" in fault.traceback


def test_a_plugin_of_another_major_is_never_imported(install_plugin: InstallPlugin, tmp_path: Path) -> None:
    install_plugin("next", f"open({str(tmp_path / 'imported')!r}, 'w')", group="runtime.backends.v2")
    found = discover()
    assert "next" not in names(found)
    assert not any(r.name == "next" for r in found.rejected)
    assert not (tmp_path / "imported").exists()


def test_the_second_package_of_one_name_is_rejected(install_plugin: InstallPlugin) -> None:
    install_plugin("twin", plugin_source("twin"), distribution="b-twin")
    install_plugin("twin", plugin_source("twin"), distribution="a-twin", version="2.5")
    found = discover()
    assert found["twin"].distribution == "a-twin"
    assert rejected(found, "twin").distribution == "b-twin"
    assert rejected(found, "twin").reason == "the name 'twin' is already taken by a-twin 2.5; remove one of them"


def test_broken_metadata_of_one_package_hides_no_other(install_plugin: InstallPlugin, tmp_path: Path) -> None:
    install_plugin("good", plugin_source("good"))
    broken = tmp_path / "site" / "broken-1.dist-info"
    broken.mkdir()
    (broken / "entry_points.txt").write_bytes(b"[runtime.backends.v1]\nno equals sign \xff\n")
    found = discover()
    assert "good" in names(found)
    assert [r.stage for r in found.rejected if r.stage == "metadata"] == ["metadata"]


def test_what_a_plugin_prints_never_reaches_our_stdout(install_plugin: InstallPlugin, tmp_path: Path) -> None:
    noisy = "import os\nprint('import noise')\nos.write(1, b'descriptor noise')\n"
    probe = 'print("probe noise", flush=True)\nreturn [DeviceInfo(index=0, name="fake", memory_bytes=1, score=1.0)]'
    install_plugin("noisy", noisy + plugin_source("noisy", probe=probe))
    script = (
        "import json; from runtime.registry import discover; b = discover()['noisy']; "
        "print(json.dumps(b.probe(10, use_cache=False).to_json()['devices'][0]['name']))"
    )
    paths = {"path": sys.path}
    start = f"import sys, json; sys.path[:] = json.loads({json.dumps(paths)!r})['path']; {script}"
    done = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == '"fake"\n'
    assert "import noise" in done.stderr
    assert "descriptor noise" in done.stderr


PROBE_FAULTS = [
    ("return []", "no device found"),
    ("raise OSError('libacme.so: too old')", "libacme.so: too old"),
    ("raise ValueError('driver says 7')", "ValueError: driver says 7"),
    ("import sys\nsys.exit(4)", "called sys.exit(4)"),
    ("import os\nos._exit(7)", "its probe exited with code 7 and gave no answer"),
    ("return ['cuda']", "its probe returned a str, not a DeviceInfo"),
    ("return [DeviceInfo(0, 'a', 1, float('nan'))]", "DeviceInfo.score nan of device 0 is not a finite number"),
    ("return [DeviceInfo(0, 'a', 1, 1.0)] * 2", "its probe returned two devices of one index: [0, 0]"),
    ("return [DeviceInfo(0, 'a', 1, 1.0, details={'sm': 90})]", "DeviceInfo of device 0 holds 90 where text belongs"),
]


def test_every_fault_of_a_probe_is_a_sentence(install_plugin: InstallPlugin) -> None:
    for i, (probe, _) in enumerate(PROBE_FAULTS):
        install_plugin(f"p{i}", plugin_source(f"p{i}", probe=probe))
    found = discover()
    backends = [found[f"p{i}"] for i in range(len(PROBE_FAULTS))]
    assert [r.refusal for r in probe_all(backends)] == [refusal for _, refusal in PROBE_FAULTS]


def test_a_plugin_says_how_long_its_probe_may_take(install_plugin: InstallPlugin) -> None:
    hasty = plugin_source("hasty", probe="import time\ntime.sleep(60)")
    install_plugin("hasty", hasty.replace("api_level=1", "probe_timeout_s=0.5"))
    install_plugin("never", plugin_source("never").replace("api_level=1", "probe_timeout_s=0"))
    found = discover()
    assert found["hasty"].probe().refusal == "no answer within 0.5 s"
    assert rejected(found, "never").reason == "probe_timeout_s 0 is not a number of seconds up to 600"


def test_a_crash_after_the_answer_does_not_count(install_plugin: InstallPlugin) -> None:
    probe = "import atexit, os\natexit.register(os.abort)\nreturn [DeviceInfo(0, 'a', 1, 1.0)]"
    install_plugin("late", plugin_source("late", probe=probe))
    assert discover()["late"].probe().refusal is None


def test_children_of_a_hanging_probe_end_with_it(install_plugin: InstallPlugin, tmp_path: Path) -> None:
    mark = tmp_path / "alive"
    grandchild = f"import time, pathlib; time.sleep(2); pathlib.Path({str(mark)!r}).touch()"
    probe = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {grandchild!r}])"
    install_plugin("family", plugin_source("family", probe=probe))
    assert discover()["family"].probe(timeout_s=1).refusal == "no answer within 1 s"
    time.sleep(1.2)
    assert not mark.exists()


def count_probes(log: Path) -> int:
    return len(log.read_text()) if log.exists() else 0


def test_results_are_cached_until_the_plugin_changes(install_plugin: InstallPlugin, tmp_path: Path) -> None:
    log = tmp_path / "log"
    probe = f"open({str(log)!r}, 'a').write('x')\nreturn [DeviceInfo(0, 'a', 1, 1.0, notices=('slow',))]"
    install_plugin("good", plugin_source("good", probe=probe))
    backend = discover()["good"]
    first = backend.probe()
    second = backend.probe()
    assert (first.is_cached, second.is_cached, count_probes(log)) == (False, True, 1)
    assert second.devices == first.devices
    assert second.probed_at == first.probed_at
    assert backend.probe(use_cache=False).is_cached is False
    assert count_probes(log) == 2
    install_plugin("good", plugin_source("good", probe=probe) + "\n# a change\n")
    assert backend.probe().is_cached is False


def test_a_refusal_is_remembered_for_ten_minutes_only(
    install_plugin: InstallPlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime.registry import cache

    install_plugin("none", plugin_source("none", probe="return []"))
    backend = discover()["none"]
    backend.probe()
    assert backend.probe().is_cached is True
    now = cache.time.time()
    monkeypatch.setattr(cache.time, "time", lambda: now + 601)
    assert backend.probe().is_cached is False


def test_without_a_writable_cache_probing_still_works(
    install_plugin: InstallPlugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    install_plugin("good", plugin_source("good"))
    assert discover()["good"].probe().refusal is None


def test_a_damaged_cache_file_is_probed_again(install_plugin: InstallPlugin, tmp_path: Path) -> None:
    install_plugin("good", plugin_source("good"))
    backend = discover()["good"]
    backend.probe()
    for file in (tmp_path / "cache").rglob("*.json"):
        file.write_text('{"stored_at": 0, ')
    assert backend.probe().is_cached is False


def test_errors_of_open_are_typed(install_plugin: InstallPlugin) -> None:
    install_plugin("driver", plugin_source("driver"))
    install_plugin(
        "full", plugin_source("full", open="from runtime.errors import OutOfMemory\nraise OutOfMemory('1 GB')")
    )
    install_plugin("odd", plugin_source("odd", open="return 42"))
    found = discover()
    device = DeviceInfo(0, "fake", 1, 1.0)
    with pytest.raises(PluginRejected, match=r"'driver' cannot open device 0 \(fake\): no driver; .*doctor driver"):
        found["driver"].open(device, DeviceConfig())
    with pytest.raises(OutOfMemory):
        found["full"].open(device)
    with pytest.raises(PluginRejected, match=r"opened a int, which is no Device: it lacks adopt_host, allocate"):
        found["odd"].open(device)


REGISTER = """
    @hookimpl
    def runtime_register(self, catalogue, formats):
        from runtime.dtypes import F32, Format
        formats.add(Format("{format}", "float", 1, 4, F32.decode_blocks))
        {then}
"""


def test_own_formats_are_registered_once_and_all_or_none(install_plugin: InstallPlugin) -> None:
    def source(name: str, fmt: str, then: str) -> str:
        return plugin_source(name).replace("\nplugin =", REGISTER.format(format=fmt, then=then) + "\nplugin =")

    install_plugin("own", source("own", "acme::f32", "pass"))
    install_plugin("half", source("half", "half::f32", "raise ValueError('second half is missing')"))
    install_plugin("rude", source("rude", "f33", "pass"))
    catalogue, formats = Catalogue(), FormatRegistry()
    found = discover(catalogue=catalogue, formats=formats)
    discover(catalogue=catalogue, formats=formats)
    assert "own" in names(found)
    assert [f.name for f in formats] == ["acme::f32"]
    assert rejected(found, "half").reason == "ValueError: second half is missing"
    assert rejected(found, "rude").reason == (
        "own format 'f33' must be called 'vendor::name': plain names belong to the core"
    )


def test_discovery_imports_no_numpy() -> None:
    script = "import sys, runtime.registry; runtime.registry.discover([]); sys.exit('numpy' in sys.modules)"
    core = importlib.util.find_spec("runtime")
    assert core is not None
    assert core.origin is not None
    environment = {"PYTHONPATH": str(Path(core.origin).parents[1])}
    assert subprocess.run([sys.executable, "-c", script], env=environment, timeout=60, check=False).returncode == 0
