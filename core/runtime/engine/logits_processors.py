"""Logits processors: code of other people that changes the logits of the requests that name it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any, Protocol

from runtime.engine.sampling_params import SamplingParams
from runtime.errors import ExecutionFailed, InvalidArgument, PluginRejected
from runtime.registry import Progress, Rejected, describe_error, load_each, origin, suggest, vendor_code
from runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GROUP = "runtime.logits_processors"
"""Entry-point group: name -> factory."""


class LogitsProcessor(Protocol):
    """Changes the logits of one request before its next token is chosen."""

    def __call__(
        self, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int], logits: NDArray[np.float32]
    ) -> NDArray[np.float32] | None:
        """Change `logits`, float32 [vocab_size], in place, or return an array of the same shape.

        -inf bans a token; NaN and +inf fail the request. The ids must not be changed. It may be asked twice for one
        position, where a step is computed again: the ids decide, not how often it was called.
        """


Factory = Callable[..., LogitsProcessor]
"""What an entry point names: called for each request with the tokenizer and the request's arguments by keyword."""


@dataclass(frozen=True, eq=False)
class InstalledProcessor:
    """A processor that was imported."""

    name: str
    distribution: str
    version: str
    factory: Factory


@dataclass(frozen=True, eq=False)
class NamedProcessor:
    """A processor of one request, and what errors call it."""

    name: str
    processor: LogitsProcessor

    def apply(
        self, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int], logits: NDArray[np.float32]
    ) -> None:
        """Change `logits` in place. Raises ExecutionFailed for whatever goes wrong."""
        import numpy as np

        try:
            result = self.processor(prompt_token_ids, output_token_ids, logits)
            if result is not None and result is not logits:
                if np.shape(result) != logits.shape:
                    raise ValueError(f"it returned the shape {np.shape(result)}, the logits have {logits.shape}")
                logits[:] = result
        except (Exception, SystemExit) as error:  # a stranger's code may raise anything, and fails its request alone
            raise ExecutionFailed(f"logits processor '{self.name}' failed: {describe_error(error)}") from error
        if not np.all(logits < np.inf):
            raise ExecutionFailed(f"logits processor '{self.name}' made logits that hold NaN or +infinity")


class LogitsProcessors:
    """The processors that are installed, found on first use; one that is broken is set aside with its reason."""

    def __init__(self) -> None:
        self._found: tuple[dict[str, InstalledProcessor], tuple[Rejected, ...]] | None = None

    @property
    def loaded(self) -> Mapping[str, InstalledProcessor]:
        """By name."""
        return self._find()[0]

    @property
    def rejected(self) -> tuple[Rejected, ...]:
        """Those that were set aside."""
        return self._find()[1]

    def make(self, params: SamplingParams, tokenizer: Tokenizer) -> tuple[NamedProcessor, ...]:
        """The processors of a request, in order. Raises InvalidArgument for unknown names and refused arguments."""
        return tuple(
            NamedProcessor(p, self._make(p, params.logits_processor_args.get(p, {}), tokenizer))
            if isinstance(p, str)
            else NamedProcessor(getattr(p, "__name__", type(p).__name__), p)
            for p in params.logits_processors
        )

    def check(self, params: SamplingParams, tokenizer: Tokenizer, *, in_process: bool) -> None:
        """Raise as `make` does, and for a function where the engine has a process of its own."""
        if in_process and any(not isinstance(p, str) for p in params.logits_processors):
            raise InvalidArgument(
                "logits_processors holds a function, and the engine runs in a process of its own",
                remedy=f"install it under the entry-point group {GROUP} and name it; see docs/logits-processors.md",
            )
        if params.logits_processors:
            self.make(params, tokenizer)

    def _make(self, name: str, arguments: Mapping[str, Any], tokenizer: Tokenizer) -> LogitsProcessor:
        factory = self._factory(name)
        try:
            with vendor_code():
                processor = factory(tokenizer, **arguments)
        except (Exception, SystemExit) as error:  # a stranger's code may raise anything
            raise InvalidArgument(
                f"logits processor '{name}' cannot be made with {dict(arguments)}: {describe_error(error)}"
            ) from error
        if not callable(processor):
            raise InvalidArgument(
                f"logits processor '{name}' cannot be used: its factory returned {processor!r}, which cannot be called"
            )
        return processor

    def _factory(self, name: str) -> Factory:
        processor = self.loaded.get(name)
        if processor is not None:
            return processor.factory
        for rejected in self.rejected:
            if rejected.name == name:
                raise InvalidArgument(
                    f"logits processor '{name}' {rejected}",
                    remedy="repair or remove that package; details: runtime doctor",
                )
        there = f"installed: {', '.join(self.loaded)}" if self.loaded else "none is installed"
        raise InvalidArgument(f"there is no logits processor '{name}'{suggest(name, self.loaded)}", remedy=there)

    def _find(self) -> tuple[dict[str, InstalledProcessor], tuple[Rejected, ...]]:
        if self._found is None:
            self._found = load_each(GROUP, _load)
        return self._found


def _load(point: EntryPoint, progress: Progress) -> InstalledProcessor:
    factory = point.load()
    progress.stage = "validate"
    if not callable(factory):
        raise PluginRejected(f"{point.value} is {factory!r}; it must be a class or a function that makes a processor")
    return InstalledProcessor(point.name, *origin(point), factory)
