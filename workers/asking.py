"""What is asked of Stripe because something in the ledger wants it: the work of the lane `api`.

Thin events name an object without carrying it (FACTS §1.5). The end of a Checkout names a subscription or payment that
may not have been told of yet. Somebody's access asks for a look at a user. Each is claimed, retried and ended like any
event; what Stripe answers goes down the same road as what it sends.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, text

from models import envelope, ledger, upsert
from workers import snapshots
from workers.handlers import BY_OBJECT_TYPE, HANDLERS
from workers.shapes import Handler, Json, MalformedError, Snapshot
from workers.stripe_api import Answer, InvalidIdError, NotFoundError, RefusedError, StripeApi, StripeAwayError

# Work of our own: objects to be fetched, and a user to be looked up.
FETCH, REFRESH = "dues.fetch", "dues.refresh"
THIN = ("v1.", "v2.")
# Parents of parents of … that may be unknown: item → price → product.
DEPTH = 3
# After so long no further question is asked, so that the lease outlasts the answer to the last one.
SECONDS = 15.0
# Of a customer's invoices and payments so many may have changed unheard of.
RECENT = 10

BY_TABLE = {handler.table: handler for handler in HANDLERS}
# What a Checkout session is the beginning of, named outside foreign keys.
OF_SESSION = (("stripe_subscription_id", "user_subscriptions"), ("payment_intent_id", "payment_history"))
SESSION = BY_OBJECT_TYPE["checkout.session"]
AWAITED = frozenset({"checkout.session.completed", "checkout.session.async_payment_succeeded"})

Named = tuple[str, str]
"""Table and id of an object."""


# --- what wants Stripe ------------------------------------------------------------------------------------------------


def must_ask(event: ledger.Kept) -> bool:
    """Whether an event can't be worked off before Stripe was asked."""
    return event.type in {FETCH, REFRESH} or (event.type.startswith(THIN) and _related(event) is not None)


def _related(event: ledger.Kept) -> tuple[Named, int | None] | None:
    """The object that a thin event is about, and when it told of it; null if Dues knows no objects of that kind."""
    try:
        told = envelope.read(event.payload or b"")
    except envelope.UnreadableError:
        return None
    handler = BY_OBJECT_TYPE.get(told.object_type or "")
    return None if handler is None or told.object_id is None else ((handler.table, told.object_id), told.created)


def ask_for_ends(connection: Connection, read: Iterable[Snapshot]) -> bool:
    """Ask for what Checkouts that ended have begun, as far as it is not known yet; whether there was any."""
    ends = [one for one in read if one.handler is SESSION and one.event_type in AWAITED and one.row is not None]
    unknown = _unknown(connection, {named for one in ends for named in _begun(one)}) if ends else set()
    for one in ends:
        objects = sorted(set(_begun(one)) & unknown)
        if objects:
            payload = json.dumps({"objects": objects}).encode()
            ledger.ask(connection, ledger.fetch_id(one.source), FETCH, payload)
    return bool(unknown)


def _begun(session: Snapshot) -> Iterator[Named]:
    for column, table in OF_SESSION:
        object_id = (session.row or {}).get(column)
        if object_id is not None:
            yield table, object_id


def _unknown(connection: Connection, named: Iterable[Named]) -> set[Named]:
    """Those of `named` that are not mirrored, or only by their id."""
    by_table: dict[str, set[str]] = defaultdict(set)
    for table, object_id in named:
        by_table[table].add(object_id)
    unknown = set()
    for table, ids in by_table.items():
        known = text(f"SELECT id FROM {table} WHERE id = ANY(:ids) AND source <> 'stub'")
        found = {row.id for row in connection.execute(known, {"ids": sorted(ids)})}
        unknown |= {(table, object_id) for object_id in ids - found}
    return unknown


# --- asking -----------------------------------------------------------------------------------------------------------


_PATIENTLY = text(
    "SELECT set_config('idle_in_transaction_session_timeout', '0', true), set_config('lock_timeout', '20s', true)"
)


@contextlib.contextmanager
def alone_with(engine: Engine, event: ledger.Kept) -> Iterator[None]:
    """Let nobody else ask about the same until the answer was written: who asks later must also write later.

    Only then does the last answer of a second win. The lock ends with its transaction, and so with this process.
    """
    related = _related(event)
    name = related[0][1] if related else event.id
    with engine.begin() as connection:
        connection.execute(_PATIENTLY)
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": f"dues {name}"})
        yield


@dataclass(slots=True)
class Question:
    """What one event wants to know, asked of Stripe within SECONDS; the answers are kept as snapshots."""

    stripe: StripeApi
    engine: Engine
    answers: dict[Named, Snapshot] = field(default_factory=dict)
    _end: float = field(default_factory=lambda: time.monotonic() + SECONDS)

    def ask(self, event: ledger.Kept) -> ledger.Ending:
        """Ask; returns how the event ends once the answers were taken down the road.

        Raises MalformedError, StripeApiError.
        """
        try:
            if event.type == REFRESH:
                return self._refresh(_work(event)["user"])
            if event.type == FETCH:
                self._fetch(dict.fromkeys((table, object_id) for table, object_id in _work(event)["objects"]))
            elif event.account is not None:
                return ledger.Ending("ignored", "account", "thin events of connected accounts are not fetched")
            elif related := _related(event):
                self._fetch(dict([related]))
        except InvalidIdError:
            raise MalformedError("it names an object by what is no id") from None
        return ledger.Ending("processed")

    # --- objects ---

    def _fetch(self, wanted: Mapping[Named, int | None]) -> None:
        """Fetch objects, and what they name that is not known, each true as of a moment that is given, at least."""
        for _ in range(DEPTH):
            for named, at_least in wanted.items():
                self._fetch_one(named, at_least)
            fresh = {named for known in wanted if known in self.answers for named in _named_by(self.answers[known])}
            with self.engine.connect() as connection:
                wanted = dict.fromkeys(_unknown(connection, fresh - self.answers.keys()))
            if not wanted:
                break

    def _fetch_one(self, named: Named, at_least: int | None) -> None:
        handler, object_id = BY_TABLE[named[0]], named[1]
        self._check_time()
        try:
            answer = self.stripe.retrieve(handler.object_type, object_id, expand=_EXPANDED.get(handler.object_type, ()))
        except NotFoundError:
            # It was there when the event was made. Of what was only named nothing can be said.
            if at_least is not None:
                self.answers[named] = snapshots.gone(handler.object_type, object_id, at_least)
            return
        # It was told of at that moment, and asked for after that.
        self._keep(Answer(self._whole(handler, answer.object), max(answer.as_of, at_least or 0)))

    def _whole(self, handler: Handler, obj: Json) -> dict[str, Any]:
        """The object with all of the list in it, of which Stripe sends no more than a page."""
        name = _LISTS.get(handler.object_type)
        inner = obj.get(name) if name else None
        if name is None or not isinstance(inner, Mapping) or not inner.get("has_more"):
            return dict(obj)
        whole: list[Json] = []
        for page in self.stripe.children(handler.object_type, str(obj["id"]), name):
            self._check_time()
            whole += page.objects
        return {**obj, name: {**inner, "data": whole, "has_more": False}}

    def _keep(self, answer: Answer) -> None:
        for one in snapshots.from_api(answer.object, answer.as_of):
            self.answers[one.handler.table, one.id] = one

    def _check_time(self) -> None:
        if time.monotonic() > self._end:
            raise StripeAwayError("Stripe takes too long")

    # --- a user ---

    def _refresh(self, user_id: str) -> ledger.Ending:
        """Look up a user's customers, and all that may have changed of theirs.

        It is done for somebody's access: if Stripe does not answer now, the next access asks again.
        """
        try:
            with self.engine.connect() as connection:
                customers = connection.execute(_CUSTOMERS, {"user": user_id}).scalars().all()
            for customer in customers:
                self._fetch({("stripe_customers", customer): None})
                # One that Stripe does not know, as after a key of another mode, says nothing of the user's others.
                with contextlib.suppress(NotFoundError):
                    for object_type, limit in _OF_CUSTOMER.items():
                        self._list(object_type, customer, limit)
        except StripeAwayError:
            return ledger.Ending("ignored", "unreachable", "Stripe did not answer; the next access asks again")
        except RefusedError:
            return ledger.Ending("ignored", "refused", "the API key may not read what a user's state depends on")
        return ledger.Ending("processed")

    def _list(self, object_type: str, customer: str, limit: int) -> None:
        handler = BY_OBJECT_TYPE[object_type]
        expand = {"expand": ["data.payments"]} if object_type == "invoice" else {}
        for page in self.stripe.pages(object_type, customer=customer, limit=limit, **expand):
            self._check_time()
            for obj in page.objects:
                self._keep(Answer(self._whole(handler, obj), page.as_of))
                for payment in (obj.get("payments") or {}).get("data", ()):
                    self._keep(Answer(payment, page.as_of))
            if object_type != "subscription":
                break  # the recent ones
        fresh = {named for one in self.answers.values() for named in _named_by(one)}
        with self.engine.connect() as connection:
            unknown = _unknown(connection, fresh - self.answers.keys())
        self._fetch(dict.fromkeys(unknown))


_EXPANDED = {"checkout.session": ("line_items",)}
_LISTS = {"invoice": "lines", "checkout.session": "line_items"}
# In an order in which the later ones name the former; how many of the newest of each.
_OF_CUSTOMER = {"subscription": 100, "invoice": RECENT, "payment_intent": RECENT, "charge": RECENT}

_CUSTOMERS = text(
    """
    SELECT id FROM stripe_customers WHERE user_id = :user
    UNION SELECT a.id FROM stripe_customers p JOIN stripe_customers a ON a.alias_of = p.id WHERE p.user_id = :user
    ORDER BY id
    """,
)


def _named_by(one: Snapshot) -> Iterator[Named]:
    """The objects that one names and that are asked about when its owner is decided."""
    row = one.row or {}
    for column, table in upsert.parents_of(one.handler.table):
        if row.get(column) is not None:
            yield table, row[column]
    if one.row is not None:
        yield from one.handler.names(row)
    if one.handler is SESSION:
        yield from _begun(one)


def _work(event: ledger.Kept) -> Any:
    return json.loads(event.payload or b"{}")
