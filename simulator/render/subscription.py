"""Subscriptions as JSON: periods on the items since basil, on the subscription before."""

from typing import Any

from simulator.objects import Item, Subscription
from simulator.render.catalog import plan_of, price
from simulator.versions import BASIL

Json = dict[str, Any]

SINCE_BASIL = (
    "billing_mode",
    "billing_schedules",
    "customer_account",
    "managed_payments",
    "presentment_details",
    "status_details",
)
ITEM_SINCE_BASIL = ("billed_until", "current_period_end", "current_period_start", "current_trial")


def subscription(subscription: Subscription, api_version: str) -> Json:
    """A subscription with all its items."""
    shown: Json = {
        "id": subscription.id,
        "object": "subscription",
        "application": None,
        "application_fee_percent": None,
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
        "billing_cycle_anchor": subscription.billing_cycle_anchor,
        "billing_cycle_anchor_config": None,
        "billing_mode": _billing_mode(subscription),
        "billing_schedules": [],
        "billing_thresholds": None,
        "cancel_at": subscription.cancel_at,
        "cancel_at_period_end": subscription.cancel_at_period_end,
        "canceled_at": subscription.canceled_at,
        "cancellation_details": {
            "comment": None,
            "feedback": subscription.cancellation_feedback,
            "feedback_option": None,
            "reason": subscription.cancellation_reason,
        },
        "collection_method": "charge_automatically",
        "created": subscription.created,
        "currency": subscription.currency,
        "customer": subscription.customer,
        "customer_account": None,
        "days_until_due": None,
        "default_payment_method": subscription.default_payment_method,
        "default_source": None,
        "default_tax_rates": [],
        "description": None,
        "discounts": [],
        "ended_at": subscription.ended_at,
        "invoice_settings": {
            "account_tax_ids": None,
            "custom_fields": None,
            "description": None,
            "footer": None,
            "issuer": {"type": "self"},
        },
        "items": {
            "object": "list",
            "data": [_item(item, api_version) for item in subscription.items],
            "has_more": False,
            "url": f"/v1/subscription_items?subscription={subscription.id}",
        },
        "latest_invoice": subscription.latest_invoice,
        "livemode": subscription.livemode,
        "managed_payments": None,
        "metadata": dict(subscription.metadata),
        "next_pending_invoice_item_invoice": None,
        "on_behalf_of": None,
        "pause_collection": _pause_collection(subscription),
        "payment_settings": {
            "payment_method_options": None,
            "payment_method_types": None,
            "save_default_payment_method": "off",
        },
        "pending_invoice_item_interval": None,
        "pending_setup_intent": None,
        "pending_update": None,
        "presentment_details": None,
        "schedule": None,
        "start_date": subscription.created,
        "status": subscription.status,
        "status_details": _status_details(subscription),
        "test_clock": None,
        "transfer_data": None,
        "trial_end": subscription.trial_end,
        "trial_settings": {"end_behavior": {"missing_payment_method": subscription.missing_payment_method}},
        "trial_start": subscription.trial_start,
    }
    return _before_basil(shown, subscription, api_version) if api_version < BASIL else shown


def _before_basil(shown: Json, subscription: Subscription, api_version: str) -> Json:
    for key in SINCE_BASIL:
        del shown[key]
    del shown["cancellation_details"]["feedback_option"]
    for key in ("custom_fields", "description", "footer"):
        del shown["invoice_settings"][key]
    # Items had one period in common; of those that differ, which only newer versions can make, the latest stands here.
    last = max(subscription.items, key=lambda item: item.current_period_end)
    only = subscription.items[0] if len(subscription.items) == 1 else None
    return {
        **shown,
        "current_period_end": last.current_period_end,
        "current_period_start": last.current_period_start,
        "discount": None,
        "plan": plan_of(only.price, api_version) if only else None,
        "quantity": only.quantity if only else None,
    }


def _item(item: Item, api_version: str) -> Json:
    shown: Json = {
        "id": item.id,
        "object": "subscription_item",
        "billed_until": None,
        "billing_thresholds": None,
        "created": item.created,
        "current_period_end": item.current_period_end,
        "current_period_start": item.current_period_start,
        "current_trial": None,
        "discounts": [],
        "metadata": {},
        "plan": plan_of(item.price, api_version),
        "price": price(item.price, api_version),
        "quantity": item.quantity,
        "subscription": item.subscription,
        "tax_rates": [],
    }
    if item.quantity is None:
        del shown["quantity"]
    if api_version < BASIL:
        for key in ITEM_SINCE_BASIL:
            del shown[key]
    return shown


def _billing_mode(subscription: Subscription) -> Json:
    if subscription.billing_mode == "classic":
        return {"flexible": None, "type": "classic", "updated_at": None}
    return {
        "flexible": {"proration_discounts": "included"},
        "type": subscription.billing_mode,
        "updated_at": subscription.created,
    }


def _pause_collection(subscription: Subscription) -> Json | None:
    if subscription.pause_behavior is None:
        return None
    return {"behavior": subscription.pause_behavior, "resumes_at": subscription.pause_resumes_at}


def _status_details(subscription: Subscription) -> Json | None:
    if subscription.paused_at is None:
        return None
    return {
        "paused": {
            "subscription": {"type": subscription.paused_by},
            "transitioned_at": subscription.paused_at,
            "type": "subscription",
        }
    }
