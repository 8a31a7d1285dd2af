"""What is tested: a backend, found like every other, and one of its devices."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

from runtime.backend import API_LEVEL, DeviceInfo, Manifest
from runtime.errors import ExecutionFailed
from runtime.registry import choose, discover
from runtime_conformance import SUITE_VERSION
from runtime_conformance.process.pool import Worker, WorkerCrashed, WorkerHung, device_request

OPEN_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Target:
    """A backend by entry point, and the device to open."""

    name: str
    value: str
    device: DeviceInfo
    distribution: str = ""
    version: str = ""
    threads: int | None = None

    def worker(self) -> Worker:
        """A process that loads this backend and no other."""
        return Worker(device_request(self.name, self.value, self.device, self.threads))

    def manifest(self) -> Manifest:
        """What the opened device says it can do. Raises ExecutionFailed when it cannot be opened."""
        worker = self.worker()
        try:
            answer, _ = worker.ask({"do": "manifest"}, timeout_s=OPEN_TIMEOUT_S)
        except (WorkerCrashed, WorkerHung) as event:
            raise ExecutionFailed(f"device {self.name}:{self.device.index} cannot be opened: {event}") from event
        finally:
            worker.close()
        if "error" in answer:
            raise ExecutionFailed(f"device {self.name}:{self.device.index} cannot be opened: {answer['error']}")
        return Manifest.from_json(answer["manifest"])

    def fingerprint(self) -> dict[str, Any]:
        """What a verdict depends on: device, driver, versions."""
        import numpy as np

        from runtime import __version__

        return {
            "backend": self.name,
            "distribution": self.distribution,
            "version": self.version,
            "device": self.device.name,
            "device_index": self.device.index,
            "driver": self.device.driver,
            "uuid": self.device.uuid,
            "details": dict(sorted(self.device.details.items())),
            "runtime": __version__,
            "suite": SUITE_VERSION,
            "api_level": API_LEVEL,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        }


def find_target(wish: str, threads: int | None = None) -> Target:
    """The device that `wish` ("cpu", "cuda:1") names; raises as `runtime.registry.choose`."""
    choice = choose(discover(), wish)
    backend = choice.backend
    return Target(
        backend.name, backend.entry_point.value, choice.device, backend.distribution, backend.version, threads
    )
