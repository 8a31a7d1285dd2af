"""Hands a model's weights to the executor one by one, and gives the pages of each back after use."""

from __future__ import annotations

from collections.abc import Callable

from runtime.dtypes import TensorSpec
from runtime.formats import ModelFile
from runtime.models import ModelSpec, load_weight_bytes, weight_source


class WeightReader:
    """Callable by weight name: (spec, bytes).

    A device that packs weights holds its own form of each, so the pages of the previous one are released when the next
    is read: memory then holds the weights once, not twice. Released pages come again when somebody reads them.
    `before_each` is called before every read; what it raises ends the loading.
    """

    def __init__(self, spec: ModelSpec, file: ModelFile, before_each: Callable[[], None]) -> None:
        self._recipes = weight_source(spec)
        self._file = file
        self._before_each = before_each
        self._last: tuple[str, ...] = ()

    def __call__(self, name: str) -> tuple[TensorSpec, memoryview]:
        """Spec and bytes of one weight."""
        self._before_each()
        for tensor in self._last:
            self._file.release(tensor)
        recipe = self._recipes[name]
        self._last = tuple(dict.fromkeys(piece.tensor for piece in recipe.pieces))
        return recipe.spec, load_weight_bytes(recipe, self._file.data)
