"""What every part of the simulated Stripe stands on: the objects by id, the clock, and the events so far."""

import heapq
import threading
from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import wraps
from itertools import count
from random import Random
from typing import Any, TypeVar, cast

from simulator.ids import Ids
from simulator.objects import (
    Charge,
    Customer,
    Dispute,
    Event,
    Invoice,
    InvoicePayment,
    PaymentIntent,
    Price,
    Product,
    Refund,
    Session,
    Subscription,
    Thing,
    WebhookEndpoint,
)
from simulator.versions import ENDIVE

T = TypeVar("T", bound=Thing)
F = TypeVar("F", bound=Callable[..., Any])

Timer = tuple[int, Callable[[Any], object]]

# Where a thing stands among its kind: created (Unix seconds), its turn within that second, id.
Place = tuple[int, int, str]


class InvalidRequestError(ValueError):
    """Stripe would have refused this call."""


def at_once(method: F) -> F:
    """Nobody who holds the lock, as the API does while it answers, sees the state in the middle of this."""

    @wraps(method)
    def call(self: "World", *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            return method(self, *args, **kwargs)

    return cast("F", call)


def api_call(method: F) -> F:
    """Events made by the call, which happens at once, carry its request id; those of the billing engine carry none."""

    @at_once
    @wraps(method)
    def call(self: "World", *args: Any, **kwargs: Any) -> Any:
        outer = self.request_id
        self.request_id = outer or self.new_id("req_")
        try:
            return method(self, *args, **kwargs)
        finally:
            self.request_id = outer

    return cast("F", call)


def merged(metadata: Mapping[str, str], changes: Mapping[str, str] | None) -> dict[str, str]:
    """Metadata after an update: keys are added and replaced, an empty value removes its key."""
    return {key: value for key, value in {**metadata, **(changes or {})}.items() if value}


class World:
    """Objects, clock and events; the layers above say what Stripe does with them.

    Equal calls on equal seeds make equal events, ids included. With `burst` all events of one call share a second,
    as at Stripe; without it every event has a second of its own. `api_version` is the account's default, which its
    events keep. Whoever reads more than one thing while others write holds `lock`.
    """

    api_version = ENDIVE
    # The share of changes that are told by two different events, as Stripe sometimes does.
    twins = 0.0

    def __init__(self, seed: int | str, clock: int, *, livemode: bool = False, burst: bool = True) -> None:
        self.now = clock
        self.livemode = livemode
        self.burst = burst
        self.request_id: str | None = None
        self.lock = threading.RLock()
        self.events: list[Event] = []
        self.products: dict[str, Product] = {}
        self.prices: dict[str, Price] = {}
        self.customers: dict[str, Customer] = {}
        self.subscriptions: dict[str, Subscription] = {}
        self.invoices: dict[str, Invoice] = {}
        self.invoice_payments: dict[str, InvoicePayment] = {}
        self.payment_intents: dict[str, PaymentIntent] = {}
        self.charges: dict[str, Charge] = {}
        self.refunds: dict[str, Refund] = {}
        self.disputes: dict[str, Dispute] = {}
        self.sessions: dict[str, Session] = {}
        self.webhook_endpoints: dict[str, WebhookEndpoint] = {}
        self._shelves: dict[type[Thing], dict[str, Any]] = {
            Product: self.products,
            Price: self.prices,
            Customer: self.customers,
            Subscription: self.subscriptions,
            Invoice: self.invoices,
            InvoicePayment: self.invoice_payments,
            PaymentIntent: self.payment_intents,
            Charge: self.charges,
            Refund: self.refunds,
            Dispute: self.disputes,
            Session: self.sessions,
            WebhookEndpoint: self.webhook_endpoints,
            Event: {},
        }
        self._deleted: dict[tuple[type[Thing], str], Thing] = {}
        self._order: dict[type[Thing], list[Place]] = defaultdict(list)
        self._places: dict[tuple[type[Thing], str], Place] = {}
        self._timers: dict[type[Thing], Callable[[Any], Iterable[Timer]]] = {}
        self._agenda: list[tuple[int, int, str]] = []
        self._timed: dict[str, Thing] = {}
        self._turn = count()
        self._ids = Ids(seed)
        self._chance = Random(f"twins {seed}")

    def new_id(self, prefix: str) -> str:
        """A fresh id with this prefix."""
        return self._ids.new(prefix)

    def find(self, kind: type[T], id: str) -> T | None:
        """The thing of this kind with this id, as it is now, if there is one."""
        return self._shelves[kind].get(id)

    def find_deleted(self, kind: type[T], id: str) -> T | None:
        """What this thing was when it was deleted, if it was."""
        return cast("T | None", self._deleted.get((kind, id)))

    def place_of(self, kind: type[Thing], id: str) -> Place | None:
        """Where the thing stands, or stood, in `order_of` its kind."""
        return self._places.get((kind, id))

    def order_of(self, kind: type[Thing]) -> list[Place]:
        """The places of all things that there ever were of this kind, oldest first; the list is not yours."""
        return self._order[kind]

    @at_once
    def advance(self, to: int) -> list[Event]:
        """Let the clock run to `to` (Unix seconds), doing all that falls due in between; the events of that time."""
        if to < self.now:
            raise ValueError(f"the clock shows {self.now} and cannot go back to {to}")
        before = len(self.events)
        while self._agenda and self._agenda[0][0] <= to:
            at, _, id = heapq.heappop(self._agenda)
            thing = self._timed[id]
            timer = self._next_timer(thing)
            # Every change of a thing notes its new time; what remains of the old ones is passed over here.
            if timer is not None and timer[0] == at:
                self.now = max(self.now, at)
                timer[1](thing)
        self.now = max(self.now, to)
        return self.events[before:]

    def _next_timer(self, thing: Thing) -> Timer | None:
        return min(self._timers[type(thing)](thing), key=lambda timer: timer[0], default=None)

    def _put(self, thing: T) -> T:
        kind, shelf = type(thing), self._shelves[type(thing)]
        if thing.id not in shelf:
            place = self._places[kind, thing.id] = (thing.created, next(self._turn), thing.id)
            insort(self._order[kind], place)
        shelf[thing.id] = thing
        if type(thing) in self._timers:
            self._timed[thing.id] = thing
            timer = self._next_timer(thing)
            if timer is not None:
                heapq.heappush(self._agenda, (timer[0], next(self._turn), thing.id))
        return thing

    def _remove(self, thing: T) -> T:
        """Take a thing away; it is remembered as deleted."""
        self._deleted[type(thing), thing.id] = thing
        return cast("T", self._shelves[type(thing)].pop(thing.id))

    def _emit(self, type: str, thing: Thing, previous: Thing | None = None) -> None:
        event = Event(
            id=self.new_id("evt_1"),
            type=type,
            created=self.now,
            livemode=self.livemode,
            object=thing,
            previous=previous if type.endswith(".updated") else None,
            request_id=self.request_id,
            api_version=self.api_version,
        )
        self._record(event)
        if self._chance.random() < self.twins:
            self._record(replace(event, id=self.new_id("evt_1")))
        if not self.burst:
            self.now += 1

    def _record(self, event: Event) -> None:
        self.events.append(self._put(event))

    def _create(self, thing: T, *event_types: str) -> T:
        self._put(thing)
        for type in event_types:
            self._emit(type, thing)
        return thing

    def _change(self, thing: T, *event_types: str, **changes: Any) -> T:
        """Store the changed thing and tell so; nothing is told where nothing changed."""
        changed = replace(thing, **changes)
        if changed != thing:
            self._put(changed)
            for type in event_types:
                self._emit(type, changed, thing)
        return changed
