"""Brings a model onto its devices: open, choose, fit, plan, load. Each decision is kept for the status lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runtime.backend import Device, DeviceConfig, Manifest, ReferenceDevice
from runtime.dtypes import FORMATS
from runtime.engine.block_mover import BlockMover
from runtime.engine.blocks import BlockPool
from runtime.engine.config import EngineConfig
from runtime.engine.context import ContextPlan, fit_context
from runtime.engine.embedding import HiddenStates
from runtime.engine.engine import Engine
from runtime.engine.files import OpenedModel, open_for_engine
from runtime.engine.pace import Pace
from runtime.engine.place import HOST, check_place, device_name, parse_place, placed_elsewhere
from runtime.engine.policy import make_policy
from runtime.engine.runner import Runner
from runtime.engine.sampler import Sampler
from runtime.engine.scheduler import Scheduler
from runtime.engine.status import status_lines
from runtime.engine.structured import Grammars
from runtime.engine.weights import WeightReader
from runtime.errors import MalformedFile, Unsupported
from runtime.executor import Executor, Plan, make_plan
from runtime.graph import Graph
from runtime.models import ModelSpec, build_graph, kv_bytes_per_token
from runtime.registry import Choice, choose, discover
from runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from runtime.engine.weight_cache import WeightCache

Progress = Callable[[int, int], None]
DEFAULT_BLOCK_SIZE = 16
DEFAULT_KV_FORMAT = "f16"
SCORED_ROWS = 32
"""Tokens of prompts that a step scores where few sequences run: their logits take half a megabyte each with 128,000
tokens, and more rows share the output layer's weights hardly better."""


@dataclass
class Loaded:
    """A model on its devices, with everything that was decided on the way."""

    config: EngineConfig
    model: OpenedModel
    choice: Choice
    context: ContextPlan
    kv_format: str
    plan: Plan
    devices: Mapping[str, Device]
    executor: Executor
    engine: Engine
    weight_cache: WeightCache | None = None
    status: tuple[str, ...] = field(default=())

    @property
    def spec(self) -> ModelSpec:
        """Sizes and traits of the model."""
        return self.model.spec

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.model.tokenizer

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Any] | None = None, **arguments: Any
    ) -> str:
        """The conversation as text, by the configured template or the model's own."""
        return render_chat(self.tokenizer, self.config.chat_template, messages, tools=tools, **arguments)

    def to_json(self) -> dict[str, Any]:
        """What was decided, as plain data, for `runtime run --json`."""
        return {
            "model": self.model.name,
            "backend": self.choice.backend.name,
            "device": self.choice.device.name,
            "why": self.choice.why,
            "refused": [{"backend": r.name, "reason": r.reason} for r in self.choice.refused],
            "max_model_len": self.context.max_model_len,
            "context_limited_by": self.context.limited_by,
            "kv_format": self.kv_format,
            "plan": self.plan.to_json(),
        }

    def close(self) -> None:
        """Free everything; closing twice is harmless."""
        self.engine.close()
        if self.weight_cache is not None:
            self.weight_cache.close()
        self.executor.close()
        for device in self.devices.values():
            device.close()
        self.model.file.close()


def render_chat(
    tokenizer: Tokenizer,
    source: str | None,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Any] | None = None,
    **arguments: Any,
) -> str:
    """The conversation as text, by the template `source` or the model's own."""
    return tokenizer.chat_template(tools=tools, source=source).render(list(messages), tools=tools, **arguments)


def load(config: EngineConfig, progress: Progress | None = None, model: OpenedModel | None = None) -> Loaded:
    """Load the model that `config` names; see `EngineConfig` for what can be asked. `model`: it is open already."""
    model = model or open_for_engine(config.model)
    opened: list[Device] = []
    try:
        if config.check_tensors:
            model.file.check_tensors(progress)
        discovery = discover()
        choice = choose(discovery, config.backend)
        devices: dict[str, Device] = {}
        for chosen in (choice, *placed_elsewhere(discovery, choice, config.place)):
            # options are the chosen backend's; another one may not know them
            options = config.device_options if chosen is choice else {}
            devices[device_name(chosen)] = chosen.backend.open(
                chosen.device, DeviceConfig(config.threads, options=options)
            )
            opened.append(devices[device_name(chosen)])
        devices[HOST] = ReferenceDevice()
        opened.append(devices[HOST])
        return _assemble(config, model, choice, devices, progress)
    except BaseException:
        for device in opened:
            device.close()
        model.file.close()
        raise


def plan_model(
    model: OpenedModel,
    config: EngineConfig,
    manifests: Mapping[str, Manifest],
    *,
    free_bytes: Mapping[str, int],
) -> tuple[Plan, ContextPlan, str]:
    """Decide context, KV cache and placement with manifests alone: no device needs to be present.

    free_bytes  by device; the memory of one that is absent does not limit the context
    """
    block_size, kv_format = kv_layout(
        [m for name, m in manifests.items() if name != HOST] or list(manifests.values()), config.kv_format
    )
    device, beside_weights, token_bytes = _tightest(model, config, manifests, free_bytes, block_size, kv_format)
    context = fit_context(
        requested=config.max_model_len,
        model_limit=model.spec.max_model_len,
        kv_bytes_per_token=token_bytes,
        free_bytes=beside_weights,
        block_size=block_size,
        max_num_seqs=config.max_num_seqs,
        num_kv_blocks=config.num_kv_blocks,
        device=device,
    )
    graph = step_graph(model.spec, config, context, kv_format)
    plan = plan_graph(graph, config, manifests, {"B": context.num_blocks})
    check_place(parse_place(config.place), plan, model.spec.vocab_size)
    return plan, context, kv_format


def _tightest(
    model: OpenedModel,
    config: EngineConfig,
    manifests: Mapping[str, Manifest],
    free_bytes: Mapping[str, int],
    block_size: int,
    kv_format: str,
) -> tuple[str, int | None, int]:
    """The device that holds the fewest tokens: name, bytes beside the weights, and of one token's keys and values.

    Without `place` the first device has it all, and needs no name. With it, a plan for one block tells what each
    will have.
    """
    if config.place is None:
        free = free_bytes.get(next(iter(manifests)))
        token_bytes = kv_bytes_per_token(model.spec, FORMATS[kv_format])
        return "", None if free is None else max(free - model.file.nbytes, 0), token_bytes
    graph = step_graph(model.spec, config, ContextPlan(block_size, 1, block_size, ""), kv_format)
    memory = plan_graph(graph, config, manifests, {"B": 1}).memory
    shares = [
        (name, max(free_bytes[name] - part.weights_bytes, 0), part.states_bytes // block_size)
        for name, part in memory.items()
        if name in free_bytes and part.states_bytes
    ]
    return min(shares, key=lambda share: share[1] / share[2], default=("", None, 1))


def step_graph(spec: ModelSpec, config: EngineConfig, context: ContextPlan, kv_format: str, **output: Any) -> Graph:
    """The graph of a step within the limits of `config` and `context`; `output` as for `build_graph`."""
    limits: dict[str, Any] = {"max_num_logits": max_num_logits(config)} | output
    return build_graph(
        spec,
        max_num_tokens=config.max_num_batched_tokens,
        max_num_seqs=config.max_num_seqs,
        max_model_len=context.max_model_len,
        block_size=context.block_size,
        kv_format=kv_format,
        **limits,
    )


def max_num_logits(config: EngineConfig) -> int:
    """Rows of logits that a step can give: one for each sequence, and some for prompts that are to be scored."""
    return max(config.max_num_seqs, min(SCORED_ROWS, config.max_num_batched_tokens))


def kv_layout(manifests: Sequence[Manifest], wanted: str | None) -> tuple[int, str]:
    """Block size and format of the KV cache: of the first device's layouts, the first that every other device has too.

    Devices that declare no layouts take any.
    """
    declared = [m for m in manifests if m.kv_layouts]
    if not declared:
        return DEFAULT_BLOCK_SIZE, wanted or DEFAULT_KV_FORMAT
    offers = [[(c, f) for k in m.kv_layouts for f in k.formats for c in k.block_sizes] for m in declared]
    for size, fmt in offers[0]:
        if wanted in (None, fmt) and all((size, fmt) in others for others in offers[1:]):
            return size, fmt
    names = " and ".join(m.backend for m in declared)
    offered = sorted({f for _, f in offers[0] if all(f in {g for _, g in others} for others in offers[1:])})
    raise Unsupported(
        f"{names} keeps no KV cache in {wanted}" if len(declared) == 1 else f"{names} have no KV cache in common",
        remedy=f"formats on offer: {', '.join(offered) or 'none'}",
    )


def _assemble(
    config: EngineConfig,
    model: OpenedModel,
    choice: Choice,
    devices: Mapping[str, Device],
    progress: Progress | None,
) -> Loaded:
    manifests = {name: device.manifest for name, device in devices.items()}
    free_bytes = {name: min(free for free, _ in device.memory().values()) for name, device in devices.items()}
    plan, context, kv_format = plan_model(model, config, manifests, free_bytes=free_bytes)
    cache = open_cache(config, model, devices)
    model.background.start()
    state_dims = {"B": context.num_blocks}
    executor = _load_weights(model, plan, devices, state_dims, progress, cache)
    vocab_size = model.spec.vocab_size
    if model.tokenizer.vocab_size > vocab_size:
        raise MalformedFile(
            f"{model.name}: the tokenizer has {model.tokenizer.vocab_size} tokens, the model's embedding {vocab_size}"
        )
    sampler = Sampler(
        vocab_size,
        max_num_seqs=config.max_num_seqs,
        max_model_len=context.max_model_len,
        eos_token_ids=model.tokenizer.eos_token_ids,
        token_text=lambda token_id: _token_text(model.tokenizer, token_id),
        make_executor=lambda graph: Executor(plan_graph(graph, config, manifests), devices),
    )

    def planned(graph: Graph, where: Sequence[tuple[str, str]]) -> Plan:
        return make_plan(graph, manifests, host=HOST, fallback=config.fallback, overrides=where, state_dims=state_dims)

    def make_hidden_states() -> Executor:
        rows = config.max_num_batched_tokens
        graph = step_graph(model.spec, config, context, kv_format, output="hidden", max_num_logits=rows)
        plan = plan_graph(graph, config, manifests, state_dims)
        weights = WeightReader(model.spec, model.file, before_each=model.background.check)
        return Executor(plan, devices, weights, state_dims=state_dims, shared=executor)

    mover = BlockMover(executor, planned, devices, state_dims)
    grammars = Grammars(model.tokenizer, vocab_size)
    engine = Engine(
        runner=Runner(executor, context.block_size, mover),
        sampler=sampler,
        scheduler=make_scheduler(config, context, mover),
        tokenizer=model.tokenizer,
        vocab_size=vocab_size,
        max_model_len=context.max_model_len,
        grammars=grammars,
        hidden_states=HiddenStates(make_hidden_states, context.block_size),
    )
    loaded = Loaded(config, model, choice, context, kv_format, plan, devices, executor, engine, cache)
    loaded.status = status_lines(loaded)
    model.file.release_all()  # compiling and the tokenizer have read some pages again
    return loaded


def make_scheduler(config: EngineConfig, context: ContextPlan, mover: BlockMover) -> Scheduler:
    """The scheduler that `config` asks for. Raises Unsupported where blocks shall be moved and cannot."""
    if config.swap_bytes and not mover.can_move:
        raise Unsupported(
            f"swap_bytes = {config.swap_bytes}: the device cannot move blocks of its KV cache",
            remedy="leave it at 0; preempted requests are then computed again",
        )
    return Scheduler(
        BlockPool(context.num_blocks, context.block_size),
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        policy=make_policy(config.scheduling_policy),
        pace=Pace(config.long_prefill_token_threshold),
        enable_prefix_caching=config.enable_prefix_caching,
        max_num_logits=max_num_logits(config),
        num_swap_blocks=config.swap_bytes // mover.block_bytes if config.swap_bytes else 0,
    )


def open_cache(config: EngineConfig, model: OpenedModel, devices: Mapping[str, Device]) -> WeightCache | None:
    """The cache of packed weights that `config` asks for; what hinders it is told, and stops nothing."""
    if config.weight_cache is None:
        return None
    from runtime.engine.weight_cache import WeightCache

    return WeightCache.open(config.weight_cache, model.file, next(iter(devices.values())))


def _load_weights(
    model: OpenedModel,
    plan: Plan,
    devices: Mapping[str, Device],
    state_dims: Mapping[str, int],
    progress: Progress | None,
    cache: WeightCache | None,
) -> Executor:
    weights = WeightReader(model.spec, model.file, before_each=model.background.check)
    slots = None if cache is None else cache.slot
    executor = Executor(plan, devices, weights, state_dims, progress, slots=slots)
    if cache is not None and not cache.is_sound():
        executor.close()
        executor = Executor(plan, devices, weights, state_dims, progress, slots=slots)
    if cache is not None:
        cache.write()
    return executor


def _token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """The token's text; empty for ids of a padded embedding that the tokenizer does not know."""
    if token_id >= tokenizer.vocab_size:
        return ""
    return tokenizer.token_bytes(token_id).decode("utf-8", "replace")


def plan_graph(
    graph: Graph,
    config: EngineConfig,
    manifests: Mapping[str, Manifest],
    state_dims: Mapping[str, int] | None = None,
) -> Plan:
    """Place a graph under the policy of `config`; raises FallbackForbidden, Unsupported or InvalidArgument."""
    return make_plan(
        graph,
        manifests,
        host=HOST,
        fallback=config.fallback,
        overrides=parse_place(config.place),
        state_dims=state_dims,
    )
