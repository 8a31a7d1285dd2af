"""Checks a plugin's hooks before any is called, and runs a vendor's code without letting it write to our stdout."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import os
import sys
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pluggy

from runtime.backend import BackendHooks, hookimpl
from runtime.errors import PluginRejected, RuntimeFault

HOOKS = tuple(sorted(name for name in vars(BackendHooks) if name.startswith("runtime_")))
REQUIRED_HOOKS = ("runtime_backend_info", "runtime_manifest", "runtime_open")


def validate(plugin: Any, where: str) -> pluggy.HookRelay:
    """The hooks of `plugin`, callable one by one; raises PluginRejected naming every hook that breaks a rule.

    `where` is the object that the entry point names, for messages.
    """
    if inspect.isclass(plugin):
        raise PluginRejected(
            f"{where} is a class; the entry point must name an instance, e.g. plugin = {plugin.__name__}()"
        )
    faults = [f"unknown hook {name}{suggest(name, HOOKS)}" for name in _hook_like(plugin) if name not in HOOKS]
    if faults:
        raise PluginRejected("; ".join(faults))
    marked = _marked(plugin)
    faults = [f"{name} lacks the decorator @hookimpl" for name in _hook_like(plugin) if name not in marked]
    if faults:
        raise PluginRejected("; ".join(faults))
    manager = pluggy.PluginManager("runtime")
    manager.add_hookspecs(BackendHooks)
    try:
        # only the hooks: pluggy evaluates every attribute of what it registers, and a property may be costly or raise
        manager.register(SimpleNamespace(**{name: getattr(plugin, name) for name in marked}), name=where)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginRejected(" ".join(str(error).split())) from error
    missing = [name for name in REQUIRED_HOOKS if not getattr(manager.hook, name).get_hookimpls()]
    if missing:
        raise PluginRejected(f"{where} has no {', '.join(missing)}; required are {', '.join(REQUIRED_HOOKS)}")
    return manager.hook


def _hook_like(plugin: Any) -> list[str]:
    """Names that a reader would take for hooks; a module of that name, imported by the plugin, is none."""
    names = [name for name in dir(plugin) if name.startswith("runtime_")]
    return [name for name in names if not inspect.ismodule(inspect.getattr_static(plugin, name, None))]


def _marked(plugin: Any) -> list[str]:
    """Names of the methods that carry @hookimpl."""
    found = []
    for name in dir(plugin):
        value = inspect.getattr_static(plugin, name, None)
        if hasattr(getattr(value, "__func__", value), f"{hookimpl.project_name}_impl"):
            found.append(name)
    return found


def suggest(word: str, known: Iterable[str]) -> str:
    """`; did you mean '...'?` for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def describe_error(error: BaseException) -> str:
    """One line for a report. Errors whose text stands alone keep it; the others are preceded by their type."""
    text = " ".join((error.message if isinstance(error, RuntimeFault) else str(error)).split())
    if isinstance(error, SystemExit):
        return f"called sys.exit({error.code!r})"
    if text and isinstance(error, (RuntimeFault, ImportError, OSError)):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextlib.contextmanager
def vendor_code() -> Iterator[None]:
    """While a vendor's code runs, what it prints goes to stderr: our stdout may be somebody's JSON.

    Both Python's stream and the file descriptor are redirected, since libraries print from C.
    """
    saved = None
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
        saved = os.dup(1)
        os.dup2(2, 1)
    except (OSError, ValueError):
        # a daemon may run with closed streams: then there is no stdout to protect
        if saved is not None:
            os.close(saved)
            saved = None
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if saved is not None:
            os.dup2(saved, 1)
            os.close(saved)
