"""Builds a graph operation by operation, checking each against its declaration."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runtime.dtypes import FORMATS, Dim, Span, TensorSpec
from runtime.errors import InvalidArgument
from runtime.graph.graph import Graph, Node, Value, ValueKind
from runtime.ops import CATALOGUE, Catalogue

if TYPE_CHECKING:
    from numpy.typing import NDArray


class GraphBuilder:
    """Collects values and nodes; `build` returns the finished graph.

    Example::

        b = GraphBuilder("tiny", {"T": Span(1, 512)})
        x = b.input("x", "f32", ("T", 64))
        w = b.weight("proj.weight", TensorSpec(FORMATS["q8_0"], (32, 64)))
        b.output("y", b.op("linear", x=x, weight=w))
        graph = b.build()
    """

    def __init__(
        self,
        name: str,
        dims: Mapping[str, Span],
        catalogue: Catalogue = CATALOGUE,
        prefix: str = "",
        taken: Collection[str] = (),
    ) -> None:
        """For the parts of a composite, `prefix` goes before the names of nodes, of their outputs and of constants.

        Names in `taken` belong to other values of the graph that the parts will join: they are not given again.
        """
        self.name = name
        self.prefix = prefix
        self._taken = taken
        self.dims = dict(dims)
        self.catalogue = catalogue
        self._nodes: list[Node] = []
        self._values: dict[str, Value] = {}
        self._outputs: dict[str, Value] = {}

    def input(self, name: str, fmt: str, shape: Sequence[Dim]) -> Value:
        """A tensor that the caller binds for every step."""
        return self._declare(name, TensorSpec(FORMATS[fmt], tuple(shape)), "input")

    def weight(self, name: str, spec: TensorSpec) -> Value:
        """A tensor of the model's files; asking for the same name again returns the same value (tied weights)."""
        known = self._values.get(name)
        if known is not None and known.kind == "weight" and known.spec == spec:
            return known
        return self._declare(name, spec, "weight")

    def constant(self, name: str, data: NDArray[Any], fmt: str = "f32") -> Value:
        """Small data that travels with the graph; the same name returns the same value."""
        name = self.prefix + name
        while name in self._taken:
            name += "#"
        known = self._values.get(name)
        if known is not None and known.kind == "constant":
            return known
        return self._declare(name, TensorSpec(FORMATS[fmt], tuple(data.shape)), "constant", data)

    def state(self, name: str, spec: TensorSpec) -> Value:
        """A tensor that lives on a device between steps, such as the KV cache of a layer."""
        return self._declare(name, spec, "state")

    def op(
        self, op_name: str, *, name: str | None = None, attrs: Mapping[str, Any] | None = None, **inputs: Value | None
    ) -> Any:
        """Append a node and return its output, or a tuple where the operation has several.

        `op_name` is a name ("linear", meaning version 1) or a key ("linear@1"). Inputs that are None are left out.
        """
        op = self.catalogue[op_name if "@" in op_name else f"{op_name}@1"]
        given = {k: v for k, v in inputs.items() if v is not None}
        attributes = {a.name: a.default for a in op.attrs} | dict(attrs or {})
        attributes = {k: v for k, v in attributes.items() if v is not None}
        specs = op.infer_specs({k: v.spec for k, v in given.items()}, attributes)
        node_name = self._unique(self.prefix + (name or op.name))
        names = [node_name] if len(specs) == 1 else [f"{node_name}.{i}" for i in range(len(specs))]
        outputs = tuple(Value(n, spec, "intermediate") for n, spec in zip(names, specs))
        for value in outputs:
            self._values[value.name] = value
        self._nodes.append(Node(node_name, op, given, outputs, attributes))
        return outputs[0] if len(outputs) == 1 else outputs

    def output(self, name: str, value: Value) -> None:
        """Make `value` an output of the graph called `name`."""
        if name in self._outputs:
            raise InvalidArgument(f"graph {self.name} already has an output '{name}'")
        self._outputs[name] = value

    def build(self) -> Graph:
        """The finished graph."""
        by_kind: dict[str, dict[str, Value]] = {"input": {}, "weight": {}, "state": {}, "constant": {}}
        for value in self._values.values():
            if value.kind in by_kind:
                by_kind[value.kind][value.name] = value
        return Graph(
            name=self.name,
            dims=self.dims,
            nodes=tuple(self._nodes),
            inputs=by_kind["input"],
            outputs=dict(self._outputs),
            weights=by_kind["weight"],
            states=by_kind["state"],
            constants=by_kind["constant"],
        )

    def _declare(self, name: str, spec: TensorSpec, kind: ValueKind, data: NDArray[Any] | None = None) -> Value:
        if name in self._values:
            raise InvalidArgument(f"graph {self.name} already has a value '{name}': {self._values[name]!r}")
        for dim in spec.shape:
            if isinstance(dim, str) and dim not in self.dims:
                raise InvalidArgument(
                    f"{name}: dimension '{dim}' of {spec} is not declared; declared: {', '.join(self.dims)}"
                )
        value = Value(name, spec, kind, data)
        self._values[name] = value
        return value

    def _unique(self, name: str) -> str:
        if not self._is_used(name):
            return name
        n = 2
        while self._is_used(f"{name}#{n}"):
            n += 1
        return f"{name}#{n}"

    def _is_used(self, name: str) -> bool:
        return any(n in self._values or n in self._taken for n in (name, f"{name}.0"))
