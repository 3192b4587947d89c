"""Prices. Each recurring one has a twin in `plan.*` events with the same id, which are ignored."""

from __future__ import annotations

from typing import Any

from workers.shapes import (
    IS_STUB,
    TARIFF_KEYS,
    Handler,
    Json,
    decimal_of,
    flag_of,
    id_of,
    int_of,
    metadata_keys,
    metadata_of,
    object_of,
    text_of,
    time_of,
    types,
)


def read(price: Json) -> dict[str, Any]:
    """Price → columns of `stripe_prices`; `unit_amount` is null for tiered and fractional prices."""
    recurring = object_of(price, "recurring")
    return {
        "created": time_of(price, "created"),
        "stripe_product_id": id_of(price, "product"),
        "active": flag_of(price, "active"),
        "currency": text_of(price, "currency"),
        "type": text_of(price, "type"),
        "unit_amount": int_of(price, "unit_amount"),
        "unit_amount_decimal": decimal_of(price, "unit_amount_decimal"),
        "recurring_interval": text_of(recurring, "interval"),
        "recurring_interval_count": int_of(recurring, "interval_count"),
        "nickname": text_of(price, "nickname"),
        "lookup_key": text_of(price, "lookup_key"),
        "metadata": metadata_of(price),
    }


HANDLER = Handler(
    object_type="price",
    table="stripe_prices",
    events=types("price", "created", "updated", "deleted"),
    read=read,
    watched=(IS_STUB, *metadata_keys("grace_days", *TARIFF_KEYS)),
    terminal=types("price", "deleted"),
    deleted=types("price", "deleted"),
    when_deleted=(("active", False),),
    is_tariff=True,
)
