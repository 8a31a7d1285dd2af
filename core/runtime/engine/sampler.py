"""Turns rows of logits into tokens, each row by the settings of its own request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.engine.constraints import banned_next
from runtime.engine.random import uniform
from runtime.engine.request import PositionLogprobs, Request, TokenLogprob
from runtime.engine.sampling_graph import PENALTY_INPUTS, ROW_INPUTS, SamplingVariant, build_sampling_graph
from runtime.errors import NumericFault, RuntimeFault
from runtime.executor import Executor, KeptOutput
from runtime.graph import Graph

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Sampled:
    """The token chosen for one row; where there is an `error`, there is no token."""

    token_id: int
    logprobs: PositionLogprobs | None = None
    error: RuntimeFault | None = None


class Sampler:
    """Chooses tokens by running the sampling graph that the batch needs.

    `make_executor` compiles a graph; each variant is compiled once, on first use. `eos_token_ids` are banned while a
    request has not reached its `min_tokens`.
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        max_num_seqs: int,
        max_model_len: int,
        eos_token_ids: frozenset[int],
        token_text: Callable[[int], str],
        make_executor: Callable[[Graph], Executor],
    ) -> None:
        self.vocab_size = vocab_size
        self.max_num_seqs = max_num_seqs
        self.max_model_len = max_model_len
        self.eos_token_ids = eos_token_ids
        self._token_text = token_text
        self._make_executor = make_executor
        self._executors: dict[SamplingVariant, Executor] = {}

    def sample(self, logits: NDArray[np.float32] | KeptOutput, requests: Sequence[Request]) -> list[Sampled]:
        """Choose one token per row of `logits` [len(requests), vocab_size]; a row that fails does so alone.

        Logits on a device stay there, and only what was chosen is fetched, unless a grammar, a processor or a list of
        tokens changes them here.
        """
        import numpy as np

        shaped = [i for i, r in enumerate(requests) if r.matcher or r.processors or r.allowed is not None]
        if shaped and isinstance(logits, KeptOutput):
            logits = logits.numpy()
        stays = isinstance(logits, KeptOutput)
        if not isinstance(logits, KeptOutput):
            finite = np.all(np.isfinite(logits), axis=1)
            logits[~finite] = 0
        bans = [self._bans(r) for r in requests]
        penalties = any(bans) or any(_has_penalties(r) for r in requests)
        wanted = [r.params.logprobs for r in requests if r.params.logprobs is not None]
        # Where tokens are ruled out even a greedy choice goes through `sample`, which tells when nothing is left.
        choice = penalties or bool(shaped) or any(r.params.temperature > 0 for r in requests)
        variant = SamplingVariant(penalties, choice, max(wanted, default=None), bool(shaped and wanted), stays)
        inputs: dict[str, Any] = {"logits": logits}
        faults: dict[int, RuntimeFault] = {}
        if shaped and not isinstance(logits, KeptOutput):
            rows = logits.copy() if wanted else logits  # log-probabilities are the model's: as the logits were
            inputs["allowed_logits" if wanted else "logits"] = rows
            faults = {i: fault for i in shaped if (fault := _shape(rows[i], requests[i])) is not None}
        dims = {"R": len(requests), "H": 1, "X": 1}
        if variant.penalties:
            inputs |= _penalty_inputs(requests, bans, dims)
        if variant.random:
            inputs |= _row_inputs(requests)
        outputs = self._executor(variant).run(inputs, dims)
        if stays:
            finite = ~np.isnan(outputs["zeros"][:, 0])
        return [
            Sampled(-1, error=faults[i]) if i in faults else self._sampled(outputs, i, r, bool(finite[i]))
            for i, r in enumerate(requests)
        ]

    def score(
        self, logits: NDArray[np.float32], token_ids: Sequence[int], counts: Sequence[int]
    ) -> list[PositionLogprobs | None]:
        """How probable `token_ids` are by the rows of `logits`, with so many alternatives each.

        None for a row that holds NaN or infinity.
        """
        import numpy as np

        finite = np.all(np.isfinite(logits), axis=1)
        logits[~finite] = 0
        executor = self._executor(SamplingVariant(num_logprobs=max(counts)))
        scores: list[PositionLogprobs | None] = []
        for start in range(0, len(token_ids), self.max_num_seqs):
            chunk = logits[start : start + self.max_num_seqs]
            outputs = executor.run({"logits": chunk}, {"R": len(chunk), "H": 1, "X": 1})
            for i in range(len(chunk)):
                at = start + i
                scores.append(self._logprobs(outputs, i, token_ids[at], counts[at]) if finite[at] else None)
        return scores

    def close(self) -> None:
        """Free the compiled graphs."""
        for executor in self._executors.values():
            executor.close()
        self._executors.clear()

    def _executor(self, variant: SamplingVariant) -> Executor:
        if variant not in self._executors:
            graph = build_sampling_graph(
                self.vocab_size, variant, max_num_seqs=self.max_num_seqs, max_model_len=self.max_model_len
            )
            self._executors[variant] = self._make_executor(graph)
        return self._executors[variant]

    def _sampled(self, outputs: Mapping[str, NDArray[Any]], row: int, request: Request, is_finite: bool) -> Sampled:
        token_id = int(outputs["token_ids"][row])
        if not is_finite:
            return Sampled(-1, error=_fault(request, "the model's logits hold NaN or infinity"))
        if token_id < 0:
            return Sampled(-1, error=_fault(request, "penalties, biases and bans leave no token to choose"))
        count = request.params.logprobs
        return Sampled(token_id, None if count is None else self._logprobs(outputs, row, token_id, count))

    def _bans(self, request: Request) -> frozenset[int]:
        params = request.params
        banned: frozenset[int] = frozenset()
        if request.num_output_tokens < params.min_tokens:
            banned = self.eos_token_ids | frozenset(params.stop_token_ids)
        if request.bad_words:
            banned |= frozenset(banned_next(request.bad_words, request.output_token_ids))
        return banned

    def _logprobs(self, outputs: Mapping[str, NDArray[Any]], row: int, chosen: int, count: int) -> PositionLogprobs:
        logprobs = outputs["logprobs"][row]

        def describe(token_id: int) -> TokenLogprob:
            value = float(logprobs[token_id])
            rank = int((logprobs > value).sum()) + 1
            return TokenLogprob(token_id, value, rank, self._token_text(token_id))

        top = outputs["top_ids"][row][:count] if count else ()
        return PositionLogprobs(describe(chosen), tuple(describe(int(t)) for t in top))


def _fault(request: Request, what: str) -> NumericFault:
    return NumericFault(
        f"request {request.request_id}: {what} after {request.num_tokens} tokens",
        remedy="check logit_bias; check the weights with --check-tensors and the device with runtime doctor",
    )


def _has_penalties(request: Request) -> bool:
    p = request.params
    return bool(p.repetition_penalty != 1.0 or p.presence_penalty or p.frequency_penalty or p.logit_bias)


def _shape(row: NDArray[np.float32], request: Request) -> RuntimeFault | None:
    """Change a row of logits by the request's processors, grammar and list of tokens; or why that cannot be done."""
    import numpy as np

    try:
        for processor in request.processors:
            processor.apply(request.prompt_token_ids, request.output_token_ids, row)
        if request.matcher is not None:
            np.copyto(row, np.float32(-np.inf), where=~request.matcher.mask())
    except RuntimeFault as fault:
        row[:] = 0
        return fault
    if request.allowed is not None:
        np.copyto(row, np.float32(-np.inf), where=~request.allowed)
    return None


def _row_inputs(requests: Sequence[Request]) -> dict[str, NDArray[Any]]:
    import numpy as np

    rows: dict[str, list[float]] = {name: [] for name in ROW_INPUTS}
    for r in requests:
        for name in ROW_INPUTS:
            rows[name].append(uniform(r.seed, r.num_output_tokens) if name == "uniform" else getattr(r.params, name))
    inputs: dict[str, NDArray[Any]] = {name: np.array(values, np.float32) for name, values in rows.items()}
    inputs["top_k"] = np.array([max(r.params.top_k, 0) for r in requests], np.int32)
    return inputs


def _penalty_inputs(
    requests: Sequence[Request], bans: Sequence[frozenset[int]], dims: dict[str, int]
) -> dict[str, NDArray[Any]]:
    """Histories and biases, padded with -1 to the longest; writes the sizes H and X into `dims`."""
    import numpy as np

    counts = [Counter(r.output_token_ids) for r in requests]
    histories = [sorted(set(r.prompt_token_ids) | set(c)) for r, c in zip(requests, counts)]
    biases = [dict(r.params.logit_bias) | dict.fromkeys(ban, -np.inf) for r, ban in zip(requests, bans)]
    dims["H"] = max(1, *map(len, histories))
    dims["X"] = max(1, *map(len, biases))
    n = len(requests)
    history_ids, output_counts = np.full((n, dims["H"]), -1, np.int32), np.zeros((n, dims["H"]), np.int32)
    bias_ids, bias_values = np.full((n, dims["X"]), -1, np.int32), np.zeros((n, dims["X"]), np.float32)
    for i in range(n):
        history_ids[i, : len(histories[i])] = histories[i]
        output_counts[i, : len(histories[i])] = [counts[i][t] for t in histories[i]]
        bias_ids[i, : len(biases[i])] = list(biases[i])
        bias_values[i, : len(biases[i])] = list(biases[i].values())
    inputs = {
        "history_ids": history_ids,
        "output_counts": output_counts,
        "bias_ids": bias_ids,
        "bias_values": bias_values,
    }
    for name in PENALTY_INPUTS:
        inputs[name] = np.array([getattr(r.params, f"{name}_penalty") for r in requests], np.float32)
    return inputs
