"""Remembers probe results, keyed by everything that changes them; without a writable folder nothing is remembered."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.backend import API_LEVEL, API_MAJOR

if TYPE_CHECKING:
    from runtime.registry.discovery import LoadedBackend

DEVICES_LIFETIME_S = 24 * 3600.0
REFUSAL_LIFETIME_S = 600.0
"""Short: what was refused may be repaired in a way that the key does not see."""
_PRUNE_AFTER_S = 7 * 24 * 3600.0
_MAX_PACKAGE_FILES = 500


class ProbeCache:
    """Files in `$XDG_CACHE_HOME/hal-runtime/probe`; reading and writing never fail, they only miss."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder("probe")

    def load(self, backend: LoadedBackend) -> dict[str, Any] | None:
        """The result stored for this very backend, host and moment, or None."""
        path = self._path(backend)
        if path is None:
            return None
        try:
            stored = json.loads(path.read_text("utf-8"))
            age_s = time.time() - stored["stored_at"]
            is_fresh = 0 <= age_s < stored["lifetime_s"]
            return dict(stored["result"]) if is_fresh else None
        except (OSError, ValueError, TypeError, KeyError):
            return None  # absent, unreadable or damaged: probe again

    def store(self, backend: LoadedBackend, result: dict[str, Any], *, is_refusal: bool) -> None:
        """Write atomically, so that two processes never read half a file."""
        path = self._path(backend)
        if path is None:
            return
        lifetime_s = REFUSAL_LIFETIME_S if is_refusal else DEVICES_LIFETIME_S
        content = json.dumps({"stored_at": time.time(), "lifetime_s": lifetime_s, "result": result})
        with contextlib.suppress(OSError):  # a cache that cannot be written costs the next start a moment, no more
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(content, "utf-8")
            temporary.replace(path)
            self._prune(path.parent)

    def _path(self, backend: LoadedBackend) -> Path | None:
        if self.folder is None:
            return None
        label = "".join(c if c.isalnum() or c in "-_" else "_" for c in backend.name)
        return self.folder / f"{label}-{cache_key(backend)}.json"

    @staticmethod
    def _prune(folder: Path) -> None:
        oldest = time.time() - _PRUNE_AFTER_S
        for path in folder.iterdir():
            with contextlib.suppress(OSError):  # another process may prune too
                if path.stat().st_mtime < oldest:
                    path.unlink()


def cache_key(backend: LoadedBackend) -> str:
    """A hash over package, its files, what the plugin names in `probe_key`, this interpreter and this host."""
    facts = [
        f"{API_MAJOR}.{API_LEVEL}",
        backend.name,
        backend.distribution,
        backend.version,
        backend.entry_point.value,
        backend.info.probe_key,
        sys.version,
        sys.executable,
        *package_facts(backend),
        *_host_facts(),
    ]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:24]


def cache_folder(name: str) -> Path | None:
    """The folder `name` among the caches of this user, or None for an account without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if base and Path(base).is_absolute():
        return Path(base) / "hal-runtime" / name
    try:
        return Path.home() / ".cache" / "hal-runtime" / name
    except RuntimeError:  # no home: an account of a service
        return None


def package_facts(backend: LoadedBackend) -> list[str]:
    """The installer's RECORD, and times and sizes of the plugin's own files, which an editable install changes."""
    facts = []
    distribution = getattr(backend.entry_point, "dist", None)
    if distribution is not None:
        with contextlib.suppress(OSError, ValueError):  # a RECORD that nobody can read changes nothing for us
            facts.append(distribution.read_text("RECORD") or "")
    module = sys.modules.get(backend.entry_point.module.partition(".")[0])
    origin = getattr(module, "__file__", None)
    if origin:
        file = Path(origin)
        files = sorted(file.parent.rglob("*"))[:_MAX_PACKAGE_FILES] if file.name == "__init__.py" else [file]
        facts += [_stamp(f) for f in files if f.suffix != ".pyc" and not f.is_dir()]
    return facts


def _host_facts() -> list[str]:
    """This machine since it was started, its usable cores, and the folders into which packages are installed.

    The latter change with every installation: "torch is not installed" ends when it is.
    """
    boot = ""
    with contextlib.suppress(OSError):  # only Linux tells; elsewhere the lifetime of an entry is the limit
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [os.cpu_count()]
    sites = [Path(p) for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
    return [platform.node(), platform.release(), platform.machine(), boot, str(cores), *(_stamp(p) for p in sites)]


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return f"{path} absent"
    return f"{path} {status.st_mtime_ns} {status.st_size}"
