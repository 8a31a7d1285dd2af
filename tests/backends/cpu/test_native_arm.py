"""The library for 64-bit Arm, built with a cross compiler and run by an emulator: the bits of this processor's kernels."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.dtypes import FORMATS

sys.path.insert(0, str(Path(__file__).parent))
from native_library import NativeLinear, build
from test_native_linear import PLAIN, QUANTISED, assert_close, ggml_type, k_of, random_activations, random_weight

HERE = Path(__file__).parent
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
SYSTEM = "/usr/aarch64-linux-gnu"  # where the cross compiler's own libraries lie
ROWS, N = (1, 5, 40), 49

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # the first test waits for the compiler


@pytest.fixture(scope="session")
def driver() -> Path:
    """The program, beside the library that it loads."""
    for tool in (COMPILER, EMULATOR):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (on Debian: g++-aarch64-linux-gnu, qemu-user)")
    compiler = f"-DCMAKE_CXX_COMPILER={shutil.which(COMPILER)}"  # a bare name would build everything again each time
    target = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", compiler)
    library = build(*target, name="arm-tests")
    program = library.with_name("linears")
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Wl,-rpath,$ORIGIN"]
    subprocess.run([COMPILER, *flags, HERE / "drivers/linears.cpp", library, "-o", program], check=True)
    return program


def run(
    driver: Path, folder: Path, cases: list[tuple[int, int, NDArray[np.uint8], NDArray[np.float32]]]
) -> tuple[list[str], bytes]:
    """Names of instruction sets; what the driver wrote for each case (format, n, weight, x) and each of them."""
    with (folder / "cases").open("wb") as file:
        for number, n, raw, x in cases:
            file.write(np.array([number, n, x.shape[1], len(x), raw.nbytes, 2], np.int64).tobytes())
            file.write(raw.tobytes() + x.tobytes())
    command = [EMULATOR, "-L", SYSTEM, driver, folder / "cases", folder / "results"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), (folder / "results").read_bytes()


@pytest.mark.parametrize("name", [*QUANTISED, *PLAIN])
def test_neon_packs_the_same_bytes_and_multiplies_to_the_same_bits(driver: Path, tmp_path: Path, name: str) -> None:
    native, fmt = NativeLinear(build()), FORMATS[name]
    number, k = ggml_type(fmt), k_of(fmt, awkward=fmt.group_size < 256)
    weights = [
        random_weight(fmt, N, k, extreme=extreme) for extreme in ((False, True) if fmt.is_quantized else (False,))
    ]
    cases = [(number, N, raw, random_activations(rows, k)) for raw in weights for rows in ROWS]
    isas, results = run(driver, tmp_path, cases)
    assert isas == ["base", "neon", "neon-dotprod"], "the emulator's processor has all that was built"
    at = 0
    for number, n, raw, x in cases:
        packed = native.pack("base", number, raw, n, k)
        expected = native.linear("base", number, packed, x, n)
        for isa in isas:
            got_packed = np.frombuffer(results, np.uint8, packed.nbytes, at)
            y = np.frombuffer(results, np.float32, expected.size, at + packed.nbytes).reshape(expected.shape)
            at += packed.nbytes + expected.nbytes
            np.testing.assert_array_equal(got_packed, packed, err_msg=isa)
            if fmt.is_quantized:
                np.testing.assert_array_equal(y.view(np.uint32), expected.view(np.uint32), err_msg=isa)
            else:  # a fused multiply-add rounds once where base rounds twice
                assert_close(fmt, y, raw, x)
    assert at == len(results)
