"""The steps of a reconciliation, a page of one of Stripe's lists each: events that are missed, then rows that differ.

What is repaired by itself are mirrored rows, by snapshots that go the ordinary road. What needs a person is counted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from models import attention, drift, ledger
from workers import listing, missed
from workers.handlers import BY_OBJECT_TYPE, HANDLERS
from workers.process import Road
from workers.shapes import Handler, Snapshot
from workers.snapshots import gone
from workers.stripe_api import NotFoundError, Page, RefusedError, StripeApi

PAGE = 100
# So many objects one by one take as long as a step may.
ASKED_AT_ONCE = 10
EXAMPLES = 20
EVENTS, PEOPLE = "event", "people"
# In the order in which they are read: parents first.
LISTS = tuple(handler.object_type for handler in HANDLERS)
NEEDS_A_PERSON = ("orphans", "conflicts", "overrides")

Counts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Order:
    """What is wanted: whether to mend rows that differ, and whether to record events that were missed."""

    repairs: bool = True
    records: bool = True


@dataclass(slots=True)
class State:
    """Where a run stands, as kept in its row; moments in Unix seconds of Stripe's clock.

    Events from `events_since` to `until` are looked at, and objects created from `created_since` on, or all. `lists`
    are those still to be read. `closing` is what the next run will be told.
    """

    events_since: int
    until: int
    lists: list[str]
    created_since: int | None = None
    closing: dict[str, int] | None = None
    place: listing.Place = field(default_factory=listing.Place)
    livemode: bool | None = None

    @classmethod
    def load(cls, cursor: str) -> State:
        """Read it back."""
        kept = json.loads(cursor)
        return cls(**{**kept, "place": listing.Place(**kept["place"])})

    def dump(self) -> str:
        """Write it down."""
        return json.dumps(asdict(self))


@dataclass(slots=True)
class Reconciler:
    """One run, or a slice of one.

    `work_off` has the events done that were recorded, `save` keeps what has been done so far.
    """

    road: Road
    stripe: StripeApi
    order: Order
    state: State
    counts: Counts
    work_off: Callable[[], object] = lambda: None
    save: Callable[[State], object] = lambda _: None

    def go_on(self, *, seconds: float) -> bool:
        """Take steps for about `seconds`; whether the run is at its end."""
        end = time.monotonic() + seconds
        while self.state.lists:
            self._step(self.state.lists[0])
            self.save(self.state)
            if self.road.stopping.is_set() or time.monotonic() >= end:
                break
        return not self.state.lists

    @property
    def _repairs(self) -> bool:
        return self.order.repairs and not self.road.settings.pause & {"repairs", "processing"}

    def _step(self, name: str) -> None:
        if name == EVENTS:
            self._events()
        elif name == PEOPLE:
            self._people()
            self._next()
        else:
            self._objects(BY_OBJECT_TYPE[name])

    def _next(self) -> None:
        self.state.lists.pop(0)
        self.state.place = listing.Place()

    def _page(self, object_type: str, since: int | None) -> Page:
        """The page of a list behind the place where we are."""
        parameters: dict[str, Any] = {"limit": PAGE}
        if since is not None:
            parameters["created"] = {"gte": since}
        if self.state.place.after is not None:
            parameters["starting_after"] = self.state.place.after
        return next(self.stripe.pages(object_type, **parameters))

    # --- events ---

    def _events(self) -> None:
        state = self.state
        page = self._page(EVENTS, state.events_since)
        with self.road.engine.begin() as connection:
            found = missed.missed(connection, page.objects, until=state.until)
            if self.order.records:
                missed.record(connection, found)
        self._count("missed", len(found))
        self._show("missed", [one["id"] for one in found])
        if page.has_more:
            state.place.after = page.objects[-1]["id"]
        else:
            self.work_off()
            self._next()

    # --- drift ---

    def _objects(self, handler: Handler) -> None:
        place = self.state.place
        if place.is_read:
            self._gone(handler, [place.absent.pop() for _ in range(min(ASKED_AT_ONCE, len(place.absent)))])
        else:
            self._list(handler)
        if place is self.state.place and place.is_read and not place.absent:
            self._compare_money(handler)
            self._next()

    def _list(self, handler: Handler) -> None:
        state, place = self.state, self.state.place
        since = state.created_since
        try:
            page = self._page(handler.object_type, since)
        except NotFoundError:
            # The object that it was to be read on from has been deleted meanwhile.
            state.place = listing.Place()
            return
        except RefusedError:
            # A restricted key may not be allowed to list everything; what it may is compared all the same.
            self.counts.setdefault("refused", []).append(handler.object_type)
            self._next()
            return
        place.began = page.as_of if place.began is None else place.began
        if page.objects and state.livemode is None:
            state.livemode = page.objects[0].get("livemode")
        snapshots, unreadable = listing.told(handler, page.objects, page.as_of)
        with self.road.engine.connect() as connection:
            differing = listing.differing(connection, handler, snapshots, until=state.until)
            stretch = listing.turn_page(place, page.objects, since=since, is_last=not page.has_more)
            if state.livemode is not None:
                place.absent += listing.absent(connection, handler, stretch, livemode=state.livemode)
        listing.add_up(handler, place, snapshots)
        self._count("unreadable", unreadable)
        self._drift(handler, differing)
        place.is_read = not page.has_more
        if place.is_read and len(place.absent) > listing.MANY_ABSENT:
            self._count_drift(handler, "unlisted", len(place.absent))
            self._show("unlisted", place.absent)
            place.absent.clear()

    def _drift(self, handler: Handler, differing: Sequence[tuple[Snapshot, drift.Difference]]) -> None:
        for _, one in differing:
            self._count_drift(handler, "wrong" if one.columns else "missing")
            for column in one.columns:
                self._count_drift(handler, f"wrong.{column}")
        self._show("drift", [one.id for _, one in differing])
        self._repair([one for one, _ in differing])

    def _gone(self, handler: Handler, absent: Sequence[str]) -> None:
        """Ask for what was absent from the whole list; what Stripe says is deleted, is."""
        for object_id in absent:
            try:
                if self.stripe.retrieve(handler.object_type, object_id).object.get("deleted") is not True:
                    continue  # Stripe leaves objects of test clocks out of its lists
            except NotFoundError:
                pass
            self._count_drift(handler, "deleted")
            self._show("drift", [object_id])
            # It was gone when the list was begun.
            self._repair([gone(handler.object_type, object_id, self.state.place.began or 0)])

    def _repair(self, snapshots: Sequence[Snapshot]) -> None:
        if snapshots and self._repairs:
            self.road.take_in(snapshots)
            self._count("repaired", len(snapshots))

    def _compare_money(self, handler: Handler) -> None:
        place, livemode, since = self.state.place, self.state.livemode, self.state.created_since
        if handler.table not in drift.MONEY or livemode is None:
            return
        with self.road.engine.connect() as connection:
            if not ledger.is_idle(connection):
                return  # what is on its way would be counted on one side only
            here = drift.totals(
                connection, handler.table, livemode=livemode,
                since=None if since is None else listing.moment(since), until=listing.moment(place.began or 0),
            )  # fmt: skip
        for currency in sorted(here.keys() | place.money.keys()):
            ours, theirs = here.get(currency, {}), place.money.get(currency, {})
            for column in drift.MONEY[handler.table]:
                pair = [ours.get(column, 0), theirs.get(column, 0)]
                if pair[0] != pair[1]:
                    self.counts.setdefault("money", {})[f"{handler.table}.{column} {currency}"] = pair

    # --- people ---

    def _people(self) -> None:
        with self.road.engine.connect() as connection:
            for name in NEEDS_A_PERSON:
                cases = attention.look(connection, name)
                if cases.n:
                    self.counts.setdefault("people", {})[name] = cases.n
                    self._show(name, cases.ids)

    # --- counting ---

    def _count(self, name: str, n: int) -> None:
        if n:
            self.counts[name] = self.counts.get(name, 0) + n

    def _count_drift(self, handler: Handler, name: str, n: int = 1) -> None:
        of_table = self.counts.setdefault("drift", {}).setdefault(handler.table, {})
        of_table[name] = of_table.get(name, 0) + n

    def _show(self, name: str, ids: Sequence[str]) -> None:
        """Keep the first few by id, for people to look at."""
        if ids:
            shown = self.counts.setdefault("examples", {}).setdefault(name, [])
            shown += list(ids)[: EXAMPLES - len(shown)]
