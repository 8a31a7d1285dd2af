"""Entry points become loaded backends, or rejections that name the stage and the reason; one never touches another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

from runtime.backend import (
    API_LEVEL,
    ENTRY_POINT_GROUP,
    BackendInfo,
    Device,
    DeviceConfig,
    DeviceInfo,
    Manifest,
)
from runtime.dtypes import FORMATS, FormatRegistry
from runtime.errors import InvalidArgument, PluginRejected, RuntimeFault
from runtime.ops import CATALOGUE, Catalogue
from runtime.registry.entry_points import Progress, Rejected, load_each, origin
from runtime.registry.registration import register
from runtime.registry.validation import describe_error, suggest, validate, vendor_code

if TYPE_CHECKING:
    import pluggy

    from runtime.registry.probing import ProbeResult

MAX_PROBE_S = 600
"""Whoever asks for any backend waits for all of them."""


@dataclass(frozen=True, eq=False)
class LoadedBackend:
    """A plugin that was imported and validated. Whether it can run here, only `probe` tells."""

    name: str
    distribution: str
    version: str
    info: BackendInfo
    plugin: Any
    entry_point: EntryPoint
    hooks: pluggy.HookRelay
    """The hooks of this one plugin: a call reaches nobody else."""

    def manifest(self) -> Manifest:
        """The widest capability of this package; needs no hardware. Raises PluginRejected."""
        try:
            with vendor_code():
                manifest = self.hooks.runtime_manifest()
        except RuntimeFault as error:
            raise self._failed("manifest", "could not state its manifest", error) from error
        except Exception as error:  # a vendor's code may raise anything; the user gets one typed error
            raise self._failed("manifest", "could not state its manifest", error) from error
        if not isinstance(manifest, Manifest):
            raise PluginRejected(f"backend '{self.name}' returned {_kind(manifest)} as its manifest, not a Manifest")
        return manifest

    def probe(self, timeout_s: float | None = None, use_cache: bool = True) -> ProbeResult:
        """Devices that work here, found in a child process, or the reason why there is none. Never raises."""
        from runtime.registry.probing import probe_all

        return probe_all((self,), timeout_s=timeout_s, use_cache=use_cache)[0]

    def open(self, device: DeviceInfo, config: DeviceConfig | None = None) -> Device:
        """Open one device of `probe`. Raises PluginRejected; typed errors such as OutOfMemory pass as they are."""
        what = f"cannot open device {device.index} ({device.name})"
        try:
            with vendor_code():
                opened = self.hooks.runtime_open(device=device, config=config or DeviceConfig())
        except PluginRejected as error:
            raise self._failed("open", what, error) from error
        except RuntimeFault:
            raise
        except Exception as error:  # a driver may raise anything; the user gets one typed error
            raise self._failed("open", what, error) from error
        missing = sorted(m for m in _DEVICE_MEMBERS if not hasattr(opened, m))
        if missing:
            raise PluginRejected(
                f"backend '{self.name}' opened {_kind(opened)}, which is no Device: it lacks {', '.join(missing)}"
            )
        return opened  # type: ignore[no-any-return]  # every member of the protocol was just found

    def _failed(self, stage: str, what: str, error: Exception) -> PluginRejected:
        remedy = error.remedy if isinstance(error, RuntimeFault) and error.remedy else None
        return PluginRejected(
            f"backend '{self.name}' {what}: {describe_error(error)}",
            remedy=f"{remedy + '; ' if remedy else ''}details: runtime doctor {self.name} (stage {stage})",
        )


@dataclass(frozen=True)
class Discovery:
    """Every plugin that is installed: the loaded and the rejected, each sorted by name."""

    loaded: tuple[LoadedBackend, ...]
    rejected: tuple[Rejected, ...]

    def __getitem__(self, name: str) -> LoadedBackend:
        """The loaded backend of this name; PluginRejected when it was set aside, InvalidArgument when unknown."""
        for backend in self.loaded:
            if backend.name == name:
                return backend
        for rejected in self.rejected:
            if rejected.name == name:
                raise PluginRejected(
                    f"backend '{name}' {rejected}",
                    remedy=f"repair or remove that package, or use --backend auto; details: runtime doctor {name}",
                )
        names = sorted({b.name for b in self.loaded} | {r.name for r in self.rejected})
        installed = f"installed: {', '.join(names)}" if names else "no backend is installed at all"
        raise InvalidArgument(f"there is no backend '{name}'{suggest(name, names)}", remedy=installed)


def discover(
    entry_points: Iterable[EntryPoint] | None = None,
    *,
    catalogue: Catalogue = CATALOGUE,
    formats: FormatRegistry = FORMATS,
) -> Discovery:
    """Load every plugin of the entry-point group, each on its own; nothing that a plugin does escapes from here.

    entry_points        instead of those that are installed
    catalogue, formats  where own operations and formats of the plugins are registered, all of one plugin or none
    """
    loaded, rejected = load_each(
        ENTRY_POINT_GROUP, lambda point, progress: _Loading(point, progress).load(catalogue, formats), entry_points
    )
    return Discovery(tuple(loaded.values()), rejected)


def load_backend(
    entry_point: EntryPoint, catalogue: Catalogue = CATALOGUE, formats: FormatRegistry = FORMATS
) -> LoadedBackend:
    """Load one plugin; whatever it raises passes through."""
    return _Loading(entry_point, Progress()).load(catalogue, formats)


class _Loading:
    """The way of one plugin from entry point to loaded backend."""

    def __init__(self, entry_point: EntryPoint, progress: Progress) -> None:
        self.entry_point = entry_point
        self.progress = progress

    def load(self, catalogue: Catalogue, formats: FormatRegistry) -> LoadedBackend:
        plugin = self.entry_point.load()
        self.progress.stage = "validate"
        try:
            hooks = validate(plugin, self.entry_point.value)
        except PluginRejected:
            # hooks of a newer contract look misspelt to this one: the level explains them better
            self._refuse_newer_level(plugin)
            raise
        self.progress.stage = "info"
        info = self._check_info(hooks.runtime_backend_info())
        self.progress.stage = "register"
        register(plugin, hooks, catalogue, formats)
        distribution, version = origin(self.entry_point)
        return LoadedBackend(self.entry_point.name, distribution, version, info, plugin, self.entry_point, hooks)

    def _check_info(self, info: Any) -> BackendInfo:
        if not isinstance(info, BackendInfo):
            raise PluginRejected(f"runtime_backend_info returned {_kind(info)}, not a BackendInfo")
        if info.name != self.entry_point.name:
            raise PluginRejected(
                f"the entry point is called '{self.entry_point.name}', its BackendInfo says '{info.name}'; "
                "make them equal"
            )
        if not isinstance(info.api_level, int) or info.api_level < 1:
            raise PluginRejected(f"api_level {info.api_level!r} is not a number from 1 to {API_LEVEL}")
        if info.api_level > API_LEVEL:
            raise PluginRejected(f"needs API level {info.api_level}, this core has {API_LEVEL}: upgrade hal-runtime")
        seconds = info.probe_timeout_s
        if not isinstance(seconds, (int, float)) or not 0 < seconds <= MAX_PROBE_S:
            raise PluginRejected(f"probe_timeout_s {seconds!r} is not a number of seconds up to {MAX_PROBE_S}")
        return info

    def _refuse_newer_level(self, plugin: Any) -> None:
        info_hook = getattr(plugin, "runtime_backend_info", None)
        info = info_hook() if callable(info_hook) else None
        if isinstance(info, BackendInfo) and isinstance(info.api_level, int) and info.api_level > API_LEVEL:
            self.progress.stage = "info"
            self._check_info(info)


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


_DEVICE_MEMBERS = frozenset(name for name in vars(Device) if not name.startswith("_"))
