"""Composites: fused equals expanded, work without inner traffic, and the layers of transformers."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.dtypes import FORMATS, Span, TensorSpec
from runtime.errors import InvalidArgument
from runtime.graph.builder import GraphBuilder
from runtime.ops import CATALOGUE
from runtime.ops.composites import DECODER_LAYER, OPS, QKV_ROPE_WRITE, RMS_NORM_LINEAR, SWIGLU_FFN
from runtime.ops.rounding import EXACT, Rounding

HEADS, KV_HEADS, HEAD_DIM, WIDTH, INNER = 4, 2, 8, 24, 40
BLOCKS, BLOCK_SIZE = 12, 4

# two sequences: 5 new tokens of 9, and one of 6; blocks in no order
BATCH = {
    "positions": [4, 5, 6, 7, 8, 5],
    "slot_mapping": [4 * 7 + 0, 4 * 7 + 1, 4 * 7 + 2, 4 * 7 + 3, 4 * 1 + 0, 4 * 9 + 1],
    "block_table": [[5, 7, 1], [3, 9, 0]],
    "query_start_loc": [0, 5, 6],
    "seq_lens": [9, 6],
}
ROPE = {"head_dim": HEAD_DIM, "interleaved": True, "rope_scale": 0.9}
NORM = {"eps": 1e-5, "weight_offset": 1.0}
LAYER = {"num_heads": HEADS, "num_kv_heads": KV_HEADS, "scale": 0.3, "window": 6, "softcap": 20.0, "kind": "gelu"}
ATTRS = {
    "rms_norm_linear": NORM,
    "qkv_rope_write": ROPE | NORM,
    "swiglu_ffn": {"kind": "silu"},
    "decoder_layer": ROPE | NORM | LAYER,
}
SIZES = {"T": 6, "K": WIDTH, "N": 10, "NQ": HEADS * HEAD_DIM, "NK": KV_HEADS * HEAD_DIM, "D": HEAD_DIM, "F": 3}
SIZES |= {"I": INNER, "B": BLOCKS, "C": BLOCK_SIZE, "H": KV_HEADS, "S": 2, "P": 3, "Q": 3}


def shape_of(port):
    return tuple(SIZES[s] if isinstance(s, str) else s for s in port.shape)


def arrays_of(op, seed=0, optional=True):
    rng = np.random.default_rng(seed)
    ports = [port for port in op.inputs if optional or not port.optional]
    return {
        port.name: np.array(BATCH[port.name]) if port.name in BATCH else rng.normal(0, 0.5, shape_of(port))
        for port in ports
    }


def specs_of(op, optional=True, weights="f32"):
    specs = {}
    for port in op.inputs:
        if optional or not port.optional:
            fmt = "i32" if port.name in BATCH else "f32"
            fmt = weights if "*" in port.formats and port.layout == "plain" else fmt
            specs[port.name] = TensorSpec(FORMATS[fmt], shape_of(port), port.layout)
    return specs


def expanded(op, optional=True):
    """The graph that the expansion of `op` builds."""
    b = GraphBuilder("expanded", {"U": Span(1, 1)})
    values = {
        name: b.state(name, spec) if spec.layout == "kv" else b.input(name, spec.format.name, spec.shape)
        for name, spec in specs_of(op, optional).items()
    }
    results = op.expand(b, values, op.complete_attrs(ATTRS[op.name]))
    for port, value in zip(op.outputs, results if isinstance(results, tuple) else (results,), strict=True):
        b.output(port.name, value)
    return b.build()


def run_graph(graph, arrays):
    values = {graph.inputs[name] if name in graph.inputs else graph.states[name]: a for name, a in arrays.items()}
    for node in graph:
        outputs = node.op.run_reference(EXACT, {n: values[v] for n, v in node.inputs.items()}, node.attrs)
        values.update(zip(node.outputs, outputs, strict=True))
    return [values[v] for v in graph.outputs.values()]


@pytest.mark.parametrize("optional", [True, False], ids=["every input", "no optional input"])
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_fused_equals_expanded_bit_for_bit(op, optional):
    fused = op.run_reference(EXACT, arrays_of(op, optional=optional), ATTRS[op.name])
    separate = run_graph(expanded(op, optional), arrays_of(op, optional=optional))
    assert len(fused) == len(separate) == len(op.outputs)
    for a, b in zip(fused, separate):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_inferred_shapes_are_those_of_the_results(op):
    specs = op.infer_specs(specs_of(op), ATTRS[op.name])
    results = op.run_reference(EXACT, arrays_of(op), ATTRS[op.name])
    assert [spec.shape for spec in specs] == [result.shape for result in results]
    assert [spec.layout for spec in specs] == [port.layout for port in op.outputs]


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_every_rounding_point_of_the_parts_is_declared(op):
    points, ops = {"intermediate"}, [node.op for node in expanded(op)]
    for part in ops:
        points |= set(part.rounding)
    assert points == set(op.rounding)
    assert set(op.rounding) >= {"output"}


def test_the_operations_of_an_expansion_are_the_ones_of_the_documentation():
    parts = [node.op.name for node in expanded(DECODER_LAYER)]
    assert parts == ["rms_norm", "qkv_rope_write", "attention", "linear", "add", "rms_norm", "swiglu_ffn", "add"]
    parts = [node.op.name for node in expanded(QKV_ROPE_WRITE, optional=False)]
    assert sorted(parts) == ["kv_write", "linear", "linear", "linear", "rope", "rope"]


def test_tokens_may_be_symbolic():
    specs = {
        name: TensorSpec(s.format, tuple("T" if d == 6 else d for d in s.shape))
        for name, s in specs_of(SWIGLU_FFN).items()
    }
    assert SWIGLU_FFN.infer_specs(specs, ATTRS["swiglu_ffn"]) == (TensorSpec(FORMATS["f32"], ("T", WIDTH)),)


def test_the_cache_is_changed_in_place_and_only_in_its_slots():
    arrays = arrays_of(QKV_ROPE_WRITE)
    before = arrays["kv"].copy()
    _, kv = QKV_ROPE_WRITE.run_reference(EXACT, arrays, ATTRS["qkv_rope_write"])
    assert kv is arrays["kv"]
    changed = np.nonzero((kv != before).any(axis=(0, 3, 4)).reshape(-1))[0]
    assert changed.tolist() == sorted(BATCH["slot_mapping"])


def test_values_between_parts_are_rounded_at_their_own_point():
    arrays = arrays_of(RMS_NORM_LINEAR)
    exact = RMS_NORM_LINEAR.run_reference(EXACT, arrays, NORM)[0]

    def error(**formats):
        return np.abs(RMS_NORM_LINEAR.run_reference(Rounding(formats, "nearest"), arrays, NORM)[0] - exact).max()

    assert error(accumulate="f32") == 0
    assert error(intermediate="bf16") > error(intermediate="f16") > error(intermediate="f32") > 0
    assert error(output="f16") > error(output="f32") > 0


def test_work_is_that_of_the_parts_without_what_stays_inside():
    specs = specs_of(SWIGLU_FFN, optional=False, weights="q8_0") | {
        "gate_weight": TensorSpec(FORMATS["q8_0"], (64, 32)),
        "up_weight": TensorSpec(FORMATS["q8_0"], (64, 32)),
        "down_weight": TensorSpec(FORMATS["q8_0"], (32, 64)),
        "x": TensorSpec(FORMATS["f32"], (6, 32)),
    }
    outputs = {"y": TensorSpec(FORMATS["f32"], (6, 32))}
    work = SWIGLU_FFN.work(specs, outputs, {"kind": "silu"})
    glu = CATALOGUE["glu@1"]
    inner = {"gate": TensorSpec(FORMATS["f32"], (6, 64)), "up": TensorSpec(FORMATS["f32"], (6, 64))}
    gated = glu.work(inner, {"y": inner["up"]}, {"kind": "silu"}).operations
    assert work.operations == 3 * 2 * 6 * 32 * 64 + gated
    # x once, three weights of 64 blocks of 34 bytes
    assert work.bytes_read == 6 * 32 * 4 + 3 * 64 * 34
    assert work.bytes_written == 6 * 32 * 4


def test_work_of_a_layer_counts_the_cache_as_its_users_touch_it():
    specs = specs_of(DECODER_LAYER)
    attrs = DECODER_LAYER.complete_attrs(ATTRS["decoder_layer"])
    y, kv = DECODER_LAYER.infer_specs(specs, attrs)
    work = DECODER_LAYER.work(specs, {"y": y, "kv_out": kv}, attrs)
    plain = sum(spec.nbytes() for spec in specs.values() if spec.layout == "plain")
    token = 2 * KV_HEADS * HEAD_DIM * 4
    assert work.bytes_written == 6 * WIDTH * 4 + 6 * token
    # every plain input once, and keys and values that the two sequences can see
    assert work.bytes_read - plain in range(6 * token, 2 * 12 * token + 1)


def test_a_broken_rule_names_the_composite_and_the_part():
    specs = specs_of(QKV_ROPE_WRITE) | {"kv": TensorSpec(FORMATS["f32"], (2, 4, 4, 4, 8), "kv")}
    with pytest.raises(InvalidArgument, match="qkv_rope_write@1 is impossible: kv_write@1"):
        QKV_ROPE_WRITE.infer_specs(specs, ATTRS["qkv_rope_write"])


def array(tensor):
    return tensor.detach().numpy()


@pytest.mark.oracle
def test_swiglu_ffn_equals_the_mlp_of_llama():
    import torch
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaMLP

    torch.manual_seed(0)
    mlp = LlamaMLP(LlamaConfig(hidden_size=32, intermediate_size=INNER, mlp_bias=True)).double()
    x = torch.randn(6, 32, dtype=torch.float64)
    inputs = {"x": array(x)}
    for part in ("gate", "up", "down"):
        projection = getattr(mlp, f"{part}_proj")
        inputs |= {f"{part}_weight": array(projection.weight), f"{part}_bias": array(projection.bias)}
    y = SWIGLU_FFN.run_reference(EXACT, inputs, {"kind": "silu"})[0]
    np.testing.assert_allclose(y, array(mlp(x)), rtol=1e-9, atol=1e-12)


@pytest.mark.oracle
@pytest.mark.parametrize("chunks", [[11], [4, 7], [1] * 11], ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_decoder_layer_on_shuffled_blocks_equals_that_of_transformers(family, chunks):
    import torch
    from transformers.models.llama import configuration_llama, modeling_llama
    from transformers.models.qwen3 import configuration_qwen3, modeling_qwen3

    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "rms_norm_eps": 1e-5,
        "num_hidden_layers": 1,
        "vocab_size": 8,
        "attention_bias": family == "qwen3",
        "attn_implementation": "eager",
    }
    torch.manual_seed(1)
    if family == "llama":
        model = modeling_llama.LlamaModel(configuration_llama.LlamaConfig(**sizes)).double()
    else:
        model = modeling_qwen3.Qwen3Model(configuration_qwen3.Qwen3Config(**sizes)).double()
    layer = model.layers[0]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    x = torch.randn(1, 11, WIDTH, dtype=torch.float64)
    positions = torch.arange(11)[None]
    # the frequencies in float64, as the reference has them
    inv_freq = 10000.0 ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)
    angles = torch.cat([positions[0, :, None] * inv_freq] * 2, -1)[None]
    mask = torch.full((11, 11), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    out = layer(x, attention_mask=mask, position_ids=positions, position_embeddings=(angles.cos(), angles.sin()))
    expected = array(out[0] if isinstance(out, tuple) else out).reshape(11, WIDTH)

    attention, mlp = layer.self_attn, layer.mlp
    weights = {"attn_norm": layer.input_layernorm.weight, "ffn_norm": layer.post_attention_layernorm.weight}
    weights |= {f"{part}_weight": getattr(attention, f"{part}_proj").weight for part in "qkvo"}
    weights |= {f"{part}_weight": getattr(mlp, f"{part}_proj").weight for part in ("gate", "up", "down")}
    if family == "qwen3":
        weights |= {f"{part}_bias": getattr(attention, f"{part}_proj").bias for part in "qkvo"}
        weights |= {"q_norm": attention.q_norm.weight, "k_norm": attention.k_norm.weight}
    constants = {name: array(tensor) for name, tensor in weights.items()} | {"inv_freq": array(inv_freq)}
    attrs = {"eps": 1e-5, "head_dim": HEAD_DIM, "num_heads": HEADS, "num_kv_heads": KV_HEADS}
    attrs |= {"scale": HEAD_DIM**-0.5, "kind": "silu"}

    table = np.array([9, 2, 6])
    # what no sequence owns must not matter
    kv = np.full((2, BLOCKS, BLOCK_SIZE, KV_HEADS, HEAD_DIM), np.nan)
    computed = []
    for begin, end in zip(np.cumsum([0, *chunks[:-1]]), np.cumsum(chunks)):
        at = np.arange(begin, end)
        step = {
            "x": array(x)[0, at],
            "positions": at,
            "slot_mapping": table[at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE,
            "block_table": table[None],
            "query_start_loc": np.array([0, len(at)]),
            "seq_lens": np.array([end]),
            "kv": kv,
        }
        computed.append(DECODER_LAYER.run_reference(EXACT, constants | step, attrs)[0])
    # norms and softmax of transformers compute in float32 whatever the weights are
    np.testing.assert_allclose(np.concatenate(computed), expected, atol=5e-6)
