"""A model's header becomes sizes and traits, or an error that names what is wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest
from headers import hf_config, llama_gguf, spec
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.dtypes import FORMATS
from runtime.errors import MalformedFile, RuntimeFault, Unsupported
from runtime.models import ARCHITECTURES, build_graph, describe_model, kv_bytes_per_token, parameter_count


def test_llama_gguf_has_the_sizes_of_its_header() -> None:
    model = describe_model("gguf", *llama_gguf())
    assert (model.hidden_size, model.intermediate_size, model.num_layers) == (64, 96, 2)
    assert (model.num_heads, model.num_kv_heads, model.head_dim, model.vocab_size) == (4, 2, 16, 131)
    assert (model.max_model_len, model.rms_norm_eps, model.rope_theta) == (512, 1e-5, 500000.0)
    assert model.rope_interleaved
    assert not model.tie_word_embeddings
    assert model.attention_scale == 0.25


def test_parameters_and_cache_are_counted() -> None:
    model = describe_model("gguf", *llama_gguf())
    layer = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 96 + 2 * 64
    assert parameter_count(model) == 2 * 131 * 64 + 64 + 2 * layer
    assert kv_bytes_per_token(model, FORMATS["f16"]) == 2 * 2 * 2 * 2 * 16


def test_missing_output_matrix_means_tied_embeddings_in_gguf() -> None:
    metadata, tensors = llama_gguf()
    del tensors["output.weight"]
    assert describe_model("gguf", metadata, tensors).tie_word_embeddings


@pytest.mark.parametrize(("kind", "field"), [("gguf", "general.architecture"), ("hf", "model_type")])
def test_unknown_architecture_is_refused_by_name_with_what_is_supported(kind: Any, field: str) -> None:
    with pytest.raises(
        Unsupported, match=r"architecture 'mamba' is not supported; supported: .*gemma3.*qwen2"
    ) as caught:
        describe_model(kind, {field: "mamba"}, {})
    assert caught.value.code == "unsupported"


def test_unknown_class_of_a_known_family_is_refused() -> None:
    config = hf_config("llama", "LlamaForSequenceClassification")
    with pytest.raises(Unsupported, match="LlamaForSequenceClassification is not supported for model type 'llama'"):
        describe_model("hf", config, {})


def test_header_without_architecture_is_malformed() -> None:
    with pytest.raises(MalformedFile, match=r"no 'general\.architecture'"):
        describe_model("gguf", {}, {})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("llama.block_count", 2**31, r"'llama\.block_count' is 2147483648; it must be a whole number from 1 to 1024"),
        ("llama.block_count", "two", "it must be a whole number"),
        ("llama.embedding_length", 0, "it must be a whole number from 1"),
        ("llama.attention.head_count_kv", 3, "4 query heads do not divide among 3 key/value heads"),
        ("llama.attention.layer_norm_rms_epsilon", float("nan"), "it must be a finite number"),
        ("llama.rope.dimension_count", 15, "must be even"),
        ("llama.rope.freq_base", 0.0, "must be above 1"),
        ("llama.rope.scaling.type", "spiral", "rope scaling 'spiral' is not supported"),
    ],
)
def test_wrong_value_is_named_with_its_key(key: str, value: Any, message: str) -> None:
    metadata, tensors = llama_gguf()
    with pytest.raises((MalformedFile, Unsupported), match=message):
        describe_model("gguf", {**metadata, key: value}, tensors)


def test_missing_key_is_named() -> None:
    metadata, tensors = llama_gguf()
    del metadata["llama.context_length"]
    with pytest.raises(MalformedFile, match=r"no 'llama\.context_length'"):
        describe_model("gguf", metadata, tensors)


def test_heads_that_differ_between_layers_are_unsupported() -> None:
    metadata, tensors = llama_gguf()
    equal = describe_model("gguf", {**metadata, "llama.attention.head_count_kv": [2, 2]}, tensors)
    assert equal.num_kv_heads == 2
    with pytest.raises(Unsupported, match="differs between layers"):
        describe_model("gguf", {**metadata, "llama.attention.head_count_kv": [2, 4]}, tensors)


def test_quantized_safetensors_are_refused_with_their_method() -> None:
    config = hf_config("llama", "LlamaForCausalLM", quantization_config={"quant_method": "awq"})
    with pytest.raises(Unsupported, match="quantized with 'awq' are not supported"):
        describe_model("hf", config, {})
    packed = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    config = hf_config("llama", "LlamaForCausalLM", quantization_config=packed)
    with pytest.raises(Unsupported, match="'compressed-tensors' in the format 'pack-quantized' are not supported"):
        describe_model("hf", config, {})


def test_old_and_new_spelling_of_rope_say_the_same() -> None:
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }
    old = hf_config("llama", "LlamaForCausalLM", rope_theta=500000.0, rope_scaling=scaling)
    new = hf_config("llama", "LlamaForCausalLM", rope_parameters={"rope_theta": 500000.0, **scaling})
    assert describe_model("hf", old, {}).ropes == describe_model("hf", new, {}).ropes
    assert describe_model("hf", old, {}).ropes["default"].kind == "llama3"


def test_gemma3_alternates_windows_and_rope_bases() -> None:
    model = describe_model(
        "hf", hf_config("gemma3_text", "Gemma3ForCausalLM", num_hidden_layers=7, sliding_window=9), {}
    )
    assert [layer.window for layer in model.layers] == [9, 9, 9, 9, 9, 0, 9]
    assert [layer.rope for layer in model.layers] == ["local"] * 5 + ["default", "local"]
    assert (model.ropes["default"].theta, model.ropes["local"].theta) == (1e6, 1e4)
    assert model.embed_scale == 8.0
    assert model.norm_weight_offset == 1.0
    assert model.tie_word_embeddings


def test_gemma3_of_a_multimodal_model_is_its_text_part() -> None:
    text = {"model_type": "gemma3_text", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6}
    config = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {**text, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
    }
    model = describe_model("hf", config, {})
    assert (model.num_heads, model.num_kv_heads, model.head_dim, model.vocab_size) == (8, 4, 256, 262208)
    assert (model.ropes["default"].kind, model.ropes["local"].kind) == ("linear", "default")


def test_explicit_null_is_not_replaced_by_a_default() -> None:
    config = hf_config("gemma2", "Gemma2ForCausalLM", final_logit_softcapping=None)
    model = describe_model("hf", config, {})
    assert (model.attention_softcap, model.logits_softcap) == (50.0, 0.0)


def test_large_gemmas_scale_by_hidden_size_per_head_in_gguf() -> None:
    metadata, _ = llama_gguf()
    sizes = {key.replace("llama.", "gemma3."): value for key, value in metadata.items()}
    sizes |= {"general.architecture": "gemma3", "gemma3.attention.key_length": 32, "gemma3.vocab_size": 131}
    small = describe_model("gguf", {**sizes, "gemma3.attention.value_length": 32}, {})
    large = describe_model("gguf", {**sizes, "gemma3.attention.value_length": 32, "gemma3.block_count": 62}, {})
    assert small.attention_scale == pytest.approx(1 / math.sqrt(32))
    assert large.attention_scale == 0.25


def test_every_row_is_reachable_by_exactly_one_name() -> None:
    for kind in ("gguf", "hf"):
        names = [name for row in ARCHITECTURES.values() for name in getattr(row, kind)]
        assert len(names) == len(set(names))


_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.one_of(st.integers(-3, 3), st.text(max_size=2), st.none(), st.floats()), max_size=3),
    st.dictionaries(st.sampled_from(["rope_type", "factor", "rope_theta"]), st.integers(-2, 9), max_size=3),
)


@settings(max_examples=150, deadline=None, database=None)
@given(st.data())
def test_hostile_headers_end_in_typed_errors(data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        kind, (metadata, tensors) = "gguf", llama_gguf(num_layers=1)
        metadata["llama.rope.scaling.type"] = data.draw(st.sampled_from(["none", "yarn", "linear"]))
        extra = ["llama.expert_count", "llama.rope.scaling.factor", "llama.attention.key_length"]
    else:
        kind, tensors = "hf", {}
        row = data.draw(st.sampled_from(sorted(ARCHITECTURES.values(), key=lambda r: r.name)))
        metadata = hf_config(row.hf[0], row.hf_classes[0], rope_parameters={"rope_type": "llama3", "factor": 2.0})
        extra = ["layer_types", "sliding_window", "mlp_only_layers", "text_config", "no_rope_layers", "rope_scaling"]
    for key in data.draw(st.lists(st.sampled_from([*sorted(metadata), *extra]), min_size=1, max_size=3)):
        metadata[key] = data.draw(_VALUES)
    try:
        model = describe_model(kind, metadata, tensors)  # type: ignore[arg-type]
        build_graph(model, max_num_tokens=8, max_num_seqs=2, max_model_len=64, block_size=4)
    except RuntimeFault:
        return


@pytest.mark.parametrize("factor", [2.7e-275, -1.0, 1e31])
def test_a_rope_scaling_factor_that_no_frequency_survives_is_malformed(factor: float) -> None:
    metadata, tensors = llama_gguf()
    metadata |= {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": factor}
    with pytest.raises(MalformedFile, match=r"rope scaling factor .* must be within 1e-30 and 1e"):
        describe_model("gguf", metadata, tensors)


def test_gguf_with_rope_divisors_takes_them_from_the_file() -> None:
    metadata, tensors = llama_gguf()
    model = describe_model("gguf", metadata, {**tensors, "rope_freqs.weight": spec("f32", 8)})
    assert model.ropes["default"].factors_tensor == "rope_freqs.weight"
