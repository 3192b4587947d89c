"""Invoices, their lines and payments as JSON: `parent` and `pricing` since basil, plain ids and prices before."""

from typing import Any

from simulator.objects import Invoice, InvoiceItem, InvoicePayment, Line
from simulator.render.catalog import plan_of, price
from simulator.versions import BASIL

Json = dict[str, Any]

SINCE_BASIL = (
    "amount_overpaid",
    "amount_paid_off_stripe",
    "customer_account",
    "parent",
    "status_details",
    "total_taxes",
)
# So many lines an invoice shows by itself; the rest have to be asked for.
EMBEDDED = 10

LINE_SINCE_BASIL = ("parent", "pricing", "quantity_decimal", "subtotal", "taxes")


def invoice(invoice: Invoice, api_version: str) -> Json:
    """An invoice with its first lines; which payment paid it is told by `invoice_payment` since basil."""
    shown: Json = {
        "id": invoice.id,
        "object": "invoice",
        "account_country": "US",
        "account_name": "Example Inc",
        "account_tax_ids": None,
        "amount_due": invoice.amount_due,
        "amount_overpaid": 0,
        "amount_paid": invoice.amount_paid,
        "amount_paid_off_stripe": None,
        "amount_remaining": invoice.amount_due - invoice.amount_paid,
        "amount_shipping": 0,
        "application": None,
        "attempt_count": invoice.attempt_count,
        "attempted": invoice.attempt_count > 0 or invoice.status == "paid",
        "auto_advance": invoice.auto_advance,
        "automatic_tax": {
            "disabled_reason": None,
            "enabled": False,
            "liability": None,
            "provider": None,
            "status": None,
        },
        "automatically_finalizes_at": invoice.automatically_finalizes_at,
        "billing_reason": invoice.billing_reason,
        "collection_method": "charge_automatically",
        "created": invoice.created,
        "currency": invoice.currency,
        "custom_fields": None,
        "customer": invoice.customer,
        "customer_account": None,
        "customer_address": None,
        "customer_email": invoice.customer_email,
        "customer_name": invoice.customer_name,
        "customer_phone": None,
        "customer_shipping": None,
        "customer_tax_exempt": "none",
        "customer_tax_ids": [],
        "default_payment_method": None,
        "default_source": None,
        "default_tax_rates": [],
        "description": None,
        "discounts": [],
        "due_date": None,
        "effective_at": invoice.finalized_at,
        "ending_balance": invoice.ending_balance,
        "footer": None,
        "from_invoice": None,
        "hosted_invoice_url": _url(invoice, "https://invoice.stripe.com/i/acct_practice/{}"),
        "invoice_pdf": _url(invoice, "https://pay.stripe.com/invoice/acct_practice/{}/pdf"),
        "issuer": {"type": "self"},
        "last_finalization_error": None,
        "latest_revision": None,
        "lines": {
            "object": "list",
            "data": [line(one, invoice.id, api_version) for one in invoice.lines[:EMBEDDED]],
            "has_more": len(invoice.lines) > EMBEDDED,
            "total_count": len(invoice.lines),
            "url": f"/v1/invoices/{invoice.id}/lines",
        },
        "livemode": invoice.livemode,
        "metadata": {},
        "next_payment_attempt": invoice.next_payment_attempt or invoice.automatically_finalizes_at,
        "number": invoice.number,
        "on_behalf_of": None,
        "parent": {
            "quote_details": None,
            "subscription_details": {
                "metadata": dict(invoice.subscription_metadata),
                "subscription": invoice.subscription,
            },
            "type": "subscription_details",
        },
        "payment_settings": {
            "default_mandate": None,
            "payment_method_options": None,
            "payment_method_types": None,
        },
        "period_end": invoice.period_end,
        "period_start": invoice.period_start,
        "post_payment_credit_notes_amount": 0,
        "pre_payment_credit_notes_amount": 0,
        "receipt_number": None,
        "rendering": None,
        "shipping_cost": None,
        "shipping_details": None,
        "starting_balance": invoice.starting_balance,
        "statement_descriptor": None,
        "status": invoice.status,
        "status_details": None,
        "status_transitions": {
            "finalized_at": invoice.finalized_at,
            "marked_uncollectible_at": invoice.marked_uncollectible_at,
            "paid_at": invoice.paid_at,
            "voided_at": invoice.voided_at,
        },
        "subtotal": invoice.total,
        "subtotal_excluding_tax": invoice.total,
        "test_clock": None,
        "total": invoice.total,
        "total_discount_amounts": [],
        "total_excluding_tax": invoice.total,
        "total_pretax_credit_amounts": [],
        "total_taxes": [],
        "webhooks_delivered_at": None if invoice.status == "draft" else invoice.created,
    }
    if invoice.billing_reason == "upcoming":
        del shown["id"]
    return _before_basil(shown, invoice) if api_version < BASIL else shown


def _before_basil(shown: Json, invoice: Invoice) -> Json:
    for key in SINCE_BASIL:
        del shown[key]
    del shown["automatic_tax"]["provider"]
    return {
        **shown,
        "application_fee_amount": None,
        "charge": invoice.charge,
        "discount": None,
        "paid": invoice.status == "paid",
        "paid_out_of_band": False,
        "payment_intent": invoice.payment_intent,
        "quote": None,
        "subscription": invoice.subscription,
        "subscription_details": {"metadata": dict(invoice.subscription_metadata)},
        "tax": None,
        "total_tax_amounts": [],
        "transfer_data": None,
    }


def _url(invoice: Invoice, pattern: str) -> str | None:
    return pattern.format(invoice.id) if invoice.finalized_at is not None else None


def line(line: Line, invoice: str, api_version: str) -> Json:
    """One line of the invoice with this id."""
    shown: Json = {
        "id": line.id,
        "object": "line_item",
        "amount": line.amount,
        "currency": line.price.currency,
        "description": line.description,
        "discount_amounts": [],
        "discountable": not line.proration,
        "discounts": [],
        "invoice": invoice,
        "livemode": line.livemode,
        "metadata": dict(line.metadata),
        "parent": {
            "invoice_item_details": None,
            "subscription_item_details": {
                "invoice_item": line.invoice_item,
                "proration": line.proration,
                "proration_details": _proration_details(line),
                "subscription": line.subscription,
                "subscription_item": line.item,
            },
            "type": "subscription_item_details",
        },
        "period": {"end": line.period_end, "start": line.period_start},
        "pretax_credit_amounts": [],
        "pricing": {
            "price_details": {"price": line.price.id, "product": line.price.product},
            "type": "price_details",
            "unit_amount_decimal": line.price.unit_amount_decimal,
        },
        "quantity": line.quantity,
        "quantity_decimal": None if line.quantity is None else str(line.quantity),
        "subtotal": line.amount,
        "taxes": [],
    }
    return _line_before_basil(shown, line, api_version) if api_version < BASIL else shown


def _line_before_basil(shown: Json, line: Line, api_version: str) -> Json:
    for key in LINE_SINCE_BASIL:
        del shown[key]
    old: Json = {
        **shown,
        "amount_excluding_tax": line.amount,
        "plan": plan_of(line.price, api_version),
        "price": price(line.price, api_version),
        "proration": line.proration,
        "proration_details": _proration_details(line),
        "subscription": line.subscription,
        "subscription_item": line.item,
        "tax_amounts": [],
        "tax_rates": [],
        "type": "invoiceitem" if line.invoice_item else "subscription",
        "unit_amount_excluding_tax": line.price.unit_amount_decimal,
    }
    return {**old, "invoice_item": line.invoice_item} if line.invoice_item else old


def _proration_details(line: Line) -> Json:
    if line.credited is None:
        return {"credited_items": None}
    invoice, credited = line.credited
    return {"credited_items": {"invoice": invoice, "invoice_line_items": [credited]}}


def invoice_item(item: InvoiceItem, api_version: str) -> Json:
    """A proration that waits for its invoice; its keys are those of the SDK's InvoiceItem."""
    line = item.line
    shown: Json = {
        "id": item.id,
        "object": "invoiceitem",
        "amount": line.amount,
        "currency": line.price.currency,
        "customer": item.customer,
        "customer_account": None,
        "date": item.created,
        "description": line.description,
        "discountable": False,
        "discounts": [],
        "invoice": None,
        "livemode": item.livemode,
        "metadata": dict(line.metadata),
        "net_amount": line.amount,
        "parent": {
            "subscription_details": {"subscription": line.subscription, "subscription_item": line.item},
            "type": "subscription_details",
        },
        "period": {"end": line.period_end, "start": line.period_start},
        "pricing": {
            "price_details": {"price": line.price.id, "product": line.price.product},
            "type": "price_details",
            "unit_amount_decimal": line.price.unit_amount_decimal,
        },
        "proration": line.proration,
        "quantity": line.quantity,
        "tax_rates": [],
        "test_clock": None,
    }
    if api_version >= BASIL:
        return shown
    for key in ("customer_account", "net_amount", "parent", "pricing"):
        del shown[key]
    return {
        **shown,
        "plan": plan_of(line.price, api_version),
        "price": price(line.price, api_version),
        "subscription": line.subscription,
        "subscription_item": line.item,
        "unit_amount": line.price.unit_amount,
        "unit_amount_decimal": line.price.unit_amount_decimal,
    }


def invoice_payment(payment: InvoicePayment, api_version: str) -> Json:
    """The link between an invoice and its payment, which exists since basil."""
    del api_version
    return {
        "id": payment.id,
        "object": "invoice_payment",
        "amount_paid": payment.amount_paid,
        "amount_requested": payment.amount_requested,
        "created": payment.created,
        "currency": payment.currency,
        "invoice": payment.invoice,
        "is_default": True,
        "livemode": payment.livemode,
        "payment": {"payment_intent": payment.payment_intent, "type": "payment_intent"},
        "status": payment.status,
        "status_transitions": {"canceled_at": None, "paid_at": payment.paid_at},
    }
