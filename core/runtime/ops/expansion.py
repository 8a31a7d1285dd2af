"""Everything that follows from the expansion of a composite: its reference, its shape rule and its work model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.dtypes import TensorSpec
from runtime.errors import InvalidArgument
from runtime.ops.costs import total_nbytes
from runtime.ops.declare import Attr, Attrs, Check, Expand, Op, Port, Refusal, Specs, Work
from runtime.ops.rounding import Rounding

MAX_REMEMBERED = 256
"""Shapes of a composite; a model has a few."""
Run = Callable[[Op, Mapping[str, Any], Attrs], tuple[Any, ...]]


class Interpreter:
    """Looks like a graph builder to `Op.expand`, but hands every operation to `run` at once instead of recording it."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def op(self, op_name: str, *, name: str | None = None, attrs: Attrs | None = None, **inputs: Any) -> Any:
        """As `GraphBuilder.op`, with whatever `run` takes and returns in the place of graph values."""
        from runtime.ops import CATALOGUE

        op = CATALOGUE[op_name if "@" in op_name else f"{op_name}@1"]
        given = {k: v for k, v in inputs.items() if v is not None}
        outputs = self._run(op, given, op.complete_attrs(attrs or {}))
        return outputs[0] if len(outputs) == 1 else outputs


def composite(
    *,
    name: str,
    doc: str,
    inputs: tuple[Port, ...],
    outputs: tuple[Port, ...],
    attrs: tuple[Attr, ...],
    expand: Expand,
    rounding: tuple[str, ...],
    refusals: tuple[Refusal, ...],
    laws: tuple[str, ...] = (),
    inplace: Mapping[str, str] | None = None,
) -> Op:
    """The operation that `expand` defines; it is judged at its outputs.

    Values between the parts are rounded at the point "intermediate" instead of "output", since a fused kernel need
    not keep them in the format of its outputs.
    """
    overwritten = dict(inplace or {})

    def reference(r: Rounding, **given: Any) -> Any:
        values, constants = _separate(attrs, given)
        inner = _between_parts(r)
        interpreter = Interpreter(lambda op, tensors, settings: op.run_reference(inner, tensors, settings))
        results = _as_tuple(expand(interpreter, values, constants))
        return tuple(
            result if port.name in overwritten else r("output", result)
            for port, result in zip(outputs, results, strict=True)
        )

    def work(specs: Specs, _: Specs, constants: Attrs) -> Work:
        return _estimate(expand, specs, constants)

    return Op(
        name=name,
        version=1,
        family="composite",
        doc=doc,
        inputs=inputs,
        outputs=outputs,
        reference=reference,
        work=work,
        check=Check("statistical"),
        rounding=rounding,
        attrs=attrs,
        infer=_infer_by(expand, name),
        expand=expand,
        laws=("fused_equals_expanded", *laws),
        refusals=refusals,
        inplace=overwritten,
    )


def _infer_by(expand: Expand, name: str) -> Callable[[Specs, Attrs], tuple[TensorSpec, ...]]:
    """The shape rule of a composite. The layers of a model are alike, and each is asked about several times."""
    known: dict[Any, tuple[TensorSpec, ...]] = {}

    def infer(specs: Specs, constants: Attrs) -> tuple[TensorSpec, ...]:
        key = (
            tuple((port, s.format.name, s.shape, s.layout) for port, s in specs.items()),
            tuple(constants.items()),
        )
        if key not in known:
            if len(known) >= MAX_REMEMBERED:
                known.clear()
            try:
                known[key] = _as_tuple(expand(Interpreter(Op.infer_specs), specs, constants))
            except InvalidArgument as fault:
                raise InvalidArgument(f"{name}@1 is impossible: {fault.message}", remedy=fault.remedy) from fault
        return known[key]

    return infer


@dataclass(eq=False)
class _Tensor:
    """A value of an expansion while its work is counted; two of them differ even where their specs are equal."""

    spec: TensorSpec
    made_by_a_part: bool


@dataclass
class _Tally:
    """Sum of the parts' work, without the traffic that stays inside: what one part writes for the next is not moved,
    and an input that several parts use is read once.

    A KV cache is never moved as a whole; what its users touch is in their own models.
    """

    total: Work = field(default_factory=lambda: Work(0, 0, 0))
    seen: set[_Tensor] = field(default_factory=set)

    def run(self, op: Op, inputs: Mapping[str, _Tensor], attrs: Attrs) -> tuple[_Tensor, ...]:
        specs = {name: tensor.spec for name, tensor in inputs.items()}
        results = tuple(_Tensor(spec, True) for spec in op.infer_specs(specs, attrs))
        names = [port.name for port in op.outputs]
        if op.outputs[0].variadic:
            names = [f"{names[0]}{i}" for i in range(len(results))]
        cost = op.work(specs, {name: tensor.spec for name, tensor in zip(names, results, strict=True)}, attrs)
        inside = {n: t.spec for n, t in inputs.items() if t.spec.layout == "plain" and self._is_inside(t)}
        made = {n: t.spec for n, t in zip(names, results) if t.spec.layout == "plain"}
        self.total += Work(
            cost.operations, cost.bytes_read - total_nbytes(inside), cost.bytes_written - total_nbytes(made)
        )
        return results

    def _is_inside(self, tensor: _Tensor) -> bool:
        if tensor.made_by_a_part or tensor in self.seen:
            return True
        self.seen.add(tensor)
        return False


def _estimate(expand: Expand, specs: Specs, attrs: Attrs) -> Work:
    tally = _Tally()
    inputs = {name: _Tensor(spec, False) for name, spec in specs.items()}
    results = _as_tuple(expand(Interpreter(tally.run), inputs, attrs))
    written = sum(tensor.spec.nbytes() for tensor in results if tensor.spec.layout == "plain")
    return tally.total + Work(0, 0, written)


def _separate(attrs: tuple[Attr, ...], given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs and attributes of a reference, which gets both by name; defaults are filled in."""
    known = {attr.name: attr.default for attr in attrs}
    inputs = {name: value for name, value in given.items() if name not in known and value is not None}
    constants = known | {name: value for name, value in given.items() if name in known}
    return inputs, {name: value for name, value in constants.items() if value is not None}


def _between_parts(r: Rounding) -> Rounding:
    formats = {point: fmt for point, fmt in r.formats.items() if point != "output"}
    if "intermediate" in formats:
        formats["output"] = formats["intermediate"]
    return Rounding(formats, r.mode, r.rng)


def _as_tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)
