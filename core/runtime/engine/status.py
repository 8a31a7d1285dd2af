"""The lines that tell a person where the model runs and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.engine.loading import Loaded
    from runtime.models import ModelSpec


def main_format(spec: ModelSpec) -> str:
    """The format that holds most of the weights' bytes, e.g. q4_k."""
    sizes: dict[str, int] = {}
    for tensor in spec.tensors.values():
        sizes[tensor.format.name] = sizes.get(tensor.format.name, 0) + tensor.nbytes()
    return max(sizes, key=lambda name: sizes[name])


def status_lines(loaded: Loaded) -> tuple[str, ...]:
    """One status line; before it, what must be known first, such as missing native kernels."""
    choice = loaded.choice
    device = next(iter(loaded.devices.values())).info  # facts of the opened device, which may differ from the probe's
    details = device.details
    where = f"backend {next(iter(loaded.devices))}"
    if "isa" in details:
        where += f" ({details['isa']})"
    parts = [where]
    if "threads" in details:
        threads = loaded.config.threads
        reason = details.get("threads_reason", "")
        count, why = (str(threads), "as asked") if threads else (details["threads"], reason)
        parts.append(f"{count} thread{'' if count == '1' else 's'} ({why})")
    if loaded.plan.summary.host_share > 0 or loaded.config.place:
        parts.append(loaded.plan.summary.line())
    model = f"{loaded.model.name} {main_format(loaded.spec)}"
    context = loaded.context
    pool = f"{context.num_blocks} blocks of {context.block_size}"
    parts.append(f"{model}, {context.describe()}, KV {loaded.kv_format}, {pool}")
    if loaded.weight_cache is not None:
        parts.append(loaded.weight_cache.summary)
    if loaded.config.backend == "auto":
        parts += [f"{r.name} refused: {r.reason}" for r in choice.refused]
    return (*device.notices, " · ".join(parts))
