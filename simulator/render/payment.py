"""PaymentIntents and charges as JSON; both named their invoice before basil."""

from typing import Any

from simulator.objects import Charge, PaymentIntent
from simulator.versions import BASIL

Json = dict[str, Any]

FAILURE_CODE = "card_declined"
FAILURE_MESSAGE = "Your card has insufficient funds."

INTENT_SINCE_BASIL = (
    "allowed_payment_method_types",
    "customer_account",
    "excluded_payment_method_types",
    "managed_payments",
    "payment_record",
)


def payment_intent(intent: PaymentIntent, api_version: str) -> Json:
    """A PaymentIntent; after a failed attempt it asks for a payment method again and keeps the error."""
    shown: Json = {
        "id": intent.id,
        "object": "payment_intent",
        "allowed_payment_method_types": None,
        "amount": intent.amount,
        "amount_capturable": 0,
        "amount_details": {"tip": {}},
        "amount_received": intent.amount_received,
        "application": None,
        "application_fee_amount": None,
        "automatic_payment_methods": None,
        "canceled_at": None,
        "cancellation_reason": None,
        "capture_method": "automatic_async",
        "client_secret": f"{intent.id}_secret_REDACTED",
        "confirmation_method": "automatic",
        "created": intent.created,
        "currency": intent.currency,
        "customer": intent.customer,
        "customer_account": None,
        "description": intent.description,
        "excluded_payment_method_types": None,
        "last_payment_error": _error(intent),
        "latest_charge": intent.latest_charge,
        "livemode": intent.livemode,
        "managed_payments": None,
        "metadata": dict(intent.metadata),
        "next_action": None,
        "on_behalf_of": None,
        "payment_method": intent.payment_method,
        "payment_method_configuration_details": None,
        "payment_method_options": {
            "card": {
                "installments": None,
                "mandate_options": None,
                "network": None,
                "request_three_d_secure": "automatic",
            }
        },
        "payment_method_types": ["card"],
        "payment_record": None,
        "processing": None,
        "receipt_email": None,
        "review": None,
        "setup_future_usage": intent.setup_future_usage,
        "shipping": None,
        "source": None,
        "statement_descriptor": None,
        "statement_descriptor_suffix": None,
        "status": intent.status,
        "transfer_data": None,
        "transfer_group": None,
    }
    if api_version < BASIL:
        for key in INTENT_SINCE_BASIL:
            del shown[key]
        shown["invoice"] = intent.invoice
    return shown


def _error(intent: PaymentIntent) -> Json | None:
    if intent.failed_payment_method is None:
        return None
    return {
        "type": "card_error",
        "code": FAILURE_CODE,
        "decline_code": "insufficient_funds",
        "message": FAILURE_MESSAGE,
        "charge": intent.latest_charge,
        "payment_method": {"id": intent.failed_payment_method, "object": "payment_method", "type": "card"},
    }


def charge(charge: Charge, api_version: str) -> Json:
    """A charge, succeeded or failed."""
    ok = charge.status == "succeeded"
    shown: Json = {
        "id": charge.id,
        "object": "charge",
        "amount": charge.amount,
        "amount_captured": charge.amount if ok else 0,
        "amount_refunded": charge.amount_refunded,
        "application": None,
        "application_fee": None,
        "application_fee_amount": None,
        "balance_transaction": charge.balance_transaction,
        "billing_details": {
            "address": {
                "city": None,
                "country": None,
                "line1": None,
                "line2": None,
                "postal_code": None,
                "state": None,
            },
            "email": charge.email,
            "name": None,
            "phone": None,
            "tax_id": None,
        },
        "calculated_statement_descriptor": "EXAMPLE",
        "captured": ok,
        "created": charge.created,
        "currency": charge.currency,
        "customer": charge.customer,
        "description": charge.description,
        "disputed": charge.disputed,
        "failure_balance_transaction": None,
        "failure_code": None if ok else FAILURE_CODE,
        "failure_message": None if ok else FAILURE_MESSAGE,
        "fraud_details": {},
        "livemode": charge.livemode,
        "metadata": dict(charge.metadata),
        "on_behalf_of": None,
        "outcome": {
            "advice_code": None if ok else "try_again_later",
            "network_advice_code": None,
            "network_decline_code": None if ok else "51",
            "network_status": "approved_by_network" if ok else "declined_by_network",
            "reason": None if ok else "insufficient_funds",
            "risk_level": "normal",
            "seller_message": "Payment complete." if ok else "The bank returned the decline code `insufficient_funds`.",
            "type": "authorized" if ok else "issuer_declined",
        },
        "paid": ok,
        "payment_intent": charge.payment_intent,
        "payment_method": charge.payment_method,
        "payment_method_details": {
            "card": {
                "brand": "visa",
                "country": "US",
                "exp_month": 8,
                "exp_year": 2030,
                "funding": "credit",
                "last4": "4242" if ok else "0341",
                "network": "visa",
            },
            "type": "card",
        },
        "presentment_details": None,
        "receipt_email": None,
        "receipt_number": None,
        "receipt_url": f"https://pay.stripe.com/receipts/{charge.id}" if ok else None,
        "refunded": ok and charge.amount_refunded == charge.amount,
        "review": None,
        "shipping": None,
        "source": None,
        "source_transfer": None,
        "statement_descriptor": None,
        "statement_descriptor_suffix": None,
        "status": charge.status,
        "transfer_data": None,
        "transfer_group": None,
    }
    if api_version < BASIL:
        del shown["presentment_details"]
        shown["invoice"] = charge.invoice
    return shown
