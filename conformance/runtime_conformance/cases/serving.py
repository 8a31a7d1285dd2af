"""Spaces of sampling, mixture of experts and collectives."""

from __future__ import annotations

from typing import Any

from runtime.dtypes import FORMATS, can_encode
from runtime_conformance.case import Case, Tensor
from runtime_conformance.cases.dense import WEIGHT_FORMATS, weight_data
from runtime_conformance.cases.space import FLOAT_FORMATS, X_DATA, Params, Space, make_case

_ROWS = (1, 4, 3, 9)


def _penalize(p: Params) -> Case | None:
    if p["H"] > p["V"]:
        return None
    params = dict(p) | {"has.bias_ids": p["bias"], "has.bias_values": p["bias"], "X": 3}
    data: dict[str, tuple[Any, ...]] = {
        "logits": ("normal", 4.0),
        "token_ids": ("distinct", p["V"]),
        "output_counts": ("ties", 4),
        "repetition": ("uniform", 1.0, 1.5) if p["active"] else ("constant", 1.0),
        "presence": ("uniform", -0.5, 1.0) if p["active"] else ("constant", 0.0),
        "frequency": ("uniform", 0.0, 0.7),
        "bias_ids": ("distinct", p["V"]),
        "bias_values": ("normal", 3.0),
    }
    return make_case("penalize@1", params, data, "normal")


def _sample(p: Params) -> Case:
    data: dict[str, tuple[Any, ...]] = {
        "logits": {"steps": ("steps", 0.03125), "normal": ("normal", 2.0), "ties": ("ties", 7)}[p["kind"]],
        "temperature": ("constant", p["temperature"]),
        "top_k": ("constant", p["top_k"]),
        "top_p": ("constant", p["top_p"]),
        "min_p": ("constant", p["min_p"]),
        "typical_p": ("constant", p["typical_p"]),
        "uniform": ("uniform",),
    }
    return make_case("sample@1", p, data, p["kind"])


def _verify_draft(p: Params) -> Case:
    params = dict(p) | {"D1": p["D"] + 1, "has.draft_probs": p["draft"]}
    data: dict[str, tuple[Any, ...]] = {
        "draft_ids": ("indices", p["V"]),
        "target_probs": ("probabilities",),
        "draft_probs": ("probabilities",),
        "uniform": ("uniform",),
    }
    return make_case("verify_draft@1", params, data, "normal")


def _moe_route(p: Params) -> Case | None:
    if p["top_k"] > p["E"]:
        return None
    logits = ("ties", 4) if p["kind"] == "ties" else ("steps", 0.125)
    return make_case("moe_route@1", p, {"logits": logits, "bias": ("normal", 0.5)}, p["kind"])


def _moe_linear(p: Params) -> Case | None:
    fmt, kind = p["weight.format"], p["kind"]
    if p["K"] % FORMATS[fmt].group_size or p["k"] > p["E"]:
        return None
    if kind == "exact" and FORMATS[fmt].is_quantized and can_encode(FORMATS[fmt]) and fmt != "q4_0":
        return None
    per_expert = p["per_expert_input"]
    params = dict(p) | {"X": p["k"] * p["K"] if per_expert else p["K"]}
    data = {
        "x": X_DATA[kind],
        "weight": weight_data(fmt, kind),
        "expert_ids": ("distinct", p["E"]),
        "bias": ("integers", -4, 4) if kind == "exact" else ("normal", 0.5),
        "expert_weights": ("integers", 1, 4, 0.25) if kind == "exact" else ("uniform", 0.05, 0.6),
    }
    return make_case("moe_linear@1", params, data)


def _collective(op_key: str, **attrs: Any) -> Any:
    def build(p: Params) -> Case | None:
        ranks, k = p["ranks"], p["K"]
        axis = p.get("axis", 1)
        if op_key in ("reduce_scatter@1", "all_to_all@1") and (k, p["T"])[axis == 0] % ranks:
            return None
        given = dict(attrs)
        if "axis" in p:
            given["axis"] = axis
        exact = op_key not in ("all_reduce@1", "reduce_scatter@1") or p["kind"] == "exact"
        inputs = {f"x{i}": Tensor(p["format"], (p["T"], k), data=X_DATA[p["kind"]]) for i in range(ranks)}
        return Case(op_key, inputs, given, "exact" if exact else p["kind"])

    return build


_RANKS = {"ranks": (2, 4, 3), "T": (4, 1, 12), "K": (64, 48, 256), "format": FLOAT_FORMATS, "kind": ("normal", "exact")}

SPACES = (
    Space(
        "penalize@1",
        {
            "R": _ROWS,
            "V": (97, 320),
            "H": (4, 17),
            "bias": (True, False),
            "active": (True, False),
            "logits.format": ("f32",),
        },
        _penalize,
    ),
    Space(
        "sample@1",
        {
            "R": (9, 33, 3, 1),
            "V": (97, 320, 1000),
            "temperature": (1.0, 0.0, 0.7),
            "top_k": (0, 5, 40),
            "top_p": (1.0, 0.9),
            "min_p": (0.0, 0.05),
            "typical_p": (1.0, 0.9),
            "kind": ("steps", "normal", "ties"),
        },
        _sample,
    ),
    Space("verify_draft@1", {"R": (9, 1, 33), "D": (3, 1, 5), "V": (97, 320), "draft": (True, False)}, _verify_draft),
    Space(
        "moe_route@1",
        {
            "T": (5, 1, 33),
            "E": (8, 32, 64),
            "top_k": (2, 1, 8),
            "score": ("softmax", "sigmoid", "softmax_selected"),
            "normalize": (True, False),
            "scale": (1.0, 2.5),
            "has.bias": (False, True),
            "logits.format": FLOAT_FORMATS,
            "kind": ("normal", "ties"),
        },
        _moe_route,
    ),
    Space(
        "moe_linear@1",
        {
            "T": (5, 1, 17),
            "E": (8, 4),
            "N": (64, 33),
            "K": (256, 64),
            "k": (2, 1, 4),
            "weight.format": WEIGHT_FORMATS,
            "x.format": FLOAT_FORMATS,
            "has.bias": (False, True),
            "has.expert_weights": (False, True),
            "per_expert_input": (False, True),
            "kind": ("normal", "exact", "outlier"),
        },
        _moe_linear,
    ),
    Space("all_reduce@1", _RANKS, _collective("all_reduce@1")),
    Space("all_gather@1", _RANKS | {"axis": (1, 0)}, _collective("all_gather@1")),
    Space("reduce_scatter@1", _RANKS | {"axis": (1, 0)}, _collective("reduce_scatter@1")),
    Space("all_to_all@1", _RANKS | {"axis": (1, 0)}, _collective("all_to_all@1")),
    Space("broadcast@1", _RANKS, _collective("broadcast@1", root=1)),
    Space("send@1", _RANKS, _collective("send@1", src=0, dst=1)),
    Space("recv@1", _RANKS, _collective("recv@1", src=1, dst=0)),
)
