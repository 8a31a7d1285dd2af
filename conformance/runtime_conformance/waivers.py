"""Waivers: known faults with an address where they are discussed, and a day after which they no longer count."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from runtime.errors import InvalidArgument


@dataclass(frozen=True)
class Waiver:
    """Cases whose id matches `pattern` may fail until the end of `expires`; `url` says why."""

    pattern: str
    url: str
    expires: date

    def covers(self, case_id: str) -> bool:
        """Whether it is meant for this case."""
        return fnmatch.fnmatchcase(case_id, self.pattern)

    def is_expired(self, today: date) -> bool:
        """Whether its day has passed."""
        return today > self.expires


def load_waivers(path: str | None) -> tuple[Waiver, ...]:
    """A JSON list of {"pattern", "url", "expires"} (YYYY-MM-DD); raises InvalidArgument naming what is wrong."""
    if path is None:
        return ()
    try:
        entries = json.loads(Path(path).read_text("utf-8"))
        waivers = tuple(Waiver(e["pattern"], e["url"], date.fromisoformat(e["expires"])) for e in entries)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidArgument(
            f"waivers in {path} cannot be read: {type(error).__name__}: {error}",
            remedy='write a list of {"pattern": "linear@1/*", "url": "https://...", "expires": "2030-01-31"}',
        ) from error
    for waiver in waivers:
        if not waiver.url.startswith(("http://", "https://")):
            raise InvalidArgument(f"waiver '{waiver.pattern}' has the url '{waiver.url}'; it must begin with https://")
    return waivers


def find_waiver(waivers: Sequence[Waiver], case_id: str, today: date) -> Waiver | None:
    """The first waiver that covers the case and has not expired."""
    return next((w for w in waivers if w.covers(case_id) and not w.is_expired(today)), None)
