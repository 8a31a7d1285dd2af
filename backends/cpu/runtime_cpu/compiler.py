"""From a region to a program: one operation per node, then what can be done together is done together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from runtime.backend import Buffer, Node, Region, Unsupported, Value
from runtime_cpu.buffers import GGML_TYPES, NativeCache, NativeWeight
from runtime_cpu.native import Library
from runtime_cpu.program import Area, Binding, Layout, Place, Pointer, Step, assemble

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "sigmoid", "tanh", "quick_gelu", "swiglu_oai")
"""In the order of `enum Nonlinearity`."""
SCORES = ("softmax", "sigmoid", "softmax_selected")
MAX_JOINED = 8
"""Linears that share one loop, at most: `kMaxJoined`."""


class Compiler:
    """Compiles one region. What a linear's result is only added to becomes its residual; linears that read the same
    rows share their preparation and their loop; angles of a step are computed once for all layers."""

    def __init__(self, library: Library, device: int, region: Region, resident: Mapping[str, Buffer]) -> None:
        self._library = library
        self._device = device
        self._region = region
        self._resident = resident
        self._sizes = {name: span.hi for name, span in region.dims.items()}
        self._sizes.setdefault("B", 0)
        self._bound = {v.name for v in (*region.inputs, *region.outputs)}
        self._steps: list[Step] = []
        self._prepared: dict[tuple[str, int], Area] = {}
        self._tables: dict[tuple[Any, ...], Area] = {}
        self._experts: tuple[Any, ...] = ()
        self._residuals, self._absorbed = _residuals(region)
        self._readers: dict[Value, list[Node]] = {}
        for node in region.nodes:
            if "x" in node.inputs:
                self._readers.setdefault(node.inputs["x"], []).append(node)

    def run(self) -> Layout:
        """The program of the region."""
        done = set(self._absorbed)
        for first in self._region.nodes:
            for node in (first, *self._companions(first)):
                if node in done:
                    continue
                done.add(node)
                emit = _EMITTERS.get(node.op.key)
                if emit is None:
                    raise Unsupported(f"node {node.name}: the native cpu device has no {node.op.key}")
                emit(self, node)
        dims = tuple(self._region.dims)
        return assemble(self._steps, dims, tuple(sorted(self._bound)))

    def _companions(self, first: Node) -> list[Node]:
        """Later products that need nothing but what `first` needs: they can run at the same time."""
        if first.op.key not in ("linear@1", "moe_linear@1") or first in self._residuals or first in self._absorbed:
            return []
        ports = ("x",) if first.op.key == "linear@1" else ("x", "expert_ids")
        return [
            node
            for node in self._readers.get(first.inputs["x"], [])
            if node.op.key == first.op.key
            and node not in self._residuals
            and all(node.inputs[port] is first.inputs[port] for port in ports)
            and all(v.kind in ("weight", "constant") for port, v in node.inputs.items() if port not in ports)
        ]

    # --- operands

    def place(self, value: Value) -> Place:
        """Where a plain value lies."""
        if value.name in self._bound:
            return Binding(value.name)
        if value.kind in ("weight", "constant"):
            return Pointer(self._weight(value).values())
        return Area(value.name, value.spec.nbytes(self._sizes))

    def optional(self, node: Node, port: str) -> Place:
        """The operand of an input that may be absent."""
        value = node.inputs.get(port)
        return None if value is None else self.place(value)

    def cache(self, value: Value) -> Pointer:
        """The KV cache that a state, or an alias of one, stands for."""
        state = self._region.aliases.get(value, value)
        buffer = self._resident[state.name]
        if not isinstance(buffer, NativeCache):
            raise Unsupported(f"'{state.name}' is no KV cache of the native cpu device")
        return Pointer(buffer.pointer)

    def _weight(self, value: Value) -> NativeWeight:
        buffer = self._resident[value.name]
        if not isinstance(buffer, NativeWeight):
            raise Unsupported(f"'{value.name}' is no weight of the native cpu device")
        return buffer

    def packed(self, value: Value) -> tuple[Pointer, int]:
        """The packed weight, and the number of the format that it was packed from."""
        weight = self._weight(value)
        return Pointer(weight.packed()), weight.packed_format

    def emit(
        self,
        code: str,
        node: Node,
        inputs: Sequence[Place],
        sizes: Sequence[int] = (),
        numbers: Sequence[float] = (),
        outputs: Sequence[Place] | None = None,
    ) -> Step:
        """Append an operation on the rows of the node's first output."""
        if outputs is None:
            outputs = [self.place(v) for v in node.outputs]
        step = Step(code, rows_of(node.outputs[0]), list(inputs), list(outputs), list(sizes), list(numbers))
        self._steps.append(step)
        return step

    # --- linears and experts

    def linear(self, node: Node) -> None:
        """A product, joined to the one before where both read the same rows."""
        x, weight = node.inputs["x"], node.inputs["weight"]
        pointer, number = self.packed(weight)
        kind = self._library.rt_device_activation_kind(self._device, number)
        key = (x.name, kind)
        is_new = key not in self._prepared
        if is_new:
            rows = rows_of(x)
            most = self._sizes[rows] if isinstance(rows, str) else rows
            nbytes = self._library.rt_device_activation_bytes(self._device, number, most, columns(x))
            self._prepared[key] = Area(f"{x.name}:{kind}", nbytes)
        add, other = self._residuals.get(node, (None, None))
        before = self._steps[-1] if self._steps else None
        if before is not None and before.code == "linear" and before.inputs[0] == self.place(x):
            joined = 1
            while (
                joined < len(self._steps)
                and self._steps[-joined - 1].code == "linear"
                and (self._steps[-joined - 1].sizes[1])
            ):
                joined += 1
            if joined < MAX_JOINED and other is None:
                before.sizes = [before.sizes[0], 1]
        target = node if add is None else add
        inputs = [
            self.place(x),
            pointer,
            self.optional(node, "bias"),
            None if other is None else self.place(other),
            self._prepared[key],
        ]
        self.emit("linear", target, inputs, [int(is_new), 0])

    def moe_linear(self, node: Node) -> None:
        """Products of the chosen experts; gate and up share the sorting and the preparation."""
        x, ids = node.inputs["x"], node.inputs["expert_ids"]
        pointer, number = self.packed(node.inputs["weight"])
        experts, n, _ = (int(s) for s in node.inputs["weight"].spec.resolve({}))
        top_k = columns(ids)
        kind = self._library.rt_device_activation_kind(self._device, number)
        key = (x.name, ids.name, node.attrs["per_expert_input"], kind)
        shares = self.optional(node, "expert_weights")
        runs: Place = None
        if shares is not None:
            rows = rows_of(x)
            most = self._sizes[rows] if isinstance(rows, str) else rows
            runs = Area(f"{node.name}:runs", 4 * most * top_k * n)
        inputs = [self.place(x), pointer, self.optional(node, "bias"), self.place(ids), shares, runs]
        sizes = [experts, top_k, int(node.attrs["per_expert_input"]), int(key == self._experts)]
        self.emit("moe_linear", node, inputs, sizes)
        self._experts = key

    def rope(self, node: Node) -> None:
        """Rotation by angles that are computed once per step."""
        x, positions, inv_freq = node.inputs["x"], node.inputs["positions"], node.inputs["inv_freq"]
        interleaved, head_dim = bool(node.attrs["interleaved"]), int(node.attrs["head_dim"])
        f = columns(inv_freq)
        key = (positions.name, inv_freq.name, interleaved, node.attrs["scale"])
        table = self._tables.get(key)
        if table is None:
            rows = rows_of(x)
            most = self._sizes[rows] if isinstance(rows, str) else rows
            table = Area(f"rope table {len(self._tables)}", 4 * most * f * (4 if interleaved else 2))
            self._tables[key] = table
            inputs = [self.place(positions), self.place(inv_freq)]
            self.emit("rope_table", node, inputs, [f, int(interleaved)], [node.attrs["scale"]], [table])
        sizes = [columns(x) // head_dim, head_dim, f, int(interleaved)]
        self.emit("rope", node, [self.place(x), table], sizes)

    # --- the others, one to one

    def embed(self, node: Node) -> None:
        """Rows of the table as it is stored."""
        weight = node.inputs["weight"]
        vocab, k = (int(s) for s in weight.spec.resolve({}))
        address, number, row_bytes = self._weight(weight).table()
        inputs = [self.place(node.inputs["token_ids"]), Pointer(address)]
        self.emit("embed", node, inputs, [vocab, k, number, row_bytes], [node.attrs["scale"]])

    def attention(self, node: Node) -> None:
        """Attention over a paged cache."""
        i, a = node.inputs, node.attrs
        inputs = [
            self.place(i["q"]),
            self.cache(i["kv"]),
            *(self.place(i[port]) for port in ("block_table", "query_start_loc", "seq_lens")),
            self.optional(node, "sinks"),
            self.optional(node, "alibi_slopes"),
        ]
        seqs, width = i["block_table"].spec.shape
        sizes = [a["num_heads"], a["window"], int(a["causal"]), *self.dim(seqs), *self.dim(width)]
        self.emit("attention", node, inputs, sizes, [a["scale"], a["softcap"]])

    def dim(self, size: int | str) -> tuple[int, int]:
        """A size as (index of its dimension or -1, the size where it is fixed)."""
        return (list(self._region.dims).index(size), 0) if isinstance(size, str) else (-1, size)

    def kv_write(self, node: Node) -> None:
        """Keys and values of this step."""
        i = node.inputs
        inputs = [self.cache(i["kv"]), *(self.place(i[port]) for port in ("k", "v", "slot_mapping"))]
        self._steps.append(Step("kv_write", rows_of(i["k"]), inputs, []))

    def kv_copy_blocks(self, node: Node) -> None:
        """Whole blocks."""
        i = node.inputs
        inputs = [self.cache(i["kv"]), self.place(i["source_blocks"]), self.place(i["target_blocks"])]
        self._steps.append(Step("kv_copy_blocks", rows_of(i["source_blocks"]), inputs, []))

    def kv_export(self, node: Node) -> None:
        """Blocks in the canonical form."""
        i = node.inputs
        inputs = [self.cache(i["kv"]), self.place(i["block_ids"])]
        self._steps.append(Step("kv_export", rows_of(i["block_ids"]), inputs, [self.place(node.outputs[0])]))

    def kv_import(self, node: Node) -> None:
        """Blocks from the canonical form."""
        i = node.inputs
        inputs = [self.cache(i["kv"]), self.place(i["data"]), self.place(i["block_ids"])]
        self._steps.append(Step("kv_import", rows_of(i["block_ids"]), inputs, []))

    def concat(self, node: Node) -> None:
        """Each part into its columns."""
        first, width = 0, columns(node.outputs[0])
        for i in range(len(node.inputs)):
            part = node.inputs[f"x{i}"]
            sizes = [columns(part), columns(part), 0, width, first]
            self.emit("copy_columns", node, [self.place(part)], sizes)
            first += columns(part)

    def split(self, node: Node) -> None:
        """Each part out of its columns."""
        first, x = 0, node.inputs["x"]
        for part in node.outputs:
            sizes = [columns(part), columns(x), first, columns(part), 0]
            self.emit("copy_columns", node, [self.place(x)], sizes, outputs=[self.place(part)])
            first += columns(part)

    def gather_rows(self, node: Node) -> None:
        """Chosen rows."""
        x = node.inputs["x"]
        inputs = [self.place(x), self.place(node.inputs["rows"])]
        self.emit("gather_rows", node, inputs, [columns(x), *self.dim(x.spec.shape[0])])

    def penalize(self, node: Node) -> None:
        """Penalties and biases."""
        i = node.inputs
        ports = ("logits", "token_ids", "output_counts", "repetition", "presence", "frequency")
        inputs = [
            *(self.place(i[p]) for p in ports),
            self.optional(node, "bias_ids"),
            self.optional(node, "bias_values"),
        ]
        biases = self.dim(i["bias_ids"].spec.shape[1]) if "bias_ids" in i else (-1, 0)
        sizes = [columns(i["logits"]), *self.dim(i["token_ids"].spec.shape[1]), *biases]
        self.emit("penalize", node, inputs, sizes)


def columns(value: Value) -> int:
    """Elements of a row, or of a vector."""
    return int(value.spec.resolve({d: 0 for d in value.spec.shape if isinstance(d, str)})[-1])


def rows_of(value: Value) -> int | str:
    """The outermost dimension."""
    return value.spec.shape[0]


def _residuals(region: Region) -> tuple[dict[Node, tuple[Node, Value]], set[Node]]:
    """Linears whose result is only added to something older: linear -> (add, the other summand); and those adds."""
    users: dict[Value, list[Node]] = {}
    made_at: dict[Value, int] = {}
    for number, node in enumerate(region.nodes):
        for value in node.inputs.values():
            users.setdefault(value, []).append(node)
        made_at.update((v, number) for v in node.outputs)
    outside = set(region.outputs)
    found: dict[Node, tuple[Node, Value]] = {}
    absorbed: set[Node] = set()
    for number, node in enumerate(region.nodes):
        if node.op.key != "linear@1" or node.outputs[0] in outside:
            continue
        y = node.outputs[0]
        if len(users.get(y, [])) != 1 or users[y][0].op.key != "add@1" or users[y][0] in absorbed:
            continue
        add = users[y][0]
        a, b = add.inputs["a"], add.inputs["b"]
        other = a if b is y else b
        if other is not y and made_at.get(other, -1) < number:
            found[node] = (add, other)
            absorbed.add(add)
    return found, absorbed


def _simple(code: str, ports: Sequence[str], sizes: Callable[[Node], Sequence[int]], *numbers: str) -> Any:
    """An emitter for an operation whose inputs are plain and whose numbers are attributes."""

    def emit(compiler: Compiler, node: Node) -> None:
        inputs = [compiler.optional(node, port) for port in ports]
        compiler.emit(code, node, inputs, sizes(node), [node.attrs[name] for name in numbers])

    return emit


def _width(node: Node) -> list[int]:
    return [columns(node.outputs[0])]


_EMITTERS: dict[str, Callable[[Compiler, Node], None]] = {
    "embed@1": Compiler.embed,
    "linear@1": Compiler.linear,
    "moe_linear@1": Compiler.moe_linear,
    "rope@1": Compiler.rope,
    "attention@1": Compiler.attention,
    "kv_write@1": Compiler.kv_write,
    "kv_copy_blocks@1": Compiler.kv_copy_blocks,
    "kv_export@1": Compiler.kv_export,
    "kv_import@1": Compiler.kv_import,
    "concat@1": Compiler.concat,
    "split@1": Compiler.split,
    "gather_rows@1": Compiler.gather_rows,
    "penalize@1": Compiler.penalize,
    "rms_norm@1": _simple(
        *("rms_norm", ("x", "weight"), lambda n: [columns(n.inputs["x"]), columns(n.inputs["weight"])]),
        *("eps", "weight_offset"),
    ),
    "layer_norm@1": _simple("layer_norm", ("x", "weight", "bias"), _width, "eps"),
    "glu@1": _simple(
        *("glu", ("gate", "up"), lambda n: [*_width(n), ACTIVATIONS.index(n.attrs["kind"])]), *("alpha", "limit")
    ),
    "activation@1": _simple("activation", ("x",), lambda n: [*_width(n), ACTIVATIONS.index(n.attrs["kind"])]),
    "add@1": _simple("add", ("a", "b"), _width),
    "mul@1": _simple("mul", ("a", "b"), _width, "scale"),
    "softcap@1": _simple("softcap", ("x",), _width, "cap"),
    "softmax@1": _simple("softmax", ("x",), lambda n: [*_width(n), int(n.attrs["log"])], "scale"),
    "topk@1": _simple("topk", ("x",), lambda n: [columns(n.inputs["x"]), n.attrs["k"]]),
    "argmax@1": _simple("argmax", ("x",), lambda n: [columns(n.inputs["x"])]),
    "sample@1": _simple(
        *("sample", ("logits", "temperature", "top_k", "top_p", "min_p", "typical_p", "uniform")),
        lambda n: [columns(n.inputs["logits"])],
    ),
    "moe_route@1": _simple(
        *("moe_route", ("logits", "bias")),
        lambda n: [
            *(columns(n.inputs["logits"]), n.attrs["top_k"], SCORES.index(n.attrs["score"])),
            int(n.attrs["normalize"]),
        ],
        "scale",
    ),
    "convert@1": _simple("convert", ("x",), lambda n: [*_width(n), GGML_TYPES[n.attrs["format"]]]),
}
OPERATIONS = tuple(_EMITTERS)
"""Keys of the operations that have a native form."""
