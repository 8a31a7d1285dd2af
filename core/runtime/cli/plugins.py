"""What is known about every installed plugin, for the verbs that list and examine them."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from runtime.backend import DeviceInfo
from runtime.cli.output import paint
from runtime.errors import PluginRejected
from runtime.registry import (
    LoadedBackend,
    ProbeResult,
    Rejected,
    Verification,
    Verifications,
    discover,
    probe_all,
)

State = Literal["ok", "refused", "rejected"]
COLOURS: dict[State, str] = {"ok": "32", "refused": "33", "rejected": "31"}
OWN_DISTRIBUTION = "hal-runtime"

_REMEDIES = {
    "metadata": "reinstall the package {distribution}: its metadata cannot be read",
    "import": "install what it needs, or remove it: pip uninstall {distribution}",
    "validate": "the author of {distribution} must correct its hooks; see docs/write-a-backend.md",
    "info": "install a version of {distribution} that fits this runtime, or remove it",
    "register": "install a version of {distribution} that fits this runtime, or remove it",
    "manifest": "install a version of {distribution} that fits this runtime, or remove it",
    "probe": "make the device or driver available to this process, then run doctor again",
}


_PROCESSOR_REMEDIES = {
    "validate": "install a version of {distribution} that is right, or remove it; see docs/logits-processors.md",
}


@dataclass(frozen=True)
class Report:
    """One plugin: whether it can be used here, and if not, at which stage it ended and why.

    ok        its probe found devices
    refused   a sound plugin that cannot run on this machine
    rejected  a plugin that could not be loaded
    """

    name: str
    state: State
    distribution: str
    version: str
    stage: str
    reason: str = ""
    remedy: str = ""
    detail: str = ""
    api_level: int | None = None
    devices: tuple[DeviceInfo, ...] = ()
    num_rules: int | None = None
    probed_at: float | None = None
    is_cached: bool = False
    notices: tuple[str, ...] = field(default=())
    verifications: dict[int, Verification] = field(default_factory=dict)
    """Index of a device -> what `runtime verify` found, for this driver and this version of the backend."""

    @property
    def origin(self) -> str:
        """Distribution and version, as a person reads them."""
        return f"{'in-tree' if self.distribution == OWN_DISTRIBUTION else self.distribution} {self.version}"

    @property
    def painted_state(self) -> str:
        """The state in its colour."""
        return paint(self.state, COLOURS[self.state], sys.stdout)

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Installed:
    """Plugins as they were found, not yet probed."""

    loaded: tuple[LoadedBackend, ...]
    rejected: tuple[Rejected, ...]


def find_plugins(name: str | None = None) -> Installed:
    """Every plugin, or those of one name; raises InvalidArgument for a name that nobody has."""
    discovery = discover()
    found = Installed(
        tuple(b for b in discovery.loaded if name in (None, b.name)),
        tuple(r for r in discovery.rejected if name in (None, r.name)),
    )
    if name is not None and not found.loaded and not found.rejected:
        discovery[name]  # raises, with the names that there are
    return found


def examine(found: Installed, *, use_cache: bool = True, timeout_s: float | None = None) -> list[Report]:
    """A report on each, sorted by name; the probes run at the same time, see `probe_all` for their time."""
    results = probe_all(found.loaded, timeout_s=timeout_s, use_cache=use_cache)
    reports = [_loaded_report(backend, result) for backend, result in zip(found.loaded, results, strict=True)]
    reports += [_rejected_report(r) for r in found.rejected]
    return sorted(reports, key=lambda r: (r.name, r.distribution))


@dataclass(frozen=True)
class ProcessorReport:
    """One logits processor: ok, or rejected at a stage for a reason."""

    name: str
    state: State
    distribution: str
    version: str
    stage: str = ""
    reason: str = ""
    remedy: str = ""
    detail: str = ""

    @property
    def painted_state(self) -> str:
        """The state in its colour."""
        return paint(self.state, COLOURS[self.state], sys.stdout)


def find_processors() -> list[ProcessorReport]:
    """Every installed logits processor, sorted by name."""
    from runtime.engine.logits_processors import LogitsProcessors

    found = LogitsProcessors()
    reports = [ProcessorReport(p.name, "ok", p.distribution, p.version) for p in found.loaded.values()]
    for r in found.rejected:
        remedy = _PROCESSOR_REMEDIES.get(r.stage, _REMEDIES[r.stage]).format(distribution=r.distribution)
        reports.append(
            ProcessorReport(r.name, "rejected", r.distribution, r.version, r.stage, r.reason, remedy, r.traceback)
        )
    return sorted(reports, key=lambda r: (r.name, r.distribution))


def device_facts(device: DeviceInfo) -> list[str]:
    """Driver and details in short: `threads 2 (cgroup quota 2.0)` for the details `threads` and `threads_reason`."""
    facts = [f"driver {device.driver}"] if device.driver else []
    for key, value in device.details.items():
        if key.endswith("_reason") and key.removesuffix("_reason") in device.details:
            continue
        reason = device.details.get(f"{key}_reason")
        facts.append(f"{key.replace('_', ' ')} {value}" + (f" ({reason})" if reason else ""))
    return facts


def verification_fact(verification: Verification | None) -> list[str]:
    """What `runtime verify` found and when; nothing where it was never asked."""
    if verification is None:
        return []
    if verification.passed:
        return [f"verified {verification.age}"]
    return [f"{paint('verification failed', '31', sys.stdout)} {verification.age}: {verification.summary}"]


def _rejected_report(rejected: Rejected) -> Report:
    return Report(
        name=rejected.name,
        state="rejected",
        distribution=rejected.distribution,
        version=rejected.version,
        stage=rejected.stage,
        reason=rejected.reason,
        remedy=_REMEDIES[rejected.stage].format(distribution=rejected.distribution),
        detail=rejected.traceback,
    )


def _loaded_report(backend: LoadedBackend, result: ProbeResult) -> Report:
    common: dict[str, Any] = {
        "name": backend.name,
        "distribution": backend.distribution,
        "version": backend.version,
        "api_level": backend.info.api_level,
    }
    try:
        num_rules = len(backend.manifest().rules)
    except PluginRejected as error:
        remedy = _REMEDIES["manifest"].format(distribution=backend.distribution)
        return Report(state="rejected", stage="manifest", reason=error.message, remedy=remedy, **common)
    common |= {"num_rules": num_rules, "probed_at": result.probed_at, "is_cached": result.is_cached}
    if result.refusal is not None:
        return Report(
            state="refused",
            stage="probe",
            reason=result.refusal,
            remedy=result.remedy or _REMEDIES["probe"],
            detail=result.detail,
            **common,
        )
    notices = tuple(dict.fromkeys(n for d in result.devices for n in d.notices))
    known = Verifications()
    verdicts = {d.index: v for d in result.devices if (v := known.load(backend, d)) is not None}
    common |= {"notices": notices, "verifications": verdicts}
    return Report(state="ok", stage="probe", devices=result.devices, **common)
