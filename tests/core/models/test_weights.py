"""Weights of the graph come from the right bytes of the right tensors."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from headers import hf_config, llama_gguf, spec

from runtime.dtypes import FORMATS, TensorSpec
from runtime.errors import MalformedFile, Unsupported
from runtime.models import WeightRecipe, build_graph, describe_model, load_weight_bytes, weight_shapes, weight_source
from runtime.models.names import alternatives
from runtime.models.recipes import Piece


def test_weights_of_a_llama_gguf_are_views_of_its_tensors() -> None:
    recipes = weight_source(describe_model("gguf", *llama_gguf()))
    recipe = recipes["layers.1.q_proj.weight"]
    assert recipe == WeightRecipe(spec("q8_0", 64, 64), (Piece("blk.1.attn_q.weight", 0, 64 * 68),))
    assert all(r.is_view for r in recipes.values())
    stored = memoryview(bytes(range(256)) * 17)
    view = load_weight_bytes(recipe, {"blk.1.attn_q.weight": stored}.__getitem__)
    assert view == stored
    assert np.shares_memory(np.frombuffer(view, "u1"), np.frombuffer(stored, "u1"))


def test_missing_tensor_is_named_with_what_needs_it() -> None:
    metadata, tensors = llama_gguf()
    del tensors["blk.1.ffn_down.weight"]
    with pytest.raises(MalformedFile, match=r"tensor 'blk\.1\.ffn_down\.weight' is missing.*layers\.1\.down_proj"):
        weight_source(describe_model("gguf", metadata, tensors))


def test_tensor_of_the_wrong_shape_is_named_with_both_shapes() -> None:
    metadata, tensors = llama_gguf()
    tensors["blk.0.attn_k.weight"] = spec("q8_0", 64, 64)
    with pytest.raises(MalformedFile, match=r"'blk\.0\.attn_k\.weight' is q8_0\[64, 64\].*demand shape \[32, 64\]"):
        weight_source(describe_model("gguf", metadata, tensors))


def test_surplus_tensor_is_named() -> None:
    metadata, tensors = llama_gguf()
    tensors["blk.0.attn_q_norm.weight"] = spec("f32", 16)
    with pytest.raises(
        MalformedFile, match=r"1 tensors belong to no part of a llama model, e\.g\. blk\.0\.attn_q_norm"
    ):
        weight_source(describe_model("gguf", metadata, tensors))


def test_derived_tensors_of_old_files_are_ignored() -> None:
    metadata, tensors = llama_gguf()
    tensors["blk.0.attn_rot_embd.weight"] = spec("f32", 8)
    weight_source(describe_model("gguf", metadata, tensors))


def _synthetic(config: dict[str, object], fmt: str = "bf16") -> dict[str, TensorSpec]:
    """The tensors that the names ask for first, all in one format."""
    model = describe_model("hf", config, {"lm_head.weight": spec(fmt, 1)})
    tensors = {}
    for name, shape in weight_shapes(model).items():
        for part in next(iter(alternatives(model, name, shape))).parts:
            tensors[part.tensor] = TensorSpec(FORMATS[fmt], part.shape)
    return tensors


_MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_CONFIGS = [
    hf_config("llama", "LlamaForCausalLM"),
    hf_config("gemma2", "Gemma2ForCausalLM"),
    hf_config("gemma3_text", "Gemma3ForCausalLM"),
    hf_config("granite", "GraniteForCausalLM", residual_multiplier=0.5, logits_scaling=8.0),
    hf_config("smollm3", "SmolLM3ForCausalLM"),
    hf_config("mixtral", "MixtralForCausalLM", **_MOE),
    hf_config("qwen2_moe", "Qwen2MoeForCausalLM", **_MOE, shared_expert_intermediate_size=32),
    hf_config("gpt_oss", "GptOssForCausalLM", **_MOE),
]


@pytest.mark.parametrize("config", _CONFIGS, ids=lambda c: c["model_type"])
def test_graph_of_bfloat16_weights_has_one_cache_per_layer_and_logits(config: dict[str, object]) -> None:
    model = describe_model("hf", config, _synthetic(config))
    graph = build_graph(model, max_num_tokens=64, max_num_seqs=4, max_model_len=128, block_size=16, kv_format="f16")
    assert list(graph.states) == [f"layers.{i}.kv" for i in range(4)]
    assert str(graph.states["layers.3.kv"].spec) == "f16[2, B, 16, 2, 16]"
    assert str(graph.outputs["logits"].spec) == "f32[R, 131]"
    assert {"T": 64, "S": 4, "Q": 5, "P": 8, "R": 4}.items() <= {n: s.hi for n, s in graph.dims.items()}.items()
    assert set(graph.weights) == set(weight_source(model))


def test_fused_rows_of_phi3_are_byte_ranges() -> None:
    config = hf_config("phi3", "Phi3ForCausalLM")
    tensors = {"model.embed_tokens.weight": spec("bf16", 131, 64), "model.norm.weight": spec("bf16", 64)}
    tensors["lm_head.weight"] = spec("bf16", 131, 64)
    for i in range(4):
        block = f"model.layers.{i}."
        tensors |= {
            f"{block}input_layernorm.weight": spec("bf16", 64),
            f"{block}post_attention_layernorm.weight": spec("bf16", 64),
            f"{block}self_attn.qkv_proj.weight": spec("bf16", 128, 64),
            f"{block}self_attn.o_proj.weight": spec("bf16", 64, 64),
            f"{block}mlp.gate_up_proj.weight": spec("bf16", 192, 64),
            f"{block}mlp.down_proj.weight": spec("bf16", 64, 96),
        }
    recipes = weight_source(describe_model("hf", config, tensors))
    qkv = "model.layers.2.self_attn.qkv_proj.weight"
    assert recipes["layers.2.k_proj.weight"].pieces == (Piece(qkv, 64 * 128, 32 * 128),)
    assert recipes["layers.2.up_proj.weight"].pieces == (
        Piece("model.layers.2.mlp.gate_up_proj.weight", 96 * 128, 96 * 128),
    )
    assert all(r.is_view for r in recipes.values())


def test_pieces_are_joined_in_order() -> None:
    recipe = WeightRecipe(spec("i8", 2, 2), (Piece("b", 0, 2), Piece("a", 1, 2)))
    data = {"a": memoryview(b"\x01\x02\x03"), "b": memoryview(b"\x04\x05")}
    assert bytes(load_weight_bytes(recipe, data.__getitem__)) == b"\x04\x05\x02\x03"


def test_interleaved_columns_are_taken_apart_and_transposed() -> None:
    source = np.arange(2 * 3 * 4, dtype="<f4").reshape(2, 3, 4)
    recipe = WeightRecipe(spec("f32", 2, 2, 3), (Piece("w", 0, source.nbytes),), "columns", spec("f32", 2, 3, 4), 1, 2)
    out = np.frombuffer(load_weight_bytes(recipe, lambda _: memoryview(source)), "<f4").reshape(2, 2, 3)
    assert out.tolist() == [[[1, 5, 9], [3, 7, 11]], [[13, 17, 21], [15, 19, 23]]]


def test_mxfp4_blocks_decode_to_the_values_of_the_source() -> None:
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 256, (2, 4, 2, 16), dtype=np.uint8)
    scales = rng.integers(120, 130, (2, 4, 2), dtype=np.uint8)
    pieces = (Piece("blocks", 0, blocks.nbytes), Piece("scales", 0, scales.nbytes))
    recipe = WeightRecipe(spec("mxfp4", 2, 2, 64), pieces, "mxfp4", spec("u8", *blocks.shape), 1, 2)
    data = {"blocks": memoryview(blocks).cast("B"), "scales": memoryview(scales).cast("B")}
    packed = np.frombuffer(load_weight_bytes(recipe, data.__getitem__), np.uint8).reshape(-1, 34)
    found = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.MXFP4).reshape(2, 2, 64)
    e2m1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    neighbours = np.stack([blocks & 15, blocks >> 4], -1).reshape(2, 4, 2, 32)
    expected = (e2m1[neighbours] * 2.0 ** (scales.astype(int) - 127)[..., None]).reshape(2, 4, 64)[:, 1::2]
    assert np.array_equal(found, expected)


def test_experts_of_different_formats_are_refused() -> None:
    config = _CONFIGS[5]
    tensors = _synthetic(config)
    name = "model.layers.0.mlp.experts.1.up_proj.weight"
    tensors[name] = TensorSpec(FORMATS["f16"], tensors[name].shape)
    with pytest.raises(Unsupported, match=r"layers\.0\.experts\.up_proj\.weight would mix formats \(bf16, f16\)"):
        weight_source(describe_model("hf", config, tensors))


def test_layers_are_whole_composites_and_the_last_one_goes_on_with_the_wanted_rows_only() -> None:
    graph = build_graph(
        describe_model("gguf", *llama_gguf()), max_num_tokens=8, max_num_seqs=2, max_model_len=64, block_size=4
    )
    assert [node.name for node in graph] == [
        "embed_tokens",
        "layers.0.decoder_layer",
        "layers.1.attn_norm",
        "layers.1.qkv",
        "layers.1.attention",
        "layers.1.wanted_rows",
        "layers.1.wanted_attention",
        "layers.1.o_proj",
        "layers.1.attn_residual",
        "layers.1.ffn_norm",
        "layers.1.mlp",
        "layers.1.ffn_residual",
        "norm",
        "lm_head",
    ]
    assert [node.outputs[0].spec.shape[0] for node in graph][4:8] == ["T", "R", "R", "R"]


FP8 = hf_config(
    "llama", "LlamaForCausalLM", hidden_size=128, head_dim=32, quantization_config={"quant_method": "fp8"}
)  # fmt: skip


@pytest.mark.parametrize("scales", ["of the matrix", "of rows", "of squares"])
def test_fp8_weights_with_scales_decode_to_codes_times_scales(scales: str) -> None:
    rng = np.random.default_rng(2)
    shape = (4 * 32, 128)
    name = "model.layers.1.self_attn.q_proj.weight"
    stored = {"of the matrix": (1,), "of rows": (128, 1), "of squares": (1, 1)}[scales]
    tensors = _synthetic(FP8, "f8_e4m3") | {f"{name}_scale": spec("f32", *stored)}
    tensors["model.layers.1.self_attn.q_proj.input_scale"] = spec("f32", 1)
    model = describe_model("hf", FP8, tensors)
    recipe = weight_source(model)["layers.1.q_proj.weight"]
    assert recipe.spec == spec("f8_e4m3_g128", *shape)
    codes = rng.integers(0, 120, shape, dtype=np.uint8)
    factors = rng.uniform(0.5, 2, stored).astype("<f4")
    data = {name: memoryview(codes).cast("B"), f"{name}_scale": memoryview(factors).cast("B")}
    found = recipe.spec.format.decode(load_weight_bytes(recipe, data.__getitem__), shape)
    expected = FORMATS["f8_e4m3"].decode(codes, shape) * factors
    np.testing.assert_array_equal(found, expected)


def test_squares_of_fp8_experts_may_end_within_the_matrix() -> None:
    codes, other = (np.full((200, 256), code, np.uint8) for code in (0x38, 0x40))  # 1 and 2
    factors = np.array([[1, 2], [3, 4]], "<f4")
    pieces = tuple(p for w in "ab" for p in (Piece(w, 0, codes.nbytes), Piece(f"{w}_scale", 0, factors.nbytes)))
    recipe = WeightRecipe(spec("f8_e4m3_g128", 2, 200, 256), pieces, "fp8", spec("f32", 2, 2))
    data = {"a": codes, "b": other, "a_scale": factors, "b_scale": factors}
    bytes_of = {name: memoryview(array).cast("B") for name, array in data.items()}
    found = recipe.spec.format.decode(load_weight_bytes(recipe, bytes_of.__getitem__), (2, 200, 256))
    assert found[0, [0, 127, 128, 199]][:, [0, 127, 128, 255]].tolist() == [[1, 1, 2, 2]] * 2 + [[3, 3, 4, 4]] * 2
    assert np.array_equal(found[1], 2 * found[0])


def test_fp8_scales_of_other_shapes_are_refused() -> None:
    name = "model.layers.1.self_attn.q_proj.weight"
    tensors = _synthetic(FP8, "f8_e4m3") | {f"{name}_scale_inv": spec("f32", 4, 4)}
    with pytest.raises(
        Unsupported, match=r"q_proj\.weight_scale_inv' is f32\[4, 4\]; scales are read of a whole matrix"
    ):
        weight_source(describe_model("hf", FP8, tensors))
