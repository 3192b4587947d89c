"""Checkout sessions as JSON."""

from typing import Any

from simulator.ids import token
from simulator.objects import Price, Session
from simulator.render.catalog import price as price_of
from simulator.versions import BASIL, DAHLIA

Json = dict[str, Any]

SINCE_BASIL = ("customer_account", "payment_method_configuration_details", "permissions", "presentment_details")


def session(session: Session, api_version: str) -> Json:
    """A session; line items are never part of it unless expanded, which webhooks cannot be."""
    link = session.payment_link is not None
    payment = session.mode == "payment"
    shown: Json = {
        "id": session.id,
        "object": "checkout.session",
        "after_expiration": None,
        "allow_promotion_codes": False if link else None,
        "amount_subtotal": session.amount_total,
        "amount_total": session.amount_total,
        "automatic_tax": {"enabled": False, "liability": None, "provider": None, "status": None},
        "billing_address_collection": "auto" if link else None,
        "cancel_url": "https://stripe.com" if link else "https://example.com/cancel",
        "client_reference_id": session.client_reference_id,
        "client_secret": None,
        "consent": None,
        "consent_collection": None,
        "created": session.created,
        "currency": session.currency,
        "custom_fields": [],
        "custom_text": {
            "after_submit": None,
            "shipping_address": None,
            "submit": None,
            "terms_of_service_acceptance": None,
        },
        "customer": session.customer,
        "customer_account": None,
        "customer_creation": "if_required" if payment else "always",
        "customer_details": _customer_details(session, api_version),
        "customer_email": session.customer_email,
        "discounts": [],
        "expires_at": session.expires_at,
        "invoice": session.invoice,
        "invoice_creation": None,
        "livemode": session.livemode,
        "locale": None,
        "metadata": dict(session.metadata),
        "mode": session.mode,
        "payment_intent": session.payment_intent,
        "payment_link": session.payment_link,
        "payment_method_collection": "if_required" if payment else "always",
        "payment_method_configuration_details": None,
        "payment_method_options": {},
        "payment_method_types": ["card"],
        "payment_status": session.payment_status,
        "permissions": None,
        "phone_number_collection": {"enabled": False},
        "presentment_details": None,
        "recovered_from": None,
        "redirect_on_completion": None,
        "return_url": None,
        "saved_payment_method_options": {
            "allow_redisplay_filters": ["always"],
            "payment_method_remove": None,
            "payment_method_save": None,
        },
        "setup_intent": None,
        "shipping_address_collection": None,
        "shipping_cost": None,
        "shipping_options": [],
        "status": session.status,
        "submit_type": "auto" if link else None,
        "subscription": session.subscription,
        "success_url": "https://stripe.com" if link else "https://example.com/success?session_id={CHECKOUT_SESSION_ID}",
        "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0},
        "ui_mode": "hosted_page" if api_version >= DAHLIA else "hosted",
        "url": f"https://checkout.stripe.com/c/pay/{session.id}" if session.status == "open" else None,
    }
    if api_version < BASIL:
        for key in SINCE_BASIL:
            del shown[key]
    return shown


def _customer_details(session: Session, api_version: str) -> Json | None:
    if session.paid_by_email is None:
        return None
    details: Json = {
        "address": None,
        "business_name": None,
        "email": session.paid_by_email,
        "individual_name": None,
        "name": session.paid_by_name,
        "phone": None,
        "tax_exempt": "none",
        "tax_ids": [],
    }
    if api_version < BASIL:
        del details["business_name"]
        del details["individual_name"]
    return details


def line_item(session: Session, number: int, price: Price, description: str, api_version: str) -> Json:
    """The `number`th thing bought in a session, of this price; only the API tells of it."""
    quantity = session.prices[number][1]
    amount = price.amount(quantity)
    return {
        "id": f"li_1{token(f'{session.id} {number}')}",
        "object": "item",
        "amount_discount": 0,
        "amount_subtotal": amount,
        "amount_tax": 0,
        "amount_total": 0 if session.trial_days else amount,
        "currency": price.currency,
        "description": description,
        "price": price_of(price, api_version),
        "quantity": quantity,
    }
