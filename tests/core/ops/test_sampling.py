"""penalize, sample and verify_draft against literal values, other people's samplers, and counted frequencies."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.dtypes import FORMATS, TensorSpec
from runtime.errors import InvalidArgument
from runtime.ops.rounding import EXACT
from runtime.ops.sampling import PENALIZE, SAMPLE, VERIFY_DRAFT, surviving

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.05, 0.25]))


def penalize(logits, token_ids, counts, repetition=1.0, presence=0.0, frequency=0.0, **bias):
    rows = len(logits)
    return PENALIZE.run_reference(
        EXACT,
        {
            "logits": np.array(logits, dtype=np.float64),
            "token_ids": np.array(token_ids),
            "output_counts": np.array(counts),
            "repetition": np.full(rows, repetition),
            "presence": np.full(rows, presence),
            "frequency": np.full(rows, frequency),
            **{name: np.array(value) for name, value in bias.items()},
        },
        {},
    )[0]


def sample(logits, uniform, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0):
    uniform = np.atleast_1d(uniform)
    rows = len(uniform)
    logits = np.broadcast_to(logits, (rows, np.shape(logits)[-1]))
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "typical_p": typical_p}
    inputs = {name: np.full(rows, value) for name, value in settings.items()}
    return SAMPLE.run_reference(EXACT, {"logits": logits, "uniform": uniform, **inputs}, {})[0]


def verify(draft_ids, target_probs, uniform, draft_probs=None):
    inputs = {"draft_ids": draft_ids, "target_probs": target_probs, "uniform": uniform}
    if draft_probs is not None:
        inputs["draft_probs"] = draft_probs
    accepted, next_id = VERIFY_DRAFT.run_reference(EXACT, {k: np.asarray(v) for k, v in inputs.items()}, {})
    return accepted.tolist(), next_id.tolist()


def chi_square(counts, probabilities):
    expected = np.asarray(probabilities) * np.sum(counts)
    return float(np.sum((counts - expected) ** 2 / expected))


def test_repetition_divides_positive_and_multiplies_negative_logits_of_the_whole_history():
    y = penalize([[2.0, -2.0, 3.0, 0.0]], [[0, 1, -1]], [[0, 2, 0]], repetition=2.0)
    assert y.tolist() == [[1.0, -4.0, 3.0, 0.0]]


def test_presence_and_frequency_count_the_output_alone():
    y = penalize([[1.0, 1.0, 1.0, 1.0]], [[0, 1, 2]], [[0, 1, 3]], presence=0.5, frequency=0.25)
    assert y.tolist() == [[1.0, 0.25, -0.25, 1.0]]


def test_biases_are_added_last_and_minus_infinity_bans():
    bias = {"bias_ids": [[0, 2, -1]], "bias_values": [[1.0, -np.inf, 5.0]]}
    assert penalize([[4.0, 0.0, 9.0]], [[0]], [[1]], repetition=2.0, **bias).tolist() == [[3.0, 0.0, -np.inf]]


def test_penalize_leaves_its_input_and_rows_without_history_alone():
    logits = np.array([[1.0, 2.0], [3.0, 4.0]])
    y = penalize(logits, [[0], [-1]], [[1], [0]], presence=1.0)
    assert y.tolist() == [[0.0, 2.0], [3.0, 4.0]]
    assert logits.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_a_token_outside_the_vocabulary_is_refused():
    with pytest.raises(InvalidArgument, match=r"penalize@1 token_ids\[1\] = 2"):
        penalize([[1.0, 2.0]], [[0, 2]], [[1, 1]])
    with pytest.raises(InvalidArgument, match=r"penalize@1 bias_ids\[0\] = 7"):
        penalize([[1.0, 2.0]], [[0]], [[1]], bias_ids=[[7]], bias_values=[[1.0]])


def test_temperature_zero_takes_the_lowest_id_among_the_largest():
    assert sample([0.0, 5.0, 1.0, 5.0], [0.99], temperature=0.0).tolist() == [1]


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 0), (0.0999, 0), (0.1001, 1), (0.4999, 1), (0.5001, 2), (0.7001, 3), (0.7501, 4)]
)
def test_the_token_is_the_first_whose_cumulative_probability_exceeds_the_random_number(uniform, token):
    assert sample(LOGITS, [uniform]).tolist() == [token]


def test_the_largest_random_numbers_take_the_last_survivor_never_a_banned_token():
    logits = np.append(LOGITS, [-np.inf, -np.inf])
    assert sample(logits, [np.float32(1 - 2**-24), 1.0]).tolist() == [4, 4]
    assert sample(np.append([-np.inf], LOGITS), [0.0]).tolist() == [1]


def test_a_row_without_a_finite_largest_logit_gives_minus_one_and_harms_no_other_row():
    logits = np.array([[np.nan, 1.0], [-np.inf, -np.inf], [0.0, 1.0], [np.inf, 0.0]])
    assert sample(logits, [0.5] * 4).tolist() == [-1, -1, 1, -1]
    assert sample(logits, [0.5] * 4, temperature=0.0).tolist() == [-1, -1, 1, -1]


@pytest.mark.parametrize(
    ("filters", "tokens"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 2}, [1, 4]),
        ({"top_k": 9}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.6}, [1, 4]),
        ({"top_p": 0.7}, [1, 2, 4]),
        ({"top_p": 0.0}, [1]),
        ({"min_p": 0.3}, [1, 2, 4]),
        ({"min_p": 1.0}, [1]),
        ({"min_p": 5.0}, [1]),
        # surprises 2.30 0.92 1.61 3.00 1.39, entropy 1.415: nearest are 4, 2, 1
        ({"typical_p": 0.2}, [4]),
        ({"typical_p": 0.4}, [2, 4]),
        ({"typical_p": 0.5}, [1, 2, 4]),
        # three survive top_k with 0.47, 0.24, 0.29; those before the third reach 0.76
        ({"top_k": 3, "top_p": 0.75}, [1, 4]),
        ({"top_k": 3, "top_p": 0.8}, [1, 2, 4]),
    ],
    ids=str,
)
def test_filters_keep_the_tokens_that_their_definitions_name(filters, tokens):
    ids, p = surviving(LOGITS, 1.0, **filters)
    assert ids.tolist() == tokens
    expected = np.exp(LOGITS)[tokens]
    np.testing.assert_allclose(p, expected / expected.sum(), rtol=1e-12)


def test_ties_with_the_last_of_top_k_survive_and_top_p_takes_lower_ids_first():
    assert surviving(np.array([1.0, 2.0, 1.0, 1.0]), 1.0, top_k=2)[0].tolist() == [0, 1, 2, 3]
    assert surviving(np.zeros(4), 1.0, top_p=0.5)[0].tolist() == [0, 1]


@pytest.mark.parametrize("spread", [0.0, 1e-3, 1.0, 20.0])
def test_top_p_of_a_large_vocabulary_equals_a_full_sort(spread):
    scores = np.round(np.random.default_rng(1).normal(0, spread, 20000), 2)
    p = np.exp(scores - scores.max())
    p /= p.sum()
    order = np.lexsort((np.arange(p.size), -p))
    before = np.concatenate(([0.0], np.cumsum(p[order])[:-1]))
    for top_p in (0.1, 0.5, 0.99):
        expected = np.sort(order[before < top_p])
        np.testing.assert_array_equal(surviving(scores, 1.0, top_p=top_p)[0], expected)


def test_tiny_temperatures_are_finite_and_greedy():
    assert sample([1.0, 3.0, 2.0], [0.9], temperature=1e-30).tolist() == [1]


def test_evenly_spaced_random_numbers_give_every_token_its_share():
    tokens = sample(LOGITS, (np.arange(2000) + 0.5) / 2000, temperature=2.0, top_k=4)
    p = np.exp(LOGITS / 2)
    p[3] = 0
    counts = np.bincount(tokens, minlength=5)
    assert counts.sum() == 2000
    assert np.abs(counts - 2000 * p / p.sum()).max() <= 1


def test_a_drafted_token_stands_by_the_ratio_of_probabilities():
    target, draft = [[[0.2, 0.8], [0.5, 0.5]]], [[[0.5, 0.5]]]
    # 0.2 / 0.5 = 0.4
    assert verify([[0]], target, [[0.39, 0.6]], draft) == ([1], [1])
    assert verify([[0]], target, [[0.41, 0.6]], draft) == ([0], [1])
    assert verify([[1]], target, [[0.99, 0.4]], draft) == ([1], [0])


def test_after_a_rejection_the_token_comes_from_what_the_draft_underrates():
    target, draft = [[[0.1, 0.3, 0.6], [1.0, 0.0, 0.0]]], [[[0.8, 0.1, 0.1]]]
    # residual 0, 0.2, 0.5
    assert verify([[0]], target, [[0.5, 0.28]], draft) == ([0], [1])
    assert verify([[0]], target, [[0.5, 0.29]], draft) == ([0], [2])


def test_without_draft_probabilities_the_text_is_the_one_that_sampling_gives():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(3, 6))
    p = np.exp(logits)
    uniform = rng.random((200, 3))
    drafts = rng.integers(0, 6, (200, 2))
    probabilities = np.broadcast_to(p / p.sum(-1, keepdims=True), (200, 3, 6))
    plain = np.stack([sample(logits[i], uniform[:, i]) for i in range(3)], axis=1)
    accepted, next_id = verify(drafts, probabilities, uniform)
    for row in range(200):
        text = [*drafts[row, : accepted[row]], next_id[row]]
        assert text == plain[row, : len(text)].tolist()
    assert set(accepted) == {0, 1, 2}


def test_padding_ends_a_draft_and_an_empty_draft_is_plain_sampling():
    target = np.log2([[[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]]])
    assert verify([[1, -1]], target, [[0.3, 0.4, 0.9]]) == ([1], [0])
    assert verify([[-1, -1]], target, [[0.3, 0.4, 0.9]]) == ([0], [1])
    assert verify(np.zeros((1, 0), int), target[:, :1], [[0.3]]) == ([0], [1])


def test_greedy_targets_accept_exactly_what_they_would_have_said():
    target = np.eye(4)[[[2, 0, 3]]]
    assert verify([[2, 1]], target, [[0.99, 0.0, 0.5]]) == ([1], [0])
    assert verify([[2, 0]], target, [[0.99, 0.0, 0.5]]) == ([2], [3])


@pytest.mark.parametrize("known", [True, False], ids=["with draft_probs", "without draft_probs"])
def test_verified_tokens_are_distributed_as_the_target_says(known):
    rng = np.random.default_rng(3)
    rows, depth, vocab = 12000, 2, 5
    target = rng.dirichlet(np.ones(vocab), depth + 1)
    draft = rng.dirichlet(np.ones(vocab), depth)
    draft_ids = np.stack([rng.choice(vocab, rows, p=q) for q in draft], axis=1)
    accepted, next_id = VERIFY_DRAFT.run_reference(
        EXACT,
        {
            "draft_ids": draft_ids,
            "target_probs": np.broadcast_to(target, (rows, depth + 1, vocab)),
            "uniform": rng.random((rows, depth + 1)),
            **({"draft_probs": np.broadcast_to(draft, (rows, depth, vocab))} if known else {}),
        },
        {},
    )
    for position in range(depth + 1):
        reached = accepted >= position
        drafted = draft_ids[:, min(position, depth - 1)]
        tokens = np.where(accepted > position, drafted, next_id)[reached]
        # chi square of four degrees of freedom exceeds 33.4 once in a million
        assert chi_square(np.bincount(tokens, minlength=vocab), target[position]) < 33.4


def test_work_counts_each_tensor_once():
    f32, i32 = FORMATS["f32"], FORMATS["i32"]
    logits = TensorSpec(f32, (2, 100))
    row = TensorSpec(f32, (2,))
    inputs = {"logits": logits, "temperature": row, "top_k": TensorSpec(i32, (2,)), "top_p": row, "min_p": row}
    inputs |= {"typical_p": row, "uniform": row}
    outputs = dict(zip(["token_ids"], SAMPLE.infer_specs(inputs, {})))
    assert outputs["token_ids"] == TensorSpec(i32, (2,))
    work = SAMPLE.work(inputs, outputs, {})
    assert (work.bytes_read, work.bytes_written) == (848, 8)


@pytest.mark.oracle
@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"top_k": 7},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"typical_p": 0.6},
        {"top_k": 30, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.8},
    ],
    ids=str,
)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_filters_and_probabilities_equal_those_of_transformers(filters, temperature):
    import torch
    from transformers import (
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
        TypicalLogitsWarper,
    )

    warpers = {
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
        "typical_p": TypicalLogitsWarper,
    }
    logits = np.random.default_rng(4).normal(0, 2, (20, 500))
    scores = TemperatureLogitsWarper(temperature)(None, torch.tensor(logits))
    for name, value in filters.items():
        scores = warpers[name](value)(None, scores)
    expected = torch.softmax(scores, -1).numpy()
    for row, expected_row in zip(logits, expected):
        ids, p = surviving(row, temperature, **filters)
        np.testing.assert_array_equal(ids, np.nonzero(expected_row)[0])
        np.testing.assert_allclose(p, expected_row[ids], rtol=1e-9)


@pytest.mark.oracle
def test_repetition_penalty_equals_that_of_transformers():
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    rng = np.random.default_rng(5)
    logits = rng.normal(0, 3, (4, 50))
    history = rng.integers(0, 50, (4, 30))
    expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor(history), torch.tensor(logits)).numpy()
    token_ids = np.full((4, 30), -1)
    for row, ids in enumerate(history):
        distinct = np.unique(ids)
        token_ids[row, : distinct.size] = distinct
    y = penalize(logits, token_ids, np.zeros((4, 30), int), repetition=1.3)
    np.testing.assert_allclose(y, expected, rtol=1e-12)
