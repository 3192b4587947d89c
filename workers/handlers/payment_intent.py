"""PaymentIntents: one row of a user's payment history each. A failed attempt is no status but a last error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from workers.shapes import (
    Handler,
    Json,
    id_of,
    int_of,
    invoice_payment_of,
    metadata_of,
    object_of,
    text_of,
    time_of,
    types,
)

PROGRESS = {"requires_capture": 1, "succeeded": 2, "canceled": 2}


def read(intent: Json) -> dict[str, Any]:
    """PaymentIntent → columns of `payment_history`."""
    error = object_of(intent, "last_payment_error")
    return {
        "created": time_of(intent, "created"),
        "stripe_customer_id": id_of(intent, "customer"),
        "amount": int_of(intent, "amount"),
        "amount_received": int_of(intent, "amount_received"),
        "currency": text_of(intent, "currency"),
        "status": text_of(intent, "status"),
        "description": text_of(intent, "description"),
        "failure_code": text_of(error, "code"),
        "failure_message": text_of(error, "message"),
        "metadata": metadata_of(intent),
    }


def progress(intent: Json) -> tuple[int, ...]:
    """Anything before < captured or canceled; `processing` may go back to asking for another card."""
    return (PROGRESS.get(text_of(intent, "status") or "", 0), int_of(intent, "amount_received") or 0)


def payments(intent: Json) -> Iterator[Json]:
    """The invoice that a PaymentIntent of old API versions names."""
    yield from invoice_payment_of(
        intent,
        invoice=id_of(intent, "invoice"),
        payment_intent=id_of(intent, "id"),
        charge=None,
        is_paid=text_of(intent, "status") == "succeeded",
        amount=int_of(intent, "amount_received"),
    )


HANDLER = Handler(
    object_type="payment_intent",
    table="payment_history",
    events=types(
        "payment_intent",
        "amount_capturable_updated",
        "canceled",
        "created",
        "partially_funded",
        "payment_failed",
        "processing",
        "requires_action",
        "succeeded",
    ),
    read=read,
    progress=progress,
    customer_column="stripe_customer_id",
    also=payments,
    concerns=(("id", "payment_intent"),),
)
