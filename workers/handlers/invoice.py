"""Invoices: what is owed and paid, line by line. Old API versions also say here which payment paid it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from workers.shapes import (
    Handler,
    Json,
    flag_of,
    id_of,
    int_of,
    invoice_payment_of,
    list_of,
    object_of,
    text_of,
    time_of,
    types,
)

# uncollectible → paid and → void are possible, so both come after it (FACTS §3.2).
PROGRESS = {"draft": 0, "open": 1, "uncollectible": 2, "void": 3, "paid": 3}


def read(invoice: Json) -> dict[str, Any]:
    """Invoice → columns of `stripe_invoices`; the subscription from `parent`, or (before 2025-03-31) from the top."""
    lines = object_of(invoice, "lines")
    moments = object_of(invoice, "status_transitions")
    return {
        "created": time_of(invoice, "created"),
        "stripe_customer_id": id_of(invoice, "customer"),
        "stripe_subscription_id": id_of(_details(invoice), "subscription") or id_of(invoice, "subscription"),
        "status": text_of(invoice, "status"),
        "billing_reason": text_of(invoice, "billing_reason"),
        "collection_method": text_of(invoice, "collection_method"),
        "number": text_of(invoice, "number"),
        "currency": text_of(invoice, "currency"),
        "amount_due": int_of(invoice, "amount_due"),
        "amount_paid": int_of(invoice, "amount_paid"),
        "amount_remaining": int_of(invoice, "amount_remaining"),
        "total": int_of(invoice, "total"),
        "starting_balance": int_of(invoice, "starting_balance"),
        "ending_balance": int_of(invoice, "ending_balance"),
        "post_payment_credit_notes_amount": int_of(invoice, "post_payment_credit_notes_amount"),
        "attempt_count": int_of(invoice, "attempt_count"),
        "period_start": time_of(invoice, "period_start"),
        "period_end": time_of(invoice, "period_end"),
        "due_date": time_of(invoice, "due_date"),
        "finalized_at": time_of(moments, "finalized_at"),
        "paid_at": time_of(moments, "paid_at"),
        "hosted_invoice_url": text_of(invoice, "hosted_invoice_url"),
        "lines": [_line(line) for line in list_of(invoice, "lines")],
        # Webhooks carry the first ten lines or so; the rest must be asked for.
        "lines_complete": not flag_of(lines, "has_more"),
    }


def _details(invoice: Json) -> Json:
    return object_of(object_of(invoice, "parent"), "subscription_details")


def _line(line: Json) -> dict[str, Any]:
    """One line, the same whether it came in the old shape or the new one."""
    pricing = object_of(object_of(line, "pricing"), "price_details")
    parent = object_of(line, "parent")
    item = object_of(parent, "subscription_item_details") or object_of(parent, "invoice_item_details") or line
    price = line.get("price") or line.get("plan")
    period = object_of(line, "period")
    return {
        "id": id_of(line, "id"),
        "amount": int_of(line, "amount"),
        "quantity": int_of(line, "quantity"),
        "price": id_of(pricing, "price") or id_of({"price": price}, "price"),
        "product": id_of(pricing, "product") or (id_of(price, "product") if isinstance(price, dict) else None),
        "subscription_item": id_of(item, "subscription_item"),
        "proration": bool(flag_of(item, "proration")),
        "period": {"start": time_of(period, "start"), "end": time_of(period, "end")},
    }


def named(row: Json) -> Iterator[tuple[str, str]]:
    """The products and prices of the lines: what they grant is asked of them."""
    for line in row["lines"]:
        for key, table in (("product", "stripe_products"), ("price", "stripe_prices")):
            if line[key] is not None:
                yield table, line[key]


def progress(invoice: Json) -> tuple[int, ...]:
    """The status, the attempts, what was paid, what was credited afterwards."""
    return (
        PROGRESS.get(text_of(invoice, "status") or "", 0),
        int_of(invoice, "attempt_count") or 0,
        int_of(invoice, "amount_paid") or 0,
        int_of(invoice, "post_payment_credit_notes_amount") or 0,
    )


def payments(invoice: Json) -> Iterator[Json]:
    """The payment that an invoice of old API versions names."""
    yield from invoice_payment_of(
        invoice,
        invoice=id_of(invoice, "id"),
        payment_intent=id_of(invoice, "payment_intent"),
        charge=id_of(invoice, "charge"),
        is_paid=text_of(invoice, "status") == "paid",
        amount=int_of(invoice, "amount_paid"),
    )


def is_preview(invoice: Json) -> bool:
    """Whether it announces an invoice that does not exist yet, and has no id to keep it by (FACTS §1.3)."""
    invoice_id = invoice.get("id")
    return invoice_id is None or (isinstance(invoice_id, str) and invoice_id.startswith("upcoming_in"))


HANDLER = Handler(
    object_type="invoice",
    table="stripe_invoices",
    events=types(
        "invoice",
        "created",
        "deleted",
        "finalization_failed",
        "finalized",
        "marked_uncollectible",
        "overdue",
        "overpaid",
        "paid",
        "payment_action_required",
        "payment_attempt_required",
        "payment_failed",
        "payment_succeeded",
        "sent",
        "updated",
        "voided",
        "will_be_due",
    ),
    read=read,
    progress=progress,
    terminal=types("invoice", "deleted"),
    deleted=types("invoice", "deleted"),
    customer_column="stripe_customer_id",
    names=named,
    also=payments,
    is_preview=is_preview,
    concerns=(("id", "invoice"),),
)
