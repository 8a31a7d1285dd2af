"""Own operations and formats of a plugin enter the catalogue all together or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from runtime.dtypes import FormatRegistry
from runtime.errors import PluginRejected
from runtime.ops import Catalogue

if TYPE_CHECKING:
    import pluggy

# A catalogue outlives a discovery, and a second discovery in the same process must not register again.
_registered: WeakKeyDictionary[Catalogue, list[Any]] = WeakKeyDictionary()


def register(plugin: Any, hooks: pluggy.HookRelay, catalogue: Catalogue, formats: FormatRegistry) -> None:
    """Call `runtime_register` on copies and take over what it added; raises what the plugin raises, changing nothing.

    Names must be `vendor::name`, so that no plugin changes the meaning of what others use.
    """
    done = _registered.setdefault(catalogue, [])
    if any(other is plugin for other in done) or not hooks.runtime_register.get_hookimpls():
        return
    staged_ops, staged_formats = Catalogue(), FormatRegistry()
    for op in catalogue:
        staged_ops.add(op)
    for fmt in formats:
        staged_formats.add(fmt)
    hooks.runtime_register(catalogue=staged_ops, formats=staged_formats)
    new_ops = [op for op in staged_ops if op.key not in catalogue]
    new_formats = [fmt for fmt in staged_formats if fmt.name not in formats]
    _require_vendor("operation", (op.name for op in new_ops))
    _require_vendor("format", (fmt.name for fmt in new_formats))
    for op in new_ops:
        catalogue.add(op)
    for fmt in new_formats:
        formats.add(fmt)
    done.append(plugin)


def _require_vendor(what: str, names: Iterable[str]) -> None:
    for name in names:
        vendor, separator, rest = name.partition("::")
        if not (vendor and separator and rest):
            raise PluginRejected(f"own {what} '{name}' must be called 'vendor::name': plain names belong to the core")
