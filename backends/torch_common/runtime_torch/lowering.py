"""Which function makes the calls of which operation, and what is fused across nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from runtime.backend import Node, Region
from runtime_torch import lower_attention, lower_ffn, lower_moe, lower_rows, lower_sampling, products
from runtime_torch.calls import Call, Site

Lower = Callable[[Site], "list[Call]"]

LOWER: Mapping[str, Lower] = {
    "embed@1": products.lower_embed,
    "linear@1": products.lower_linear,
    "rms_norm@1": lower_rows.lower_rms_norm,
    "layer_norm@1": lower_rows.lower_layer_norm,
    "rope@1": lower_attention.lower_rope,
    "kv_write@1": lower_attention.lower_kv_write,
    "attention@1": lower_attention.lower_attention,
    "kv_copy_blocks@1": lower_attention.lower_kv_copy_blocks,
    "kv_export@1": lower_attention.lower_kv_export,
    "kv_import@1": lower_attention.lower_kv_import,
    "activation@1": lower_rows.lower_activation,
    "glu@1": lower_rows.lower_glu,
    "add@1": lower_rows.lower_add,
    "mul@1": lower_rows.lower_mul,
    "softcap@1": lower_rows.lower_softcap,
    "convert@1": lower_rows.lower_convert,
    "gather_rows@1": lower_rows.lower_gather_rows,
    "concat@1": lower_rows.lower_concat,
    "split@1": lower_rows.lower_split,
    "softmax@1": lower_rows.lower_softmax,
    "topk@1": lower_rows.lower_topk,
    "argmax@1": lower_rows.lower_argmax,
    "penalize@1": lower_sampling.lower_penalize,
    "sample@1": lower_sampling.lower_sample,
    "moe_route@1": lower_moe.lower_moe_route,
    "moe_linear@1": lower_moe.lower_moe_linear,
    "qkv_rope_write@1": lower_attention.lower_qkv_rope_write,
    "swiglu_ffn@1": lower_ffn.lower_swiglu_ffn,
}


def sums_to_norm(region: Region) -> dict[Node, Node]:
    """rms_norm -> the add right before it whose sum it normalises over whole rows: both become one kernel."""
    pairs = {}
    for before, node in zip(region.nodes, region.nodes[1:]):
        if before.op.key == "add@1" and node.op.key == "rms_norm@1":
            total, weight = before.outputs[0], node.inputs["weight"]
            if node.inputs["x"] is total and weight.spec.shape == total.spec.shape[1:]:
                pairs[node] = before
    return pairs


def norm_of_sum(add: Site, norm: Site) -> list[Call]:
    """y = norm(total), total = a + b."""
    return lower_rows.rms_norm_calls(norm, add.tensor("a"), add.tensor("b"), add.output())
