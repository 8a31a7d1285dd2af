"""The cpu device without native kernels: the reference operations, with numpy held to the usable cores."""

from __future__ import annotations

from runtime.backend import DeviceInfo, ReferenceDevice


class CpuReferenceDevice(ReferenceDevice):
    """`ReferenceDevice` that limits numpy's thread pools to `num_threads` until it is closed.

    numpy's BLAS starts a thread per visible core; under a cgroup quota most of them only take turns.
    """

    def __init__(self, info: DeviceInfo, *, num_threads: int) -> None:
        super().__init__(info, name="cpu")
        import numpy  # noqa: F401  the limit reaches only libraries that are loaded
        import threadpoolctl

        self._limits = threadpoolctl.threadpool_limits(limits=num_threads, user_api="blas")

    def close(self) -> None:
        """Free everything and give numpy its threads back."""
        self._limits.restore_original_limits()
        super().close()
