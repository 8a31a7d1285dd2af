"""Show where a model would run and what memory it takes: by manifests alone, so the chip need not be there.

Ends with exit code 2 where the model does not fit.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.cli.arguments import add_model, add_placement, model_path, placement
from runtime.cli.output import emit, human_bytes, human_count, paint, plural, table
from runtime.cli.texts import read_text
from runtime.errors import InvalidArgument, OutOfMemory

if TYPE_CHECKING:
    from runtime.backend import Manifest
    from runtime.engine.config import EngineConfig
    from runtime.engine.context import ContextPlan
    from runtime.engine.files import OpenedModel
    from runtime.executor import Placement, Plan

NUM_LOGPROBS = 20
"""Alternatives per token that the sampling graph is planned for: the most that the OpenAI interface allows."""
LAYER = re.compile(r"\b\w+\.\d+\.(?:\w+\.)*(?=\w)")
"""What precedes the last part of a name inside a layer: `layers.0.decoder_layer.` of `layers.0.decoder_layer.rope`."""
UNKNOWN_COMPOSITE = re.compile(r"part of .*: no rule in manifest$")
HOW = {"native": "32", "decomposed": "32", "converted": "33", "host": "33"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    add_model(parser)
    add_placement(parser)
    group = parser.add_argument_group("what to plan for")
    group.add_argument("--manifest", metavar="FILE", help="plan for this manifest (JSON) instead of a backend's own")
    group.add_argument("--memory", type=float, metavar="GB", help="memory of the device; fits the context to it")
    group.add_argument("--users", type=int, default=1, metavar="N", help="sequences at the same time (1)")
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="one JSON object")
    group.add_argument("-v", "--verbose", action="store_true", help="every node, not only every operation")


@dataclass(frozen=True)
class Target:
    """What is planned for: the manifest, how it was come by, and the device's memory where that is known."""

    manifest: Manifest
    source: str
    memory_bytes: int | None


def run(args: argparse.Namespace) -> int:
    """Execute the verb; returns the exit code."""
    from runtime.backend import reference_manifest
    from runtime.engine.config import EngineConfig
    from runtime.engine.files import open_for_engine
    from runtime.engine.loading import plan_graph, plan_model
    from runtime.engine.place import HOST
    from runtime.engine.sampling_graph import SamplingVariant, build_sampling_graph

    if args.users < 1:
        raise InvalidArgument(f"--users {args.users}: it must be at least 1")
    options = placement(args)
    config = EngineConfig(
        model_path(args.model), max_num_seqs=args.users, max_num_batched_tokens=max(512, args.users), **options
    )
    target = _target(args)
    model = open_for_engine(config.model)
    with model.file:
        if config.place is None:
            _require(model.file.nbytes, f"the weights of {model.name} take", target)
        manifests = {target.manifest.backend: target.manifest, **_placed_elsewhere(config.place, target)}
        manifests.setdefault(HOST, reference_manifest(HOST))
        free_bytes = {} if target.memory_bytes is None else {target.manifest.backend: target.memory_bytes}
        step, context, kv_format = plan_model(model, config, manifests, free_bytes=free_bytes)
        sampling = plan_graph(
            build_sampling_graph(
                model.spec.vocab_size,
                SamplingVariant(penalties=True, random=True, num_logprobs=min(NUM_LOGPROBS, model.spec.vocab_size)),
                max_num_seqs=config.max_num_seqs,
                max_model_len=context.max_model_len,
            ),
            config,
            manifests,
        )
        report = Report(model, config, target, step, sampling, context, kv_format)
        if args.json:
            emit({"event": "plan", **report.to_json()})
        else:
            print(report.describe())
            print(f"\n{_node_table(report) if args.verbose else _operation_table(report)}")
    if not report.fits:
        sys.stdout.flush()
        _require(report.needed, f"{model.name} with a context of {context.max_model_len} tokens takes", target)
    return 0


def _require(needed: int, what: str, target: Target) -> None:
    if target.memory_bytes is not None and needed > target.memory_bytes:
        raise OutOfMemory(
            f"{what} {human_bytes(needed)}, {target.manifest.backend} has {human_bytes(target.memory_bytes)}: "
            "it does not fit",
            remedy="use weights of fewer bits, a shorter context (--ctx), fewer users, or share the layers between "
            "devices (--place)",
            requested_bytes=needed,
            available_bytes=target.memory_bytes,
        )


def _target(args: argparse.Namespace) -> Target:
    memory = None if args.memory is None else int(args.memory * 1e9)
    if args.manifest is not None:
        if args.backend != "auto":
            raise InvalidArgument("--backend and --manifest exclude each other", remedy="give one of them")
        return Target(_read_manifest(args.manifest), f"by {args.manifest}", memory)
    from runtime.registry import choose, discover

    if args.backend == "auto":
        choice = choose(discover())
        source = f"{choice.device.name}, {choice.why}"
        return Target(choice.backend.manifest(), source, memory or choice.device.memory_bytes or None)
    name = args.backend.partition(":")[0]
    return Target(discover()[name].manifest(), "by its manifest alone, no device was looked for", memory)


def _placed_elsewhere(place: str | None, target: Target) -> dict[str, Manifest]:
    """Manifests of the other backends that --place names."""
    from runtime.engine.place import named_devices
    from runtime.registry import discover

    discovery = discover()
    return named_devices(place, target.manifest.backend, lambda name: discovery[name.partition(":")[0]].manifest())


def _read_manifest(path: str) -> Manifest:
    from runtime.backend import Manifest

    try:
        data = json.loads(read_text(path))
    except ValueError as error:
        raise InvalidArgument(
            f"'{path}' is not JSON: {error}", remedy="runtime backends NAME --manifest prints a manifest"
        ) from error
    if not isinstance(data, Mapping):
        raise InvalidArgument(f"'{path}' holds a {type(data).__name__}, a manifest is an object")
    return Manifest.from_json(data)


@dataclass(frozen=True)
class Report:
    """Everything that was planned, as lines for a person or as plain data."""

    model: OpenedModel
    config: EngineConfig
    target: Target
    step: Plan
    sampling: Plan
    context: ContextPlan
    kv_format: str

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token."""
        from runtime.dtypes import FORMATS
        from runtime.models import kv_bytes_per_token

        return kv_bytes_per_token(self.model.spec, FORMATS[self.kv_format])

    @property
    def kv_bytes(self) -> int:
        """The whole KV cache."""
        return self.kv_bytes_per_token * self.context.num_blocks * self.context.block_size

    @property
    def memory(self) -> dict[str, dict[str, int]]:
        """Per device, in bytes: weights as loaded, KV cache, peak of intermediates of step and sampling, and all."""
        devices = {}
        for name in dict.fromkeys([*self.step.devices, *self.sampling.devices]):
            parts = [plan.memory[name] for plan in (self.step, self.sampling) if name in plan.memory]
            devices[name] = {
                "weights_bytes": sum(p.weights_bytes for p in parts),
                "kv_bytes": sum(p.states_bytes for p in parts),
                "intermediates_bytes": sum(p.arena.peak_bytes for p in parts),
                "total_bytes": sum(p.total_bytes for p in parts),
            }
        return devices

    @property
    def needed(self) -> int:
        """Bytes on the device that is planned for."""
        return self.memory.get(self.target.manifest.backend, {}).get("total_bytes", 0)

    @property
    def fits(self) -> bool:
        """Whether its memory holds them, as far as that is known."""
        return self.target.memory_bytes is None or self.needed <= self.target.memory_bytes

    def describe(self) -> str:
        """Lines for a person."""
        from runtime.models import parameter_count

        spec = self.model.spec
        rows = [
            ("model", f"{self.model.name} · {spec.architecture} · {human_count(parameter_count(spec))} parameters"),
            ("backend", f"{self.target.manifest.backend} · {self.target.source}"),
            ("step", self.step.summary.line()),
            ("sampling", self.sampling.summary.line()),
            ("context", self._context()),
            ("weights", f"{human_bytes(self.model.file.nbytes)} as stored, {human_bytes(self._loaded())} as loaded"),
            ("KV cache", self._kv()),
        ]
        rows += [(f"on {name}", self._device(name, parts)) for name, parts in self.memory.items()]
        return table([(paint(name, "2", sys.stdout), text) for name, text in rows])

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "model": self.model.name,
            "architecture": self.model.spec.architecture,
            "backend": self.target.manifest.backend,
            "source": self.target.source,
            "max_num_seqs": self.config.max_num_seqs,
            "max_model_len": self.context.max_model_len,
            "context_limited_by": self.context.limited_by,
            "num_blocks": self.context.num_blocks,
            "block_size": self.context.block_size,
            "kv_format": self.kv_format,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "kv_bytes": self.kv_bytes,
            "weights_bytes_stored": self.model.file.nbytes,
            "weights_bytes_loaded": self._loaded(),
            "memory": self.memory,
            "memory_bytes_available": self.target.memory_bytes,
            "fits": self.fits,
            "step": self.step.to_json(),
            "sampling": self.sampling.to_json(),
        }

    def _loaded(self) -> int:
        return sum(parts["weights_bytes"] for parts in self.memory.values())

    def _context(self) -> str:
        tokens = self.context.num_blocks * self.context.block_size
        users = plural(self.config.max_num_seqs, "user")
        text = f"{self.context.max_model_len} tokens ({self.context.limited_by}) · {users}"
        wanted = self.context.max_model_len * self.config.max_num_seqs
        return text if tokens >= wanted else f"{text} share {tokens} tokens, as memory allows"

    def _kv(self) -> str:
        blocks = f"{plural(self.context.num_blocks, 'block')} of {self.context.block_size} tokens"
        per_token = f"{human_bytes(self.kv_bytes_per_token)} per token as {self.kv_format}"
        return f"{per_token} · {human_bytes(self.kv_bytes)} for {blocks}"

    def _device(self, name: str, parts: Mapping[str, int]) -> str:
        sizes = [f"{part} {human_bytes(parts[key])}" for part, key in _PARTS.items() if parts[key]]
        text = f"{human_bytes(parts['total_bytes'])}: {', '.join(sizes) or 'nothing'}"
        available = self.target.memory_bytes
        if available is None or name != self.target.manifest.backend:
            return text
        return f"{text} · {'fits in' if self.fits else 'DOES NOT FIT in'} {human_bytes(available)}"


_PARTS = {"weights": "weights_bytes", "KV cache": "kv_bytes", "intermediates": "intermediates_bytes"}


def _operation_table(report: Report) -> str:
    """One row per operation and way of running it."""
    rows = [_header("operation", "nodes", "where", "why")]
    for plan, graph in ((report.step, "step"), (report.sampling, "sampling")):
        groups: dict[tuple[Any, ...], list[Placement]] = {}
        for placed in plan.placements.by_node:
            groups.setdefault((placed.node.op.key, placed.device, placed.how, _why(placed)), []).append(placed)
        rows += [
            (_name(key, graph), str(len(members)), _where(device, how), why)
            for (key, device, how, why), members in groups.items()
        ]
    return _trimmed(rows)


def _node_table(report: Report) -> str:
    rows = [_header("node", "operation", "where", "why")]
    for plan, graph in ((report.step, "step"), (report.sampling, "sampling")):
        rows += [
            (placed.node.name, _name(placed.node.op.key, graph), _where(placed.device, placed.how), _why(placed))
            for placed in plan.placements.by_node
        ]
    return _trimmed(rows)


def _trimmed(rows: list[tuple[str, ...]]) -> str:
    """The table without its last column where nothing needs a reason."""
    return table(rows if any(row[-1] for row in rows[1:]) else [row[:-1] for row in rows])


def _header(*names: str) -> tuple[str, ...]:
    return tuple(paint(name, "2", sys.stdout) for name in names)


def _name(key: str, graph: str) -> str:
    return key if graph == "step" else f"{key} ({graph})"


def _where(device: str, how: str) -> str:
    return paint(device if how == "host" and device == "host" else f"{device} {how}", HOW[how], sys.stdout)


def _why(placed: Placement) -> str:
    """The reasons, without what is the same for every backend of small kernels or differs only by layer.

    That a composite is unknown to the manifest is no news for its parts: it is why composites have parts.
    """
    reasons = [LAYER.sub("", reason.replace(f"{placed.node.name}.", "")) for reason in placed.reasons]
    return "; ".join(dict.fromkeys(r for r in reasons if not UNKNOWN_COMPOSITE.match(r)))
