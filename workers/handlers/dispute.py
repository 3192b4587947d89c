"""Disputes: money claimed back by the cardholder's bank. They name no customer; the charge and PaymentIntent do."""

from __future__ import annotations

from typing import Any

from workers.shapes import Handler, Json, id_of, int_of, text_of, time_of, types

# A lost dispute may be appealed since 2026-10-28, so nothing after the evidence has an order of its own.
PROGRESS = {"warning_needs_response": 0, "warning_under_review": 1, "needs_response": 2, "under_review": 3}


def read(dispute: Json) -> dict[str, Any]:
    """Dispute → columns of `stripe_disputes`."""
    return {
        "created": time_of(dispute, "created"),
        "charge_id": id_of(dispute, "charge"),
        "payment_intent_id": id_of(dispute, "payment_intent"),
        "amount": int_of(dispute, "amount"),
        "currency": text_of(dispute, "currency"),
        "status": text_of(dispute, "status"),
        "reason": text_of(dispute, "reason"),
    }


def progress(dispute: Json) -> tuple[int, ...]:
    """An inquiry, its evidence, a chargeback, its evidence, and what the bank said."""
    return (PROGRESS.get(text_of(dispute, "status") or "", 4),)


HANDLER = Handler(
    object_type="dispute",
    table="stripe_disputes",
    events=types("charge.dispute", "closed", "created", "funds_reinstated", "funds_withdrawn", "updated"),
    read=read,
    progress=progress,
    concerns=(("charge_id", "charge"), ("payment_intent_id", "payment_intent")),
)
