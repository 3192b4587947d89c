"""Checkout Sessions: who came to buy, and (unless a Payment Link let the buyer write it) which user that is."""

from __future__ import annotations

from typing import Any

from workers.shapes import (
    USER_KEYS,
    Handler,
    Json,
    flag_of,
    id_of,
    int_of,
    list_of,
    metadata_of,
    object_of,
    text_of,
    time_of,
    types,
)


def read(session: Json) -> dict[str, Any]:
    """Checkout Session → columns of `stripe_checkout_sessions`; webhooks never carry line items."""
    items = object_of(session, "line_items")
    return {
        "created": time_of(session, "created"),
        "mode": text_of(session, "mode"),
        "status": text_of(session, "status"),
        "payment_status": text_of(session, "payment_status"),
        "client_reference_id": text_of(session, "client_reference_id"),
        "payment_link": id_of(session, "payment_link"),
        "stripe_customer_id": id_of(session, "customer"),
        "stripe_subscription_id": id_of(session, "subscription"),
        "payment_intent_id": id_of(session, "payment_intent"),
        "stripe_invoice_id": id_of(session, "invoice"),
        "amount_total": int_of(session, "amount_total"),
        "currency": text_of(session, "currency"),
        "email": text_of(object_of(session, "customer_details"), "email") or text_of(session, "customer_email"),
        "line_items": None
        if not items or flag_of(items, "has_more")
        else [_line(line) for line in list_of(items, "data")],
        "metadata": metadata_of(session),
    }


def _line(line: Json) -> dict[str, Any]:
    return {"price": id_of(line, "price"), "quantity": int_of(line, "quantity")}


def progress(session: Json) -> tuple[int, ...]:
    """Open < expired or complete; unpaid < paid or free."""
    return (
        int(text_of(session, "status") in {"complete", "expired"}),
        int(text_of(session, "payment_status") in {"paid", "no_payment_required"}),
    )


HANDLER = Handler(
    object_type="checkout.session",
    table="stripe_checkout_sessions",
    events=types("checkout.session", "completed", "async_payment_succeeded", "async_payment_failed", "expired"),
    read=read,
    progress=progress,
    watched=(
        *USER_KEYS,
        "t.client_reference_id",
        "t.payment_link",
        "lower(t.email)",
        "t.stripe_customer_id",
        "t.created",
    ),
    customer_column="stripe_customer_id",
    concerns=(("payment_intent_id", "payment_intent"), ("stripe_invoice_id", "invoice")),
    is_evidence=True,
)
