"""One module per Stripe object: its event types, how its JSON becomes columns, whom it concerns.

A new object is a module here with a `HANDLER`, listed below, a model, a migration and a fixture for each event type.
"""

from __future__ import annotations

from types import MappingProxyType

from workers.handlers import checkout_session, customer, price, product, subscription
from workers.shapes import Handler

HANDLERS: tuple[Handler, ...] = tuple(
    module.HANDLER for module in (product, price, customer, subscription, checkout_session)
)

BY_EVENT_TYPE = MappingProxyType({event_type: handler for handler in HANDLERS for event_type in handler.events})
