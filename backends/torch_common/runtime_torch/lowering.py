"""Which function makes the calls of which operation, and what is fused across nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from runtime.backend import Node, Region, Value
from runtime_torch import lower_attention, lower_ffn, lower_moe, lower_route, lower_rows, lower_sampling, products
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
    "moe_route@1": lower_route.lower_moe_route,
    "moe_linear@1": lower_moe.lower_moe_linear,
    "qkv_rope_write@1": lower_attention.lower_qkv_rope_write,
    "swiglu_ffn@1": lower_ffn.lower_swiglu_ffn,
}


@dataclass(frozen=True)
class Fusion:
    """Nodes that become calls together, in the place of the last one: nothing else reads what they hand on."""

    nodes: tuple[Node, ...]
    lower: Callable[..., list[Call]]
    """Of their sites, in the order of `nodes`."""


def fusions(region: Region) -> dict[Node, Fusion]:
    """Last node -> what it is fused with; a node is in one fusion at most."""
    found = [*sums_to_norm(region), *gated_experts(region)]
    return {fusion.nodes[-1]: fusion for fusion in found}


def places(region: Region, fused: Mapping[Node, Fusion]) -> dict[Node, int]:
    """Node -> number of the node in whose place it runs: until then its inputs and outputs must stay."""
    numbers = {node: number for number, node in enumerate(region.nodes)}
    return numbers | {node: numbers[last] for last, fusion in fused.items() for node in fusion.nodes}


def sums_to_norm(region: Region) -> list[Fusion]:
    """An add and the rms_norm right after it that normalises the sum over whole rows: one kernel."""
    pairs = []
    for before, node in zip(region.nodes, region.nodes[1:]):
        if before.op.key == "add@1" and node.op.key == "rms_norm@1":
            total, weight = before.outputs[0], node.inputs["weight"]
            if node.inputs["x"] is total and weight.spec.shape == total.spec.shape[1:]:
                pairs.append(Fusion((before, node), norm_of_sum))
    return pairs


def norm_of_sum(add: Site, norm: Site) -> list[Call]:
    """y = norm(total), total = a + b."""
    return lower_rows.rms_norm_calls(norm, add.tensor("a"), add.tensor("b"), add.output())


def gated_experts(region: Region) -> list[Fusion]:
    """Two products with the same experts in the same format, their glu, and the product that sums the experts."""
    made_by = {value: node for node in region.nodes for value in node.outputs}
    readers: dict[Value, list[Node]] = {value: [] for value in made_by}
    for node in region.nodes:
        for value in node.inputs.values():
            readers.setdefault(value, []).append(node)
    seen = set(region.outputs)
    found = []
    for glu in (n for n in region.nodes if n.op.key == "glu@1"):
        halves = [glu.inputs[port] for port in ("gate", "up")]
        parts = [made_by.get(value) for value in halves]
        if any(readers[v] != [glu] or v in seen for v in halves if v in made_by) or not _are_alike(*parts):
            continue
        gate, up = (part for part in parts if part is not None)
        after = readers[glu.outputs[0]]
        if len(after) == 1 and glu.outputs[0] not in seen and _sums(after[0], glu, gate):
            found.append(Fusion((gate, up, glu, after[0]), lower_moe.lower_experts))
        else:
            found.append(Fusion((gate, up, glu), lower_moe.lower_gated))
    return found


def _are_alike(gate: Node | None, up: Node | None) -> bool:
    """Whether two nodes are products of the same rows with the same experts, in weights of one format and shape."""
    if gate is None or up is None or gate is up or {gate.op.key, up.op.key} != {"moe_linear@1"}:
        return False
    same = all(gate.inputs[port] is up.inputs[port] for port in ("x", "expert_ids"))
    weights = [node.inputs["weight"].spec for node in (gate, up)]
    same = same and weights[0].format.name == weights[1].format.name and weights[0].shape == weights[1].shape
    same = same and ("bias" in gate.inputs) == ("bias" in up.inputs)
    same = same and bool(gate.attrs.get("per_expert_input")) == bool(up.attrs.get("per_expert_input"))
    return same and not any("expert_weights" in node.inputs for node in (gate, up))


def _sums(down: Node, glu: Node, gate: Node) -> bool:
    """Whether a node is the last product of the experts that `gate` chose, with their weighted sum."""
    if down.op.key != "moe_linear@1" or "expert_weights" not in down.inputs:
        return False
    return down.inputs["x"] is glu.outputs[0] and down.inputs["expert_ids"] is gate.inputs["expert_ids"]
