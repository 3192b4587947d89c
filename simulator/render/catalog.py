"""Products, prices, plans and customers as JSON."""

from typing import Any

from simulator.objects import Customer, Plan, Price, Product
from simulator.versions import BASIL

Json = dict[str, Any]


def product(product: Product, api_version: str) -> Json:
    """A product; the same in all versions rendered here."""
    del api_version
    return {
        "id": product.id,
        "object": "product",
        "active": product.active,
        "created": product.created,
        "default_price": product.default_price,
        "description": product.description,
        "images": [],
        "livemode": product.livemode,
        "marketing_features": [],
        "metadata": dict(product.metadata),
        "name": product.name,
        "package_dimensions": None,
        "shippable": None,
        "statement_descriptor": None,
        "tax_code": None,
        "tax_details": None,
        "type": "service",
        "unit_label": None,
        "updated": product.updated,
        "url": None,
    }


def price(price: Price, api_version: str) -> Json:
    """A price; before basil a recurring one names its `aggregate_usage`."""
    return {
        "id": price.id,
        "object": "price",
        "active": price.active,
        "billing_scheme": "tiered" if price.tiers_mode else "per_unit",
        "created": price.created,
        "currency": price.currency,
        "custom_unit_amount": None,
        "livemode": price.livemode,
        "lookup_key": price.lookup_key,
        "metadata": dict(price.metadata),
        "nickname": price.nickname,
        "product": price.product,
        "recurring": _recurring(price, api_version),
        "tax_behavior": "unspecified",
        "tiers_mode": price.tiers_mode,
        "transform_quantity": None,
        "type": "recurring" if price.interval else "one_time",
        "unit_amount": price.unit_amount,
        "unit_amount_decimal": price.unit_amount_decimal,
    }


def _recurring(price: Price, api_version: str) -> Json | None:
    if price.interval is None:
        return None
    recurring: Json = {
        "interval": price.interval,
        "interval_count": price.interval_count,
        "meter": price.meter,
        "trial_period_days": None,
        "usage_type": price.usage_type,
    }
    return {**recurring, "aggregate_usage": None} if api_version < BASIL else recurring


def plan(plan: Plan, api_version: str) -> Json:
    """The older twin of a recurring price."""
    price = plan.price
    shown: Json = {
        "id": price.id,
        "object": "plan",
        "active": price.active,
        "amount": price.unit_amount,
        "amount_decimal": price.unit_amount_decimal,
        "billing_scheme": "tiered" if price.tiers_mode else "per_unit",
        "created": price.created,
        "currency": price.currency,
        "interval": price.interval,
        "interval_count": price.interval_count,
        "livemode": price.livemode,
        "metadata": dict(price.metadata),
        "meter": price.meter,
        "nickname": price.nickname,
        "product": price.product,
        "tiers_mode": price.tiers_mode,
        "transform_usage": None,
        "trial_period_days": None,
        "usage_type": price.usage_type,
    }
    return {**shown, "aggregate_usage": None} if api_version < BASIL else shown


def plan_of(price: Price, api_version: str) -> Json:
    """The plan of a recurring price."""
    return plan(Plan(id=price.id, created=price.created, livemode=price.livemode, price=price), api_version)


def customer(customer: Customer, api_version: str) -> Json:
    """A customer; also a deleted one, whose event shows the last state and no `deleted` key."""
    shown: Json = {
        "id": customer.id,
        "object": "customer",
        "address": None,
        "balance": customer.balance,
        "created": customer.created,
        "currency": customer.currency,
        "customer_account": None,
        "default_source": None,
        "delinquent": customer.delinquent,
        "description": None,
        "discount": None,
        "email": customer.email,
        "invoice_prefix": customer.invoice_prefix,
        "invoice_settings": {
            "custom_fields": None,
            "default_payment_method": customer.payment_method,
            "footer": None,
            "rendering_options": None,
        },
        "livemode": customer.livemode,
        "metadata": dict(customer.metadata),
        "name": customer.name,
        "next_invoice_sequence": customer.next_invoice_sequence,
        "phone": None,
        "preferred_locales": [],
        "shipping": None,
        "tax_exempt": "none",
        "test_clock": None,
    }
    if api_version < BASIL:
        del shown["customer_account"]
    return shown
