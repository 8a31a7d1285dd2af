"""What a chip would be asked to run: launches of the lowering functions over tensors without memory, as signatures."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from runtime.dtypes import FORMATS, Span, TensorSpec
from runtime.graph import GraphBuilder, make_region
from runtime_torch import calls, checking
from runtime_torch.calls import Shared, Site, Workspace
from runtime_torch.lowering import LOWER, fusions
from runtime_torch.memory import Allocator, TorchBuffer
from runtime_torch.planes import LAYOUTS
from runtime_torch.repack import repack
from runtime_torch.settings import Settings

META = torch.device("meta")
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.float8_e5m2: "*fp8e5",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
OPTIONS = ("num_warps", "num_stages")


@dataclass(frozen=True)
class Launch:
    """A kernel as it would be built: types of its parameters, constants, what is known to divide by 16, options."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[int, ...]
    options: tuple[tuple[str, int], ...]

    @property
    def name(self) -> str:
        """Kernel and what selects its tiles."""
        shown = (
            "SCALE",
            "LO_BITS",
            "HI_BITS",
            "K",
            "TOKENS",
            "MODE",
            "HEAD_DIM",
            "GROUP",
            "KIND",
            "SPLITS",
            "BM",
            "BN",
            "BU",
            "BK",
            "BQ",
        )
        known = dict(self.constants)
        parts = [f"{n}={known[n]}" for n in shown if n in known]
        return " ".join([self.kernel.__name__, *parts, *(f"{n}={v}" for n, v in self.options)])


def describe(kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any]) -> Launch:
    """As Triton specialises: integers of 1 are constants, pointers and other integers may divide by 16."""
    options = tuple((n, constants.pop(n)) for n in OPTIONS if n in constants)
    names = kernel.arg_names
    fixed = dict(constants)
    types: dict[str, str] = {}
    aligned = []
    for i, (name, value) in enumerate(zip(names, arguments)):
        specialized = not kernel.params[i].do_not_specialize
        if isinstance(value, torch.Tensor):
            types[name] = POINTERS[value.dtype]
            aligned.append(i)
        elif isinstance(value, float):
            types[name] = "fp32"
        elif value == 1 and specialized:
            fixed[name] = 1
        else:
            types[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if specialized and value % 16 == 0:
                aligned.append(i)
    signature = tuple((n, types.get(n, "constexpr")) for n in names)
    return Launch(kernel, signature, tuple(sorted(fixed.items())), tuple(aligned), options)


@contextmanager
def recorded(into: dict[Launch, None]) -> Iterator[None]:
    """Launches that are bound inside are put down instead of bound."""
    # whichever modules bind kernels have the function by name
    ours = [m for n, m in sys.modules.items() if n.startswith("runtime_torch.")]
    modules = [m for m in ours if getattr(m, "launch", None) is calls.launch and m is not calls]

    def record(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> Any:
        assert all(size <= 65535 for size in grid[1:]), f"{kernel.__name__} over {grid}"
        if all(grid):
            into[describe(kernel, arguments, dict(constants))] = None
        return lambda: None

    for module in modules:
        module.launch = record  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in modules:
            module.launch = calls.launch  # type: ignore[attr-defined]


@dataclass
class Shapes:
    """Sizes of a model, as far as kernels see them."""

    hidden: int = 4096
    inner: int = 14336
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    num_experts: int = 0
    top_k: int = 8
    kv: str = "f16"
    block_size: int = 16
    max_len: int = 8192
    window: int = 0
    sinks: bool = False


class Recorder:
    """Lowers single nodes on a device that has no memory."""

    def __init__(self, settings: Settings) -> None:
        allocator = Allocator(META, 1 << 60)
        fault = torch.empty(1, dtype=torch.int64, device=META)
        tables = {name: torch.empty(16, device=META) for name, layout in LAYOUTS.items() if layout.codebook}
        self._allocator = allocator
        self._shared = Shared(settings, META, Workspace(META), fault, tables)

    def lower(self, build: Any, **dims: int) -> None:
        """`build(builder)` makes one node, or some that are fused; their launches go to whoever records them."""
        builder = GraphBuilder("one", {name: Span(1, size) for name, size in dims.items()})
        y = build(builder)
        outputs = list(y) if isinstance(y, tuple) else [y]
        for i, value in enumerate(outputs):
            builder.output(f"y{i}", value)
        graph = builder.build()
        region = make_region("one", list(graph.nodes), graph.dims, outputs, graph.state_aliases())
        checker = checking.Checker(frozenset(graph.inputs.values()), self._shared)
        fused, sites, buffers = fusions(region), {}, {}
        for node in graph.nodes:
            for value in (*node.inputs.values(), *node.outputs):
                if value not in buffers:
                    buffers[value] = self._buffer(value, dims)
            inputs = {port: buffers[value] for port, value in node.inputs.items()}
            made = (inputs["kv"] if "kv" in inputs and v.spec.layout == "kv" else buffers[v] for v in node.outputs)
            sites[node] = Site(node, inputs, tuple(made), dims, self._shared)
            checker.add(sites[node])
        checker.calls()
        absorbed = {node for fusion in fused.values() for node in fusion.nodes[:-1]}
        for node, site in sites.items():
            self._shared.workspace.reset()
            if node in fused:
                fused[node].lower(*(sites[n] for n in fused[node].nodes))
            elif node not in absorbed:
                LOWER[node.op.key](site)

    def _buffer(self, value: Any, dims: dict[str, int]) -> TorchBuffer:
        spec = TensorSpec(value.spec.format, value.spec.resolve(dims), value.spec.layout)
        buffer = self._allocator.allocate(spec.nbytes(), value.name)
        if value.kind != "weight" or spec.format.name not in LAYOUTS:
            return buffer
        rows = prod(spec.shape[:-1])
        return self._allocator.adopt(repack(spec.format.name, buffer.raw, rows, spec.shape[-1]), spec, value.name)


def model_launches(settings: Settings, shapes: Shapes, formats: tuple[str, ...], tokens: tuple[int, ...]) -> Iterator:
    """Launches of one layer in every format, for steps of so many tokens: each a sequence of its own up to 256."""
    found: dict[Launch, None] = {}
    recorder = Recorder(settings)
    s = shapes
    with recorded(found):
        for num_tokens in tokens:
            num_seqs = num_tokens if num_tokens <= 256 else 4
            for fmt in formats:
                for rows, columns in (
                    (s.num_heads * s.head_dim, s.hidden),
                    (s.num_kv_heads * s.head_dim, s.hidden),
                    (s.inner, s.hidden),
                    (s.hidden, s.inner),
                ):
                    recorder.lower(lambda b: _linear(b, fmt, rows, columns), T=num_tokens)  # noqa: B023
                recorder.lower(lambda b: _embed(b, fmt, s.hidden), T=num_tokens)  # noqa: B023
                if s.num_experts:
                    recorder.lower(lambda b: _experts(b, fmt, s), T=num_tokens)  # noqa: B023
            recorder.lower(lambda b: _qkv(b, formats[0], s), T=num_tokens)
            width = s.max_len // s.block_size
            recorder.lower(lambda b: _attention(b, s), T=num_tokens, S=num_seqs, Q=num_seqs + 1, P=width)
            recorder.lower(lambda b: _norm(b, s.hidden), T=num_tokens)
            recorder.lower(lambda b: _glu(b, s.inner), T=num_tokens)
    yield from found


def sampling_launches(settings: Settings) -> Iterator[Launch]:
    """Launches of sampling, for vocabularies of all sizes (GPT-2's does not divide by 16) and batches of few and many."""
    found: dict[Launch, None] = {}
    recorder = Recorder(settings)
    with recorded(found):
        for vocab in (512, 50257, 151936):
            for num_rows in (1, 64):
                recorder.lower(lambda b: _sample(b, vocab), R=num_rows)  # noqa: B023
            recorder.lower(lambda b: _penalize(b, vocab), R=4, H=300, X=5)  # noqa: B023
    yield from found


def _spec(fmt: str, *shape: int, layout: str = "rows") -> TensorSpec:
    return TensorSpec(FORMATS[fmt], shape) if layout == "rows" else TensorSpec(FORMATS[fmt], shape, layout)


def _linear(b: GraphBuilder, fmt: str, rows: int, columns: int) -> Any:
    return b.op("linear", x=b.input("x", "f32", ("T", columns)), weight=b.weight("w", _spec(fmt, rows, columns)))


def _embed(b: GraphBuilder, fmt: str, columns: int) -> Any:
    return b.op("embed", token_ids=b.input("ids", "i32", ("T",)), weight=b.weight("w", _spec(fmt, 128256, columns)))


def _experts(b: GraphBuilder, fmt: str, s: Shapes) -> Any:
    x, logits = b.input("x", "f32", ("T", s.hidden)), b.input("logits", "f32", ("T", s.num_experts))
    attrs = {"top_k": s.top_k, "score": "softmax", "normalize": True}
    ids, shares = b.op("moe_route", logits=logits, attrs=attrs)
    shapes = {"gate": (s.inner, s.hidden), "up": (s.inner, s.hidden), "down": (s.hidden, s.inner)}
    weights = {part: b.weight(part, _spec(fmt, s.num_experts, *shape)) for part, shape in shapes.items()}
    gate, up = (b.op("moe_linear", x=x, expert_ids=ids, weight=weights[part]) for part in ("gate", "up"))
    h = b.op("glu", gate=gate, up=up, attrs={"kind": "silu"})
    last = {"expert_ids": ids, "expert_weights": shares, "attrs": {"per_expert_input": True}}
    return b.op("moe_linear", x=h, weight=weights["down"], **last)


def _norm(b: GraphBuilder, size: int) -> Any:
    x = b.input("x", "f32", ("T", size))
    return b.op("rms_norm", x=x, weight=b.weight("w", _spec("f32", size)), attrs={"eps": 1e-5})


def _glu(b: GraphBuilder, size: int) -> Any:
    gate, up = (b.input(name, "f32", ("T", size)) for name in ("gate", "up"))
    return b.op("glu", gate=gate, up=up, attrs={"kind": "silu"})


def _sample(b: GraphBuilder, vocab: int) -> Any:
    rows = {name: b.input(name, "f32", ("R",)) for name in ("temperature", "top_p", "min_p", "typical_p", "uniform")}
    return b.op("sample", logits=b.input("logits", "f32", ("R", vocab)), top_k=b.input("top_k", "i32", ("R",)), **rows)


def _penalize(b: GraphBuilder, vocab: int) -> Any:
    rows = {name: b.input(name, "f32", ("R",)) for name in ("repetition", "presence", "frequency")}
    ids = {name: b.input(name, "i32", ("R", "H")) for name in ("token_ids", "output_counts")}
    biases = {"bias_ids": b.input("bias_ids", "i32", ("R", "X")), "bias_values": b.input("bias", "f32", ("R", "X"))}
    return b.op("penalize", logits=b.input("logits", "f32", ("R", vocab)), **rows, **ids, **biases)


def _cache(b: GraphBuilder, s: Shapes) -> Any:
    return b.state("cache", _spec(s.kv, 2, 4096, s.block_size, s.num_kv_heads, s.head_dim, layout="kv"))


def _attention(b: GraphBuilder, s: Shapes) -> Any:
    return b.op(
        "attention",
        q=b.input("q", "f32", ("T", s.num_heads * s.head_dim)),
        kv=_cache(b, s),
        block_table=b.input("table", "i32", ("S", "P")),
        query_start_loc=b.input("starts", "i32", ("Q",)),
        seq_lens=b.input("lengths", "i32", ("S",)),
        sinks=b.weight("sinks", _spec("f32", s.num_heads)) if s.sinks else None,
        attrs={
            "num_heads": s.num_heads,
            "num_kv_heads": s.num_kv_heads,
            "head_dim": s.head_dim,
            "window": s.window,
            "scale": s.head_dim**-0.5,
        },
    )


def _qkv(b: GraphBuilder, fmt: str, s: Shapes) -> Any:
    import numpy as np

    heads = {"q": s.num_heads, "k": s.num_kv_heads, "v": s.num_kv_heads}
    weights = {f"{p}_weight": b.weight(p, _spec(fmt, n * s.head_dim, s.hidden)) for p, n in heads.items()}
    return b.op(
        "qkv_rope_write",
        x=b.input("x", "f32", ("T", s.hidden)),
        positions=b.input("positions", "i32", ("T",)),
        slot_mapping=b.input("slots", "i32", ("T",)),
        inv_freq=b.constant("inv_freq", np.ones(s.head_dim // 2)),
        kv=_cache(b, s),
        attrs={"head_dim": s.head_dim},
        **weights,
    )
