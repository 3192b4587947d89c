"""Refunds as JSON."""

from typing import Any

from simulator.objects import Refund
from simulator.versions import BASIL

Json = dict[str, Any]

SINCE_BASIL = ("customer", "customer_account", "payment_method")


def refund(refund: Refund, api_version: str) -> Json:
    """A refund to a card; keys about a failure are there only after one. It knows no livemode."""
    shown: Json = {
        "id": refund.id,
        "object": "refund",
        "amount": refund.amount,
        "balance_transaction": refund.balance_transaction,
        "charge": refund.charge,
        "created": refund.created,
        "currency": refund.currency,
        "customer": refund.customer,
        "customer_account": None,
        "destination_details": {"card": _card(refund), "type": "card"},
        "metadata": dict(refund.metadata),
        "payment_intent": refund.payment_intent,
        "payment_method": refund.payment_method,
        "reason": refund.reason,
        "receipt_number": None,
        "source_transfer_reversal": None,
        "status": refund.status,
        "transfer_reversal": None,
    }
    if refund.failure_reason is not None:
        shown["failure_balance_transaction"] = refund.failure_balance_transaction
        shown["failure_reason"] = refund.failure_reason
    if api_version < BASIL:
        for key in SINCE_BASIL:
            del shown[key]
    return shown


def _card(refund: Refund) -> Json:
    card: Json = {
        "reference_status": "pending" if refund.reference is None else "available",
        "reference_type": "acquirer_reference_number",
        "type": "refund",
    }
    return card if refund.reference is None else {**card, "reference": refund.reference}
