"""Sampling: penalties on logits, drawing a token, and the verification of drafted tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.dtypes import FORMATS, TensorSpec
from runtime.errors import InvalidArgument
from runtime.ops.checks import check_indices
from runtime.ops.costs import total_nbytes
from runtime.ops.declare import INDEX, Attrs, Check, Op, Port, Refusal, Specs, Work
from runtime.ops.rounding import Rounding

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LARGEST_UNIFORM = 1 - 2.0**-24
"""The largest float32 below 1; a generator's float64 may round to 1 when it is stored in float32."""


def _penalize(
    r: Rounding,
    logits: NDArray[Any],
    token_ids: NDArray[Any],
    output_counts: NDArray[Any],
    repetition: NDArray[Any],
    presence: NDArray[Any],
    frequency: NDArray[Any],
    bias_ids: NDArray[Any] | None = None,
    bias_values: NDArray[Any] | None = None,
) -> NDArray[Any]:
    import numpy as np

    check_indices("penalize@1", "token_ids", token_ids, logits.shape[1], what="tokens in the vocabulary", padding=True)
    y = np.array(logits, dtype=np.float64)
    rows, columns = np.nonzero(token_ids >= 0)
    ids = token_ids[rows, columns]
    counts = output_counts[rows, columns]
    seen = y[rows, ids]
    seen = r("accumulate", np.where(seen > 0, seen / repetition[rows], seen * repetition[rows]))
    y[rows, ids] = seen - presence[rows] * (counts > 0) - frequency[rows] * counts
    if bias_ids is not None and bias_values is not None:
        check_indices(
            "penalize@1", "bias_ids", bias_ids, logits.shape[1], what="tokens in the vocabulary", padding=True
        )
        rows, columns = np.nonzero(bias_ids >= 0)
        np.add.at(y, (rows, bias_ids[rows, columns]), bias_values[rows, columns])
    return r("output", y)


def _penalize_infer(inputs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    if ("bias_ids" in inputs) != ("bias_values" in inputs):
        raise InvalidArgument("penalize@1 has only one of bias_ids and bias_values; give both or neither")
    return (TensorSpec(inputs["logits"].format, inputs["logits"].shape),)


def _penalize_work(inputs: Specs, outputs: Specs, attrs: Attrs) -> Work:
    rows, history = inputs["token_ids"].resolve({})
    biases = inputs["bias_ids"].resolve({})[1] if "bias_ids" in inputs else 0
    read = total_nbytes(inputs)
    return Work(rows * (6 * history + biases), read, outputs["y"].nbytes())


def surviving(
    logits: NDArray[Any],
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical_p: float = 1.0,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens of one row that may be drawn, in ascending order, and their probabilities.

    logits [V] with at least one finite value and temperature > 0; off are top_k 0, top_p 1, min_p 0, typical_p 1.
    The filters act in this order, each on the renormalised survivors of the one before:

    top_k      the k largest logits, and whatever ties with the k-th
    top_p      the fewest most probable tokens whose probability reaches top_p; lower ids first among equals
               (Holtzman 2020)
    min_p      tokens at least min_p times as probable as the most probable one (Nguyen 2024)
    typical_p  tokens whose surprise is nearest to the entropy, until their probability reaches typical_p, and
               whatever ties with the last of them (Meister 2023)
    """
    import numpy as np

    scores = np.asarray(logits, dtype=np.float64)
    scores = (scores - scores.max()) / temperature
    ids = np.arange(scores.size)

    def keep(mask: NDArray[np.bool_]) -> None:
        nonlocal ids, scores
        ids, scores = ids[mask], scores[mask]

    if 0 < top_k < scores.size:
        keep(scores >= np.partition(scores, -top_k)[-top_k])
    if top_p < 1:
        keep(_nucleus(_softmax(scores), top_p))
    if min_p > 0:
        keep(np.exp(scores) >= min(min_p, 1.0))
    if typical_p < 1:
        keep(_typical(_softmax(scores), typical_p))
    return ids, _softmax(scores)


def _softmax(scores: NDArray[Any]) -> NDArray[Any]:
    """Probabilities of `scores`, whose largest is 0."""
    import numpy as np

    weights: NDArray[Any] = np.exp(scores)
    weights /= weights.sum()
    return weights


def _nucleus(p: NDArray[Any], top_p: float) -> NDArray[np.bool_]:
    """Whether each token is needed to reach `top_p`, the most probable first.

    A peaked distribution needs few tokens: only those above the n-th largest probability are sorted, for growing n.
    """
    import numpy as np

    n = 256
    while True:
        candidates = np.nonzero(p >= np.partition(p, -n)[-n])[0] if n < p.size else np.arange(p.size)
        ordered = candidates[np.argsort(-p[candidates], kind="stable")]
        reached = np.cumsum(p[ordered])
        if n >= p.size or reached[-1] >= top_p:
            break
        n *= 16
    mask = np.zeros(p.size, dtype=bool)
    mask[ordered[: 1 + int(np.count_nonzero(reached[:-1] < top_p))]] = True
    return mask


def _typical(p: NDArray[Any], mass: float) -> NDArray[np.bool_]:
    import numpy as np

    with np.errstate(divide="ignore"):
        surprise = -np.log(p)
    entropy = np.sum(p[p > 0] * surprise[p > 0])
    distance = np.abs(surprise - entropy)
    order = np.argsort(distance, kind="stable")
    last = min(int(np.count_nonzero(np.cumsum(p[order]) < mass)), p.size - 1)
    mask: NDArray[np.bool_] = distance <= distance[order[last]]
    return mask


def _draw(p: NDArray[Any], uniform: float) -> int:
    """The first index whose cumulative share of `p` (not necessarily normalised) exceeds `uniform`."""
    import numpy as np

    cumulative = np.cumsum(p)
    return int(np.searchsorted(cumulative, min(uniform, _LARGEST_UNIFORM) * cumulative[-1], side="right"))


def _sample(
    r: Rounding,
    logits: NDArray[Any],
    temperature: NDArray[Any],
    top_k: NDArray[Any],
    top_p: NDArray[Any],
    min_p: NDArray[Any],
    typical_p: NDArray[Any],
    uniform: NDArray[Any],
) -> NDArray[Any]:
    import numpy as np

    token_ids: NDArray[np.int64] = np.argmax(logits, axis=-1).astype(np.int64)
    drawable = np.isfinite(np.take_along_axis(logits, token_ids[:, None], axis=-1)[:, 0])
    token_ids[~drawable] = -1
    for row in np.nonzero(drawable & (temperature > 0))[0]:
        ids, p = surviving(
            logits[row],
            float(temperature[row]),
            int(top_k[row]),
            float(top_p[row]),
            float(min_p[row]),
            float(typical_p[row]),
        )
        token_ids[row] = ids[_draw(p, float(uniform[row]))]
    return token_ids


def _rows_work(inputs: Specs, outputs: Specs, attrs: Attrs) -> Work:
    # per element: scale, exponential, four comparisons of the filters, sum, running sum
    spec = inputs["logits"]
    rows, vocab = spec.resolve({})
    read = total_nbytes(inputs)
    return Work(8 * rows * vocab, read, total_nbytes(outputs))


def _verify_draft(
    r: Rounding,
    draft_ids: NDArray[Any],
    target_probs: NDArray[Any],
    uniform: NDArray[Any],
    draft_probs: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], NDArray[Any]]:
    import numpy as np

    vocab = target_probs.shape[2]
    check_indices("verify_draft@1", "draft_ids", draft_ids, vocab, what="tokens in the vocabulary", padding=True)
    accepted = np.zeros(draft_ids.shape[0], dtype=np.int64)
    next_id = np.zeros_like(accepted)
    for row, drafted in enumerate(draft_ids):
        q = None if draft_probs is None else draft_probs[row]
        accepted[row], next_id[row] = _verify_row(drafted, target_probs[row], uniform[row], q)
    return accepted, next_id


def _verify_row(
    draft_ids: NDArray[Any], target_probs: NDArray[Any], uniform: NDArray[Any], draft_probs: NDArray[Any] | None
) -> tuple[int, int]:
    import numpy as np

    for i, token in enumerate(draft_ids):
        if token < 0:
            return i, _draw(target_probs[i], float(uniform[i]))
        p, u = target_probs[i], float(uniform[i])
        if draft_probs is None:
            drawn = _draw(p, u)
            if drawn != token:
                return i, drawn
        elif u * draft_probs[i, token] >= p[token]:
            residual = np.maximum(p - draft_probs[i], 0)
            # where the draft covers the target, only rounding can have rejected: the target itself is then exact
            return i, _draw(residual if residual.any() else p, float(uniform[-1]))
    return len(draft_ids), _draw(target_probs[-1], float(uniform[-1]))


def _verify_infer(inputs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    drafted, given = inputs["draft_ids"].shape[1], inputs["target_probs"].shape[1]
    if isinstance(drafted, int) and isinstance(given, int) and given != drafted + 1:
        raise InvalidArgument(
            f"verify_draft@1 has {drafted} drafted tokens and {given} target distributions per row; "
            "it needs one more than drafted tokens, for the token that follows them"
        )
    spec = TensorSpec(FORMATS["i32"], inputs["draft_ids"].shape[:1])
    return spec, spec


def _verify_work(inputs: Specs, outputs: Specs, attrs: Attrs) -> Work:
    # one distribution of each row is summed; of the others only the drafted token's probability is read
    rows, drafted = inputs["draft_ids"].resolve({})
    vocab = inputs["target_probs"].resolve({})[2]
    element = inputs["target_probs"].format.nbytes((1,))
    distributions = 1 + drafted if "draft_probs" not in inputs else 2
    read = inputs["draft_ids"].nbytes() + inputs["uniform"].nbytes() + rows * distributions * vocab * element
    return Work(3 * rows * distributions * vocab, read, total_nbytes(outputs))


_PENALIZE_SPECS: dict[str, tuple[str, tuple[int, ...]]] = {
    "logits": ("f32", (2, 64)),
    "token_ids": ("i32", (2, 4)),
    "output_counts": ("i32", (2, 4)),
    "repetition": ("f32", (2,)),
    "presence": ("f32", (2,)),
    "frequency": ("f32", (2,)),
}

PENALIZE = Op(
    name="penalize",
    version=1,
    family="sampling",
    doc=(
        "Repetition penalty (Keskar 2019: positive logits are divided, others multiplied) for every token of the "
        "row's history; presence and frequency penalties, which count the row's output alone; then additive biases, "
        "where -inf bans a token. The tokens of a row's history are distinct."
    ),
    inputs=(
        Port("logits", ("R", "V"), doc="one row per token to draw"),
        Port("token_ids", ("R", "H"), INDEX, "distinct tokens of prompt and output; -1 pads"),
        Port("output_counts", ("R", "H"), INDEX, "occurrences in the output; 0: the token is only in the prompt"),
        Port("repetition", ("R",), ("f32",), "1 is off; > 0"),
        Port("presence", ("R",), ("f32",), "subtracted once from every token of the output"),
        Port("frequency", ("R",), ("f32",), "subtracted for each occurrence in the output"),
        Port("bias_ids", ("R", "X"), INDEX, "tokens to bias; -1 pads", optional=True),
        Port("bias_values", ("R", "X"), ("f32",), "added last", optional=True),
    ),
    outputs=(Port("y", ("R", "V"), doc="penalised logits"),),
    reference=_penalize,
    infer=_penalize_infer,
    work=_penalize_work,
    check=Check("statistical"),
    rounding=("accumulate", "output"),
    laws=("row_independent", "batch_invariant"),
    refusals=(
        Refusal("bias_ids and bias_values come together", _PENALIZE_SPECS | {"bias_ids": ("i32", (2, 3))}),
        Refusal(
            "tokens are in the vocabulary", _PENALIZE_SPECS, values={"token_ids": [[0, 1, 2, 64], [-1, -1, -1, -1]]}
        ),
    ),
    level="L2",
)

SAMPLE = Op(
    name="sample",
    version=1,
    family="sampling",
    doc=(
        "One token per row. Temperature 0 takes the largest logit (the lowest id among equals). Otherwise logits are "
        "divided by the temperature and filtered by top_k, top_p, min_p and typical_p in that order; the token is the "
        "first, in order of id, whose cumulative probability among the survivors exceeds `uniform`. A row whose "
        "largest logit is not finite (NaN, or every token banned) gives -1."
    ),
    inputs=(
        Port("logits", ("R", "V"), doc="one row per token to draw"),
        Port("temperature", ("R",), ("f32",), "0: take the most probable token"),
        Port("top_k", ("R",), INDEX, "0: off"),
        Port("top_p", ("R",), ("f32",), "1: off"),
        Port("min_p", ("R",), ("f32",), "0: off"),
        Port("typical_p", ("R",), ("f32",), "1: off"),
        Port("uniform", ("R",), ("f32",), "random numbers in [0, 1)"),
    ),
    outputs=(Port("token_ids", ("R",), INDEX, "drawn tokens"),),
    reference=_sample,
    work=_rows_work,
    check=Check("distribution"),
    laws=("row_independent", "batch_invariant"),
    refusals=(
        Refusal(
            "logits and temperature have the same R",
            {
                "logits": ("f32", (2, 64)),
                "temperature": ("f32", (3,)),
                "top_k": ("i32", (2,)),
                "top_p": ("f32", (2,)),
                "min_p": ("f32", (2,)),
                "typical_p": ("f32", (2,)),
                "uniform": ("f32", (2,)),
            },
        ),
    ),
    level="L2",
)

VERIFY_DRAFT = Op(
    name="verify_draft",
    version=1,
    family="sampling",
    doc=(
        "How many drafted tokens of each row stand, and the token after them; the outcome is distributed exactly as "
        "if the target had drawn every token (Leviathan 2023). With draft_probs, a token x stands when "
        "uniform < target(x) / draft(x), and the token after a rejection comes from max(target - draft, 0) with the "
        "row's last random number. Without them the draft was certain of its tokens: one stands when it is what "
        "`sample` draws from the target with the random number of its position, so that the text is the one that "
        "the same random numbers give without drafts."
    ),
    inputs=(
        Port("draft_ids", ("R", "D"), INDEX, "drafted tokens; -1 pads at the end"),
        Port("target_probs", ("R", "D1", "V"), doc="target's probabilities at each position; D1 = D + 1"),
        Port("uniform", ("R", "D1"), ("f32",), "random numbers in [0, 1)"),
        Port("draft_probs", ("R", "D", "V"), doc="draft's probabilities", optional=True),
    ),
    outputs=(
        Port("accepted", ("R",), INDEX, "drafted tokens that stand"),
        Port("next_id", ("R",), INDEX, "the token after them"),
    ),
    reference=_verify_draft,
    infer=_verify_infer,
    work=_verify_work,
    check=Check("distribution"),
    laws=("row_independent", "batch_invariant"),
    refusals=(
        Refusal(
            "D1 is D + 1",
            {"draft_ids": ("i32", (2, 3)), "target_probs": ("f32", (2, 3, 64)), "uniform": ("f32", (2, 3))},
        ),
        Refusal(
            "drafted tokens are in the vocabulary",
            {"draft_ids": ("i32", (1, 2)), "target_probs": ("f32", (1, 3, 8)), "uniform": ("f32", (1, 3))},
            values={"draft_ids": [[1, 8]]},
        ),
    ),
    level="L2",
)

OPS: tuple[Op, ...] = (PENALIZE, SAMPLE, VERIFY_DRAFT)
