"""The native library through ctypes: where it is, what it is called, which instruction sets it can use here."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from runtime.backend import InvalidArgument, PluginRejected

STEP_VERSION = 2
"""Of the interface that `program.py` describes; a library that says another number is not ours."""
ISA_VARIABLE = "RUNTIME_CPU_ISA"
LIBRARY_NAMES = ("libruntime_cpu.so", "libruntime_cpu.dylib", "runtime_cpu.dll")

_VOID, _INT, _LONG, _TEXT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_char_p
_SIGNATURES = {
    "rt_isa_count": (_INT, ()),
    "rt_isa_name": (_TEXT, (_INT,)),
    "rt_isa_usable": (_INT, (_INT,)),
    "rt_step_version": (_INT, ()),
    "rt_device_open": (_VOID, (_INT, _INT)),
    "rt_device_close": (None, (_VOID,)),
    "rt_device_dots_bf16": (_INT, (_VOID,)),
    "rt_allocate": (_VOID, (_LONG, _INT)),
    "rt_free": (None, (_VOID, _LONG)),
    "rt_device_packed_bytes": (_LONG, (_VOID, _INT, _LONG, _LONG)),
    "rt_device_activation_kind": (_INT, (_VOID, _INT)),
    "rt_device_activation_bytes": (_LONG, (_VOID, _INT, _LONG, _LONG)),
    "rt_device_pack": (_INT, (_VOID, _INT, _VOID, _LONG, _LONG, _LONG, _LONG, _VOID, _INT)),
    "rt_device_wait": (None, (_VOID,)),
    "rt_cache_bytes": (_LONG, (_VOID,)),
    "rt_measure_dot_peak": (ctypes.c_double, (_INT,)),
    "rt_measure_read": (ctypes.c_double, (_VOID, _LONG, _INT)),
    "rt_program_create": (_VOID, (_VOID, _VOID, _LONG, _LONG)),
    "rt_program_destroy": (None, (_VOID,)),
    "rt_program_run": (_INT, (_VOID, _VOID, _VOID, _VOID, _LONG)),
}
"""Function -> (result, arguments)."""
_LONG_CALLS = frozenset(
    {
        *("rt_device_open", "rt_device_close", "rt_device_wait", "rt_free", "rt_measure_dot_peak", "rt_measure_read"),
        *("rt_program_create", "rt_program_destroy", "rt_program_run"),
    }
)
"""Functions during which the interpreter lock is let go. To get it back from a busy thread takes up to 5 ms, which a
call of a microsecond is not worth: a model has hundreds of weights, and its tokenizer is built meanwhile."""


class Library:
    """The loaded library; its functions are attributes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lets_go, keeps = ctypes.CDLL(str(path)), ctypes.PyDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(lets_go if name in _LONG_CALLS else keeps, name)
            function.restype = result
            function.argtypes = arguments
            setattr(self, name, function)
        self.isas = tuple(self.rt_isa_name(i).decode() for i in range(self.rt_isa_count()))
        """Instruction sets that were built, from the plainest to the fastest."""
        self.usable_isas = tuple(name for i, name in enumerate(self.isas) if self.rt_isa_usable(i))

    def __getattr__(self, name: str) -> ctypes._NamedFuncPointer:
        raise AttributeError(f"{self.path} has no function '{name}'")


@cache
def load_library() -> Library | None:
    """The library next to this package, or None where none was built. One that does not fit raises PluginRejected."""
    # An editable install has sources in one folder of the package and the built library in another.
    folders = [Path(p) for p in sys.modules[__package__].__path__]
    for path in (folder / name for folder in folders for name in LIBRARY_NAMES):
        if not path.exists():
            continue
        try:
            library = Library(path)
        except (OSError, AttributeError) as error:
            raise PluginRejected(
                f"the native kernels cannot be loaded: {error}", remedy="reinstall the package for this machine"
            ) from error
        version = library.rt_step_version()
        if version != STEP_VERSION:
            raise PluginRejected(
                f"{path} has version {version} of the interface, this package needs {STEP_VERSION}",
                remedy="rebuild it",
            )
        return library
    return None


def choose_isa(library: Library, options: Mapping[str, str]) -> str:
    """The instruction set that was asked for (option "isa", then the environment), otherwise the fastest usable one.

    Raises InvalidArgument, naming the usable ones, for one that is unknown or that this processor lacks.
    """
    asked, origin = options.get("isa"), "--cpu-isa"
    if not asked:
        asked, origin = os.environ.get("RUNTIME_CPU_ISA"), ISA_VARIABLE
    if not asked:
        return str(library.usable_isas[-1])
    if asked not in library.usable_isas:
        why = "this processor lacks it" if asked in library.isas else "there is no such instruction set"
        raise InvalidArgument(
            f"{origin} {asked}: {why}", remedy=f"usable here: {', '.join(reversed(library.usable_isas))}"
        )
    return asked
