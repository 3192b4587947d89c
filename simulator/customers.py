"""Customers and the cards they pay with."""

from collections.abc import Mapping
from typing import Any

from simulator.catalog import Catalog
from simulator.ids import token
from simulator.objects import Customer
from simulator.world import api_call, at_once, merged


class Customers(Catalog):
    """Who pays."""

    @api_call
    def create_customer(
        self,
        email: str | None = None,
        *,
        name: str | None = None,
        card: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Customer:
        """A new customer; `card` is "ok", "declined", or None for no payment method."""
        id = self.new_id("cus_")
        customer = Customer(
            id=id,
            created=self.now,
            livemode=self.livemode,
            email=email,
            name=name,
            card=card,
            payment_method=self.new_id("pm_1") if card else None,
            invoice_prefix=token(id, 8).upper(),
            metadata=merged({}, metadata),
        )
        return self._create(customer, "customer.created")

    @api_call
    def update_customer(self, id: str, *, metadata: Mapping[str, str] | None = None, **changes: Any) -> Customer:
        """Change email, name or metadata (merged; an empty value removes the key)."""
        customer = self.customers[id]
        metadata = merged(customer.metadata, metadata)
        return self._change(customer, "customer.updated", metadata=metadata, **changes)

    @api_call
    def set_card(self, id: str, card: str | None) -> Customer:
        """Another card: "ok" is charged, "declined" is refused for lack of funds, None takes the card away."""
        payment_method = self.new_id("pm_1") if card else None
        return self._change(self.customers[id], "customer.updated", card=card, payment_method=payment_method)

    @at_once
    def card_starts_failing(self, id: str) -> Customer:
        """The bank refuses the present card from now on; nobody is told until it is charged."""
        return self._change(self.customers[id], card="declined")
