"""What the three backends say about environments that they cannot run in, and how they set up chips; with faked facts."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.backend import PluginRejected
from runtime_torch.facts import Chip, Facts, built_for, gather_facts, read_version_file
from runtime_torch.manifest import make_manifest
from runtime_torch.plugin import TorchBackend

cuda, rocm, xpu = (importlib.import_module(f"runtime_{name}.plugin") for name in ("cuda", "rocm", "xpu"))
"""The modules; each package's attribute of that name is the backend."""

GB = 1 << 30
H100 = Chip("NVIDIA H100", 80 * GB, (9, 0), compute_units=132)
MI300 = Chip("AMD Instinct MI300X", 192 * GB, architecture="gfx942", compute_units=304)
PVC = Chip("Intel Data Center GPU Max", 64 * GB, architecture="pvc", compute_units=128)
CUDA = Facts(torch="2.13.0+cu130", built_for="cuda 13.0", triton="3.9.0", driver="580.65.06", chips=(H100,))
ROCM = Facts(torch="2.9.1+rocm6.4", built_for="rocm 6.4.43484", triton="3.5.1", driver="6.12.12", chips=(MI300,))
XPU = Facts(torch="2.13.0+xpu", built_for="xpu", triton="3.7.0", driver="1.6.33", chips=(PVC,))


def without_chips(facts: Facts, problem: str = "", driver: str = "") -> Facts:
    return Facts(facts.torch, "", facts.built_for, facts.triton, "", driver, problem)


@pytest.fixture(autouse=True)
def nothing_is_hidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name in ("ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "kfd").touch()
    (tmp_path / "renderD128").touch()
    monkeypatch.setattr(rocm, "KFD", tmp_path / "kfd")
    monkeypatch.setattr(rocm, "DRI", tmp_path)
    monkeypatch.setattr(xpu, "DRI", tmp_path)


@pytest.mark.parametrize(("module", "facts"), [(cuda, CUDA), (rocm, ROCM), (xpu, XPU)])
def test_a_complete_environment_is_not_refused(module, facts: Facts):
    assert module.refusal(facts) is None
    settings = module.settings_of(facts, 0)
    assert settings.precision == "half"
    assert settings.capture
    assert make_manifest(settings).backend == module.NAME


@pytest.mark.parametrize(
    ("module", "facts", "reason"),
    [
        (cuda, Facts(), "torch is not installed"),
        (rocm, Facts(), "torch is not installed"),
        (xpu, Facts(), "torch is not installed"),
        (cuda, Facts(broken="libcudart.so.13: cannot open shared object file"), "torch cannot be loaded: libcudart"),
        (cuda, Facts(torch="2.6.0+cu124", built_for="cuda 12.4"), "torch 2.6.0+cu124 is too old; 2.8 or newer is"),
        (cuda, Facts(torch="2.13.0+cpu"), "torch 2.13.0+cpu is a build for processors alone"),
        (rocm, Facts(torch="2.13.0+cpu"), "torch 2.13.0+cpu is a build for processors alone"),
        (xpu, Facts(torch="2.13.0+cpu"), "torch 2.13.0+cpu has no XPU support"),
        (xpu, CUDA, "torch 2.13.0+cu130 has no XPU support"),
        (cuda, ROCM, "torch 2.9.1+rocm6.4 is built for rocm 6.4.43484, not for cuda"),
        (rocm, CUDA, "torch 2.13.0+cu130 is built for cuda 13.0, not for rocm"),
        (cuda, Facts("2.13.0+cu130", "", "cuda 13.0"), "triton is not installed beside torch 2.13.0+cu130"),
        (xpu, Facts(broken="libze_loader.so.1: cannot open shared object file"), "torch cannot be loaded: libze_loader"),
        (cuda, without_chips(CUDA, "Found no NVIDIA driver on your system."), "no NVIDIA driver is loaded"),
        (cuda, without_chips(CUDA, "Found no NVIDIA driver on your system.", "580.65.06"),
         "NVIDIA driver 580.65.06 is loaded, but its libraries are not here"),
        (cuda, without_chips(CUDA, "Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized"),
         "Unexpected error from cudaGetDeviceCount(). Error 802"),
        (cuda, without_chips(CUDA, "The NVIDIA driver on your system is too old (found version 12020).", "535.1"),
         "NVIDIA driver 535.1 is too old for torch's cuda 13.0"),
        (cuda, without_chips(CUDA, "No CUDA GPUs are available", "580.65.06"), "No CUDA GPUs are available"),
        (rocm, without_chips(ROCM, "No HIP GPUs are available", "6.12.12"), "No HIP GPUs are available"),
        (xpu, without_chips(XPU, "No XPU devices are available."), "no Intel GPU answers (Level Zero)"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_line_with_its_reason(module, facts: Facts, reason: str):
    refused = module.refusal(facts)
    assert refused is not None
    assert refused[0].startswith(reason)
    assert "\n" not in refused[0] + refused[1]


@pytest.mark.parametrize(
    ("module", "facts", "remedy"),
    [
        (cuda, Facts(), "pip install torch --index-url https://download.pytorch.org/whl/cu130"),
        # pip does not exchange a torch that satisfies what was asked for
        (cuda, Facts(torch="2.13.0+cpu"), "pip install --force-reinstall torch --index-url "),
        (xpu, Facts(torch="2.13.0+cpu"), "pip install --force-reinstall torch --index-url "),
        (xpu, Facts(broken="libze_loader.so.1: cannot open shared object file"), "install Level Zero (libze1 and "),
        (cuda, Facts(broken="libcudart.so.13: cannot open"), "reinstall it: pip install --force-reinstall torch"),
        (cuda, without_chips(CUDA, "Error 802: system not yet initialized"), "start nvidia-fabricmanager"),
        (cuda, without_chips(CUDA, "Error 804: forward compatibility was attempted"), "take CUDA's compatibility"),
    ],
)
def test_a_remedy_is_for_the_reason(module, facts: Facts, remedy: str):
    assert module.refusal(facts)[1].startswith(remedy)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("Failed to find C compiler. Please specify via CC environment variable", "install a C compiler (gcc)"),
        ("Command '['/usr/bin/gcc', '/tmp/x/main.c']' returned non-zero exit status 1.", "install the headers of this"),
        ("CUDA error: no kernel image is available for execution on the device", "install a torch that is built for"),
        ("CUDA error: invalid argument", "install a newer driver"),
    ],
)
def test_a_first_kernel_that_fails_is_not_always_the_drivers_fault(said: str, remedy: str):
    from runtime.backend import ExecutionFailed, OutOfMemory
    from runtime_torch.probe import remedy_for

    assert remedy_for(ExecutionFailed(f"the first kernel failed on the device: {said}")).startswith(remedy)
    assert remedy_for(OutOfMemory("the first kernel does not fit")).startswith("free some of the device's memory")


@pytest.mark.parametrize(
    ("torch", "set_by_user", "name"),
    [
        ("2.8.0+cu128", "", "PYTORCH_CUDA_ALLOC_CONF"),
        ("2.11.0+cu130", "", "PYTORCH_ALLOC_CONF"),
        ("2.11.0+cu130", "PYTORCH_CUDA_ALLOC_CONF", ""),
    ],
)
def test_the_allocator_is_set_by_the_variable_that_this_torch_heeds(
    monkeypatch: pytest.MonkeyPatch, torch: str, set_by_user: str, name: str
):
    monkeypatch.setattr(cuda, "installed_version", lambda distribution: torch)
    monkeypatch.setattr(cuda.os, "environ", {set_by_user: "max_split_size_mb:512"} if set_by_user else {})
    cuda.prepare()
    made = {n: v for n, v in cuda.os.environ.items() if v == "expandable_segments:True"}
    assert list(made) == ([name] if name else [])


def test_variables_and_files_that_hide_devices_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    hidden = cuda.refusal(without_chips(CUDA, "No CUDA GPUs are available", "580.65.06"))
    assert hidden == ("no NVIDIA GPU is visible: CUDA_VISIBLE_DEVICES=''", "unset it, or name a GPU that is there")
    # an image of CUDA sets this one for whoever starts the container: it hides nothing
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "all")
    assert cuda.refusal(without_chips(CUDA, "No CUDA GPUs are available", "580.65.06")) == (
        "No CUDA GPUs are available",
        "look at nvidia-smi",
    )
    monkeypatch.setattr(rocm, "DRI", tmp_path / "absent")
    assert rocm.refusal(without_chips(ROCM))[0].endswith("absent may be opened by this user")
    monkeypatch.setattr(rocm, "KFD", tmp_path / "absent")
    assert rocm.refusal(without_chips(ROCM))[0] == "no AMD compute driver: /dev/kfd is absent"
    monkeypatch.setattr(xpu, "DRI", tmp_path / "absent")
    assert xpu.refusal(without_chips(XPU))[0] == "no graphics driver: /dev/dri has no render node"


@pytest.mark.parametrize(
    ("capability", "precision", "fp8"),
    [((7, 5), "f32", False), ((8, 0), "half", False), ((8, 9), "half", True), ((12, 0), "half", True)],
)
def test_an_nvidia_chip_is_set_up_by_its_compute_capability(capability: tuple[int, int], precision: str, fp8: bool):
    settings = cuda.settings_of(Facts(chips=(Chip("GPU", GB, capability, compute_units=40),)), 0)
    assert (settings.precision, settings.fp8, settings.tiles.programs) == (precision, fp8, 160)


def test_chips_without_what_the_kernels_need_are_rejected():
    with pytest.raises(PluginRejected, match=r"compute capability 7\.0; 7\.5 or newer is needed"):
        cuda.settings_of(Facts(chips=(Chip("V100", GB, (7, 0)),)), 0)
    with pytest.raises(PluginRejected, match="is gfx1030; CDNA"):
        rocm.settings_of(Facts(chips=(Chip("RX 6800", GB, architecture="gfx1030"),)), 0)
    with pytest.raises(PluginRejected, match="are needed"):
        xpu.settings_of(Facts(torch="2.13.0", chips=(Chip("UHD", GB),)), 0)


def test_graphs_are_captured_on_xpu_where_torch_has_them():
    assert xpu.settings_of(XPU, 0).capture
    assert not xpu.settings_of(Facts(torch="2.9.0+xpu", chips=(PVC,)), 0).capture


@pytest.mark.parametrize(("ipex", "used"), [("", False), ("2.8.10+xpu", True), ("2.7.0", False)])
def test_the_extension_is_used_only_with_the_torch_that_it_was_built_for(ipex: str, used: bool):
    assert xpu.extension_matches(Facts(torch="2.8.0+xpu", ipex=ipex)) is used


@pytest.mark.parametrize(
    ("lines", "made_for"),
    [
        ("__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", "cuda 13.0"),
        ("__version__ = '2.9.1+rocm6.4'\ncuda: Optional[str] = None\nhip: Optional[str] = '6.4.4'\n", "rocm 6.4.4"),
        ("__version__ = '2.13.0+xpu'\nxpu: Optional[str] = '20250302'\n", "xpu"),
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n", ""),
    ],
)
def test_what_torch_is_built_for_is_read_without_importing_it(tmp_path: Path, lines: str, made_for: str):
    (tmp_path / "version.py").write_text("from typing import Optional\n" + lines)
    assert built_for(read_version_file(tmp_path / "version.py")) == made_for


def test_a_manifest_needs_no_chip_and_states_the_numerics_of_tensor_cores():
    manifest = cuda.plugin.runtime_manifest()
    facts = {"x.format": "f32", "weight.format": "q4_k", "K": 4096, "has.bias": False}
    assert manifest.match("linear@1", facts).rule.numerics.activation == "f16"
    facts = {"q.format": "f32", "kv.format": "f16", "head_dim": 128}
    assert manifest.match("attention@1", facts).rule.numerics.probability == "f16"
    assert manifest.match("attention@1", facts | {"head_dim": 512}).coverage == "none"


def test_importing_the_backends_loads_neither_torch_nor_numpy():
    program = (
        "import sys; import runtime_cuda, runtime_rocm, runtime_xpu; "
        "runtime_cuda.plugin.runtime_backend_info(); runtime_xpu.plugin.runtime_manifest(); "
        "print([m for m in ('torch', 'triton', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_gone_or_exchanged_devices_are_named_when_opened(monkeypatch: pytest.MonkeyPatch):
    from runtime.backend import DeviceConfig, DeviceInfo

    monkeypatch.setattr("runtime_torch.plugin.gather_facts", lambda *args: CUDA)
    backend: TorchBackend = cuda.plugin
    with pytest.raises(PluginRejected, match=r"cuda device 3 \(NVIDIA H100\) is gone; 1 are present"):
        backend.runtime_open(DeviceInfo(3, "NVIDIA H100", GB, 1.0), DeviceConfig())
    with pytest.raises(PluginRejected, match="cuda device 0 is NVIDIA H100 now; the probe found NVIDIA A100 there"):
        backend.runtime_open(DeviceInfo(0, "NVIDIA A100", GB, 1.0), DeviceConfig())


def test_this_environment_is_refused_in_one_line_or_has_a_chip():
    for module, device_type in ((cuda, "cuda"), (rocm, "cuda"), (xpu, "xpu")):
        facts = gather_facts(device_type, module.NAME)
        refused = module.refusal(facts)
        assert bool(facts.chips) == (refused is None)
