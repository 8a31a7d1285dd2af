"""AMD GPUs through torch (as its device type "cuda") and Triton."""

from runtime_rocm.plugin import plugin

__all__ = ["plugin"]
