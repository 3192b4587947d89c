"""What the API has: each kind of object with its name and the parameters by which its list is filtered."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from simulator import objects
from simulator.api import parameters
from simulator.api.errors import invalid
from simulator.render.thin import PATHS

Predicate = Callable[[Any], bool]
# Makes of a parameter's value and name what its objects must fulfil.
Filter = Callable[[Any, str], Predicate]


def equal(field: str) -> Filter:
    """The objects whose `field` has this text."""

    def made(value: Any, name: str) -> Predicate:
        wanted = parameters.text(value, name)
        return lambda thing: bool(getattr(thing, field) == wanted)

    return made


def listed(field: str) -> Filter:
    """The objects whose `field` is one of these texts."""

    def made(value: Any, name: str) -> Predicate:
        wanted = parameters.texts(value, name)
        return lambda thing: getattr(thing, field) in wanted

    return made


def true(field: str) -> Filter:
    """The objects whose `field` is so."""

    def made(value: Any, name: str) -> Predicate:
        wanted = parameters.boolean(value, name)
        return lambda thing: bool(getattr(thing, field) is wanted)

    return made


def within(moment: Callable[[Any], int]) -> Filter:
    """The objects whose moment lies within the bounds."""

    def made(value: Any, name: str) -> Predicate:
        first, last = parameters.span(value, name)
        return lambda thing: first <= moment(thing) <= last

    return made


def nested(filters: Mapping[str, Filter]) -> Filter:
    """The objects that fulfil filters of their own under one name, as `payment[type]`."""

    def made(value: Any, name: str) -> Predicate:
        if not isinstance(value, dict):
            raise invalid("Invalid object", name)
        parameters.known(value, filters)
        predicates = [filters[key](inner, f"{name}[{key}]") for key, inner in value.items()]
        return lambda thing: all(predicate(thing) for predicate in predicates)

    return made


def _type_of_price(value: Any, name: str) -> Predicate:
    wanted = parameters.text(value, name)
    return lambda price: ("recurring" if price.interval else "one_time") == wanted


def _with_price(value: Any, name: str) -> Predicate:
    wanted = parameters.text(value, name)
    return lambda subscription: any(item.price.id == wanted for item in subscription.items)


ENDED = ("canceled", "incomplete_expired")


def _status_of_subscription(value: Any, name: str) -> Predicate:
    wanted = parameters.text(value, name)
    if wanted == "all":
        return lambda _: True
    return lambda subscription: subscription.status in (ENDED if wanted == "ended" else (wanted,))


def _payment_type(value: Any, name: str) -> Predicate:
    wanted = parameters.text(value, name)
    return lambda _: wanted == "payment_intent"


def _types(value: Any, name: str) -> Predicate:
    wanted = parameters.texts(value, name)
    if len(wanted) > 20:
        raise invalid("You may give up to 20 types", name)
    return lambda event: event.type in wanted


def _type(value: Any, name: str) -> Predicate:
    wanted = parameters.text(value, name)
    if wanted.endswith("*"):
        return lambda event: bool(event.type.startswith(wanted[:-1]))
    return lambda event: bool(event.type == wanted)


def _anything(_: Any) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One kind of object under /v1. `unless_asked` is what a list leaves out when a parameter does not ask for it."""

    name: str
    kind: type[objects.Thing]
    filters: Mapping[str, Filter]
    is_listed: Predicate = _anything
    unless_asked: tuple[str, Predicate] | None = None

    @property
    def path(self) -> str:
        """Where it is under /v1."""
        return PATHS[self.kind]


CREATED = {"created": within(lambda thing: thing.created)}

RESOURCES = (
    Resource(
        name="product",
        kind=objects.Product,
        filters={**CREATED, "active": true("active"), "ids": listed("id")},
    ),
    Resource(
        name="price",
        kind=objects.Price,
        filters={
            **CREATED,
            "active": true("active"),
            "currency": equal("currency"),
            "lookup_keys": listed("lookup_key"),
            "product": equal("product"),
            "type": _type_of_price,
        },
    ),
    Resource(
        name="customer",
        kind=objects.Customer,
        filters={**CREATED, "email": equal("email")},
        is_listed=lambda customer: not customer.deleted,
    ),
    Resource(
        name="subscription",
        kind=objects.Subscription,
        filters={
            **CREATED,
            "current_period_end": within(lambda s: min(item.current_period_end for item in s.items)),
            "current_period_start": within(lambda s: min(item.current_period_start for item in s.items)),
            "customer": equal("customer"),
            "price": _with_price,
            "status": _status_of_subscription,
        },
        unless_asked=("status", lambda subscription: subscription.status != "canceled"),
    ),
    Resource(
        name="invoice",
        kind=objects.Invoice,
        filters={
            **CREATED,
            "customer": equal("customer"),
            "status": equal("status"),
            "subscription": equal("subscription"),
        },
    ),
    Resource(
        name="invoice payment",
        kind=objects.InvoicePayment,
        filters={
            **CREATED,
            "invoice": equal("invoice"),
            "payment": nested({"type": _payment_type, "payment_intent": equal("payment_intent")}),
            "status": equal("status"),
        },
    ),
    Resource(
        name="payment_intent",
        kind=objects.PaymentIntent,
        filters={**CREATED, "customer": equal("customer")},
    ),
    Resource(
        name="charge",
        kind=objects.Charge,
        filters={**CREATED, "customer": equal("customer"), "payment_intent": equal("payment_intent")},
    ),
    Resource(
        name="refund",
        kind=objects.Refund,
        filters={**CREATED, "charge": equal("charge"), "payment_intent": equal("payment_intent")},
    ),
    Resource(
        name="dispute",
        kind=objects.Dispute,
        filters={**CREATED, "charge": equal("charge"), "payment_intent": equal("payment_intent")},
    ),
    Resource(
        name="checkout.session",
        kind=objects.Session,
        filters={
            **CREATED,
            "customer": equal("customer"),
            "customer_details": nested({"email": equal("paid_by_email")}),
            "payment_intent": equal("payment_intent"),
            "payment_link": equal("payment_link"),
            "status": equal("status"),
            "subscription": equal("subscription"),
        },
    ),
    Resource(
        name="webhook endpoint",
        kind=objects.WebhookEndpoint,
        filters={},
        is_listed=lambda endpoint: endpoint.payload == "snapshot",
    ),
    Resource(
        name="event",
        kind=objects.Event,
        filters={**CREATED, "type": _type, "types": _types},
    ),
)

BY_PATH = {resource.path: resource for resource in RESOURCES}
