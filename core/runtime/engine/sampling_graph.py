"""Sampling as a graph, so that a backend can do it too and `runtime plan` can say who does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runtime.dtypes import Span
from runtime.graph import Graph, GraphBuilder, Value


@dataclass(frozen=True)
class SamplingVariant:
    """What a batch needs.

    penalties     penalties or biases
    random        random choice; else argmax
    num_logprobs  how many log-probabilities to report, or None
    constrained   the choice is from other logits than those whose probabilities are reported
    is_checked    rows of logits that are not finite are to be found here: nobody else sees the logits
    """

    penalties: bool = False
    random: bool = False
    num_logprobs: int | None = None
    constrained: bool = False
    is_checked: bool = False


ROW_INPUTS = ("temperature", "top_p", "min_p", "typical_p", "uniform")
PENALTY_INPUTS = ("repetition", "presence", "frequency")


def build_sampling_graph(vocab_size: int, variant: SamplingVariant, *, max_num_seqs: int, max_model_len: int) -> Graph:
    """logits [R, V] -> token_ids [R] and, when asked for, logprobs [R, V], top_logprobs and top_ids [R, k].

    A variant that is checked also has zeros [R, 1]: 0 times every logit, summed, which is NaN for NaN and infinities.

    Dimensions: R rows, H distinct tokens of the longest history in the batch, X entries of the longest bias list.
    """
    dims = {"R": Span(1, max_num_seqs), "H": Span(1, max_model_len), "X": Span(1, vocab_size)}
    b = GraphBuilder("sampling", dims)
    logits = b.input("logits", "f32", ("R", vocab_size))
    chosen_from = b.input("allowed_logits", "f32", ("R", vocab_size)) if variant.constrained else logits
    if variant.penalties:
        chosen_from = _penalized(b, chosen_from)
    if variant.random:
        row: dict[str, Any] = {name: b.input(name, "f32", ("R",)) for name in ROW_INPUTS}
        top_k = b.input("top_k", "i32", ("R",))
        token_ids = b.op("sample", name="sample", logits=chosen_from, top_k=top_k, **row)
    else:
        token_ids = b.op("argmax", name="argmax", x=chosen_from)
    b.output("token_ids", token_ids)
    if variant.is_checked:
        import numpy as np

        nothing = b.constant("nothing", np.zeros((1, vocab_size), np.float32))
        b.output("zeros", b.op("linear", name="zeros", x=logits, weight=nothing))
    if variant.num_logprobs is not None:
        logprobs = b.op("softmax", name="logprobs", x=logits, attrs={"log": True})
        b.output("logprobs", logprobs)
        if variant.num_logprobs > 0:
            values, ids = b.op("topk", name="top_logprobs", x=logprobs, attrs={"k": variant.num_logprobs})
            b.output("top_logprobs", values)
            b.output("top_ids", ids)
    return b.build()


def _penalized(b: GraphBuilder, logits: Value) -> Value:
    strengths: dict[str, Any] = {name: b.input(name, "f32", ("R",)) for name in PENALTY_INPUTS}
    result: Value = b.op(
        "penalize",
        name="penalize",
        logits=logits,
        token_ids=b.input("history_ids", "i32", ("R", "H")),
        output_counts=b.input("output_counts", "i32", ("R", "H")),
        bias_ids=b.input("bias_ids", "i32", ("R", "X")),
        bias_values=b.input("bias_values", "f32", ("R", "X")),
        **strengths,
    )
    return result
