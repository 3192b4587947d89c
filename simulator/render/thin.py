"""Thin events (v2): they name what changed and leave it out, in no API version (docs.stripe.com/event-destinations)."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from simulator import objects
from simulator.ids import token
from simulator.objects import Event, Thing
from simulator.render import previous_attributes, render

Json = dict[str, Any]

# Where objects of each kind are to be found.
PATHS: Mapping[type[Thing], str] = {
    objects.Product: "products",
    objects.Price: "prices",
    objects.Plan: "plans",
    objects.Customer: "customers",
    objects.Subscription: "subscriptions",
    objects.Invoice: "invoices",
    objects.InvoiceItem: "invoiceitems",
    objects.InvoicePayment: "invoice_payments",
    objects.PaymentIntent: "payment_intents",
    objects.Charge: "charges",
    objects.Refund: "refunds",
    objects.Dispute: "disputes",
    objects.Session: "checkout/sessions",
    objects.WebhookEndpoint: "webhook_endpoints",
    objects.Event: "events",
}


def thin_id(event: Event) -> str:
    """The id of the event's thin twin."""
    return f"evt_{'' if event.livemode else 'test_'}65{token(event.id)}"


def thin_type(event: Event) -> str:
    """The type of the event's thin twin."""
    return f"v1.{event.type}"


def notification(event: Event) -> Json:
    """The event as a thin endpoint receives it."""
    shown = render(event.object)
    id = shown.get("id")
    related = {"id": id, "type": shown["object"], "url": f"/v1/{PATHS[type(event.object)]}/{id}"}
    request = {"id": event.request_id, "idempotency_key": None}
    return {
        "id": thin_id(event),
        "object": "v2.core.event",
        "type": thin_type(event),
        "livemode": event.livemode,
        "created": datetime.fromtimestamp(event.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        "context": None,
        "reason": {"type": "request", "request": request} if event.request_id else None,
        # The preview of an invoice has no id, so there is nothing to find.
        "related_object": related if id else None,
    }


def thin_event(event: Event) -> Json:
    """The event as the API shows it: with what changed, and the id of its snapshot twin."""
    before: Json = {}
    if event.previous is not None:
        before = previous_attributes(render(event.previous), render(event.object))
    shown = render(event.object)
    return {
        **notification(event),
        "changes": {"before": before, "after": {key: shown.get(key) for key in before}} if before else None,
        "snapshot_event": event.id,
    }
