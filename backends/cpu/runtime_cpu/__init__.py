"""The cpu backend: runs everywhere, needs no compiler, no driver and no tensor framework."""

from runtime_cpu.plugin import plugin

__all__ = ["plugin"]
