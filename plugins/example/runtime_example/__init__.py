"""The smallest backend: one kernel; everything else runs on the host, and the placement line says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.backend import DeviceInfo, KernelBackend, Numerics, kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Example(KernelBackend):
    """Multiplies matrices with numpy."""

    name, vendor, version = "example", "example.org", "0.1.0"

    def probe(self) -> list[DeviceInfo]:
        """The host, with a score that loses against everybody: it is only taken when it is named."""
        return [DeviceInfo(index=0, name="numpy", memory_bytes=1 << 30, score=0.0)]

    @kernel("linear@1", x="f32", weight=("f32", "f16"), numerics=Numerics(activation="f32", accumulate="f32"))
    def linear(self, x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any] | None = None) -> NDArray[Any]:
        """`x` [T, K] times `weight` [N, K]."""
        y: NDArray[Any] = x @ weight.T
        return y if bias is None else y + bias


plugin = Example()
