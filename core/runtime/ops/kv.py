"""The KV cache as data: kv_write, kv_copy_blocks, kv_export, kv_import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.dtypes import FORMATS, TensorSpec
from runtime.errors import InvalidArgument
from runtime.ops.checks import check_distinct, check_equal, check_indices, fixed
from runtime.ops.costs import total_nbytes
from runtime.ops.declare import INDEX, WEIGHTS, Attrs, Check, Op, Port, Refusal, Specs, Work
from runtime.ops.rounding import Rounding

if TYPE_CHECKING:
    from numpy.typing import NDArray

_KV = Port("kv", (2, "B", "C", "H", "D"), WEIGHTS, doc="KV cache, overwritten", layout="kv")
_KV_OUT = Port("kv_out", (2, "B", "C", "H", "D"), WEIGHTS, doc="the same cache", layout="kv")
_CACHE = ("f32", (2, 4, 4, 2, 8))


def _write(r: Rounding, kv: NDArray[Any], k: NDArray[Any], v: NDArray[Any], slot_mapping: NDArray[Any]) -> NDArray[Any]:
    _, num_blocks, block_size, h, d = kv.shape
    check_indices("kv_write@1", "slot_mapping", slot_mapping, num_blocks * block_size, what="slots in kv", padding=True)
    rows = (slot_mapping >= 0).nonzero()[0]
    slots = slot_mapping[rows]
    check_distinct("kv_write@1", "slot_mapping", slots)
    for part, data in ((0, k), (1, v)):
        kv[part, slots // block_size, slots % block_size] = r("kv", data[rows].reshape(rows.size, h, d))
    return kv


def _infer_write(inputs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    kv = inputs["kv"]
    width = fixed("kv_write@1", "H of kv", kv.shape[3]) * fixed("kv_write@1", "D of kv", kv.shape[4])
    check_equal("kv_write@1", "N of k and v", inputs["k"].shape[1], width, "a row holds H heads of D elements")
    return (kv,)


def _work_write(inputs: Specs, outputs: Specs, attrs: Attrs) -> Work:
    (t, n), kv = inputs["k"].resolve({}), inputs["kv"]
    d = kv.resolve({})[4]
    read = total_nbytes({name: spec for name, spec in inputs.items() if name != "kv"})
    return Work(0, read, kv.format.nbytes((2, t, n // d, d)))


def _copy_blocks(
    r: Rounding, kv: NDArray[Any], source_blocks: NDArray[Any], target_blocks: NDArray[Any]
) -> NDArray[Any]:
    import numpy as np

    key, num_blocks = "kv_copy_blocks@1", kv.shape[1]
    check_indices(key, "source_blocks", source_blocks, num_blocks, what="blocks in kv")
    check_indices(key, "target_blocks", target_blocks, num_blocks, what="blocks in kv")
    check_distinct(key, "target_blocks", target_blocks)
    both = np.intersect1d(source_blocks, target_blocks)
    if both.size:
        raise InvalidArgument(
            f"{key} block {int(both[0])} is a source and a target of one call; the result would depend on the order"
        )
    kv[:, target_blocks] = kv[:, source_blocks]
    return kv


def _work_copy(inputs: Specs, outputs: Specs, attrs: Attrs) -> Work:
    moved = _blocks_nbytes(inputs["kv"], inputs["source_blocks"].resolve({})[0])
    return Work(0, moved + inputs["source_blocks"].nbytes() + inputs["target_blocks"].nbytes(), moved)


def _export(r: Rounding, kv: NDArray[Any], block_ids: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    check_indices("kv_export@1", "block_ids", block_ids, kv.shape[1], what="blocks in kv")
    return kv[:, block_ids].astype(np.float64)


def _infer_export(inputs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    two, _, *block = inputs["kv"].shape
    return (TensorSpec(FORMATS["f32"], (two, inputs["block_ids"].shape[0], *block)),)


def _work_export(inputs: Specs, outputs: Specs, attrs: Attrs) -> Work:
    (n,) = inputs["block_ids"].resolve({})
    return Work(0, _blocks_nbytes(inputs["kv"], n) + inputs["block_ids"].nbytes(), outputs["data"].nbytes())


def _import(r: Rounding, kv: NDArray[Any], data: NDArray[Any], block_ids: NDArray[Any]) -> NDArray[Any]:
    check_indices("kv_import@1", "block_ids", block_ids, kv.shape[1], what="blocks in kv")
    check_distinct("kv_import@1", "block_ids", block_ids)
    kv[:, block_ids] = r("kv", data)
    return kv


def _work_import(inputs: Specs, outputs: Specs, attrs: Attrs) -> Work:
    (n,) = inputs["block_ids"].resolve({})
    read = inputs["data"].nbytes() + inputs["block_ids"].nbytes()
    return Work(0, read, _blocks_nbytes(inputs["kv"], n))


def _blocks_nbytes(kv: TensorSpec, num_blocks: int) -> int:
    _, _, *block = kv.resolve({})
    return kv.format.nbytes((2, num_blocks, *block))


_WRITE_SPECS = {"kv": _CACHE, "k": ("f32", (2, 16)), "v": ("f32", (2, 16)), "slot_mapping": ("i32", (2,))}

KV_WRITE = Op(
    name="kv_write",
    version=1,
    family="kv",
    doc=(
        "Writes the keys and values of this step into the cache: row t goes to block slot_mapping[t] // C at offset "
        "slot_mapping[t] % C, rounded to the format of the cache. A slot of -1 skips the row. No two rows may have the "
        "same slot. All other slots keep what they hold. The new keys are visible to every later node that reads "
        "kv_out."
    ),
    inputs=(
        _KV,
        Port("k", ("T", "N"), doc="keys, H heads of D elements side by side"),
        Port("v", ("T", "N"), doc="values, as k"),
        Port("slot_mapping", ("T",), INDEX, doc="block_id * C + offset for each row, or -1"),
    ),
    outputs=(_KV_OUT,),
    reference=_write,
    work=_work_write,
    check=Check("ulp"),
    rounding=("kv",),
    infer=_infer_write,
    inplace={"kv_out": "kv"},
    laws=("untouched_slots_keep_their_bytes", "order_of_rows_is_irrelevant"),
    refusals=(
        Refusal("k has H * D columns", _WRITE_SPECS | {"k": ("f32", (2, 8)), "v": ("f32", (2, 8))}),
        Refusal("k and v have the same shape", _WRITE_SPECS | {"v": ("f32", (2, 8))}),
        Refusal("slots exist", _WRITE_SPECS, values={"slot_mapping": [0, 16]}),
        Refusal("only -1 stands for nothing", _WRITE_SPECS, values={"slot_mapping": [0, -2]}),
        Refusal("a slot is written once", _WRITE_SPECS, values={"slot_mapping": [3, 3]}),
    ),
)

_COPY_SPECS = {"kv": _CACHE, "source_blocks": ("i32", (2,)), "target_blocks": ("i32", (2,))}

KV_COPY_BLOCKS = Op(
    name="kv_copy_blocks",
    version=1,
    family="kv",
    doc=(
        "Copies whole blocks inside the cache, bit for bit: block source_blocks[i] to block target_blocks[i]. Targets "
        "are distinct and none of them is a source of the same call."
    ),
    inputs=(
        _KV,
        Port("source_blocks", ("N",), INDEX, doc="blocks to read"),
        Port("target_blocks", ("N",), INDEX, doc="blocks to overwrite"),
    ),
    outputs=(_KV_OUT,),
    reference=_copy_blocks,
    work=_work_copy,
    check=Check("exact"),
    inplace={"kv_out": "kv"},
    laws=("untouched_slots_keep_their_bytes", "source_equals_target_afterwards"),
    refusals=(
        Refusal("as many sources as targets", _COPY_SPECS | {"target_blocks": ("i32", (3,))}),
        Refusal("blocks exist", _COPY_SPECS, values={"source_blocks": [0, 4], "target_blocks": [1, 2]}),
        Refusal("block ids are not negative", _COPY_SPECS, values={"source_blocks": [0, 1], "target_blocks": [-1, 2]}),
        Refusal("targets are distinct", _COPY_SPECS, values={"source_blocks": [0, 1], "target_blocks": [2, 2]}),
        Refusal("no target is a source", _COPY_SPECS, values={"source_blocks": [0, 1], "target_blocks": [1, 2]}),
    ),
)

_EXPORT_SPECS = {"kv": _CACHE, "block_ids": ("i32", (1,))}

KV_EXPORT = Op(
    name="kv_export",
    version=1,
    family="kv",
    doc=(
        "Blocks of the cache in the canonical layout [2 (k, v), N, C, H, D], f32, row-major: portable between devices "
        "of different vendors, to disk, and across machines. Block i of the data is block block_ids[i] of the cache."
    ),
    inputs=(
        Port("kv", (2, "B", "C", "H", "D"), WEIGHTS, doc="KV cache", layout="kv"),
        Port("block_ids", ("N",), INDEX, doc="blocks to export, in this order"),
    ),
    outputs=(Port("data", (2, "N", "C", "H", "D"), ("f32",), doc="canonical form"),),
    reference=_export,
    work=_work_export,
    check=Check("exact"),
    infer=_infer_export,
    laws=("import_of_export_is_identity",),
    refusals=(
        Refusal("block_ids are integers", _EXPORT_SPECS | {"block_ids": ("f32", (1,))}),
        Refusal("blocks exist", _EXPORT_SPECS, values={"block_ids": [4]}),
        Refusal("block ids are not negative", _EXPORT_SPECS, values={"block_ids": [-1]}),
    ),
    level="L3",
)

_IMPORT_SPECS = {"kv": _CACHE, "data": ("f32", (2, 2, 4, 2, 8)), "block_ids": ("i32", (2,))}

KV_IMPORT = Op(
    name="kv_import",
    version=1,
    family="kv",
    doc=(
        "The reverse of kv_export: block block_ids[i] of the cache becomes block i of the data, rounded to the format "
        "of the cache."
    ),
    inputs=(
        _KV,
        Port("data", (2, "N", "C", "H", "D"), ("f32",), doc="canonical form, as kv_export gives it"),
        Port("block_ids", ("N",), INDEX, doc="blocks to overwrite, all different"),
    ),
    outputs=(_KV_OUT,),
    reference=_import,
    work=_work_import,
    check=Check("ulp"),
    rounding=("kv",),
    inplace={"kv_out": "kv"},
    laws=("import_of_export_is_identity", "untouched_slots_keep_their_bytes"),
    refusals=(
        Refusal("blocks of data have the size of the cache's", _IMPORT_SPECS | {"data": ("f32", (2, 2, 8, 2, 8))}),
        Refusal("blocks exist", _IMPORT_SPECS, values={"block_ids": [0, 9]}),
        Refusal("a block is written once", _IMPORT_SPECS, values={"block_ids": [1, 1]}),
    ),
    level="L3",
)

OPS = (KV_WRITE, KV_COPY_BLOCKS, KV_EXPORT, KV_IMPORT)
