"""L2 programs: whole steps of a small decoder on the device, through the executor, as an engine would run them.

Each program runs the same sequence in two ways whose answers must be the same: preempted and resumed, beside a step
that is then forgotten, replayed, shared instead of copied. The logits of the plain way go to another process, which
compares them with those of the reference device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.backend import Device, Numerics
from runtime.dtypes import FORMATS, Span, TensorSpec, encode
from runtime.executor import Executor, make_plan
from runtime.graph import Graph, GraphBuilder
from runtime_conformance.data import Stream
from runtime_conformance.device.units import unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDTH, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB, LAYERS = 256, 4, 2, 64, 512, 320, 2
NUM_PLACES = 4
"""Sequences that the cache has room for."""
_MAX_TOKENS = 40
PROMPT = _PROMPT_A = tuple((i * 7 + 3) % VOCAB for i in range(21))
_PROMPT_B = tuple((i * 11 + 5) % VOCAB for i in range(34))


def make_graph(kv_format: str, block_size: int, weight_format: str) -> Graph:
    """One step of a decoder of two layers."""
    import numpy as np

    b = GraphBuilder("serve", {n: Span(1, 64) for n in ("T", "S", "Q", "P", "R")} | {"B": Span(1, 1024)})

    def weight(name: str, *shape: int, fmt: str = "f32") -> Any:
        return b.weight(name, TensorSpec(FORMATS[fmt], shape))

    integers = {n: b.input(n, "i32", (d,)) for n, d in (("token_ids", "T"), ("positions", "T"), ("slot_mapping", "T"))}
    batch = {
        "block_table": b.input("block_table", "i32", ("S", "P")),
        "query_start_loc": b.input("query_start_loc", "i32", ("Q",)),
        "seq_lens": b.input("seq_lens", "i32", ("S",)),
    }
    rows = b.input("logits_rows", "i32", ("R",))
    inv_freq = b.constant("inv_freq", (10000.0 ** (-np.arange(HEAD_DIM // 2) * 2 / HEAD_DIM)).astype(np.float32))
    x = b.op("embed", token_ids=integers["token_ids"], weight=weight("embed", VOCAB, WIDTH, fmt=weight_format))
    shapes = {"q": (HEADS * HEAD_DIM, WIDTH), "k": (KV_HEADS * HEAD_DIM, WIDTH), "v": (KV_HEADS * HEAD_DIM, WIDTH)}
    shapes |= {"o": (WIDTH, HEADS * HEAD_DIM), "gate": (FFN, WIDTH), "up": (FFN, WIDTH), "down": (WIDTH, FFN)}
    attrs = {"eps": 1e-5, "head_dim": HEAD_DIM, "num_heads": HEADS, "num_kv_heads": KV_HEADS}
    for i in range(LAYERS):
        kv = b.state(f"kv.{i}", TensorSpec(FORMATS[kv_format], (2, "B", block_size, KV_HEADS, HEAD_DIM), "kv"))
        weights = {f"{n}_weight": weight(f"layers.{i}.{n}", *s, fmt=weight_format) for n, s in shapes.items()}
        norms = {n: weight(f"layers.{i}.{n}", WIDTH) for n in ("attn_norm", "ffn_norm")}
        places = {"positions": integers["positions"], "slot_mapping": integers["slot_mapping"], "inv_freq": inv_freq}
        x, _ = b.op(
            "decoder_layer",
            name=f"layers.{i}",
            x=x,
            kv=kv,
            **weights,
            **norms,
            **places,
            **batch,
            attrs=attrs | {"scale": HEAD_DIM**-0.5, "kind": "silu"},
        )
    x = b.op("rms_norm", x=b.op("gather_rows", x=x, rows=rows), weight=weight("norm", WIDTH), attrs={"eps": 1e-5})
    b.output("logits", b.op("linear", x=x, weight=weight("lm_head", VOCAB, WIDTH, fmt=weight_format)))
    return b.build()


def weights_of(seed: int) -> Callable[[str, TensorSpec], Any]:
    """Name and spec -> stored bytes, the same on every machine."""
    import numpy as np

    def load(name: str, spec: TensorSpec) -> Any:
        shape = spec.resolve({})
        values = Stream(seed, "serve", name).bell(shape) * 0.06
        if len(shape) == 1:
            values = values + 1.0
        return np.frombuffer(encode(spec.format, values.astype(np.float32)), np.uint8)

    return load


@dataclass
class Served:
    """A sequence: its tokens so far, how many are in the cache, and its blocks."""

    tokens: list[int]
    blocks: list[int]
    num_computed: int = 0


class Engine:
    """The smallest engine: runs steps of chosen sequences."""

    def __init__(self, device: Device, name: str, seed: int, block_size: int | None = None) -> None:
        manifest = device.manifest
        layout = manifest.kv_layouts[0] if manifest.kv_layouts else None
        self.block_size = block_size or (layout.block_sizes[0] if layout else 16)
        self.num_blocks = -(-_MAX_TOKENS // self.block_size)
        graph = make_graph(layout.formats[0] if layout else "f16", self.block_size, "f32")
        self.plan = make_plan(graph, {name: manifest})
        load = weights_of(seed)
        specs = {n: v.spec for n, v in graph.weights.items()}
        sizes = {"B": 1 + NUM_PLACES * self.num_blocks}
        self.executor = Executor(self.plan, {name: device}, lambda n: (specs[n], load(n, specs[n])), sizes)

    def step(self, *work: tuple[Served, int], all_rows: bool = False) -> NDArray[Any]:
        """Compute the next `n` tokens of each (sequence, n) in one ragged step; logits of the last ones, or of all."""
        import numpy as np

        tokens, positions, slots, starts, lengths = [], [], [], [0], []
        for sequence, n in work:
            end = sequence.num_computed + n
            for position in range(sequence.num_computed, end):
                tokens.append(sequence.tokens[position])
                positions.append(position)
                block = sequence.blocks[position // self.block_size]
                slots.append(block * self.block_size + position % self.block_size)
            sequence.num_computed = end
            starts.append(len(tokens))
            lengths.append(end)
        width = max(-(-n // self.block_size) for n in lengths)
        table = [(s.blocks + [0] * width)[:width] for s, _ in work]
        inputs = {
            "token_ids": tokens,
            "positions": positions,
            "slot_mapping": slots,
            "block_table": table,
            "query_start_loc": starts,
            "seq_lens": lengths,
            "logits_rows": list(range(len(tokens))) if all_rows else [s - 1 for s in starts[1:]],
        }
        num_logits = len(tokens) if all_rows else len(work)
        dims = {"T": len(tokens), "S": len(work), "Q": len(starts), "P": width, "R": num_logits}
        arrays = {n: np.array(v, np.int32) for n, v in inputs.items()}
        logits: NDArray[Any] = self.executor.run(arrays, dims)["logits"]
        return logits

    def fresh(self, prompt: Sequence[int], place: int) -> Served:
        """A sequence with blocks of its own; block 0 belongs to nobody."""
        first = 1 + place * self.num_blocks
        return Served(list(prompt), list(range(first, first + self.num_blocks)))

    def finish(self, sequence: Served, count: int) -> list[NDArray[Any]]:
        """Compute what is left of the tokens, then `count` more; logits of every step."""
        left = len(sequence.tokens) - sequence.num_computed
        made = [self.step((sequence, left))] if left else []
        for _ in range(count):
            sequence.tokens.append(_next_token(sequence))
            made.append(self.step((sequence, 1)))
        return made


def _next_token(sequence: Served) -> int:
    """Given, not drawn: a near tie between two logits must not decide over all that follows."""
    return (sequence.tokens[-1] * 13 + 1) % VOCAB


def _straight(engine: Engine) -> list[NDArray[Any]]:
    return engine.finish(engine.fresh(_PROMPT_A, 0), 3)


def _preempted(engine: Engine) -> list[NDArray[Any]]:
    """A is computed, loses its blocks to B, and is computed again elsewhere."""
    a = engine.fresh(_PROMPT_A, 0)
    engine.step((a, len(_PROMPT_A)))
    engine.finish(engine.fresh(_PROMPT_B, 0), 2)
    return engine.finish(engine.fresh(_PROMPT_A, 2), 3)


def _beside_cancelled(engine: Engine) -> list[NDArray[Any]]:
    """B takes steps between those of A, is cancelled, and never comes back."""
    a, b = engine.fresh(_PROMPT_A, 0), engine.fresh(_PROMPT_B, 3)
    engine.step((b, 17))
    made = engine.finish(a, 1)
    engine.step((b, 9))
    for _ in range(2):
        a.tokens.append(_next_token(a))
        made.append(engine.step((a, 1)))
    return made


def _reused(engine: Engine) -> list[NDArray[Any]]:
    """The blocks held a longer sequence before: what lies past the end of A is stale."""
    engine.finish(engine.fresh(_PROMPT_B, 0), 2)
    return _straight(engine)


def _replayed(engine: Engine) -> list[NDArray[Any]]:
    """Every step is submitted twice."""
    a = engine.fresh(_PROMPT_A, 0)
    made = []
    count = len(_PROMPT_A)
    for _ in range(4):
        engine.step((a, count))
        a.num_computed -= count
        made.append(engine.step((a, count)))
        a.tokens.append(_next_token(a))
        count = 1
    return made


def _chunked(engine: Engine) -> list[NDArray[Any]]:
    a = engine.fresh(_PROMPT_A, 0)
    engine.step((a, 5))
    engine.step((a, 11))
    return engine.finish(a, 3)


def _batched(engine: Engine) -> list[NDArray[Any]]:
    """A in one batch with B all the way: prompts mixed with answers."""
    a, b = engine.fresh(_PROMPT_A, 0), engine.fresh(_PROMPT_B, 2)
    engine.step((b, 20))
    made = [engine.step((b, 14), (a, len(_PROMPT_A)))[1:]]
    for _ in range(3):
        a.tokens.append(_next_token(a))
        b.tokens.append(1)
        made.append(engine.step((a, 1), (b, 1))[:1])
    return made


def _drafted(engine: Engine) -> list[Any]:
    """Drafted tokens are computed with the certain ones; the rejected leave the cache to their successors."""
    a = engine.fresh(_PROMPT_A, 0)
    made = [engine.step((a, len(_PROMPT_A)))]
    for num_right, num_wrong in ((0, 2), (1, 1)):
        for _ in range(1 + num_right):
            a.tokens.append(_next_token(a))
        a.tokens += [(a.tokens[-1] + 7 + i) % VOCAB for i in range(num_wrong)]
        logits = engine.step((a, 1 + num_right + num_wrong), all_rows=True)
        made.append(logits[: 1 + num_right])
        a.num_computed -= num_wrong
        del a.tokens[a.num_computed :]
    return made


PROGRAMS: dict[str, tuple[Callable[[Engine], list[Any]], bool]] = {
    "straight": (_straight, True),
    "preempted_and_resumed": (_preempted, True),
    "beside_a_cancelled_sequence": (_beside_cancelled, True),
    "in_blocks_of_another": (_reused, True),
    "every_step_twice": (_replayed, True),
    "prompt_in_chunks": (_chunked, False),
    "in_a_batch": (_batched, False),
    "rejected_drafts_leave_no_trace": (_drafted, False),
}
"""Name -> program, and whether its logits must be the bits of `straight` (the others may round differently)."""


def _run(program: Callable[[Engine], list[Any]], device: Device, backend: str, seed: int) -> list[Any]:
    engine = Engine(device, backend, seed)
    try:
        return program(engine)
    finally:
        engine.executor.close()


def run_program(device: Device, name: str, backend: str, seed: int) -> tuple[dict[str, Any], list[Any]]:
    """Run a program; its logits, and whether they differ from `straight` where they must not."""
    import numpy as np

    program, must_equal = PROGRAMS[name]
    logits = _run(program, device, backend, seed)
    failure = ""
    rules = device.manifest.rules
    is_fixed = all(r.numerics.order == "fixed" or "deterministic" in r.flags for r in rules)
    if must_equal and is_fixed and name != "straight":
        plain = _run(_straight, device, backend, seed)
        if not all(np.array_equal(a, b) for a, b in zip(logits, plain)):
            failure = "the logits differ from those of the same sequence straight through"
    stacked = np.concatenate(logits).astype(np.float32)
    return {"failure": failure, "shape": list(stacked.shape)}, [stacked.reshape(-1).view(np.uint8)]


def judge_logits(
    logits: NDArray[Any], numerics: Sequence[Numerics], seed: int, kv_format: str, first: int = 0
) -> list[str]:
    """Compare with the reference device, straight through from row `first`: relative error within declared formats."""
    import numpy as np

    from runtime.backend import ReferenceDevice

    wanted = np.concatenate(_run(_straight, ReferenceDevice(), "host", seed))[first:]
    error = float(np.linalg.norm(logits - wanted) / np.linalg.norm(wanted))
    coarsest = max(unit(f) for f in (kv_format, *(f for n in numerics for f in (n.activation, n.accumulate, n.output))))
    limit = 24 * coarsest * LAYERS
    if not np.isfinite(logits).all():
        return ["logits hold NaN or infinity"]
    return [] if error <= limit else [f"logits are off by {error:.2g} of their norm (limit {limit:.2g})"]
