"""Customers: who pays, and (by metadata and e-mail) perhaps which user that is."""

from __future__ import annotations

from typing import Any

from workers.shapes import USER_KEYS, Handler, Json, metadata_of, text_of, time_of, types


def read(customer: Json) -> dict[str, Any]:
    """Customer → columns of `stripe_customers`."""
    return {
        "created": time_of(customer, "created"),
        "email": text_of(customer, "email"),
        "name": text_of(customer, "name"),
        "metadata": metadata_of(customer),
    }


HANDLER = Handler(
    object_type="customer",
    table="stripe_customers",
    events=types("customer", "created", "updated", "deleted"),
    read=read,
    watched=(*USER_KEYS, "lower(t.email)", "t.created", "t.deleted_at"),
    terminal=types("customer", "deleted"),
    deleted=types("customer", "deleted"),
    customer_column="id",
    is_evidence=True,
)
