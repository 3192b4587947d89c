"""One of Stripe's lists beside our table, page by page: what differs, what is missing here, what is gone there.

Lists come newest first. So a page and the one before it bound a stretch of time in which the list is complete, and a
row of that stretch that was not listed is *absent*. That deletes nothing yet: once the list has been read to its end,
Stripe is asked for each absent object by its id.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection

from models import drift
from workers.shapes import Handler, MalformedError, Snapshot, iso
from workers.snapshots import as_row, from_api

# Of so many absent objects it is not believed that they were deleted: rather the key is that of another account.
MANY_ABSENT = 100


@dataclass(slots=True)
class Place:
    """How far a list has been read. `began` is Stripe's time at its first page, all times are Unix seconds.

    `boundary` is when the last object read was created and `at_boundary` the ids of all that were created in that
    second: the next page may hold more of them. Once the list `is_read` to its end, what is `absent` from it is asked
    for. `money` is what the objects add up to: `{currency: {column: sum}}`.
    """

    after: str | None = None
    began: int | None = None
    boundary: int | None = None
    at_boundary: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    is_read: bool = False
    money: drift.Totals = field(default_factory=dict)


def told(handler: Handler, objects: Iterable[dict[str, Any]], as_of: int) -> tuple[list[Snapshot], int]:
    """Snapshots of what Stripe answered at `as_of`, and how many objects could not be read."""
    found, unreadable = [], 0
    for one in objects:
        try:
            found += [told for told in from_api(one, as_of) if told.handler is handler]
        except MalformedError:
            unreadable += 1
    return found, unreadable


def differing(
    connection: Connection, handler: Handler, snapshots: Sequence[Snapshot], *, until: int
) -> list[tuple[Snapshot, drift.Difference]]:
    """Those of some snapshots that the table does not agree with, and where.

    What was created after `until` (Unix seconds) is not missing yet.
    """
    by_id = {one.id: one for one in snapshots}
    found = drift.differences(connection, handler.table, [as_row(one) for one in snapshots])
    return [(by_id[one.id], one) for one in found if one.columns or by_id[one.id].object["created"] <= until]


@dataclass(frozen=True, slots=True)
class Stretch:
    """What a page tells of the time between it and the page before: rows created in (after, until] are listed."""

    listed: frozenset[str]
    after: int | None
    until: int


def turn_page(place: Place, objects: Sequence[dict[str, Any]], *, since: int | None, is_last: bool) -> Stretch:
    """Move `place` behind a page of the objects created from `since` on, and return what is known of its stretch."""
    until = place.began or 0 if place.boundary is None else place.boundary
    listed = frozenset({*place.at_boundary, *(one["id"] for one in objects)})
    if objects:
        last = objects[-1]["created"]
        stays = place.at_boundary if last == place.boundary else []
        place.at_boundary = [*stays, *(one["id"] for one in objects if one["created"] == last)]
        place.boundary, place.after = last, objects[-1]["id"]
    if is_last:
        return Stretch(listed, None if since is None else since - 1, until)
    # What was created in the very second of the page's last object may stand on the next one.
    return Stretch(listed, place.boundary, until)


def absent(connection: Connection, handler: Handler, stretch: Stretch, *, livemode: bool) -> list[str]:
    """The rows of a stretch that Stripe did not list."""
    after = None if stretch.after is None else moment(stretch.after)
    return drift.absent(
        connection, handler.table, stretch.listed, livemode=livemode, after=after, until=moment(stretch.until)
    )


def add_up(handler: Handler, place: Place, snapshots: Iterable[Snapshot]) -> None:
    """Add the money of objects that were there when the list was begun."""
    for one in snapshots:
        row = one.row or {}
        if row.get("currency") and (row["created"] or "") < iso(place.began or 0):
            sums = place.money.setdefault(row["currency"], {})
            for column in drift.MONEY.get(handler.table, ()):
                sums[column] = sums.get(column, 0) + (row[column] or 0)


def moment(seconds: int) -> datetime:
    """Unix seconds as PostgreSQL's driver takes them."""
    return datetime.fromtimestamp(seconds, UTC)
