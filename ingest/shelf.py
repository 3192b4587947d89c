"""What is on sale, kept ready: read anew when a sync or an event has changed it, and every few seconds anyway."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from workers.catalog_version import CatalogVersion

# So old an answer may be if nobody said that it is, as when a worker ended between its commit and its word.
LONGEST_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class _Kept:
    answer: bytes
    version: bytes
    until: float


class Shelf:
    """One answer of this process. Without Redis nothing is kept: then nobody would say when it is old."""

    def __init__(self, redis_url: str) -> None:
        self._version = CatalogVersion(redis_url)
        self._kept: _Kept | None = None

    def answer(self, read: Callable[[], bytes]) -> bytes:
        """Return what `read` has read, at some time since the last change. Raises what `read` raises."""
        # Heard before reading: what is written after that has another version.
        version, kept = self._version.heard(), self._kept
        if kept is not None and kept.version == version and time.monotonic() < kept.until:
            return kept.answer
        answer = read()
        if version is not None:
            self._kept = _Kept(answer, version, time.monotonic() + LONGEST_SECONDS)
        return answer
