"""Disputes as JSON."""

from typing import Any

from simulator.objects import BalanceTransaction, Dispute
from simulator.versions import BASIL

Json = dict[str, Any]


def dispute(dispute: Dispute, api_version: str) -> Json:
    """A dispute; it names no customer, only the charge and its PaymentIntent."""
    shown: Json = {
        "id": dispute.id,
        "object": "dispute",
        "amount": dispute.amount,
        "balance_transactions": [_balance_transaction(moved) for moved in dispute.balance_transactions],
        "charge": dispute.charge,
        "created": dispute.created,
        "currency": dispute.currency,
        "enhanced_eligibility_types": [],
        "evidence": {},
        "evidence_details": {
            "due_by": dispute.due_by,
            "enhanced_eligibility": {},
            "has_evidence": dispute.submissions > 0,
            "past_due": False,
            "submission_count": dispute.submissions,
            "submission_method": "manual" if dispute.submissions else "not_submitted",
        },
        "intended_submission_method": "manual" if dispute.submissions else None,
        "is_charge_refundable": False,
        "livemode": dispute.livemode,
        "metadata": {},
        "payment_intent": dispute.payment_intent,
        "payment_method_details": {
            "card": {
                "brand": "visa",
                "case_type": "chargeback",
                "network_reason_code": "10.4" if dispute.reason == "fraudulent" else "13.1",
            },
            "type": "card",
        },
        "reason": dispute.reason,
        "status": dispute.status,
    }
    if api_version < BASIL:
        del shown["intended_submission_method"]
        del shown["evidence_details"]["submission_method"]
    return shown


def _balance_transaction(moved: BalanceTransaction) -> Json:
    fee = {
        "amount": moved.fee,
        "application": None,
        "currency": moved.currency,
        "description": "Dispute fee",
        "type": "stripe_fee",
    }
    return {
        "id": moved.id,
        "object": "balance_transaction",
        "amount": moved.amount,
        "available_on": moved.created,
        "balance_type": "payments",
        "created": moved.created,
        "currency": moved.currency,
        "description": moved.description,
        "exchange_rate": None,
        "fee": moved.fee,
        "fee_details": [fee] if moved.fee else [],
        "net": moved.amount - moved.fee,
        "reporting_category": "dispute" if moved.amount < 0 else "dispute_reversal",
        "source": moved.source,
        "status": "available",
        "type": "adjustment",
    }
