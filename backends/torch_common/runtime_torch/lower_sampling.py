"""Sampling on the device: penalties, and one token per row, by torch's sorts and sums."""

from __future__ import annotations

import torch

from runtime_torch.calls import Call, Site
from runtime_torch.lower_rows import comparable

_LARGEST_UNIFORM = 1 - 2.0**-24


def lower_penalize(site: Site) -> list[Call]:
    """Tokens of a history are distinct: each is read, changed and written once; padding has a column of its own."""
    logits, token_ids, counts, y = (
        *(site.tensor("logits"), site.tensor("token_ids"), site.tensor("output_counts")),
        site.output(),
    )
    repetition, presence, frequency = (site.tensor(n).unsqueeze(1) for n in ("repetition", "presence", "frequency"))
    biases = (site.tensor("bias_ids"), site.tensor("bias_values")) if site.has("bias_ids") else None
    num_rows, vocab = logits.shape
    wide = site.scratch((num_rows, vocab + 1))

    def columns(ids: torch.Tensor) -> torch.Tensor:
        return torch.where((ids < 0) | (ids >= vocab), vocab, ids).long()

    def compute() -> None:
        wide[:, :vocab].copy_(logits)
        wide[:, vocab:].zero_()
        at = columns(token_ids)
        seen = torch.gather(wide, 1, at)
        seen = torch.where(seen > 0, seen / repetition, seen * repetition)
        seen = seen - presence * (counts > 0) - frequency * counts
        wide.scatter_(1, at, seen)
        if biases is not None:
            wide.scatter_add_(1, columns(biases[0]), biases[1])
        y.copy_(wide[:, :vocab])

    return [compute]


def lower_sample(site: Site) -> list[Call]:
    """See `surviving` in the declaration: the filters act one after the other on renormalised survivors, in float64.

    Float64, because the token is decided by comparing running sums with a random number.
    """
    logits, out = site.tensor("logits"), site.output()
    names = ("temperature", "top_k", "top_p", "min_p", "typical_p", "uniform")
    temperature, top_k, top_p, min_p, typical_p, uniform = (site.tensor(n).unsqueeze(1) for n in names)

    def compute() -> None:
        best = torch.argmax(comparable(logits), 1, keepdim=True)
        # as the reference: NaN is the largest for it, and such a row gives -1
        has_nan = torch.isnan(logits).any(1, keepdim=True)
        drawable = torch.isfinite(torch.gather(logits, 1, best)) & ~has_nan
        warm = torch.where(temperature > 0, temperature, 1.0).double()
        scores = (logits.double() - torch.gather(logits, 1, best).double()) / warm
        scores = torch.where(drawable, scores, 0.0)
        scores = _keep_top_k(scores, top_k)
        scores = _keep_nucleus(scores, top_p.double())
        scores = torch.where((min_p > 0) & (torch.exp(scores) < min_p.double().clamp(max=1.0)), -torch.inf, scores)
        scores = _keep_typical(scores, typical_p.double())
        cumulative = torch.cumsum(torch.softmax(scores, 1), 1)
        wanted = uniform.double().clamp(max=_LARGEST_UNIFORM) * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, wanted.contiguous(), right=True).clamp(max=logits.shape[1] - 1)
        chosen = torch.where(temperature > 0, drawn, best)
        out.copy_(torch.where(drawable, chosen, -1).squeeze(1))

    return [compute]


def _keep_top_k(scores: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    vocab = scores.shape[1]
    ordered = torch.sort(scores, dim=1, descending=True).values
    border = torch.gather(ordered, 1, (top_k.long() - 1).clamp(0, vocab - 1))
    return torch.where((top_k > 0) & (top_k < vocab) & (scores < border), -torch.inf, scores)


def _keep_nucleus(scores: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    p, order = torch.sort(torch.softmax(scores, 1), dim=1, descending=True, stable=True)
    reached = torch.cumsum(p, 1)
    needed = torch.cat([torch.ones_like(reached[:, :1], dtype=torch.bool), reached[:, :-1] < top_p], 1)
    kept = torch.zeros_like(needed).scatter_(1, order, needed)
    return torch.where((top_p < 1) & ~kept, -torch.inf, scores)


def _keep_typical(scores: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    p = torch.softmax(scores, 1)
    surprise = -torch.log(p)
    entropy = torch.where(p > 0, p * surprise, 0.0).sum(1, keepdim=True)
    distance, order = torch.sort(torch.abs(surprise - entropy), dim=1, stable=True)
    sums = torch.cumsum(torch.gather(p, 1, order), 1)
    last = (sums < mass).sum(1, keepdim=True).clamp(max=scores.shape[1] - 1)
    border = torch.gather(distance, 1, last)
    return torch.where((mass < 1) & (torch.abs(surprise - entropy) > border), -torch.inf, scores)
