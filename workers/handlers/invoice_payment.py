"""Invoice payments: since 2025-03-31 the only word on which payment paid which invoice.

Before that invoices, charges and PaymentIntents named each other; what they say is kept in the same table (see
`invoice_payment_of` in `workers/shapes.py`), so that nobody who asks needs to know which version spoke.
"""

from __future__ import annotations

from typing import Any

from workers.shapes import Handler, Json, id_of, int_of, object_of, text_of, time_of, types


def read(payment: Json) -> dict[str, Any]:
    """Invoice payment → columns of `stripe_invoice_payments`."""
    paid_by = object_of(payment, "payment")
    return {
        "created": time_of(payment, "created"),
        "stripe_invoice_id": id_of(payment, "invoice"),
        "payment_intent_id": id_of(paid_by, "payment_intent"),
        "charge_id": id_of(paid_by, "charge"),
        "status": text_of(payment, "status"),
        "amount_paid": int_of(payment, "amount_paid"),
        "currency": text_of(payment, "currency"),
    }


def progress(payment: Json) -> tuple[int, ...]:
    """Open < paid or canceled."""
    return (int(text_of(payment, "status") in {"paid", "canceled"}),)


HANDLER = Handler(
    object_type="invoice_payment",
    table="stripe_invoice_payments",
    events=types("invoice_payment", "paid"),
    read=read,
    progress=progress,
    concerns=(("stripe_invoice_id", "invoice"), ("payment_intent_id", "payment_intent"), ("charge_id", "charge")),
)
