"""Measures steps of a loaded model: prefill and decode rates beside what the work needs and what the machine can do."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from runtime.engine.blocks import BlockPool
from runtime.engine.request import Request
from runtime.engine.sampling_params import SamplingParams
from runtime.engine.scheduler import Scheduled
from runtime.errors import InvalidArgument
from runtime.ops import Work

if TYPE_CHECKING:
    from runtime.engine.loading import Loaded
    from runtime.graph import Graph

Kind = Literal["prefill", "decode"]
Report = Callable[[str], None]
_SEED = 7


@dataclass(frozen=True)
class BenchPlan:
    """What to measure: every size of `prefill`, and `decode` tokens at every depth with every batch.

    prefill  prompt lengths in tokens, measured from an empty context; may be empty
    decode   tokens that each sequence generates in one repetition; 0 leaves decoding out
    depth    tokens that each sequence has already computed when decoding starts
    batch    sequences that decode together
    """

    prefill: tuple[int, ...] = (512,)
    decode: int = 64
    depth: tuple[int, ...] = (0,)
    batch: tuple[int, ...] = (1,)
    repeat: int = 5

    def __post_init__(self) -> None:
        for name, least in (("prefill", 1), ("depth", 0), ("batch", 1)):
            for value in getattr(self, name):
                if value < least:
                    raise InvalidArgument(f"{name} = {value}: it must be at least {least}")
        if self.repeat < 1:
            raise InvalidArgument(f"repeat = {self.repeat}: it must be at least 1")
        if self.decode < 0:
            raise InvalidArgument(f"decode = {self.decode}: it must not be negative")
        if not self.prefill and not self.decode:
            raise InvalidArgument("there is nothing to measure: prefill and decode are both 0")

    @property
    def max_model_len(self) -> int:
        """Context that the measurements need."""
        deepest = max(self.depth, default=0) + self.decode if self.decode else 0
        return max(*self.prefill, deepest, 1)

    @property
    def max_num_seqs(self) -> int:
        """Sequences that the measurements need."""
        return max(self.batch, default=1) if self.decode else 1


@dataclass(frozen=True)
class Measurement:
    """One kind of step at one size.

    num_tokens         prefill: tokens of the prompt; decode: tokens that each sequence generates per repetition
    tokens_per_s       of all sequences together, one figure per repetition
    spread             (largest - smallest) / median of them
    step_s             median seconds of one step; a prefill longer than a step's limit takes several
    weight_bytes       that one step reads; of experts, as many as the step's tokens can choose
    bytes_per_s        all that the operations read and write in a step, by their work models, per second
    operations_per_s   arithmetic by the work models (a multiply-add is two), per second
    """

    kind: Kind
    num_tokens: int
    depth: int
    batch: int
    tokens_per_s: tuple[float, ...]
    median_tokens_per_s: float
    spread: float
    step_s: float
    weight_bytes: int
    weight_bytes_per_s: float
    bytes_per_s: float
    operations_per_s: float

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "tokens_per_s": list(self.tokens_per_s)}


def measure(loaded: Loaded, plan: BenchPlan, report: Report | None = None) -> Iterator[Measurement]:
    """Yield measurements as they are made: prefill first, then decoding by depth, then by batch.

    The engine must be idle. Contexts are filled by computing them, once: deeper ones continue shallower ones, and
    every sequence has blocks of its own. `report` is told what is being prepared. Raises InvalidArgument or
    OutOfMemory where the plan does not fit what was loaded.
    """
    sequences = BenchSequences(loaded, plan)
    try:
        for num_tokens in plan.prefill:
            yield _measure_prefill(sequences, num_tokens, plan.repeat)
        if plan.decode:
            for depth in sorted(set(plan.depth)):
                for batch in plan.batch:
                    sequences.fill(batch, depth, report)
                    yield _measure_decode(sequences, plan.decode, depth, batch, plan.repeat)
    finally:
        sequences.close()


class BenchSequences:
    """Synthetic requests with blocks of their own, and how far each has been computed; the engine must be idle."""

    def __init__(self, loaded: Loaded, plan: BenchPlan) -> None:
        if loaded.engine.has_work:
            raise InvalidArgument("measurements need an idle engine; finish or abort the running requests first")
        if plan.max_model_len > loaded.context.max_model_len:
            raise InvalidArgument(
                f"the measurements need a context of {plan.max_model_len} tokens, the model was loaded with "
                f"{loaded.context.max_model_len}"
            )
        scheduler = loaded.engine.scheduler
        self.graph = loaded.plan.graph
        self.runner = loaded.engine.runner
        self.pool: BlockPool = scheduler.pool
        self.max_num_batched_tokens = scheduler.max_num_batched_tokens
        self._computed: list[int] = []
        self._requests: list[Request] = []
        draw = random.Random(_SEED)
        vocab_size = loaded.spec.vocab_size
        try:
            for i in range(plan.max_num_seqs):
                token_ids = [draw.randrange(vocab_size) for _ in range(plan.max_model_len)]
                request = Request(f"bench-{i}", token_ids, SamplingParams(), max_tokens=0)
                request.block_table = self.pool.allocate(self.pool.blocks_for(plan.max_model_len))
                self._requests.append(request)
                self._computed.append(0)
        except BaseException:
            self.close()
            raise

    def parts(self, batch: int, start: int, num_tokens: int) -> list[Scheduled]:
        """A step of `num_tokens` tokens at position `start` for each of the first `batch` sequences.

        Block tables are as long as the step needs, as those of requests that end there would be.
        """
        blocks = self.pool.blocks_for(start + num_tokens)
        parts = []
        for request in self._requests[:batch]:
            view = Request(request.request_id, request.prompt_token_ids, request.params, 0)
            view.block_table = request.block_table[:blocks]
            parts.append(Scheduled(view, start, num_tokens))
        return parts

    def chunks(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """(position, tokens) of the steps that compute start .. stop - 1 of one sequence."""
        while start < stop:
            count = min(self.max_num_batched_tokens, stop - start)
            yield start, count
            start += count

    def prefill(self, num_tokens: int) -> float:
        """Seconds that the first `num_tokens` tokens of the first sequence take, with the last row's logits."""
        steps = [(self.parts(1, start, count), [count - 1]) for start, count in self.chunks(0, num_tokens)]
        self._computed[0] = max(self._computed[0], num_tokens)
        return self._timed(steps)

    def decode(self, num_tokens: int, depth: int, batch: int) -> float:
        """Seconds that `num_tokens` steps of the first `batch` sequences take, one token each, from `depth` on."""
        return self._timed([(self.parts(batch, depth + i, 1), range(batch)) for i in range(num_tokens)])

    def fill(self, batch: int, depth: int, report: Report | None) -> None:
        """Compute `depth` tokens of each of the first `batch` sequences, where that has not been done."""
        for i in range(batch):
            for start, count in self.chunks(self._computed[i], depth):
                if report is not None:
                    report(f"filling the context: sequence {i + 1} of {batch}, token {start} of {depth}")
                part = self.parts(i + 1, start, count)[i]
                self.runner.compute([part], [count - 1])
            self._computed[i] = max(self._computed[i], depth)

    def _timed(self, steps: Sequence[tuple[Sequence[Scheduled], Sequence[int]]]) -> float:
        compute = self.runner.compute
        started = time.perf_counter()
        for parts, rows in steps:
            compute(parts, rows)
        return time.perf_counter() - started

    def close(self) -> None:
        """Give the blocks back."""
        for request in self._requests:
            self.pool.free(request.block_table)


def _measure_prefill(sequences: BenchSequences, num_tokens: int, repeat: int) -> Measurement:
    sequences.prefill(num_tokens)  # the first run touches memory and fills caches
    seconds = [sequences.prefill(num_tokens) for _ in range(repeat)]
    work, weight_bytes = Work(0, 0, 0), 0
    steps = list(sequences.chunks(0, num_tokens))
    for start, count in steps:
        step_work, step_weights = step_cost(
            sequences.graph, num_tokens=count, num_seqs=1, num_blocks=sequences.pool.blocks_for(start + count)
        )
        work, weight_bytes = work + step_work, weight_bytes + step_weights
    return _measurement("prefill", num_tokens, 0, 1, num_tokens, seconds, len(steps), work, weight_bytes)


def _measure_decode(sequences: BenchSequences, num_tokens: int, depth: int, batch: int, repeat: int) -> Measurement:
    sequences.decode(1, depth, batch)
    seconds = [sequences.decode(num_tokens, depth, batch) for _ in range(repeat)]
    middle = sequences.pool.blocks_for(depth + num_tokens // 2 + 1)
    work, weight_bytes = step_cost(sequences.graph, num_tokens=batch, num_seqs=batch, num_blocks=middle)
    whole = Work(*(num_tokens * part for part in (work.operations, work.bytes_read, work.bytes_written)))
    return _measurement(
        "decode", num_tokens, depth, batch, batch * num_tokens, seconds, num_tokens, whole, num_tokens * weight_bytes
    )


def _measurement(
    kind: Kind,
    num_tokens: int,
    depth: int,
    batch: int,
    total_tokens: int,
    seconds: Sequence[float],
    num_steps: int,
    work: Work,
    weight_bytes: int,
) -> Measurement:
    """`work` and `weight_bytes` are those of one repetition of `num_steps` steps."""
    rates = [total_tokens / s for s in seconds]
    median, middle = statistics.median(rates), statistics.median(seconds)
    return Measurement(
        kind=kind,
        num_tokens=num_tokens,
        depth=depth,
        batch=batch,
        tokens_per_s=tuple(rates),
        median_tokens_per_s=median,
        spread=(max(rates) - min(rates)) / median,
        step_s=middle / num_steps,
        weight_bytes=weight_bytes // num_steps,
        weight_bytes_per_s=weight_bytes / middle,
        bytes_per_s=(work.bytes_read + work.bytes_written) / middle,
        operations_per_s=work.operations / middle,
    )


def step_cost(graph: Graph, *, num_tokens: int, num_seqs: int, num_blocks: int) -> tuple[Work, int]:
    """Work of one step with one row of logits per sequence, and the bytes of weights that it reads."""
    dims = {"T": num_tokens, "S": num_seqs, "Q": num_seqs + 1, "P": num_blocks, "R": num_seqs}
    dims |= {name: span.lo for name, span in graph.dims.items() if name not in dims}
    total, weight_bytes = Work(0, 0, 0), 0
    for node in graph:
        work = node.work(dims)
        stored = sum(value.spec.nbytes() for value in node.inputs.values() if value.kind == "weight")
        # an embedding reads rows of its table and experts read those that are chosen: less than what is stored
        weight_bytes += min(stored, work.bytes_read)
        total += work
    return total, weight_bytes


def loaded_facts(loaded: Loaded) -> Mapping[str, Any]:
    """What was loaded, as plain data: model, backend, context, plan in one line, memory of file and KV cache."""
    device = next(iter(loaded.devices.values()))
    memory = loaded.plan.memory
    return {
        "model": loaded.model.name,
        "architecture": loaded.spec.architecture,
        "file_bytes": loaded.model.file.nbytes,
        "backend": loaded.choice.backend.name,
        "device": device.info.name,
        "device_details": dict(device.info.details),
        "notices": list(device.info.notices),
        "placement": loaded.plan.summary.line(),
        "max_model_len": loaded.context.max_model_len,
        "block_size": loaded.context.block_size,
        "kv_format": loaded.kv_format,
        "weights_bytes": sum(m.weights_bytes for m in memory.values()),
        "kv_bytes": sum(m.states_bytes for m in memory.values()),
    }
