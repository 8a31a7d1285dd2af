"""A backend for whatever speaks OpenCL 1.2: GPUs, and processors through PoCL."""

from runtime_opencl.plugin import plugin

__all__ = ["plugin"]
