"""Kernels from the packaged .cl files, built once per device and set of definitions."""

from __future__ import annotations

import warnings
from importlib import resources
from typing import Any

from runtime.backend import PluginRejected

PRELUDES = {"linear": ("common", "weights"), "embed": ("common", "weights")}
"""Files that stand before a file; all others get common.cl alone."""


def read_source(name: str) -> str:
    """The text of one .cl file of this package."""
    return (resources.files("runtime_opencl") / "cl" / f"{name}.cl").read_text(encoding="utf-8")


class Programs:
    """Builds programs for one device of one context, on first use."""

    def __init__(self, context: Any, device: Any) -> None:
        self._context = context
        self._device = device
        self._built: dict[tuple[str, tuple[str, ...]], Any] = {}
        self._common_options = _exactness_options(device)
        largest = 1 << (int(device.max_work_group_size).bit_length() - 1)
        self.group_size = min(256, largest)
        """Items that share a row in norms and reductions, a power of two."""
        self.num_lanes = 8
        """Items that share a row of a weight; set from what the compiler prefers."""
        self.num_lanes = self._preferred_lanes()

    def kernel(self, file: str, name: str, *definitions: str) -> Any:
        """A new kernel object, whose arguments are the caller's own. Raises PluginRejected where it does not build."""
        import pyopencl as cl

        return cl.Kernel(self._program(file, definitions), name)

    def _program(self, file: str, definitions: tuple[str, ...]) -> Any:
        key = (file, definitions)
        if key not in self._built:
            source = "\n".join(read_source(part) for part in (*PRELUDES.get(file, ("common",)), file))
            options = [*self._common_options, *(f"-D{d}" for d in definitions)]
            self._built[key] = build(self._context, self._device, source, options, f"{file}.cl")
        return self._built[key]

    def _preferred_lanes(self) -> int:
        """The width that the compiler prefers, as a power of two: what a device runs in step."""
        import pyopencl as cl

        kernel = self.kernel("checks", "check_range")
        info = cl.kernel_work_group_info.PREFERRED_WORK_GROUP_SIZE_MULTIPLE
        preferred = int(kernel.get_work_group_info(info, self._device))
        return min(64, 1 << max(2, preferred.bit_length() - 1))


def build(context: Any, device: Any, source: str, options: list[str], name: str) -> Any:
    """A built program; raises PluginRejected with the first error that the compiler names."""
    import pyopencl as cl

    program = cl.Program(context, source)
    try:
        with warnings.catch_warnings():  # compilers remark on what they optimise; errors are exceptions
            warnings.simplefilter("ignore")
            program.build(options=options, devices=[device])
    except cl.Error as error:
        raise PluginRejected(
            f"kernel file {name} does not build on {device.name.strip()}: {first_error(str(error))}",
            remedy="install a newer OpenCL driver for this device, or report the line to runtime-opencl",
        ) from error
    return program


def first_error(log: str) -> str:
    """The first line of a build log that names an error, otherwise its first line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return next((line for line in lines[1:] if "error" in line.lower()), lines[0] if lines else "no build log")


def _exactness_options(device: Any) -> list[str]:
    import pyopencl as cl

    options = ["-cl-std=CL1.2"]
    if device.single_fp_config & cl.device_fp_config.CORRECTLY_ROUNDED_DIVIDE_SQRT:
        options.append("-cl-fp32-correctly-rounded-divide-sqrt")
    return options
