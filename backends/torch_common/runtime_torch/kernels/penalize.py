"""Penalties and biases of single tokens of a row."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["history", "num_biases", "num_history_tiles"])
def penalize(
    logits, token_ids, counts, repetition, presence, frequency, bias_ids, bias_values, y, vocab, history, num_biases,
    num_history_tiles, HAS_BIAS: tl.constexpr, BE: tl.constexpr,
):
    """Writes into a copy of the logits: BE tokens of the history or, behind them, of the biases of a row.

    Nothing that is written is read. A token of the history takes its biases along, in their order; of equal ids among
    the biases the first one writes for all, and only where the token is not in the history.
    """
    row = tl.program_id(0)
    tile = tl.program_id(1)
    row_of_y = row.to(tl.int64) * vocab
    row_of_ids = row.to(tl.int64) * history
    row_of_biases = row.to(tl.int64) * num_biases
    if tile < num_history_tiles:
        at = tile * BE + tl.arange(0, BE)
        token = tl.load(token_ids + row_of_ids + at, mask=at < history, other=-1)
        count = tl.load(counts + row_of_ids + at, mask=at < history, other=0)
        writes = (token >= 0) & (token < vocab)
        v = tl.load(logits + row_of_y + token, mask=writes, other=0.0)
        strength = tl.where(writes, tl.load(repetition + row), 1.0)
        v = tl.where(v > 0, v / strength, v * strength)
        v = v - tl.where(count > 0, tl.load(presence + row), 0.0) - tl.load(frequency + row) * count.to(tl.float32)
    else:
        at = (tile - num_history_tiles) * BE + tl.arange(0, BE)
        token = tl.load(bias_ids + row_of_biases + at, mask=at < num_biases, other=-1)
        writes = (token >= 0) & (token < vocab)
        v = tl.load(logits + row_of_y + token, mask=writes, other=0.0)
        for start in range(0, history, BE):
            other_at = start + tl.arange(0, BE)
            other = tl.load(token_ids + row_of_ids + other_at, mask=other_at < history, other=-1)
            same = token[:, None] == other[None, :]
            writes = writes & (tl.max(same.to(tl.int32), axis=1) == 0)
        for start in range(0, tile * BE - num_history_tiles * BE + BE, BE):
            other_at = start + tl.arange(0, BE)
            other = tl.load(bias_ids + row_of_biases + other_at, mask=other_at < num_biases, other=-1)
            same = (token[:, None] == other[None, :]) & (other_at[None, :] < at[:, None])
            writes = writes & (tl.max(same.to(tl.int32), axis=1) == 0)
    if HAS_BIAS:
        for start in range(0, num_biases, BE):
            other_at = start + tl.arange(0, BE)
            other = tl.load(bias_ids + row_of_biases + other_at, mask=other_at < num_biases, other=-1)
            bias = tl.load(bias_values + row_of_biases + other_at, mask=other_at < num_biases, other=0.0)
            v += tl.sum(tl.where(token[:, None] == other[None, :], bias[None, :], 0.0), axis=1)
    tl.store(y + row_of_y + token, v, mask=writes)
