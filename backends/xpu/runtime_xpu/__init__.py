"""Intel GPUs through torch's own xpu devices and Triton."""

from runtime_xpu.plugin import plugin

__all__ = ["plugin"]
