"""From a node to the kernel calls that compute it, one function per operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

from runtime_opencl.calls import Call, Copy, Site, f32, i32, split_f32, u64, whole

Lower = Callable[[Site], "list[Call | Copy]"]

FEW_TOKENS = 8
"""Up to here the weight is read once per four tokens and the tiled kernel would be mostly idle."""
LINEAR_ROWS = 4
TILE = 32
ATTENTION_KEYS = 64
FLAT_GROUP = 64
UNITS = {"f32": 16, "f16": 16, "bf16": 16}
"""Weights that are decoded at a time, see weights.cl; 32 in all other formats."""
KIND_NUMBERS = {
    "silu": 0,
    "gelu": 1,
    "gelu_tanh": 2,
    "relu": 3,
    "relu2": 4,
    "sigmoid": 5,
    "tanh": 6,
    "quick_gelu": 7,
    "swiglu_oai": 8,
}


def lower_embed(site: Site) -> list[Call | Copy]:
    """A unit of a row per item."""
    (num_tokens,), (_, num_columns) = site.shape("token_ids"), site.shape("weight")
    fmt = site.spec("weight").format
    scale = float(site.attr("scale"))
    arguments = (
        site.inputs["token_ids"],
        site.inputs["weight"],
        site.outputs[0],
        i32(num_tokens),
        i32(num_columns),
        u64(fmt.nbytes((num_columns,))),
        *split_f32(scale),
        i32(scale != 1.0),
        site.fault,
    )
    units = -(-num_columns // UNITS.get(fmt.name, 32))
    return [Call("embed", "embed", arguments, (units, num_tokens), None, (weight_definition(fmt.name),))]


def lower_linear(site: Site) -> list[Call | Copy]:
    """For few tokens a row of the weight per run of lanes, for many a tile per group."""
    (num_tokens, num_columns), (num_rows, _) = site.shape("x"), site.shape("weight")
    fmt = site.spec("weight").format
    bias, has_bias = site.optional("bias")
    arguments = (
        site.inputs["x"],
        site.inputs["weight"],
        bias,
        site.outputs[0],
        i32(num_tokens),
        i32(num_columns),
        i32(num_rows),
        u64(fmt.nbytes((num_columns,))),
        has_bias,
    )
    return [linear_call(arguments, num_tokens, num_rows, fmt.name, site.num_lanes)]


def linear_call(arguments: tuple[object, ...], num_tokens: int, num_rows: int, fmt: str, num_lanes: int) -> Call:
    """The kernel of linear.cl for that many tokens."""
    tokens = 1 if num_tokens == 1 else 4
    definitions = (weight_definition(fmt), f"LANES={num_lanes}", f"TOKENS={tokens}")
    if num_tokens <= FEW_TOKENS:
        items = (num_lanes, whole(num_rows, LINEAR_ROWS), -(-num_tokens // tokens))
        return Call("linear", "linear_few", arguments, items, (num_lanes, LINEAR_ROWS, 1), definitions)
    items = (-(-num_rows // TILE) * 8, -(-num_tokens // TILE) * 8, 1)
    return Call("linear", "linear_many", arguments, items, (8, 8, 1), definitions)


def lower_rms_norm(site: Site) -> list[Call | Copy]:
    """A group per run."""
    (size,) = site.shape("weight")
    arguments = (
        site.inputs["x"],
        site.inputs["weight"],
        site.outputs[0],
        i32(size),
        f32(site.attr("eps")),
        f32(site.attr("weight_offset")),
    )
    return [_grouped(site, "norm", "rms_norm", arguments, prod(site.shape("x")) // size)]


def lower_layer_norm(site: Site) -> list[Call | Copy]:
    """A group per row."""
    num_rows, size = site.shape("x")
    arguments = (
        site.inputs["x"],
        site.inputs["weight"],
        site.optional("bias")[0],
        site.outputs[0],
        i32(size),
        f32(site.attr("eps")),
        site.optional("bias")[1],
    )
    return [_grouped(site, "norm", "layer_norm", arguments, num_rows)]


def lower_rope(site: Site) -> list[Call | Copy]:
    """An item per pair that is rotated, and per element that passes."""
    (num_rows, num_columns), (num_freqs,) = site.shape("x"), site.shape("inv_freq")
    head_dim = site.attr("head_dim")
    arguments = (
        site.inputs["x"],
        site.inputs["positions"],
        site.inputs["inv_freq"],
        site.outputs[0],
        i32(num_columns),
        i32(head_dim),
        i32(num_freqs),
        i32(site.attr("interleaved")),
        f32(site.attr("scale")),
        site.fault,
    )
    return [Call("rope", "rope", arguments, (num_columns // head_dim * (head_dim - num_freqs), num_rows))]


def lower_kv_write(site: Site) -> list[Call | Copy]:
    """In place; a cache that is no state of the region is copied first."""
    (num_rows, num_columns), (_, num_blocks, block_size, _, _) = site.shape("k"), site.shape("kv")
    arguments = (
        site.outputs[0],
        site.inputs["k"],
        site.inputs["v"],
        site.inputs["slot_mapping"],
        i32(num_columns),
        u64(num_blocks * block_size),
        site.fault,
    )
    return [*_own_cache(site), _kv_call(site, "kv_write", arguments, (num_columns, num_rows))]


def lower_kv_copy_blocks(site: Site) -> list[Call | Copy]:
    """An item per element of a block, as stored."""
    block_elements, num_elements = _block_sizes(site)
    (count,) = site.shape("source_blocks")
    ids = (site.inputs["source_blocks"], site.inputs["target_blocks"])
    arguments = (site.outputs[0], *ids, i32(block_elements), u64(num_elements), site.fault)
    return [*_own_cache(site), _kv_call(site, "kv_copy_blocks", arguments, (block_elements, count))]


def lower_kv_export(site: Site) -> list[Call | Copy]:
    """An item per element of a block."""
    block_elements, num_elements = _block_sizes(site)
    (count,) = site.shape("block_ids")
    buffers = (site.inputs["kv"], site.inputs["block_ids"], site.outputs[0])
    arguments = (*buffers, i32(block_elements), u64(num_elements), i32(count), site.fault)
    return [_kv_call(site, "kv_export", arguments, (block_elements, count))]


def lower_kv_import(site: Site) -> list[Call | Copy]:
    """An item per element of a block; in place, as `lower_kv_write`."""
    block_elements, num_elements = _block_sizes(site)
    (count,) = site.shape("block_ids")
    buffers = (site.outputs[0], site.inputs["data"], site.inputs["block_ids"])
    arguments = (*buffers, i32(block_elements), u64(num_elements), i32(count), site.fault)
    return [*_own_cache(site), _kv_call(site, "kv_import", arguments, (block_elements, count))]


def _own_cache(site: Site) -> list[Call | Copy]:
    """A copy of the cache into the output, where they are not the same buffer."""
    if site.outputs[0] is site.inputs["kv"]:
        return []
    return [Copy(site.outputs[0], site.inputs["kv"], site.spec("kv").nbytes(site.dims))]


def _block_sizes(site: Site) -> tuple[int, int]:
    """Elements of a block, and of all blocks."""
    _, num_blocks, *block = site.shape("kv")
    return prod(block), num_blocks * prod(block)


def _kv_call(site: Site, kernel: str, arguments: tuple[object, ...], items: tuple[int, int]) -> Call:
    return Call("kv", kernel, arguments, items, None, _kv_definitions(site.spec("kv").format.name))


def lower_attention(site: Site) -> list[Call | Copy]:
    """A group per query row and head."""
    (num_rows, _), (num_seqs, width) = site.shape("q"), site.shape("block_table")
    _, num_blocks, block_size, _, _ = site.shape("kv")
    (sinks, has_sinks), (slopes, has_slopes) = site.optional("sinks"), site.optional("alibi_slopes")
    num_heads = site.attr("num_heads")
    arguments = (
        site.inputs["q"],
        site.inputs["kv"],
        site.inputs["block_table"],
        site.inputs["query_start_loc"],
        site.inputs["seq_lens"],
        sinks,
        slopes,
        site.outputs[0],
        i32(num_seqs),
        i32(width),
        i32(block_size),
        u64(num_blocks * block_size),
        i32(num_heads),
        i32(site.attr("num_kv_heads")),
        f32(site.attr("scale")),
        i32(site.attr("window")),
        f32(site.attr("softcap")),
        i32(site.attr("causal")),
        has_sinks,
        has_slopes,
        site.fault,
    )
    definitions = (f"HEAD_DIM={site.attr('head_dim')}", *_kv_definitions(site.spec("kv").format.name))
    items = (num_heads * ATTENTION_KEYS, num_rows)
    return [Call("attention", "attention", arguments, items, (ATTENTION_KEYS, 1), definitions)]


def lower_activation(site: Site) -> list[Call | Copy]:
    """An item per element."""
    return [_flat(site, "activation", (site.inputs["x"],), (i32(KIND_NUMBERS[site.attr("kind")]),))]


def lower_glu(site: Site) -> list[Call | Copy]:
    """An item per element."""
    constants = (i32(KIND_NUMBERS[site.attr("kind")]), f32(site.attr("alpha")), f32(site.attr("limit")))
    return [_flat(site, "glu", (site.inputs["gate"], site.inputs["up"]), constants)]


def lower_add(site: Site) -> list[Call | Copy]:
    """An item per element."""
    return [_flat(site, "add", (site.inputs["a"], site.inputs["b"]), ())]


def lower_mul(site: Site) -> list[Call | Copy]:
    """An item per element."""
    b, has_b = site.optional("b")
    return [_flat(site, "mul", (site.inputs["a"], b), (has_b, *split_f32(float(site.attr("scale")))))]


def lower_softcap(site: Site) -> list[Call | Copy]:
    """An item per element."""
    return [_flat(site, "softcap", (site.inputs["x"],), (f32(site.attr("cap")),))]


def lower_convert(site: Site) -> list[Call | Copy]:
    """An item per element."""
    source, target = site.spec("x").format.name, site.attr("format")
    definitions = ("CONVERT", f"FROM_{source.upper()}", f"TO_{target.upper()}")
    return [_flat(site, "convert", (site.inputs["x"],), (), definitions)]


def lower_softmax(site: Site) -> list[Call | Copy]:
    """A group per row."""
    num_rows, num_columns = site.shape("x")
    constants = (i32(num_columns), i32(site.attr("log")), f32(site.attr("scale")))
    return [_grouped(site, "rows", "softmax", (site.inputs["x"], site.outputs[0], *constants), num_rows)]


def lower_argmax(site: Site) -> list[Call | Copy]:
    """A group per row."""
    num_rows, num_columns = site.shape("x")
    return [_grouped(site, "rows", "argmax", (site.inputs["x"], site.outputs[0], i32(num_columns)), num_rows)]


def lower_gather_rows(site: Site) -> list[Call | Copy]:
    """An item per element."""
    num_rows, num_columns = site.output_shape()
    arguments = (site.inputs["x"], site.inputs["rows"], site.outputs[0], i32(num_columns), site.fault)
    return [Call("rows", "gather_rows", arguments, (num_columns, num_rows), None, (f"GROUP={site.group_size}",))]


def lower_concat(site: Site) -> list[Call | Copy]:
    """A copy of columns per part."""
    num_rows, target_width = site.output_shape()
    calls: list[Call | Copy] = []
    start = 0
    for i in range(len(site.inputs)):
        width = site.shape(f"x{i}")[1]
        numbers = (width, width, 0, target_width, start)
        calls.append(_copy_columns(site, (site.inputs[f"x{i}"], site.outputs[0]), numbers, num_rows))
        start += width
    return calls


def lower_split(site: Site) -> list[Call | Copy]:
    """A copy of columns per part."""
    num_rows, source_width = site.shape("x")
    calls: list[Call | Copy] = []
    start = 0
    for output, width in zip(site.outputs, site.attr("sizes")):
        numbers = (width, source_width, start, width, 0)
        calls.append(_copy_columns(site, (site.inputs["x"], output), numbers, num_rows))
        start += width
    return calls


def weight_definition(fmt: str) -> str:
    """The macro that selects the decoder of a weight format."""
    return f"WEIGHT_{fmt.upper()}"


def _kv_definitions(fmt: str) -> tuple[str, ...]:
    return ("KV_F16",) if fmt == "f16" else ()


def _flat(
    site: Site,
    kernel: str,
    tensors: tuple[object, ...],
    constants: tuple[object, ...],
    definitions: tuple[str, ...] = (),
) -> Call:
    size = prod(site.output_shape())
    arguments = (*tensors, site.outputs[0], u64(size), *constants)
    return Call("elementwise", kernel, arguments, (whole(size, FLAT_GROUP),), (FLAT_GROUP,), definitions)


def _grouped(site: Site, file: str, kernel: str, arguments: tuple[object, ...], num_groups: int) -> Call:
    group = site.group_size
    return Call(file, kernel, arguments, (num_groups * group,), (group,), (f"GROUP={group}",))


def _copy_columns(site: Site, buffers: tuple[object, object], numbers: tuple[int, ...], num_rows: int) -> Call:
    arguments = (*buffers, *(i32(n) for n in numbers))
    return Call("rows", "copy_columns", arguments, (numbers[0], num_rows), None, (f"GROUP={site.group_size}",))


LOWER: Mapping[str, Lower] = {
    "embed@1": lower_embed,
    "linear@1": lower_linear,
    "rms_norm@1": lower_rms_norm,
    "layer_norm@1": lower_layer_norm,
    "rope@1": lower_rope,
    "kv_write@1": lower_kv_write,
    "kv_copy_blocks@1": lower_kv_copy_blocks,
    "kv_export@1": lower_kv_export,
    "kv_import@1": lower_kv_import,
    "attention@1": lower_attention,
    "activation@1": lower_activation,
    "glu@1": lower_glu,
    "add@1": lower_add,
    "mul@1": lower_mul,
    "softcap@1": lower_softcap,
    "convert@1": lower_convert,
    "softmax@1": lower_softmax,
    "argmax@1": lower_argmax,
    "gather_rows@1": lower_gather_rows,
    "concat@1": lower_concat,
    "split@1": lower_split,
}
