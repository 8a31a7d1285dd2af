"""Sampling on the device: penalties on single logits, and one token per row; no row is sorted or copied for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from runtime_torch.calls import Call, Site, cdiv, clamp, launch
from runtime_torch.kernels import drawing, penalize, sampling
from runtime_torch.settings import next_power, power_below

FRACTION = 42
"""Bits of a weight behind the point; a sum over 2^20 tokens stays below 2^62."""
MIN_CHUNKS, MAX_CHUNKS = 8, 64
"""Programs that share a row: a draw without filters searches one chunk, and each program looks at what all found."""
BINS = 128
"""See `kernels.sampling`."""


def lower_penalize(site: Site) -> list[Call]:
    """A copy, and one kernel for the tokens that change; biases of one token add up in their order."""
    logits, token_ids, counts, y = (
        *(site.tensor("logits"), site.tensor("token_ids"), site.tensor("output_counts")),
        site.output(),
    )
    (num_rows, vocab), history = logits.shape, token_ids.shape[1]
    has_bias = site.has("bias_ids")
    bias_ids, bias_values = site.optional("bias_ids", token_ids), site.optional("bias_values", logits)
    num_biases = bias_ids.shape[1] if has_bias else 0
    longest = max(history, num_biases, 1)
    block = min(next_power(longest), site.settings.tiles.compared)
    tiles = cdiv(history, block)
    call = launch(
        penalize.penalize,
        (num_rows, tiles + cdiv(num_biases, block)),
        *(logits, token_ids, counts, site.tensor("repetition"), site.tensor("presence"), site.tensor("frequency")),
        *(bias_ids, bias_values, y, vocab, history, num_biases, tiles),
        HAS_BIAS=has_bias,
        BE=block,
    )
    return [lambda: y.copy_(logits), call]


@dataclass(frozen=True)
class Layout:
    """How rows are split: `rows` rows and `block` columns at a time, each row in chunks of `chunk` columns."""

    rows: int
    block: int
    chunk: int
    num_chunks: int
    grid: tuple[int, int]


def layout(num_rows: int, vocab: int, elements: int, programs: int) -> Layout:
    """Tiles of so many elements, and as many programs as fill the device."""
    block = min(next_power(vocab), elements)
    rows = clamp(elements // block, 1, next_power(num_rows))
    num_groups = cdiv(num_rows, rows)
    num_chunks = min(clamp(programs // num_groups, MIN_CHUNKS, MAX_CHUNKS), cdiv(vocab, block))
    chunk = cdiv(cdiv(vocab, num_chunks), block) * block
    return Layout(rows, block, chunk, cdiv(vocab, chunk), (num_groups, cdiv(vocab, chunk)))


def lower_sample(site: Site) -> list[Call]:
    """See `kernels.sampling`: four kernels, or two where rows are short. Nothing is decided on the host.

    Rows without filters, and those at temperature 0, leave the kernels that they do not need at once.
    """
    tiles, logits = site.settings.tiles, site.tensor("logits")
    num_rows, vocab = logits.shape
    how = layout(num_rows, vocab, tiles.sampled, tiles.programs)
    is_surveyed = vocab > tiles.candidates
    candidates = clamp(power_below(tiles.listed // num_rows or 1), tiles.candidates, next_power(vocab))
    chunks, listed = (num_rows, how.num_chunks), (num_rows, candidates if is_surveyed else 0)
    best, best_at = site.scratch(chunks), site.scratch(chunks, torch.int32)
    totals, moments = site.scratch(chunks, torch.int64), site.scratch(chunks, torch.int64)
    values, ids = site.scratch(listed), site.scratch(listed, torch.int32)
    lengths = site.scratch((num_rows,), torch.int32)
    temperature = site.tensor("temperature")
    filters = tuple(site.tensor(name) for name in ("top_k", "top_p", "min_p", "typical_p"))
    sizes = (num_rows, vocab, how.chunk, how.num_chunks)
    tile = {"BR": how.rows, "BC": how.block, "num_warps": 8}
    unit = {"UNIT": float(1 << min(FRACTION, 62 - vocab.bit_length())), "CHUNKS": next_power(how.num_chunks)}
    calls = [launch(sampling.maxima, how.grid, logits, best, best_at, *sizes, **tile)]
    if is_surveyed:
        counts = site.scratch((*chunks, BINS), torch.int32)
        given = (logits, best, temperature, *filters, totals, moments, counts)
        calls.append(launch(sampling.survey, how.grid, *given, *sizes, **unit, **tile))
        listing = (*given, values, ids, lengths, *sizes, candidates)
        calls.append(launch(sampling.gather, how.grid, *listing, **unit, **tile))
    last = layout(num_rows, vocab, tiles.drawn, tiles.programs)
    drawn = (*filters, site.tensor("uniform"), site.output(), *sizes, candidates)
    calls.append(
        launch(
            drawing.choose,
            (last.grid[0],),
            *(logits, best, best_at, totals, moments, values, ids, lengths, temperature, *drawn),
            SURVEYED=is_surveyed,
            **unit,
            BR=last.rows,
            BC=last.block,
            num_warps=8,
        )
    )
    return calls
