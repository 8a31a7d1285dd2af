"""Laws of choices: wide rows, drafted tokens, how often a token is drawn."""

from __future__ import annotations

from math import sqrt
from typing import Any

from runtime_conformance.case import Case, Tensor
from runtime_conformance.data import Stream, decode_data
from runtime_conformance.device.laws import LAWS, Answer, Law, NotEvaluable, Runner, Stored

Result = tuple[list[str], list[Answer]]

WIDE = 70_001
"""Columns: more than 16 bits count, and more than any group of work-items; vocabularies have up to 262144."""
NUM_DRAWS = 4096
FALSE_ALARM = 1e-9
"""Of the frequencies of one case: the statistic's normal deviate must stay below 6.0 (Wilson and Hilferty 1931)."""
_LARGEST_DEVIATE = 6.0
_FEWEST_EXPECTED = 5.0
_UNIFORMS = (0.0, 0.5, 1 - 2.0**-24)


def _values_at_indices(runner: Runner, case: Case, stored: Stored) -> Result:
    """Values lie where the indices say, in a row as wide as a vocabulary, and none that is left out is larger."""
    import numpy as np

    k = min(case.attrs["k"], 8)
    x = Tensor("f32", (2, WIDE))
    wide = Case("topk@1", {"x": x}, {"k": k}, "exact")
    runner.require(wide)
    rows = np.stack([(np.arange(WIDE) * 31) % WIDE, np.arange(WIDE)]).astype("<f4")  # distinct, and exact in float32
    values, indices = runner.values(wide, runner.run(wide, {"x": rows.reshape(-1).view(np.uint8)}))
    if indices.min() < 0 or indices.max() >= WIDE:
        return [f"indices reach from {indices.min()} to {indices.max()} in a row of {WIDE}"], []
    if not np.array_equal(np.take_along_axis(rows, indices, 1), values):
        return [f"indices of a row of {WIDE} columns do not point at its values"], []
    largest = np.arange(WIDE - 1, WIDE - 1 - k, -1)
    return ([] if np.array_equal(values, np.stack([largest] * 2)) else [f"not the {k} largest of {WIDE} columns"]), []


def _speculative(runner: Runner, case: Case, stored: Stored) -> Result:
    """With one certain token per place, drafts are accepted up to the first wrong one, whatever is drawn."""
    import numpy as np

    num_rows, drafted = case.inputs["draft_ids"].shape
    vocab = case.inputs["target_probs"].shape[2]
    places, rows = np.arange(drafted + 1), np.arange(num_rows)
    greedy = (rows[:, None] * 5 + places * 11 + 2) % vocab
    accepted = rows % (drafted + 1)
    wrong = places[:drafted] >= accepted[:, None]
    draft = np.where(wrong, (greedy[:, :drafted] + 1 + places[:drafted]) % vocab, greedy[:, :drafted])
    one_hot = np.eye(vocab, dtype="<f4")
    shape = case.inputs["uniform"].shape
    other = {
        "draft_ids": draft.astype("<i4"),
        "target_probs": one_hot[greedy],
        "uniform": np.resize(np.array(_UNIFORMS, "<f4"), shape),
    }
    if "draft_probs" in stored:
        other["draft_probs"] = one_hot[draft]
    data = {**stored, **{n: np.ascontiguousarray(v).reshape(-1).view(np.uint8) for n, v in other.items()}}
    count, following = runner.values(case, runner.run(case, data))
    wanted = greedy[rows, accepted]
    if np.array_equal(count, accepted) and np.array_equal(following, wanted):
        return [], []
    row = int(np.argmax((count != accepted) | (following != wanted)))
    return [
        f"greedy row {row}: {int(count[row])} drafts accepted and token {int(following[row])}, "
        f"expected {int(accepted[row])} and {int(wanted[row])}"
    ], []


def _frequencies(runner: Runner, case: Case, stored: Stored) -> Result:
    """One distribution drawn from many times: chi-square of the counts of all tokens."""
    import numpy as np

    from runtime.ops.sampling import surviving

    inputs = {
        name: Tensor(t.format, (NUM_DRAWS, *t.shape[1:]), t.role, t.data, t.layout) for name, t in case.inputs.items()
    }
    many = case.but(inputs=inputs)
    runner.require(many)
    row = {n: stored[n].reshape(t.shape[0], -1)[0] for n, t in case.inputs.items()}
    data = {n: np.tile(bytes_, NUM_DRAWS) for n, bytes_ in row.items()}
    uniforms = Stream(runner.seed, case.id, "frequencies").uniform((NUM_DRAWS,)).astype("<f4")
    data["uniform"] = uniforms.view(np.uint8)
    first = {n: v[0] for n, v in decode_data(case, stored).items()}
    settings = [float(first[n]) for n in ("temperature", "top_k", "top_p", "min_p", "typical_p")]
    ids, p = surviving(first["logits"], settings[0], int(settings[1]), *settings[2:])
    if len(ids) < 2:
        raise NotEvaluable("one token alone survives the filters")
    tokens = runner.values(many, runner.run(many, data))[0]
    foreign = sorted(set(tokens.tolist()) - set(ids.tolist()))
    if foreign:
        return [f"{len(foreign)} tokens are drawn that the filters exclude, e.g. {foreign[0]}"], []
    deviate = chi_square_deviate(np.bincount(tokens, minlength=case.inputs["logits"].shape[1])[ids], p * NUM_DRAWS)
    if deviate <= _LARGEST_DEVIATE:
        return [], []
    return [
        f"{NUM_DRAWS} draws do not follow their probabilities: {deviate:.1f} deviations (limit {_LARGEST_DEVIATE:g})"
    ], []


def chi_square_deviate(observed: Any, expected: Any) -> float:
    """Chi-square of counts, as a normal deviate; rare outcomes are counted together."""
    import numpy as np

    order = np.argsort(-expected, kind="stable")
    observed, expected = observed[order].astype(float), expected[order].astype(float)
    keep = max(1, int((expected >= _FEWEST_EXPECTED).sum()))
    if keep < len(expected):
        observed = np.append(observed[:keep], observed[keep:].sum())
        expected = np.append(expected[:keep], expected[keep:].sum())
    if len(expected) < 2:
        return 0.0
    freedom = len(expected) - 1
    statistic = float(((observed - expected) ** 2 / expected).sum())
    spread = 2 / (9 * freedom)
    return float(((statistic / freedom) ** (1 / 3) - (1 - spread)) / sqrt(spread))


def _add(name: str, applies: Any, test: Any) -> None:
    LAWS[name] = Law(name, applies, test)


def _draws(case: Case) -> bool:
    temperature = case.inputs["temperature"].data
    return temperature[0] == "constant" and temperature[1] > 0 and case.kind != "ties"


_add("values_are_at_indices", lambda c: True, _values_at_indices)
_add("speculative_equals_greedy", lambda c: c.inputs["draft_ids"].shape[0] > 1, _speculative)
_add("frequencies_follow_probabilities", _draws, _frequencies)
