"""Everything that Stripe has, list after list, page by page: for a new installation, or after a long silence.

It goes the road of events, so it is safe while webhooks arrive, and continues behind its last page whoever was killed.
What can wait leaves half of the budget to what a person waits for (`budget.py`).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Engine, text

from models import sync_runs
from workers import mirroring
from workers.mirroring import EXPANDED, Mirroring
from workers.process import Road
from workers.stripe_api import Page, StripeApi, StripeApiError, StripeAwayError

KIND = "backfill"
# Parents first, so that few stubs are needed.
LISTS = (
    "product",
    "price",
    "customer",
    "subscription",
    "invoice",
    "invoice_payment",
    "payment_intent",
    "charge",
    "refund",
    "dispute",
    "checkout.session",
)
OF_CUSTOMER = ("subscription", "invoice", "payment_intent", "charge", "checkout.session")


def request(engine: Engine) -> sync_runs.Run:
    """The backfill that is under way, or a new one, for a worker to go on with."""
    with engine.begin() as connection:
        run = sync_runs.running(connection, KIND) or sync_runs.begin(connection, KIND)
        if run is None:
            raise RuntimeError("nothing was begun though nothing was under way")
        return run


def go_on(
    road: Road,
    stripe: StripeApi,
    stopping: threading.Event,
    *,
    seconds: float = 10.0,
    tell: Callable[[Mirroring], object] = lambda _: None,
) -> sync_runs.Run | None:
    """Make the next slice of the backfill under way; None if there is none, or somebody else is at it.

    `tell` hears of every page. Raises StripeApiError; of these StripeAwayError leaves the run to be continued.
    """
    with sync_runs.turn(road.engine, KIND) as is_ours:
        if not is_ours or road.is_paused:
            return None
        with road.engine.connect() as connection:
            run = sync_runs.running(connection, KIND)
        if run is None:
            return None
        work = Mirroring.of(road, stripe, run, LISTS)
        work.tell = lambda: tell(work)
        try:
            work.go_on(stopping, seconds=seconds)
        except StripeAwayError:
            raise
        except StripeApiError as error:
            work.end(str(error))
            raise
        return run


def progress(run: sync_runs.Run) -> float:
    """How much of a run is done, from 0 to 1.

    Stripe does not say how long a list is; but it comes newest first, and the oldest object seen is a guess at its end.
    """
    place = mirroring.place_of(run, LISTS)
    whole = len(LISTS)
    done = whole - len(place.lists)
    if place.began is None or place.reached is None or place.oldest is None:
        return done / whole
    within = (place.began - place.reached) / max(1, place.began - place.oldest)
    return (done + min(1.0, max(0.0, within))) / whole


def customer(road: Road, stripe: StripeApi, customer_id: str) -> Counter[str]:
    """Bring a customer and all of theirs in step with Stripe; how many objects of which kind. Raises StripeApiError."""
    counts: Counter[str] = Counter()
    answer = stripe.retrieve("customer", customer_id)
    for page in (Page([answer.object], answer.as_of, has_more=False), *_of_customer(stripe, customer_id)):
        told, unreadable = mirroring.read(page)
        road.take_in(told)
        counts.update(one["object"] for one in page.objects)
        counts.update(unreadable=unreadable)
    return +counts


def _of_customer(stripe: StripeApi, customer_id: str) -> Iterator[Page]:
    for object_type in OF_CUSTOMER:
        expand = {"invoice": ("data.payments",), **EXPANDED}.get(object_type)
        for page in stripe.pages(object_type, customer=customer_id, **({"expand": list(expand)} if expand else {})):
            yield page
            for one in page.objects:
                yield from _told_along(stripe, page, one)


def _told_along(stripe: StripeApi, page: Page, one: Mapping[str, Any]) -> Iterator[Page]:
    """What belongs to an object of a customer's, but does not name the customer."""
    payments = (one.get("payments") or {}).get("data", ())
    if payments:
        yield replace(page, objects=list(payments))
    if one.get("amount_refunded"):
        yield from stripe.pages("refund", charge=one["id"])
    if one.get("disputed"):
        yield from stripe.pages("dispute", charge=one["id"])


_CUSTOMERS = text(
    """
    SELECT c.id FROM stripe_customers c LEFT JOIN stripe_customers p ON p.id = c.alias_of
    WHERE :user IN (c.user_id, p.user_id) AND c.deleted_at IS NULL ORDER BY c.id
    """,
)


def customers_of(engine: Engine, user_id: str) -> list[str]:
    """The customers that are a user's."""
    with engine.connect() as connection:
        return list(connection.execute(_CUSTOMERS, {"user": user_id}).scalars())
