"""moe_route and moe_linear against literal values, their formulas, and the routers of transformers."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.dtypes import FORMATS, TensorSpec
from runtime.errors import InvalidArgument
from runtime.ops.moe import MOE_LINEAR, MOE_ROUTE
from runtime.ops.rounding import EXACT


def route(logits, top_k, score="softmax", normalize=False, scale=1.0, bias=None):
    inputs = {"logits": np.asarray(logits, dtype=np.float64)}
    if bias is not None:
        inputs["bias"] = np.asarray(bias, dtype=np.float64)
    attrs = {"top_k": top_k, "score": score, "normalize": normalize, "scale": scale}
    return MOE_ROUTE.run_reference(EXACT, inputs, attrs)


def moe_linear(x, weight, expert_ids, per_expert_input=False, **optional):
    inputs = {"x": x, "weight": weight, "expert_ids": expert_ids, **optional}
    return MOE_LINEAR.run_reference(EXACT, inputs, {"per_expert_input": per_expert_input})[0]


def dense(ids, weights, num_experts):
    result = np.zeros((len(ids), num_experts))
    np.put_along_axis(result, np.asarray(ids), np.asarray(weights), axis=-1)
    return result


def test_softmax_routing_takes_the_most_probable_experts_first():
    logits = np.log([[0.1, 0.4, 0.2, 0.3]])
    ids, weights = route(logits, 2)
    assert ids.tolist() == [[1, 3]]
    np.testing.assert_allclose(weights, [[0.4, 0.3]], rtol=1e-12)
    np.testing.assert_allclose(route(logits, 2, normalize=True, scale=2.5)[1], [[10 / 7, 7.5 / 7]], rtol=1e-12)


def test_equal_scores_choose_the_lower_expert():
    assert route([[1.0, 2.0, 2.0, 2.0]], 2)[0].tolist() == [[1, 2]]


def test_a_bias_changes_the_choice_but_not_the_weights():
    ids, weights = route([[0.0, 0.0, np.log(3)]], 1, score="sigmoid", bias=[0.0, 1.0, 0.0])
    assert ids.tolist() == [[1]]
    np.testing.assert_allclose(weights, [[0.5]], rtol=1e-12)


def test_softmax_over_the_selected_logits_sums_to_one():
    ids, weights = route(np.log([[1.0, 6.0, 2.0, 1.0]]), 2, score="softmax_selected")
    assert ids.tolist() == [[1, 2]]
    np.testing.assert_allclose(weights, [[0.75, 0.25]], rtol=1e-12)


def test_extreme_logits_neither_overflow_nor_divide_by_zero():
    assert route([[-1e6, -1e6]], 1, score="sigmoid", normalize=True)[1].tolist() == [[0.0]]
    assert route([[1e6, -1e6]], 1, score="sigmoid", normalize=True)[1].tolist() == [[1.0]]
    assert route([[1e6, -1e6]], 2)[1].tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("per_expert_input", [False, True])
@pytest.mark.parametrize("combine", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_moe_linear_equals_one_product_per_row_and_choice(per_expert_input, combine, biased):
    rng = np.random.default_rng(0)
    tokens, top_k, experts, n, k = 7, 3, 5, 4, 6
    x = rng.normal(size=(tokens, top_k * k if per_expert_input else k))
    weight, bias = rng.normal(size=(experts, n, k)), rng.normal(size=(experts, n))
    ids = rng.integers(0, experts, (tokens, top_k))
    mix = rng.random((tokens, top_k))
    expected = np.zeros((tokens, top_k, n))
    for t in range(tokens):
        for j in range(top_k):
            run = x[t, j * k : (j + 1) * k] if per_expert_input else x[t]
            expected[t, j] = weight[ids[t, j]] @ run + biased * bias[ids[t, j]]
    expected = (mix[:, :, None] * expected).sum(1) if combine else expected.reshape(tokens, -1)
    optional = ({"bias": bias} if biased else {}) | ({"expert_weights": mix} if combine else {})
    np.testing.assert_allclose(moe_linear(x, weight, ids, per_expert_input, **optional), expected, rtol=1e-12)


def test_no_rows_give_no_rows():
    assert moe_linear(np.zeros((0, 6)), np.zeros((5, 4, 6)), np.zeros((0, 2), int)).shape == (0, 8)


def test_an_expert_that_does_not_exist_is_refused():
    with pytest.raises(InvalidArgument, match=r"moe_linear@1 expert_ids\[1\] = 5"):
        moe_linear(np.zeros((1, 6)), np.zeros((5, 4, 6)), np.array([[0, 5]]))


def test_shapes_follow_the_number_of_chosen_experts_and_tokens_may_be_symbolic():
    f32, i32 = FORMATS["f32"], FORMATS["i32"]
    attrs = {"top_k": 2, "score": "softmax", "normalize": True}
    assert MOE_ROUTE.infer_specs({"logits": TensorSpec(FORMATS["bf16"], ("T", 8))}, attrs) == (
        TensorSpec(i32, ("T", 2)),
        TensorSpec(f32, ("T", 2)),
    )
    inputs = {
        "x": TensorSpec(f32, ("T", 64)),
        "weight": TensorSpec(FORMATS["q8_0"], (8, 32, 64)),
        "expert_ids": TensorSpec(i32, ("T", 2)),
    }
    assert MOE_LINEAR.infer_specs(inputs, {}) == (TensorSpec(f32, ("T", 64)),)
    inputs["expert_weights"] = TensorSpec(f32, ("T", 2))
    assert MOE_LINEAR.infer_specs(inputs, {}) == (TensorSpec(f32, ("T", 32)),)


def test_work_reads_no_more_experts_than_there_are_choices():
    inputs = {
        "x": TensorSpec(FORMATS["f32"], (1, 64)),
        "weight": TensorSpec(FORMATS["q8_0"], (8, 32, 64)),
        "expert_ids": TensorSpec(FORMATS["i32"], (1, 2)),
    }
    work = MOE_LINEAR.work(inputs, {"y": TensorSpec(FORMATS["f32"], (1, 64))}, {})
    # two experts of 32 rows of two blocks of 34 bytes
    assert work.bytes_read == 256 + 8 + 2 * 32 * 68
    assert work.operations == 2 * 2 * 32 * 64
    assert work.bytes_written == 256


def silu(x):
    return x / (1 + np.exp(-x))


def array(tensor):
    return tensor.detach().numpy()


def randomize(module):
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * 0.5)
    return module


@pytest.mark.oracle
@pytest.mark.parametrize("normalize", [True, False])
def test_softmax_routing_equals_qwen2_moe(normalize):
    import torch
    from transformers.models.qwen2_moe.configuration_qwen2_moe import Qwen2MoeConfig
    from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeTopKRouter

    config = Qwen2MoeConfig(hidden_size=16, num_experts=8, num_experts_per_tok=3, norm_topk_prob=normalize)
    logits, weights, ids = randomize(Qwen2MoeTopKRouter(config))(torch.randn(50, 16))
    got_ids, got_weights = route(array(logits), 3, normalize=normalize)
    np.testing.assert_array_equal(got_ids, array(ids))
    np.testing.assert_allclose(got_weights, array(weights), rtol=1e-5)


@pytest.mark.oracle
def test_sigmoid_routing_with_a_bias_equals_deepseek_v3():
    import torch
    from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

    config = DeepseekV3Config(
        hidden_size=16, n_routed_experts=8, num_experts_per_tok=3, n_group=1, topk_group=1, routed_scaling_factor=2.5
    )
    router = randomize(DeepseekV3TopkRouter(config))
    logits, weights, ids = router(torch.randn(50, 16))
    got = route(array(logits), 3, "sigmoid", True, 2.5, bias=array(router.e_score_correction_bias))
    np.testing.assert_allclose(dense(*got, 8), dense(array(ids), array(weights), 8), rtol=1e-5)


@pytest.mark.oracle
def test_experts_equal_those_of_mixtral():
    import torch
    from transformers.models.mixtral.configuration_mixtral import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = MixtralConfig(hidden_size=16, intermediate_size=24, num_local_experts=6, num_experts_per_tok=2)
    config._experts_implementation = "eager"
    block = randomize(MixtralSparseMoeBlock(config).eval())
    x = torch.randn(1, 20, 16)
    expected = array(block(x))[0]
    x = array(x)[0].astype(np.float64)
    ids, mix = route(x @ array(block.gate.weight).T, 2, normalize=True)
    gate_weight, up_weight = np.split(array(block.experts.gate_up_proj), 2, axis=1)
    hidden = silu(moe_linear(x, gate_weight, ids)) * moe_linear(x, up_weight, ids)
    y = moe_linear(hidden, array(block.experts.down_proj), ids, per_expert_input=True, expert_weights=mix)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.oracle
def test_experts_with_biases_equal_those_of_gpt_oss():
    import torch
    from transformers.models.gpt_oss.configuration_gpt_oss import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP

    config = GptOssConfig(hidden_size=16, intermediate_size=24, num_local_experts=6, num_experts_per_tok=2)
    config._experts_implementation = "eager"
    block = randomize(GptOssMLP(config).eval())
    x = torch.randn(1, 20, 16)
    expected = array(block(x)[0])[0]
    x = array(x)[0].astype(np.float64)
    router, experts = block.router, block.experts
    ids, mix = route(x @ array(router.weight).T + array(router.bias), 2, "softmax_selected")
    gate_up = np.swapaxes(array(experts.gate_up_proj), 1, 2)
    bias = array(experts.gate_up_proj_bias)
    gate = np.minimum(moe_linear(x, gate_up[:, ::2], ids, bias=bias[:, ::2]), 7.0)
    up = np.clip(moe_linear(x, gate_up[:, 1::2], ids, bias=bias[:, 1::2]), -7.0, 7.0)
    hidden = (up + 1) * gate / (1 + np.exp(-1.702 * gate))
    down = np.swapaxes(array(experts.down_proj), 1, 2)
    y = moe_linear(hidden, down, ids, True, bias=array(experts.down_proj_bias), expert_weights=mix)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
