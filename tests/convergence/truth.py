"""What the simulated Stripe knows, in the columns of CONTRACT §4: the truth that no handler of ours has touched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from simulator import objects
from simulator.objects import Event

Values = dict[str, Any]

FIGURES: Final = ("tokens", "trial_tokens", "tokens_policy", "tokens_days")


def last_words(events: Iterable[Event]) -> dict[str, Event]:
    """What Stripe last told of each object, by id; `events` are in their true order. A preview is no object."""
    return {event.object.id: event for event in events if event.type != "invoice.upcoming"}


def is_gone(event: Event) -> bool:
    """Whether the event tells that its object is no more; a subscription that ends is still there."""
    return event.type.endswith(".deleted") and event.type != "customer.subscription.deleted"


def figures(events: Iterable[Event]) -> dict[str, Values]:
    """What products and prices said about tokens, by object and second; `events` are in their true order."""
    return {
        f"{event.object.id} {_at(event.created)}": {
            "metadata": {key: event.object.metadata[key] for key in FIGURES if key in event.object.metadata}
        }
        for event in events
        if isinstance(event.object, objects.Product | objects.Price)
    }


def truth(thing: objects.Thing) -> tuple[str, Values] | None:
    """The table of an object and what must stand in its row; None for what Dues keeps no table of."""
    found = _TABLES.get(type(thing))
    if found is None:
        return None
    table, read = found
    return table, {"created": _at(thing.created), **read(thing)}


def _at(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _product(one: objects.Product) -> Values:
    return {
        "name": one.name,
        "description": one.description,
        "active": one.active,
        "default_price_id": one.default_price,
        "metadata": dict(one.metadata),
    }


def _price(one: objects.Price) -> Values:
    return {
        "stripe_product_id": one.product,
        "active": one.active,
        "currency": one.currency,
        "type": "recurring" if one.interval else "one_time",
        "unit_amount": one.unit_amount,
        "recurring_interval": one.interval,
        "recurring_interval_count": one.interval_count if one.interval else None,
        "nickname": one.nickname,
        "lookup_key": one.lookup_key,
        "metadata": dict(one.metadata),
    }


def _customer(one: objects.Customer) -> Values:
    return {"email": one.email, "name": one.name, "metadata": dict(one.metadata)}


def _subscription(one: objects.Subscription) -> Values:
    return {
        "stripe_customer_id": one.customer,
        "status": one.status,
        "current_period_end": _at(max(item.current_period_end for item in one.items)),
        "cancel_at_period_end": one.cancel_at_period_end,
        "cancel_at": _at(one.cancel_at),
        "canceled_at": _at(one.canceled_at),
        "ended_at": _at(one.ended_at),
        "trial_start": _at(one.trial_start),
        "trial_end": _at(one.trial_end),
        "latest_invoice_id": one.latest_invoice,
        "metadata": dict(one.metadata),
    }


def _invoice(one: objects.Invoice) -> Values:
    return {
        "stripe_customer_id": one.customer,
        "stripe_subscription_id": one.subscription,
        "status": one.status,
        "billing_reason": one.billing_reason,
        "number": one.number,
        "currency": one.currency,
        "amount_due": one.amount_due,
        "amount_paid": one.amount_paid,
        "total": one.total,
        "starting_balance": one.starting_balance,
        "ending_balance": one.ending_balance,
        "attempt_count": one.attempt_count,
        "period_start": _at(one.period_start),
        "period_end": _at(one.period_end),
        "finalized_at": _at(one.finalized_at),
        "paid_at": _at(one.paid_at),
        "lines_complete": True,
    }


def _invoice_payment(one: objects.InvoicePayment) -> Values:
    return {
        "stripe_invoice_id": one.invoice,
        "payment_intent_id": one.payment_intent,
        "status": one.status,
        "amount_paid": one.amount_paid,
        "currency": one.currency,
    }


def _payment_intent(one: objects.PaymentIntent) -> Values:
    return {
        "stripe_customer_id": one.customer,
        "amount": one.amount,
        "amount_received": one.amount_received,
        "currency": one.currency,
        "status": one.status,
        "description": one.description,
        "metadata": dict(one.metadata),
    }


def _charge(one: objects.Charge) -> Values:
    return {
        "payment_intent_id": one.payment_intent,
        "stripe_customer_id": one.customer,
        "status": one.status,
        "amount": one.amount,
        "amount_refunded": one.amount_refunded,
        "refunded": one.amount_refunded == one.amount and one.status == "succeeded",
        "currency": one.currency,
        "disputed": one.disputed,
    }


def _taken(one: objects.Refund | objects.Dispute) -> Values:
    return {
        "charge_id": one.charge,
        "payment_intent_id": one.payment_intent,
        "amount": one.amount,
        "currency": one.currency,
        "status": one.status,
        "reason": one.reason,
    }


def _session(one: objects.Session) -> Values:
    return {
        "mode": one.mode,
        "status": one.status,
        "payment_status": one.payment_status,
        "client_reference_id": one.client_reference_id,
        "payment_link": one.payment_link,
        "stripe_customer_id": one.customer,
        "stripe_subscription_id": one.subscription,
        "payment_intent_id": one.payment_intent,
        "stripe_invoice_id": one.invoice,
        "amount_total": one.amount_total,
        "currency": one.currency,
        "metadata": dict(one.metadata),
    }


_TABLES: Final[Mapping[type[objects.Thing], tuple[str, Callable[[Any], Values]]]] = {
    objects.Product: ("stripe_products", _product),
    objects.Price: ("stripe_prices", _price),
    objects.Customer: ("stripe_customers", _customer),
    objects.Subscription: ("user_subscriptions", _subscription),
    objects.Invoice: ("stripe_invoices", _invoice),
    objects.InvoicePayment: ("stripe_invoice_payments", _invoice_payment),
    objects.PaymentIntent: ("payment_history", _payment_intent),
    objects.Charge: ("stripe_charges", _charge),
    objects.Refund: ("stripe_refunds", _taken),
    objects.Dispute: ("stripe_disputes", _taken),
    objects.Session: ("stripe_checkout_sessions", _session),
}
