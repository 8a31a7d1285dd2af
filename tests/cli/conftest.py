"""A tiny model, a backend that computes by reference, broken plugins, and the command in this process or another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import pytest

from runtime.cli import main

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from plugin_sources import plugin_source

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("RUNTIME_SHARED", ROOT.parent / "shared"))
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]

PLUGINS = {
    "tiny": plugin_source("tiny"),
    "absent": plugin_source("absent", before='raise PluginRejected("no chip on the bus", remedy="plug one in")'),
    "broken": "import libacme_that_is_missing",
    "misspelt": plugin_source("misspelt", probe="runtime_prob"),
    "crashing": plugin_source("crashing", before="import os; os.abort()"),
}
"""One that works (and wins under `auto`), and one for each way to fail."""


class Result(NamedTuple):
    """What the command did."""

    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with installed plugins: a working one, and one for each way to fail."""
    folder = tmp_path_factory.mktemp("site")
    for name, source in PLUGINS.items():
        (folder / f"{name}_rt.py").write_text(source)
        info = folder / f"{name}_rt-2.3.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-rt\nVersion: 2.3\n")
        (info / "RECORD").write_text(f"{name}_rt.py,,\n")
        (info / "entry_points.txt").write_text(f"[runtime.backends.v1]\n{name} = {name}_rt:plugin\n")
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of probes, shared by all tests of the session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def plugins(site: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the plugins visible to this process."""
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("RUNTIME_CACHE_DIR", str(cache))


@pytest.fixture
def environment(site: Path, cache: Path) -> dict[str, str]:
    """The environment of a process that sees the plugins."""
    path = [str(site), str(ROOT / "core"), str(ROOT / "backends/cpu"), os.environ.get("PYTHONPATH", "")]
    return {
        **{k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")},
        "PYTHONPATH": os.pathsep.join(p for p in path if p),
        "XDG_CACHE_HOME": str(cache),
        "RUNTIME_CACHE_DIR": str(cache),
        "TERM": "xterm-256color",
    }


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """`command("inspect", path)` runs the verb in this process."""

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as left:  # argparse
            code = left.code if isinstance(left.code, int) else 1
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def process(environment: dict[str, str]) -> Callable[..., Result]:
    """`process("run", ..., stdin="...")` runs the command as a process with pipes."""

    def call(*arguments: object, stdin: str = "") -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "runtime", *map(str, arguments)],
            input=stdin,
            capture_output=True,
            text=True,
            env=environment,
            timeout=60,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama with random weights over the vocabulary of bytes, with a chat template."""
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_tiny(path)
    return path


def byte_characters() -> list[str]:
    """The alphabet of byte-level BPE: printable bytes are themselves, the others follow from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def write_tiny(path: Path, *, architecture: str = "llama", nan_in: str | None = None, context: int = 128) -> None:
    """Write the model; `nan_in` puts a NaN into the tensor of that name."""
    tokens = [*byte_characters(), *SPECIAL, "th"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("Tiny Random")
    writer.add_license("apache-2.0")
    writer.add_context_length(context)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3] * len(SPECIAL) + [1])
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_add_bos_token(True)
    writer.add_chat_template(TEMPLATE)
    rng = np.random.default_rng(7)
    for name, shape in tensor_shapes(len(tokens)).items():
        weight = np.ones(shape) if name.endswith("norm.weight") else rng.normal(0, 0.3, shape)
        weight = weight.astype(np.float32)
        if name == nan_in:
            weight.flat[3] = np.nan
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensor_shapes(vocab_size: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab_size, 32), "output_norm.weight": (32,)}
    shapes["output.weight"] = (vocab_size, 32)
    for i in range(2):
        shapes |= {
            f"blk.{i}.attn_norm.weight": (32,),
            f"blk.{i}.attn_q.weight": (32, 32),
            f"blk.{i}.attn_k.weight": (16, 32),
            f"blk.{i}.attn_v.weight": (16, 32),
            f"blk.{i}.attn_output.weight": (32, 32),
            f"blk.{i}.ffn_norm.weight": (32,),
            f"blk.{i}.ffn_gate.weight": (64, 32),
            f"blk.{i}.ffn_up.weight": (64, 32),
            f"blk.{i}.ffn_down.weight": (32, 64),
        }
    return shapes


@pytest.fixture(scope="session")
def write_model() -> Callable[..., None]:
    """`write_model(path, architecture=..., nan_in=..., context=...)` writes a tiny model of another kind."""
    return write_tiny


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data, which may be absent."""
    return SHARED


@pytest.fixture(scope="session")
def hf_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a Hugging Face directory."""
    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp("hf")
    save_file(hf_tensors(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(HF_CONFIG))
    (folder / "tokenizer.json").write_text(json.dumps(HF_TOKENIZER))
    return folder


HF_CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 0,
    "tie_word_embeddings": True,
}
HF_TOKENIZER = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "model": {"type": "BPE", "vocab": {c: i for i, c in enumerate(byte_characters())}, "merges": []},
}


def hf_tensors() -> dict[str, Any]:
    rng = np.random.default_rng(7)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (256, 32), "model.norm.weight": (32,)}
    for i in range(2):
        shapes |= {
            f"model.layers.{i}.input_layernorm.weight": (32,),
            f"model.layers.{i}.post_attention_layernorm.weight": (32,),
            f"model.layers.{i}.self_attn.q_proj.weight": (32, 32),
            f"model.layers.{i}.self_attn.k_proj.weight": (16, 32),
            f"model.layers.{i}.self_attn.v_proj.weight": (16, 32),
            f"model.layers.{i}.self_attn.o_proj.weight": (32, 32),
            f"model.layers.{i}.mlp.gate_proj.weight": (64, 32),
            f"model.layers.{i}.mlp.up_proj.weight": (64, 32),
            f"model.layers.{i}.mlp.down_proj.weight": (32, 64),
        }
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
