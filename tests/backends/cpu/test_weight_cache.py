"""Packed weights are written once and mapped by every later start; what is stale or damaged is packed anew, and said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime import LLM
from runtime.backend import ReferenceDevice
from runtime.engine.weight_cache import SUM_BYTES, WeightCache, sums
from runtime.formats import open_model
from runtime.models.demo import demo_model_path
from runtime_cpu.native import load_library

pytestmark = pytest.mark.skipif(load_library() is None, reason="this build has no native kernels, so nothing is packed")

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
Start = Callable[..., tuple[int, str]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copy(demo_model_path(), tmp_path / "demo.gguf"))


@pytest.fixture
def start(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Start:
    """Load the model, ask it, close it: how many weights were packed, and what was told on stderr."""

    def run(folder: Path = tmp_path / "cache", **options: object) -> tuple[int, str]:
        with LLM(model, backend="cpu", threads=2, max_model_len=128, weight_cache=folder, **options) as llm:
            device = llm.loaded.devices["cpu"]
            assert llm.chat(QUESTION).text == "Paris."
            packed = device.counters()["weights_packed"]
            assert any("mapped from" in line for line in llm.status) == (packed == 0)
        return packed, capsys.readouterr().err

    return run


def entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_the_second_start_packs_nothing(start: Start, tmp_path: Path) -> None:
    packed, told = start()
    assert packed > 0
    assert told == ""
    assert len(entries(tmp_path / "cache")) == 1
    assert start() == (0, "")


def test_without_a_cache_every_start_packs(model: Path) -> None:
    with LLM(model, backend="cpu", threads=1, max_model_len=128) as llm:
        assert llm.loaded.devices["cpu"].counters()["weights_packed"] > 0


def test_a_model_file_with_another_time_is_packed_anew(start: Start, model: Path) -> None:
    packed, _ = start()
    os.utime(model, ns=(10**18, 10**18))
    again, told = start()
    assert again == packed
    assert "the model file has changed since; weights are packed anew" in told
    assert start() == (0, "")


def test_a_model_file_with_other_bytes_is_packed_anew_even_with_the_old_time(start: Start, model: Path) -> None:
    packed, _ = start()
    before = model.stat()
    with model.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns))
    again, told = start()
    assert again == packed
    assert "has changed" in told


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_changed_byte_is_found_and_everything_packed_anew(start: Start, tmp_path: Path, place: str) -> None:
    packed, _ = start()
    (entry,) = entries(tmp_path / "cache")
    at = {"first": 20, "middle": entry.stat().st_size // 2, "last": entry.stat().st_size - 1}[place]
    with entry.open("r+b") as file:
        file.seek(at)
        old = file.read(1)
        file.seek(at)
        file.write(bytes([old[0] ^ 0x10]))
    again, told = start()
    assert again == packed
    assert told.startswith("weight cache: ")
    assert "weights are packed anew" in told
    assert start() == (0, "")


@pytest.mark.parametrize("size", [0, 10, 5000, -4096])
def test_a_file_that_was_cut_is_packed_anew(start: Start, tmp_path: Path, size: int) -> None:
    packed, _ = start()
    (entry,) = entries(tmp_path / "cache")
    os.truncate(entry, size if size >= 0 else entry.stat().st_size + size)
    again, told = start()
    assert again == packed
    assert "weights are packed anew" in told
    assert start() == (0, "")


def test_every_instruction_set_has_a_file_of_its_own(start: Start, tmp_path: Path) -> None:
    library = load_library()
    assert library is not None
    slow, fast = library.usable_isas[0], library.usable_isas[-1]
    if slow == fast:
        pytest.skip("this processor can use one instruction set only")
    assert start(device_options={"isa": fast})[0] > 0
    assert start(device_options={"isa": slow})[0] > 0
    assert len(entries(tmp_path / "cache")) == 2
    assert start(device_options={"isa": slow}) == (0, "")
    assert start(device_options={"isa": fast}) == (0, "")


def test_two_processes_that_start_at_once_leave_one_sound_file(start: Start, model: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from runtime import LLM\n"
        "with LLM(sys.argv[1], backend='cpu', threads=1, max_model_len=128, weight_cache=sys.argv[2]) as llm:\n"
        "    print(llm.chat([{'role': 'user', 'content': 'What is the capital of France?'}]).text)\n"
    )
    command = [sys.executable, "-c", script, str(model), str(tmp_path / "cache")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(2)]
    assert [process.communicate()[0] for process in running] == [b"Paris.\n", b"Paris.\n"]
    assert len(entries(tmp_path / "cache")) == 1
    assert start() == (0, "")


def test_a_folder_that_cannot_be_made_is_told_and_the_answer_comes(start: Start, model: Path) -> None:
    packed, told = start(folder=model / "cache")
    assert packed > 0
    assert (
        told == f"weight cache: {model / 'cache'} cannot be used: Not a directory; weights are packed at every start\n"
    )


def test_a_full_disk_is_told_and_leaves_nothing(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    packed, told = start()
    assert packed > 0
    assert "MB are needed, 0 MB are free; the next start packs again" in told
    assert entries(tmp_path / "cache") == []


def test_what_an_ended_process_left_is_removed_after_an_hour(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    old, fresh = folder / "a.weights.1-1.tmp", folder / "a.weights.2-2.tmp"
    for path in (old, fresh):
        path.touch()
    os.utime(old, (0, 0))
    start()
    assert not old.exists()
    assert fresh.exists()


def test_a_device_that_packs_nothing_is_told(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_model(model) as file:
        assert WeightCache.open(tmp_path / "cache", file, ReferenceDevice()) is None
    assert "has no packed weights to keep; nothing is cached" in capsys.readouterr().err


def test_sums_see_a_change_anywhere_and_an_exchange() -> None:
    data = bytearray(os.urandom(2 * SUM_BYTES + 100))
    before = sums(memoryview(bytes(data)))
    assert len(before) == 3
    data[2 * SUM_BYTES + 99] ^= 1
    assert [a == b for a, b in zip(before, sums(memoryview(bytes(data))))] == [True, True, False]
    swapped = bytes(data[SUM_BYTES : 2 * SUM_BYTES] + data[:SUM_BYTES] + data[2 * SUM_BYTES :])
    assert sums(memoryview(swapped))[:2] == before[1::-1]


def test_no_thread_of_a_cache_outlives_its_model(start: Start) -> None:
    start()
    assert "weight cache" not in [thread.name for thread in threading.enumerate()]
