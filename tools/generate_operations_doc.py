"""Writes docs/operations.md from the catalogue; with --check, fails when the file is not what it would write.

Run after every change of a declaration: `python tools/generate_operations_doc.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from runtime.dtypes import FORMATS, TensorSpec
from runtime.errors import InvalidArgument
from runtime.ops import CATALOGUE, FLOATS, Op, Port, Work
from runtime.ops.declare import Attr, Attrs, Specs
from runtime.ops.expansion import Interpreter

TARGET = Path(__file__).resolve().parents[1] / "docs" / "operations.md"

SIZES = {
    "T": 8,
    "S": 2,
    "Q": 3,
    "P": 128,
    "R": 2,
    "B": 4096,
    "C": 16,
    "H": 8,
    "D": 64,
    "F": 32,
    "K": 2048,
    "_K": 1024,
    "N": 2048,
    "NQ": 2048,
    "NK": 512,
    "I": 8192,
    "V": 128256,
    "E": 32,
    "k": 4,
}
"""The example of the cost lines: 8 tokens of 2 sequences, a model of about 1.2 billion parameters."""
OTHER_SIZES = {
    "kv_write": {"N": 512},
    "kv_copy_blocks": {"N": 4},
    "kv_export": {"N": 4},
    "kv_import": {"N": 4},
    "topk": {"N": 128256},
    "argmax": {"N": 128256},
    "penalize": {"H": 256},
    "verify_draft": {"D": 4, "D1": 5},
    "moe_linear": {"X": 2048},
    "moe_route": {"N": 32},
}
ATTRS = {
    "eps": 1e-5,
    "head_dim": 64,
    "num_heads": 32,
    "num_kv_heads": 8,
    "scale": 0.125,
    "kind": "silu",
    "cap": 30.0,
    "k": 40,
    "sizes": (1024, 1024),
    "top_k": 4,
    "score": "softmax",
    "normalize": True,
    "src": 0,
    "dst": 1,
}
OTHER_ATTRS = {"convert": {"format": "bf16"}, "quantize": {"format": "q8_0"}}

INTRODUCTION = """\
# Operations

Generated from the catalogue by `tools/generate_operations_doc.py`; do not edit.

Every operation has a float64 reference in `core/runtime/ops`, which is the definition, the oracle and what the host
runs where a device lacks a kernel. Shapes name dimensions: within one operation the same name is the same size.
A name with `0..` is a family of inputs or outputs: `x0`, `x1`, and so on. "any float" is {floats};
"any" is every format of the registry. Where an output may have any float format, it has that of the first floating
input that is neither a weight nor a cache.

**Rounding** lists the points where the reference rounds when it imitates a device: `activation` (inputs, as the kernel
takes them), `accumulate` (running sums and what is held in registers), `probability` (of attention, before the values),
`intermediate` (between the parts of a composite), `kv` (stored keys and values), `output`.

**Judged** says how an output is compared: *statistical*, against the deviation that the device's declared formats give
at these points; *ulp*, in units of the last place against the correctly rounded value; *exact*, bit for bit; *set*, the
same elements with ties in any order; *distribution*, the exact token for given random numbers, and frequencies over
many.

**Cost** is an example: 8 tokens of 2 sequences with contexts of 2048, hidden size 2048, 32 heads and 8 KV heads of 64,
weights in q8_0, a KV cache in f16 with blocks of 16, optional inputs left out. A multiply-add is two operations.
"""


def document() -> str:
    """The whole text of docs/operations.md."""
    families: dict[str, list[Op]] = {}
    for op in CATALOGUE:
        families.setdefault(op.family, []).append(op)
    lines = [INTRODUCTION.format(floats=", ".join(FLOATS)), "## Contents", ""]
    for family, ops in families.items():
        links = ", ".join(f"[{op.name}](#{_anchor(op)})" for op in ops)
        lines.append(f"- {family}: {links}")
    for family, ops in families.items():
        lines += ["", f"## Family: {family}"]
        for op in ops:
            lines += ["", *_section(op)]
    return "\n".join(lines) + "\n"


def _anchor(op: Op) -> str:
    return op.key.replace("@", "")


def _section(op: Op) -> Iterator[str]:
    yield from (f"### {op.key}", "", op.doc, "")
    yield from ("| | name | shape | format | |", "|---|---|---|---|---|")
    yield from (_port_row("in", port) for port in op.inputs)
    for port in op.outputs:
        source = op.inplace.get(port.name)
        yield _port_row("out", port, f" Overwrites `{source}`." if source else "")
    if op.attrs:
        yield from ("", "| attribute | type | default | |", "|---|---|---|---|")
        yield from (_attr_row(attr) for attr in op.attrs)
    yield ""
    if op.rounding:
        yield f"- Rounding: {', '.join(op.rounding)}."
    yield f"- Judged: {_check(op)}."
    yield f"- Cost: {_cost(op)}"
    if op.laws:
        yield f"- Laws: {', '.join(law.replace('_', ' ') for law in op.laws)}."
    yield f"- Refused unless: {'; '.join(refusal.rule for refusal in op.refusals)}."
    if op.is_composite:
        yield f"- Expands to: {', '.join(_parts(op))} (with the options of the example; optional inputs add to it)."
    yield f"- Level: {op.level}."


def _port_row(direction: str, port: Port, more: str = "") -> str:
    name = f"`{port.name}0..`" if port.variadic else f"`{port.name}`"
    if "*" in port.formats:
        formats = "any"
    else:
        formats = "any float" if port.formats == FLOATS else ", ".join(port.formats)
    layout = f", layout {port.layout}" if port.layout != "plain" else ""
    doc = _cell(port.doc[:1].upper() + port.doc[1:])
    optional = " Optional." if port.optional else ""
    shape = ", ".join(str(dim).lstrip("_") for dim in port.shape)
    return f"| {direction} | {name} | [{shape}] | {formats}{layout} | {doc}.{optional}{more} |"


def _attr_row(attr: Attr) -> str:
    default = "required" if attr.required else "none" if attr.default is None else f"`{attr.default}`"
    doc = _cell(attr.doc[:1].upper() + attr.doc[1:]) + "."
    if attr.choices:
        doc += f" One of {', '.join(f'`{choice}`' for choice in attr.choices)}."
    if attr.minimum is not None:
        doc += f" At least {attr.minimum:g}."
    return f"| `{attr.name}` | {attr.type.__name__} | {default} | {doc} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").rstrip(".")


def _check(op: Op) -> str:
    check = op.check
    if check.metric == "statistical":
        return f"statistical, |z| at most {check.max_z:g}, root mean square at most {check.rms_z:g}"
    return f"ulp, at most {check.max_ulp:g}" if check.metric == "ulp" else check.metric


def _example(op: Op) -> tuple[dict[str, TensorSpec], dict[str, Any]]:
    """Specs of the needed inputs and the needed attributes; an operation that they do not suit needs an entry above."""
    sizes, attrs = SIZES | OTHER_SIZES.get(op.name, {}), ATTRS | OTHER_ATTRS.get(op.name, {})
    try:
        inputs = {}
        for port in (port for port in op.inputs if not port.optional):
            fmt = FORMATS["f16" if port.layout == "kv" else "q8_0" if "*" in port.formats else port.formats[0]]
            shape = tuple(sizes[dim] if isinstance(dim, str) else dim for dim in port.shape)
            for name in [f"{port.name}0", f"{port.name}1"] if port.variadic else [port.name]:
                inputs[name] = TensorSpec(fmt, shape, port.layout)
        needed = {attr.name: attrs[attr.name] for attr in op.attrs if attr.required}
        op.infer_specs(inputs, needed)
    except (KeyError, InvalidArgument) as error:
        raise SystemExit(
            f"the example sizes do not suit {op.key} ({error}): add to OTHER_SIZES or OTHER_ATTRS"
        ) from error
    return inputs, op.complete_attrs(needed)


def _cost(op: Op) -> str:
    inputs, attrs = _example(op)
    results = op.infer_specs(inputs, attrs)
    variadic = op.outputs[0].variadic
    names = [f"{op.outputs[0].name}{i}" for i in range(len(results))] if variadic else [p.name for p in op.outputs]
    work: Work = op.work(inputs, dict(zip(names, results)), attrs)
    shapes = ", ".join(f"{name} {spec}" for name, spec in inputs.items())
    counts = f"{work.operations:,} operations, {work.bytes_read:,} bytes read, {work.bytes_written:,} written"
    assumption = " ".join((op.work.__doc__ or "").split())
    return f"{counts} for {shapes}.{' ' + assumption if assumption else ''}"


def _parts(op: Op) -> Iterable[str]:
    names: list[str] = []

    def record(part: Op, inputs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
        names.append(part.name)
        return part.infer_specs(inputs, attrs)

    inputs, attrs = _example(op)
    assert op.expand is not None
    op.expand(Interpreter(record), inputs, attrs)
    return names


def main() -> int:
    """Write the file, or compare it with what would be written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 when the file is stale")
    arguments = parser.parse_args()
    text = document()
    if not arguments.check:
        TARGET.parent.mkdir(exist_ok=True)
        TARGET.write_text(text, encoding="utf-8")
        print(f"{TARGET}: {len(CATALOGUE)} operations")
        return 0
    if not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text:
        print(f"{TARGET} is not what the catalogue says; run: python tools/generate_operations_doc.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
