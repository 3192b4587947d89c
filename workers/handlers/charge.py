"""Charges: attempts to take money, and how much of it went back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from workers.shapes import Handler, Json, flag_of, id_of, int_of, invoice_payment_of, text_of, time_of, types


def read(charge: Json) -> dict[str, Any]:
    """Charge → columns of `stripe_charges`."""
    return {
        "created": time_of(charge, "created"),
        "payment_intent_id": id_of(charge, "payment_intent"),
        "stripe_customer_id": id_of(charge, "customer"),
        "status": text_of(charge, "status"),
        "amount": int_of(charge, "amount"),
        "amount_captured": int_of(charge, "amount_captured"),
        "amount_refunded": int_of(charge, "amount_refunded"),
        "currency": text_of(charge, "currency"),
        "refunded": flag_of(charge, "refunded"),
        "disputed": flag_of(charge, "disputed"),
        "failure_code": text_of(charge, "failure_code"),
        "failure_message": text_of(charge, "failure_message"),
        "receipt_url": text_of(charge, "receipt_url"),
    }


def progress(charge: Json) -> tuple[int, ...]:
    """Pending < succeeded or failed; captured, refunded and disputed only grow within a second."""
    return (
        int(text_of(charge, "status") in {"succeeded", "failed"}),
        int_of(charge, "amount_captured") or 0,
        int_of(charge, "amount_refunded") or 0,
        int(flag_of(charge, "disputed") or False),
    )


def payments(charge: Json) -> Iterator[Json]:
    """The invoice that a charge of old API versions names."""
    yield from invoice_payment_of(
        charge,
        invoice=id_of(charge, "invoice"),
        payment_intent=id_of(charge, "payment_intent"),
        charge=id_of(charge, "id"),
        is_paid=text_of(charge, "status") == "succeeded",
        amount=int_of(charge, "amount_captured"),
    )


HANDLER = Handler(
    object_type="charge",
    table="stripe_charges",
    events=types("charge", "captured", "expired", "failed", "pending", "refunded", "succeeded", "updated"),
    read=read,
    progress=progress,
    customer_column="stripe_customer_id",
    also=payments,
    concerns=(("id", "charge"), ("payment_intent_id", "payment_intent")),
)
