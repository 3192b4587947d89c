"""Products: their metadata name the role, rank, grace and tokens that a subscription gives."""

from __future__ import annotations

from typing import Any

from workers.shapes import (
    IS_STUB,
    TARIFF_KEYS,
    Handler,
    Json,
    flag_of,
    id_of,
    int_of,
    metadata_keys,
    metadata_of,
    text_of,
    time_of,
    types,
)


def read(product: Json) -> dict[str, Any]:
    """Product → columns of `stripe_products`."""
    return {
        "created": time_of(product, "created"),
        "name": text_of(product, "name"),
        "description": text_of(product, "description"),
        "active": flag_of(product, "active"),
        "default_price_id": id_of(product, "default_price"),
        "metadata": metadata_of(product),
    }


def progress(product: Json) -> tuple[int, ...]:
    """A product says itself when it was last changed (whole seconds)."""
    return (int_of(product, "updated") or 0,)


HANDLER = Handler(
    object_type="product",
    table="stripe_products",
    events=types("product", "created", "updated", "deleted"),
    read=read,
    progress=progress,
    watched=(IS_STUB, *metadata_keys("role", "rank", "grace_days", *TARIFF_KEYS)),
    terminal=types("product", "deleted"),
    deleted=types("product", "deleted"),
    when_deleted=(("active", False),),
    is_tariff=True,
)
