"""Refunds: money given back; one that fails gives it back to the merchant again, days later."""

from __future__ import annotations

from typing import Any

from workers.shapes import Handler, Json, id_of, int_of, text_of, time_of, types

PROGRESS = {"requires_action": 1, "succeeded": 2, "failed": 3, "canceled": 3}


def read(refund: Json) -> dict[str, Any]:
    """Refund → columns of `stripe_refunds`."""
    return {
        "created": time_of(refund, "created"),
        "charge_id": id_of(refund, "charge"),
        "payment_intent_id": id_of(refund, "payment_intent"),
        "amount": int_of(refund, "amount"),
        "currency": text_of(refund, "currency"),
        "status": text_of(refund, "status"),
        "reason": text_of(refund, "reason"),
    }


def progress(refund: Json) -> tuple[int, ...]:
    """Pending < succeeded < failed: money can come back after it went."""
    return (PROGRESS.get(text_of(refund, "status") or "", 0),)


HANDLER = Handler(
    object_type="refund",
    table="stripe_refunds",
    events=types("refund", "created", "failed", "updated") | types("charge.refund", "updated"),
    read=read,
    progress=progress,
    concerns=(("charge_id", "charge"), ("payment_intent_id", "payment_intent")),
)
