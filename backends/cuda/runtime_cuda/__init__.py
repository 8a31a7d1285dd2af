"""NVIDIA GPUs through torch and Triton."""

from runtime_cuda.plugin import plugin

__all__ = ["plugin"]
