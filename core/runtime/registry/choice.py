"""Chooses backend and device: the user's wish first, then the measured score; every refusal keeps its reason."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.backend import DeviceInfo
from runtime.errors import InvalidArgument, PluginRejected, Unsupported
from runtime.registry.discovery import Discovery, LoadedBackend
from runtime.registry.probing import ProbeResult, probe_all
from runtime.registry.verification import Verification, Verifications

AUTO = "auto"


@dataclass(frozen=True)
class Refusal:
    """A backend that was not taken because it cannot run here."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} refused: {self.reason}"


@dataclass(frozen=True)
class Choice:
    """The backend and device to use, why, and who was refused with which reason."""

    backend: LoadedBackend
    device: DeviceInfo
    why: str
    refused: tuple[Refusal, ...] = ()


def choose(
    discovery: Discovery,
    wish: str = AUTO,
    *,
    device_index: int | None = None,
    timeout_s: float | None = None,
    use_cache: bool = True,
) -> Choice:
    """Fulfil `wish`: "auto", "name" or "name:index"; `device_index` is another way to say the index.

    A named backend is the only one that is considered. Raises InvalidArgument for a wish that names nothing,
    PluginRejected when the named backend cannot run here, Unsupported when under "auto" nobody can.
    """
    name, index = _parse(wish, device_index)
    if name == AUTO:
        return _choose_best(discovery, timeout_s, use_cache)
    backend = discovery[name]
    result = backend.probe(timeout_s, use_cache)
    if result.refusal is not None and result.is_cached:
        # asked for by name, perhaps right after a repair: an old refusal is not good enough
        result = backend.probe(timeout_s, use_cache=False)
    if result.refusal is not None:
        remedy = f"{result.remedy}, or use" if result.remedy else "use"
        raise PluginRejected(
            f"backend '{name}' cannot run here: {result.refusal}",
            remedy=f"{remedy} --backend auto; details: runtime doctor {name}",
        )
    if index is None:
        return Choice(backend, _best_device(result), "named by the user")
    for device in result.devices:
        if device.index == index:
            return Choice(backend, device, "named by the user")
    present = ", ".join(str(d.index) for d in result.devices)
    raise PluginRejected(f"backend '{name}' has no device {index}", remedy=f"it has {present}")


def _choose_best(discovery: Discovery, timeout_s: float | None, use_cache: bool) -> Choice:
    refused = [Refusal(r.name, f"{r.stage}: {r.reason}") for r in discovery.rejected]
    candidates: list[tuple[LoadedBackend, DeviceInfo]] = []
    results = probe_all(discovery.loaded, timeout_s=timeout_s, use_cache=use_cache)
    known = Verifications()
    verified: dict[str, Verification] = {}
    for backend, result in zip(discovery.loaded, results, strict=True):
        if result.refusal is not None:
            refused.append(Refusal(backend.name, result.refusal))
            continue
        verdicts = {d.index: known.load(backend, d) for d in result.devices}
        failed = {i: v for i, v in verdicts.items() if v is not None and not v.passed}
        refused += [Refusal(f"{backend.name}:{i}", f"verification failed: {v.summary}") for i, v in failed.items()]
        usable = [d for d in result.devices if d.index not in failed]
        if usable:
            best = max(usable, key=lambda d: (verdicts[d.index] is not None, d.score, -d.index))
            candidates.append((backend, best))
            verdict = verdicts[best.index]
            if verdict is not None:
                verified[backend.name] = verdict
    refused.sort(key=lambda r: r.name)
    if not candidates:
        raise Unsupported(
            "no backend can run here: " + ("; ".join(map(str, refused)) or "none is installed"),
            remedy="reinstall hal-runtime, whose cpu backend runs everywhere; details: runtime doctor",
            reasons=[str(r) for r in refused],
        )
    candidates.sort(key=lambda c: (c[0].name not in verified, -c[1].score, c[0].name))
    backend, device = candidates[0]
    if len(candidates) == 1:
        why = "the only backend that can run here"
    elif device.score < max(d.score for _, d in candidates):
        faster = max(candidates, key=lambda c: c[1].score)[0].name
        age = verified[backend.name].age
        why = f"verified {age}; {faster} is faster and not verified: runtime verify --backend {faster}"
    else:
        others = ", ".join(f"{b.name} {d.score:.4g}" for b, d in candidates[1:])
        why = f"highest score {device.score:.4g} ({others})"
    return Choice(backend, device, why, tuple(refused))


def _best_device(result: ProbeResult) -> DeviceInfo:
    return max(result.devices, key=lambda d: (d.score, -d.index))


def _parse(wish: str, device_index: int | None) -> tuple[str, int | None]:
    name, separator, text = wish.partition(":")
    index = device_index
    if separator:
        if not (text.isascii() and text.isdigit()):
            raise InvalidArgument(f"'{text}' in backend '{wish}' is not a device index", remedy="write e.g. cuda:0")
        index = int(text)
        if device_index not in (None, index):
            raise InvalidArgument(f"backend '{wish}' and device index {device_index} contradict each other")
    if not name:
        raise InvalidArgument(f"backend '{wish}' has no name", remedy="write auto, a name, or name:index")
    if name == AUTO and index is not None:
        raise InvalidArgument(f"a device index ({index}) needs a named backend", remedy="write e.g. cuda:0")
    return name, index
