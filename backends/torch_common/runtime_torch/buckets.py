"""Steps of few tokens, padded to the sizes of a bucket: a captured step serves every batch of its bucket."""

from __future__ import annotations

from collections.abc import Mapping

from runtime.backend import Region, Value
from runtime_torch.memory import DTYPES
from runtime_torch.settings import Settings

STEP_INPUTS = frozenset(
    {"token_ids", "positions", "slot_mapping", "query_start_loc", "seq_lens", "block_table", "rows", "inv_freq"}
)
"""Ports of step inputs whose padding is known to do nothing; a region with others is not padded."""
PADDED = ("T", "S", "R")
"""Dimensions that are padded to one of the settings' sizes."""
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
    return _dependent(region, padded)


def largest_bucket(region: Region, settings: Settings) -> dict[str, int]:
    """The sizes that no bucket exceeds."""
    most = {name: span.hi for name, span in region.dims.items()}
    return _dependent(region, most | {n: min(most[n], settings.buckets[-1]) for n in PADDED if n in most})


def _dependent(region: Region, sizes: dict[str, int]) -> dict[str, int]:
    if "S" in sizes and "Q" in sizes:
        sizes["Q"] = sizes["S"] + 1
    if "P" in sizes and "P" in region.dims:
        sizes["P"] = region.dims["P"].hi
    return sizes


def ports_of(region: Region, value: Value) -> set[str]:
    """Names of all ports that `value` enters."""
    return {port for node in region.nodes for port, v in node.inputs.items() if v is value}


def is_paddable(region: Region) -> bool:
    """Whether padding changes nothing: a step of a model, all of whose inputs are known."""
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
