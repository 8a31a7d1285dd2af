"""The lines that tell a person where the model runs and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.engine.loading import Loaded


def status_lines(loaded: Loaded) -> tuple[str, ...]:
    """One status line; before it, what must be known first, such as missing native kernels."""
    choice = loaded.choice
    device = choice.device
    details = device.details
    where = f"backend {next(iter(loaded.devices))}"
    if "isa" in details:
        where += f" ({details['isa']})"
    parts = [where]
    if "threads" in details:
        threads = loaded.config.threads
        reason = details.get("threads_reason", "")
        parts.append(f"{threads} threads (as asked)" if threads else f"{details['threads']} threads ({reason})")
    placed = loaded.plan.summary_line()
    if placed:
        parts.append(placed)
    model = f"{loaded.model.name} {loaded.spec.weight_formats}".strip()
    parts.append(f"{model}, {loaded.context.describe()}, KV {loaded.kv_format}")
    if loaded.config.backend == "auto":
        parts += [f"{r.name} refused: {r.reason}" for r in choice.refused]
    return (*device.notices, " · ".join(parts))
