"""What a look at the deployment found, in one shape for the watchdog and for `dues doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is well or not: what was `found`, and, unless all is well, what `todo`; never anybody's data."""

    check: str
    level: Level
    found: str
    todo: str = ""


def some(ids: tuple[str, ...], n: int) -> str:
    """The first of `n` things by name: `a, b and 3 more`."""
    rest = n - len(ids)
    return ", ".join(ids) + (f" and {rest} more" if rest > 0 else "")
