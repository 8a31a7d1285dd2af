"""Steps of few tokens or rows, padded to the sizes of a bucket: a captured step serves every batch of its bucket."""

from __future__ import annotations

from collections.abc import Mapping

from runtime.backend import Region, Value
from runtime_torch.memory import DTYPES
from runtime_torch.settings import Settings, next_power

STEP_INPUTS = frozenset(
    {"token_ids", "positions", "slot_mapping", "query_start_loc", "seq_lens", "block_table", "rows", "inv_freq"}
)
"""Ports of step inputs whose padding is known to do nothing; a region with others is not padded."""
PADDED = ("T", "S", "R")
"""Dimensions that are padded to one of the settings' sizes."""
ROW_OPS = frozenset({"sample@1", "penalize@1", "argmax@1", "softmax@1", "topk@1", "linear@1"})
"""Operations of sampling: each row by itself, so that it does not matter what padding rows hold."""
COLUMNS = {"H": (64, 8192), "X": (16, 256)}
"""Histories and biases of sampling are padded to powers of two within these, and more of them are not captured."""
DEPENDENT = ("Q", "P")
"""Dimensions of a bucket that follow from the others, and from what the region can hold."""


def find_bucket(region: Region, settings: Settings, dims: Mapping[str, int]) -> dict[str, int] | None:
    """The sizes that a step of a paddable region is padded to, or None where it is to be run as it is."""
    padded = dict(dims)
    for name in PADDED:
        size, span = dims.get(name), region.dims.get(name)
        if size is None or span is None:
            continue
        fitting = next((b for b in settings.buckets if b >= size), None)
        if fitting is None:
            return None
        padded[name] = min(fitting, span.hi)
    for name, (least, most) in COLUMNS.items():
        if name in region.dims and name in padded:
            if padded[name] > most:
                return None
            padded[name] = min(max(least, next_power(padded[name])), region.dims[name].hi)
    return _dependent(region, padded)


def largest_bucket(region: Region, settings: Settings) -> dict[str, int]:
    """The sizes that no bucket exceeds."""
    most = {name: span.hi for name, span in region.dims.items()}
    limits = dict.fromkeys(PADDED, settings.buckets[-1]) | {name: end for name, (_, end) in COLUMNS.items()}
    return _dependent(region, most | {n: min(most[n], end) for n, end in limits.items() if n in most})


def _dependent(region: Region, sizes: dict[str, int]) -> dict[str, int]:
    if "S" in sizes and "Q" in sizes:
        sizes["Q"] = sizes["S"] + 1
    if "P" in sizes and "P" in region.dims:
        sizes["P"] = region.dims["P"].hi
    return sizes


def ports_of(region: Region, value: Value) -> set[str]:
    """Names of all ports that `value` enters."""
    return {port for node in region.nodes for port, v in node.inputs.items() if v is value}


def is_sampling(region: Region) -> bool:
    """Whether it chooses tokens, and everything in it belongs to one row."""
    inputs = set(region.inputs)
    chooses = any(node.op.key in ("sample@1", "argmax@1") for node in region.nodes)
    values = [v for n in region.nodes for v in (*n.outputs, *n.inputs.values()) if v in inputs or v in n.outputs]
    columns = [dim for value in region.inputs for dim in value.spec.shape[1:]]
    return (
        chooses
        and all(node.op.key in ROW_OPS for node in region.nodes)
        and all(value.spec.shape[:1] == ("R",) for value in values)
        and all(isinstance(dim, int) or dim in COLUMNS for dim in columns)
    )


def staged_inputs(region: Region) -> tuple[Value, ...]:
    """Inputs that captured steps read padded; rows of logits are read where they lie."""
    if not is_sampling(region):
        return tuple(region.inputs)
    return tuple(v for v in region.inputs if not isinstance(v.spec.shape[-1], int))


def is_paddable(region: Region) -> bool:
    """Whether padding changes nothing: a step of a model, all of whose inputs are known, or the choice of tokens."""
    if is_sampling(region):
        return True
    uses: dict[Value, set[str]] = {v: set() for v in region.inputs}
    has_attention = False
    for node in region.nodes:
        has_attention |= node.op.key == "attention@1"
        for port, value in node.inputs.items():
            if value in uses:
                uses[value].add(port)
    symbolic = all(any(isinstance(d, str) for d in v.spec.shape) for v in region.inputs)
    known = all(ports <= STEP_INPUTS or v.spec.format.name == "f32" for v, ports in uses.items())
    words = all(DTYPES[v.spec.format.name].itemsize == 4 for v in region.inputs if v.spec.format.name in DTYPES)
    return has_attention and symbolic and known and words
