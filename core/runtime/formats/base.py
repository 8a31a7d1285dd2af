"""What an open model file offers, whatever its format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from runtime.dtypes import TensorSpec
from runtime.errors import InvalidArgument, NumericFault

if TYPE_CHECKING:
    from numpy.typing import NDArray

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in total)."""

CHECK_ELEMENTS = 1 << 20
"""Elements decoded at a time by `check_tensors`: 4 MiB of float32, which stays in cache."""


class ModelFile(ABC):
    """Metadata and tensors of one model; a context manager that closes itself.

    path             what was opened
    kind             "gguf" or "hf"
    metadata         GGUF key/values, or the parsed config.json
    tensors          name -> TensorSpec, shapes row-major (outermost dimension first)
    files            every file that holds weights
    generation_config, tokenizer_files    of a Hugging Face directory; empty for GGUF, whose metadata holds both
    """

    path: Path
    kind: Literal["gguf", "hf"]
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorSpec]
    files: Sequence[Path]
    generation_config: Mapping[str, Any]
    tokenizer_files: Mapping[str, Path]

    @abstractmethod
    def data(self, name: str) -> memoryview:
        """The little-endian bytes of tensor `name`, read-only; a view of the mapped file wherever possible."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the files; views already handed out stay valid and keep their mapping until they are dropped."""

    @abstractmethod
    def prefetch(self, progress: Progress | None = None) -> None:
        """Bring every weight into the page cache, reporting bytes; for files that fit in memory."""

    @abstractmethod
    def release(self, name: str) -> None:
        """Let the memory of tensor `name` go, when a device has made its own form of it; `data` still works."""

    def release_all(self) -> None:
        """As `release`, for everything that has been read: the metadata too, where it was read in place."""
        for name in self.tensors:
            self.release(name)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights as stored."""
        return sum(spec.nbytes() for spec in self.tensors.values())

    def spec(self, name: str) -> TensorSpec:
        """The spec of tensor `name`; an unknown name raises InvalidArgument with the nearest ones."""
        try:
            return self.tensors[name]
        except KeyError:
            near = get_close_matches(name, self.tensors, n=3)
            remedy = f"nearest names: {', '.join(near)}" if near else None
            raise InvalidArgument(
                f"{self.path} has no tensor '{name}' among its {len(self.tensors)}", remedy=remedy
            ) from None

    def tensor_as_numpy(self, name: str) -> NDArray[Any]:
        """Tensor `name` decoded: float32 (float64 for f64, the integer type for integers)."""
        spec = self.spec(name)
        return spec.format.decode(self.data(name), spec.resolve({}))

    def check_tensors(self, progress: Progress | None = None) -> None:
        """Decode every float and block tensor and raise NumericFault at the first NaN or infinity.

        Blocks are decoded, so a scale that is NaN or infinite shows in the elements it scales.
        """
        total, done = self.nbytes, 0
        for name, spec in self.tensors.items():
            if spec.format.kind in ("float", "block"):
                self._check_tensor(name, spec)
            done += spec.nbytes()
            if progress is not None:
                progress(done, total)

    def _check_tensor(self, name: str, spec: TensorSpec) -> None:
        import numpy as np

        fmt, data = spec.format, self.data(name)
        step = CHECK_ELEMENTS // fmt.group_size
        with np.errstate(all="ignore"):  # a NaN scale is the finding, not a warning
            for block in range(0, len(data) // fmt.block_bytes, step):
                chunk = data[block * fmt.block_bytes : (block + step) * fmt.block_bytes]
                values = fmt.decode(chunk, (len(chunk) // fmt.block_bytes * fmt.group_size,))
                finite = np.isfinite(values)
                if not finite.all():
                    at = int(np.argmin(finite))
                    raise self._numeric_fault(name, spec, block * fmt.group_size + at, float(values[at]))

    def _numeric_fault(self, name: str, spec: TensorSpec, flat_index: int, value: float) -> NumericFault:
        import numpy as np

        shape = spec.resolve({})
        index = [int(i) for i in np.unravel_index(flat_index, shape)] if shape else []
        return NumericFault(
            f"{self.path}: tensor '{name}' ({spec}) holds {value} at {index}; weights must be finite",
            remedy="the file is damaged or was converted wrongly: download or convert it again",
        )

    def __enter__(self) -> ModelFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
