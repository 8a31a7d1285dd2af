"""Entry points of a group become what they name, or rejections with stage and reason; one never touches another."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Literal, TypeVar

from runtime.registry.validation import describe_error, vendor_code

T = TypeVar("T")
Stage = Literal["metadata", "import", "validate", "info", "register"]


@dataclass(frozen=True)
class Rejected:
    """A plugin that is set aside: at which stage, and why. `traceback` is for its author."""

    name: str
    distribution: str
    version: str
    stage: Stage
    reason: str
    traceback: str = ""

    def __str__(self) -> str:
        """What follows the name in a message."""
        return f"({self.distribution} {self.version}) was rejected at stage {self.stage}: {self.reason}"


@dataclass
class Progress:
    """How far the loading of an entry point came: what raises was at this stage."""

    stage: Stage = "import"


def load_each(
    group: str, load: Callable[[EntryPoint, Progress], T], entry_points: Iterable[EntryPoint] | None = None
) -> tuple[dict[str, T], tuple[Rejected, ...]]:
    """What `load` makes of every entry point of `group`, by name, and those that are set aside, both sorted by name.

    Each is loaded on its own, and nothing that it does escapes from here. Of those that share a name, the one of the
    first distribution in the order of names counts.

    entry_points  instead of those that are installed
    """
    loaded: dict[str, T] = {}
    origins: dict[str, tuple[str, str]] = {}
    rejected: list[Rejected] = []
    found = _installed(group, rejected) if entry_points is None else (e for e in entry_points if e.group == group)
    for point in sorted(found, key=lambda e: (e.name, *origin(e), e.value)):
        name, where = point.name, origin(point)
        if name in loaded:
            reason = f"the name '{name}' is already taken by {' '.join(origins[name])}; remove one of them"
            rejected.append(Rejected(name, *where, "info", reason))
            continue
        progress = Progress()
        try:
            with vendor_code():
                loaded[name], origins[name] = load(point, progress), where
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  a stranger's package must not stop `runtime --help`, not even by sys.exit()
            rejected.append(Rejected(name, *where, progress.stage, describe_error(error), traceback.format_exc()))
    return loaded, tuple(sorted(rejected, key=lambda r: (r.name, r.distribution)))


def origin(entry_point: EntryPoint) -> tuple[str, str]:
    """Name and version of the distribution of an entry point."""
    return _identity(getattr(entry_point, "dist", None))


def _installed(group: str, rejected: list[Rejected]) -> Iterator[EntryPoint]:
    """Entry points of a group in every installed package. Broken metadata of one package hides no other.

    `rejected` takes the packages whose metadata could not be read.
    """
    seen = set()
    for distribution in distributions():
        try:
            text = distribution.read_text("entry_points.txt")
            if not text or group not in text:
                continue
            name = str(distribution.metadata["Name"]).lower().replace("_", "-")
            found = [e for e in distribution.entry_points if e.group == group]
        except Exception as error:  # noqa: BLE001  metadata is written by anybody; its reader raises anything
            name, version = _identity(distribution)
            rejected.append(Rejected(name, name, version, "metadata", describe_error(error), traceback.format_exc()))
            continue
        if name not in seen:  # the first on sys.path hides later copies, as it does for imports
            seen.add(name)
            yield from found


def _identity(distribution: Distribution | None) -> tuple[str, str]:
    try:
        if distribution is None:
            return "unknown", "unknown"
        return str(distribution.metadata["Name"] or "unknown"), str(distribution.metadata["Version"] or "unknown")
    except Exception:  # noqa: BLE001  only a label for a message, and the metadata may be anything
        return "unknown", "unknown"
