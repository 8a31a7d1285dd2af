"""Remembers whether a device was compared with the reference, by device, driver and version of its backend."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.backend import DeviceInfo
from runtime.registry.cache import cache_folder, package_facts

if TYPE_CHECKING:
    from runtime.registry.discovery import LoadedBackend


@dataclass(frozen=True)
class Verification:
    """The outcome of one comparison; `summary` is a clause with figures, `verified_at` seconds since the epoch."""

    passed: bool
    summary: str
    verified_at: float

    @property
    def age(self) -> str:
        """For a person: "2 h ago"."""
        seconds = max(0.0, time.time() - self.verified_at)
        for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
            if seconds >= size:
                return f"{int(seconds // size)} {unit} ago"
        return "just now"


class Verifications:
    """Files in `$XDG_CACHE_HOME/hal-runtime/verified`; reading and writing never fail, they only miss."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder("verified")

    def load(self, backend: LoadedBackend, device: DeviceInfo) -> Verification | None:
        """What is known about this device with this driver and this version of its backend, or None."""
        path = self._path(backend, device)
        if path is None:
            return None
        try:
            return Verification(**json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None  # absent, unreadable or damaged: not verified

    def store(self, backend: LoadedBackend, device: DeviceInfo, verification: Verification) -> bool:
        """Write atomically; returns whether it could be written."""
        path = self._path(backend, device)
        if path is None:
            return False
        with contextlib.suppress(OSError):  # a cache that cannot be written costs a second verification, no more
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps(asdict(verification)), "utf-8")
            temporary.replace(path)
            return True
        return False

    def _path(self, backend: LoadedBackend, device: DeviceInfo) -> Path | None:
        if self.folder is None:
            return None
        facts = [backend.name, backend.distribution, backend.version, *package_facts(backend)]
        facts += [str(device.index), device.name, device.uuid, device.driver]
        label = "".join(c if c.isalnum() or c in "-_" else "_" for c in f"{backend.name}-{device.index}")
        return self.folder / f"{label}-{hashlib.sha256(chr(0).join(facts).encode()).hexdigest()[:24]}.json"
