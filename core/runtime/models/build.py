"""From a ModelSpec to the graph of one step."""

from __future__ import annotations

from typing import Literal

from runtime.dtypes import FORMATS, Span
from runtime.errors import InvalidArgument
from runtime.graph import Graph, GraphBuilder, Value
from runtime.models.layers import decoder_layer, last_layer
from runtime.models.spec import ModelSpec
from runtime.models.step import Step
from runtime.models.weights import weight_source

_MAX_SLOTS = 2**31 - 1
"""Slots are 32-bit integers, so blocks times block_size stay below this."""


def build_graph(
    spec: ModelSpec,
    *,
    max_num_tokens: int,
    max_num_seqs: int,
    max_model_len: int,
    block_size: int,
    kv_format: str = "f16",
    max_num_logits: int | None = None,
    output: Literal["logits", "hidden"] = "logits",
) -> Graph:
    """The graph of one ragged step: T tokens of S sequences, prefill and decode alike.

    inputs (i32)  token_ids [T], positions [T], slot_mapping [T], query_start_loc [Q = S + 1], seq_lens [S],
                  block_table [S, P], logits_rows [R] (rows of the step whose logits are wanted)
    output        logits [R, vocab_size] f32, or hidden [R, hidden_size] f32: what the last norm gives
    states        layers.<i>.kv [2, B, block_size, num_kv_heads, head_dim] in `kv_format`

    `max_num_logits` bounds R; by default every sequence gets one row. Weights are named as in `weight_source`, which
    this calls, with its errors. Raises InvalidArgument for limits that make no step possible.
    """
    limits = {"max_num_tokens": max_num_tokens, "max_num_seqs": max_num_seqs, "max_model_len": max_model_len}
    for limit, value in {**limits, "block_size": block_size}.items():
        if value < 1:
            raise InvalidArgument(f"{limit} is {value}; it must be at least 1")
    dims = {
        "T": Span(1, max_num_tokens),
        "S": Span(1, max_num_seqs),
        "Q": Span(2, max_num_seqs + 1),
        "P": Span(1, -(-max_model_len // block_size)),
        "R": Span(1, max_num_logits or max_num_seqs),
        "B": Span(1, _MAX_SLOTS // block_size),
    }
    builder = GraphBuilder(spec.architecture, dims)
    step = Step(
        spec,
        builder,
        weight_source(spec),
        max_model_len=max_model_len,
        block_size=block_size,
        kv_format=FORMATS[kv_format],
    )
    embed = {"scale": spec.embed_scale}
    x: Value = step.op(
        "embed", "embed_tokens", embed, token_ids=step.token_ids, weight=step.weight("embed_tokens.weight")
    )
    for index in range(spec.num_layers - 1):
        x = decoder_layer(step, index, x)
    rows = step.norm("norm", last_layer(step, x))
    builder.output(output, _logits(step, rows) if output == "logits" else rows)
    return builder.build()


def _logits(step: Step, rows: Value) -> Value:
    """Only the rows that are wanted go through the output matrix."""
    spec = step.spec
    head = "embed_tokens" if spec.tie_word_embeddings else "lm_head"
    logits: Value = step.op("linear", "lm_head", x=rows, weight=step.weight(f"{head}.weight"))
    if spec.logits_multiplier != 1.0:
        logits = step.op("mul", "logits_scaled", {"scale": spec.logits_multiplier}, a=logits)
    if spec.logits_softcap:
        logits = step.op("softcap", "logits_softcap", {"cap": spec.logits_softcap}, x=logits)
    return logits
