"""Runs in the child: loads one plugin, runs its probe, and writes one JSON answer that its prints cannot disturb."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import traceback
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from typing import Any, NoReturn

from runtime.backend import ENTRY_POINT_GROUP, DeviceInfo
from runtime.errors import PluginRejected, RuntimeFault
from runtime.registry.discovery import load_backend
from runtime.registry.probing import ProbeResult
from runtime.registry.validation import describe_error


def main(request: Mapping[str, Any]) -> NoReturn:
    """Answer on the stdout that this process was started with; what the plugin prints goes to stderr."""
    answer_fd = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    _forbid_core_dumps()
    try:
        result = _probe(EntryPoint(request["name"], request["value"], ENTRY_POINT_GROUP))
    except BaseException as error:  # noqa: BLE001  whatever a vendor's code raises is the answer
        remedy = error.remedy if isinstance(error, RuntimeFault) else None
        result = ProbeResult(refusal=describe_error(error), remedy=remedy, detail=traceback.format_exc())
    answer = json.dumps(result.to_json()).encode()
    while answer:
        answer = answer[os.write(answer_fd, answer) :]
    sys.stderr.flush()
    os._exit(0)  # at once: drivers like to crash or hang while the interpreter is taken down


def _probe(entry_point: EntryPoint) -> ProbeResult:
    backend = load_backend(entry_point)
    if not backend.hooks.runtime_probe.get_hookimpls():
        return ProbeResult(refusal="no device: the plugin has no runtime_probe")
    devices = backend.hooks.runtime_probe()
    if not devices:
        return ProbeResult(refusal="no device found")
    for device in devices:
        _check(device)
    indices = [device.index for device in devices]
    if len(set(indices)) != len(indices):
        raise PluginRejected(f"its probe returned two devices of one index: {indices}")
    return ProbeResult(devices=tuple(devices))


def _check(device: Any) -> None:
    if not isinstance(device, DeviceInfo):
        raise PluginRejected(f"its probe returned a {type(device).__name__}, not a DeviceInfo")
    if not isinstance(device.index, int) or device.index < 0:
        raise PluginRejected(f"DeviceInfo.index {device.index!r} is not a number from 0")
    if not isinstance(device.score, (int, float)) or not math.isfinite(device.score):
        raise PluginRejected(f"DeviceInfo.score {device.score!r} of device {device.index} is not a finite number")
    if not isinstance(device.memory_bytes, int) or device.memory_bytes < 0:
        raise PluginRejected(f"DeviceInfo.memory_bytes {device.memory_bytes!r} of device {device.index} is no size")
    texts = (device.name, device.driver, device.uuid, *device.notices, *device.details, *device.details.values())
    for text in texts:
        if not isinstance(text, str):
            raise PluginRejected(f"DeviceInfo of device {device.index} holds {text!r} where text belongs")


def _forbid_core_dumps() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # a courtesy; not every system has the limit
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
