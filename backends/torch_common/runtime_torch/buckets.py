"""Steps of few tokens, padded to the sizes of a bucket: a captured step serves every batch of its bucket."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch

from runtime.backend import Region, Value
from runtime_torch.calls import Call, launch
from runtime_torch.kernels import elementwise
from runtime_torch.memory import DTYPES, TorchBuffer
from runtime_torch.settings import Settings, next_power

STEP_INPUTS = (
    *("token_ids", "positions", "slot_mapping", "query_start_loc"),
    *("seq_lens", "block_table", "rows", "inv_freq"),
)
"""Ports of step inputs whose padding is known to do nothing; a region with others is not padded."""
NUM_SIZES = 8


@dataclass(frozen=True)
class Bucket:
    """Sizes that a step is padded to, and the order of its true sizes in the record on the device."""

    dims: Mapping[str, int]
    symbols: tuple[str, ...]


def find_bucket(region: Region, settings: Settings, dims: Mapping[str, int]) -> Bucket | None:
    """The bucket of a step, or None where it is to be run as it is."""
    if not is_paddable(region):
        return None
    padded = dict(dims)
    for name in ("T", "S", "R"):
        size, span = dims.get(name), region.dims.get(name)
        if size is None or span is None:
            continue
        fitting = [b for b in settings.buckets if b >= size]
        if not fitting:
            return None
        padded[name] = min(fitting[0], span.hi)
    if "S" in padded and "Q" in padded:
        padded["Q"] = padded["S"] + 1
    if "P" in padded and "P" in region.dims:
        padded["P"] = region.dims["P"].hi
    return Bucket(padded, tuple(sorted(s for s in padded if s in region.dims))[:NUM_SIZES])


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
    known = all(ports <= set(STEP_INPUTS) or v.spec.format.name == "f32" for v, ports in uses.items())
    return has_attention and symbolic and known


def stage_call(
    value: Value, ports: set[str], bucket: Bucket, source: TorchBuffer, target: torch.Tensor, sizes: torch.Tensor
) -> Call:
    """A kernel that brings a step input into the shape of the bucket, `target`.

    Slots pad with -1 (nothing is written), borders repeat the last one (no queries), all else is zero.
    """
    shape = value.spec.shape
    padded = value.spec.resolve(bucket.dims)
    num_outer, num_inner = padded[0], prod(padded[1:])
    inner = shape[1] if len(shape) > 1 else 1
    dtype = DTYPES[value.spec.format.name]
    fill = -1 if "slot_mapping" in ports else 0
    block_inner = min(next_power(num_inner), 1024)
    block_outer = max(1, min(next_power(num_outer), 4096 // block_inner))
    grid = (-(-num_outer // block_outer), -(-num_inner // block_inner))
    whole = source.raw.view(dtype) if source.raw.numel() % dtype.itemsize == 0 else source.raw
    return launch(
        elementwise.stage,
        grid,
        *(whole, target, sizes, bucket.symbols.index(str(shape[0]))),
        bucket.symbols.index(inner) if isinstance(inner, str) else -1,
        *(inner if isinstance(inner, int) else 1, num_outer, num_inner, fill),
        REPEAT_LAST="query_start_loc" in ports,
        BO=block_outer,
        BI=block_inner,
    )
