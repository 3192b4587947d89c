"""Stripe's lists become rows, page by page, list after list: the work that the catalogue's sync and a backfill share.

Rows and cursor are one commit, so a run that was killed goes on behind its last page, in whatever process. Of products
and prices a list that was read to its end also tells what is no longer there; one that was not tells nothing of that.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, text

from models import drift, sync_runs
from workers import snapshots
from workers.handlers import BY_OBJECT_TYPE
from workers.process import Road
from workers.shapes import MalformedError, Snapshot
from workers.stripe_api import NotFoundError, Page, RefusedError, StripeApi, StripeApiError

logger = logging.getLogger(__name__)

# Of these a complete list is the whole truth: what is not in it has been deleted.
WHOLE = frozenset({"product", "price"})
# What is asked for along with each object, so that nobody has to ask again.
EXPANDED: dict[str, tuple[str, ...]] = {"checkout.session": ("data.line_items",)}


class OtherAccountError(StripeApiError):
    """Stripe lists nothing of what is here: the key is that of another account."""


@dataclass(slots=True)
class Place:
    """How far a run has come: the lists still to be read, the first of them as far as `after`, the id read last.

    Of a list of WHOLE it holds all ids `seen`; `began` is the earliest moment (Unix seconds) as of which a page is
    true. `oldest` and `reached` are when objects were created, of all lists and of this one, to say how far it is. A
    key lists objects of one `livemode`, null until it has listed any.
    """

    lists: list[str]
    after: str | None = None
    began: int | None = None
    seen: list[str] = field(default_factory=list)
    unreadable: int = 0
    oldest: int | None = None
    reached: int | None = None
    refused: list[str] = field(default_factory=list)
    livemode: bool | None = None

    def restart(self) -> None:
        """Begin the present list anew."""
        self.after, self.began, self.seen, self.unreadable, self.reached = None, None, [], 0, None

    def next_list(self) -> None:
        """Go on to the list after it."""
        self.lists = self.lists[1:]
        self.restart()


@dataclass(slots=True)
class Mirroring:
    """A run under way; whoever makes it has the turn of its kind. `tell` hears of every page."""

    road: Road
    stripe: StripeApi
    run: sync_runs.Run
    place: Place
    tell: Callable[[], object] = lambda: None

    @classmethod
    def of(cls, road: Road, stripe: StripeApi, run: sync_runs.Run, lists: tuple[str, ...]) -> Mirroring:
        """Go on with a run, or begin it with these lists."""
        return cls(road, stripe, run, place_of(run, lists))

    def go_on(self, stopping: threading.Event, *, seconds: float) -> bool:
        """Read for about `seconds`, and end the run if everything has been read; whether it has. Raises StripeApiError.

        A list that the key may not read is left out, and the run fails at its end.
        """
        if not self._read(stopping, seconds):
            return False
        refused = ", ".join(self.place.refused)
        self.end(f"the API key may not list: {refused}" if refused else None)
        return True

    def end(self, error: str | None = None) -> None:
        """End the run, as failed if there is an error."""
        with self.road.engine.begin() as connection:
            sync_runs.finish(connection, self.run, "failed" if error else "done", error)
        self.run.cursor = None
        if error:
            logger.warning("a run has failed: %s", error)

    def _read(self, stopping: threading.Event, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while self.place.lists:
            try:
                if not self._read_list(lambda: stopping.is_set() or time.monotonic() > end):
                    return False
            except NotFoundError:
                if self.place.after is None:
                    raise
                # The object behind which it was to go on has been deleted.
                self.place.restart()
            except RefusedError as error:
                logger.warning("the list of %s is left out: %s", self.place.lists[0], error)
                self.place.refused.append(self.place.lists[0])
                self.place.next_list()
        return True

    def _read_list(self, is_over: Callable[[], bool]) -> bool:
        """Read on in the present list; whether to its end."""
        object_type = self.place.lists[0]
        expand = {"expand": list(EXPANDED[object_type])} if object_type in EXPANDED else {}
        behind = {"starting_after": self.place.after} if self.place.after else {}
        for page in self.stripe.pages(object_type, **expand, **behind):
            self._take(object_type, page)
            self.tell()
            if not page.has_more:
                return True
            if is_over():
                return False
        return False

    def _take(self, object_type: str, page: Page) -> None:
        place = self.place
        place.began = min(page.as_of, page.as_of if place.began is None else place.began)
        told, unreadable = read(page)
        place.unreadable += unreadable
        if object_type in WHOLE:
            place.seen += [one["id"] for one in page.objects]
        if page.objects:
            place.after = page.objects[-1]["id"]
            place.livemode = page.objects[-1].get("livemode", place.livemode)
            self._note_age([one.get("created") for one in page.objects])
        self._count(object_type, len(page.objects))
        self._count("unreadable", unreadable)
        if not page.has_more:
            if object_type in WHOLE:
                missing = self._missing(object_type)
                self._count("gone", len(missing))
                told += [snapshots.gone(object_type, id, place.began) for id in missing]
            place.next_list()
        self.run.cursor = json.dumps(asdict(place))
        self.road.take_in(told, lambda connection: sync_runs.save(connection, self.run))

    def _note_age(self, created: list[Any]) -> None:
        moments = [one for one in created if isinstance(one, int)]
        if moments:
            self.place.reached = min(moments)
            self.place.oldest = min(moments[-1], self.place.oldest or moments[-1])

    def _count(self, name: str, n: int) -> None:
        if n:
            self.run.counts[name] = self.run.counts.get(name, 0) + n

    def _missing(self, object_type: str) -> list[str]:
        """The rows that a complete list did not contain. Raises OtherAccountError if it contained none of them."""
        if self.place.unreadable or self.place.began is None:
            return []
        table, until = BY_OBJECT_TYPE[object_type].table, datetime.fromtimestamp(self.place.began, UTC)
        modes = (True, False) if self.place.livemode is None else (self.place.livemode,)
        with self.road.engine.connect() as connection:
            missing = [
                id
                for mode in modes
                for id in drift.absent(connection, table, self.place.seen, livemode=mode, after=None, until=until)
            ]
            if missing and self._is_strange(connection, table, missing):
                raise OtherAccountError(
                    f"Stripe lists no {object_type} that was here before:"
                    " is STRIPE_API_KEY the key of another account, or of the other mode?"
                )
        return missing

    def _is_strange(self, connection: Connection, table: str, missing: list[str]) -> bool:
        """Whether the list contained nothing of what was here before this run."""
        known = text(f"SELECT bool_or(id = ANY(:seen)) FROM {table} WHERE id = ANY(:ids) AND created_at < :since")
        parameters = {"seen": self.place.seen, "ids": self.place.seen + missing, "since": self.run.started_at}
        return connection.execute(known, parameters).scalar_one() is False


def place_of(run: sync_runs.Run, lists: tuple[str, ...]) -> Place:
    """Where a run stands."""
    return Place(list(lists)) if run.cursor is None else Place(**json.loads(run.cursor))


def read(page: Page) -> tuple[list[Snapshot], int]:
    """Snapshots of what a page tells, and how many objects could not be read; one of them harms no other."""
    told: list[Snapshot] = []
    unreadable = 0
    for one in page.objects:
        try:
            told += snapshots.from_api(one, page.as_of)
        except MalformedError as error:
            unreadable += 1
            logger.warning("%s %s is left out: %s", one.get("object"), one["id"], error)
    return told, unreadable
