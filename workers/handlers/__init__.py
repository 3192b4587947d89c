"""One module per Stripe object: its event types, how its JSON becomes columns, whom it concerns.

A new object is a module here with a `HANDLER`, listed below, a model, a migration and a fixture for each event type.
"""

from __future__ import annotations

from types import MappingProxyType

from workers.handlers import (
    charge,
    checkout_session,
    customer,
    dispute,
    invoice,
    invoice_payment,
    payment_intent,
    price,
    product,
    refund,
    subscription,
)
from workers.shapes import Handler

_MODULES = (
    product,
    price,
    customer,
    subscription,
    invoice,
    payment_intent,
    invoice_payment,
    charge,
    refund,
    dispute,
    checkout_session,
)

HANDLERS: tuple[Handler, ...] = tuple(module.HANDLER for module in _MODULES)

BY_EVENT_TYPE = MappingProxyType({event_type: handler for handler in HANDLERS for event_type in handler.events})
BY_OBJECT_TYPE = MappingProxyType({handler.object_type: handler for handler in HANDLERS})
