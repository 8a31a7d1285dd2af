"""How many kernels a decode step launches: each costs a microsecond, whatever it computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from runtime.backend import DeviceConfig
from runtime_conformance.device import serving

pytestmark = [pytest.mark.oracle, pytest.mark.timeout(300)]

PRODUCTS = {"mm", "addmm", "copy_", "linear_few", "linear_many", "sum_splits"}


@contextmanager
def launched() -> Iterator[list[str]]:
    """Names of kernels and of torch's operations that write, as they are submitted inside."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from triton.runtime import interpreter

    names: list[str] = []
    run = interpreter.GridExecutor.__call__

    class Listening(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func._schema.is_mutable:
                names.append(func._schema.name.removeprefix("aten::"))
            return func(*args, **(kwargs or {}))

    def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        names.append(self.fn.__name__)
        quiet = len(names)
        result = run(self, *args, **kwargs)
        del names[quiet:]  # what the interpreter does with tensors is not asked for here
        return result

    interpreter.GridExecutor.__call__ = launch
    try:
        with Listening():
            yield names
    finally:
        interpreter.GridExecutor.__call__ = run


def launches_of_a_decode_step(num_layers: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of three sequences, one token each, in a step that is already made."""
    import runtime_torch_cpu

    from runtime_torch.capture import Program

    monkeypatch.setattr(serving, "LAYERS", num_layers)
    device = runtime_torch_cpu.captured.runtime_open(runtime_torch_cpu.INFO, DeviceConfig())
    engine = serving.Engine(device, "bench", 7, 16)
    sequences = [engine.fresh(range(3, 20), place) for place in range(3)]
    for length in (3, 1):
        engine.step(*((sequence, length) for sequence in sequences))
    names: list[str] = []
    run = Program.run

    def listen(program: Any) -> None:
        with launched() as heard:
            run(program)
        names.extend(heard)

    with monkeypatch.context() as patched:
        patched.setattr("runtime_torch.capture.CapturedProgram.run", listen)
        engine.step(*((sequence, 1) for sequence in sequences))
    engine.executor.close()
    device.close()
    return names


def test_a_layer_launches_its_products_and_five_kernels_more(monkeypatch: pytest.MonkeyPatch):
    one, two = (launches_of_a_decode_step(n, monkeypatch) for n in (1, 2))
    layer = two[: len(two) - len(one)]
    assert [name for name in one if name not in PRODUCTS] == [
        *("unpack", "check", "embed_blocks"),
        *("rms_norm", "qkv_rope_write", "attention_tiles", "rms_norm", "glu"),
        *("add", "gather_rows", "rms_norm"),
    ]
    assert len([name for name in two if name not in PRODUCTS]) - len([n for n in one if n not in PRODUCTS]) == 5
    assert len(layer) <= 12


@pytest.mark.parametrize("num_tokens", [1, 64, 256, 4096])
def test_attention_is_one_launch_on_a_chip_whatever_the_batch(num_tokens: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import launches

    from runtime_cuda.plugin import settings_of
    from runtime_torch.facts import Chip, Facts

    chip = Chip("H200", 141 << 30, (9, 0), compute_units=132)
    settings = settings_of(Facts(torch="2.13.0", chips=(chip,)), 0)
    found: dict[Any, None] = {}
    monkeypatch.setattr(launches, "describe", lambda kernel, arguments, constants: kernel.fn.__name__)
    recorder, num_seqs = launches.Recorder(settings), min(num_tokens, 256)
    with launches.recorded(found):
        recorder.lower(
            lambda b: launches._attention(b, launches.Shapes()), T=num_tokens, S=num_seqs, Q=num_seqs + 1, P=512
        )
    assert list(found) == ["check", "attention_tiles"]
