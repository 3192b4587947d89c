"""Products and prices."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from simulator.endpoints import Endpoints
from simulator.objects import Plan, Price, Product
from simulator.world import InvalidRequestError, api_call, merged


class Catalog(Endpoints):
    """What is for sale."""

    @api_call
    def create_product(
        self,
        name: str,
        *,
        id: str | None = None,
        description: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Product:
        """A new product; merchants may choose the id."""
        if id in self.products:
            raise InvalidRequestError(f"Product already exists: {id}")
        product = Product(
            id=id or self.new_id("prod_"),
            created=self.now,
            livemode=self.livemode,
            updated=self.now,
            name=name,
            description=description,
            metadata=merged({}, metadata),
        )
        return self._create(product, "product.created")

    @api_call
    def update_product(self, id: str, *, metadata: Mapping[str, str] | None = None, **changes: Any) -> Product:
        """Change name, description, active, default_price or metadata (merged; an empty value removes the key)."""
        product = self.products[id]
        changed = replace(product, metadata=merged(product.metadata, metadata), **changes)
        if changed == product:
            return product
        self._put(replace(changed, updated=self.now))
        self._emit("product.updated", self.products[id], product)
        return self.products[id]

    def archive_product(self, id: str) -> Product:
        """Take a product off the shelf; subscriptions to it go on."""
        return self.update_product(id, active=False)

    @api_call
    def delete_product(self, id: str) -> None:
        """Delete a product, which Stripe allows only when it has no prices."""
        if any(price.product == id for price in self.prices.values()):
            raise InvalidRequestError("This product cannot be deleted because it has one or more user-created prices.")
        self._emit("product.deleted", self._remove(self.products[id]))

    @api_call
    def create_price(self, product: str, unit_amount: int | None, **fields: Any) -> Price:
        """A new price, monthly in usd unless `fields` say otherwise; `interval=None` makes it a one-time price.

        `unit_amount` None goes with `unit_amount_decimal` (a fraction of a cent) or `tiers_mode` (neither).
        """
        fields.setdefault("unit_amount_decimal", None if unit_amount is None else str(unit_amount))
        fields.setdefault("id", self.new_id("price_1"))
        fields["metadata"] = merged({}, fields.get("metadata"))
        if product not in self.products:
            raise InvalidRequestError(f"No such product: '{product}'")
        price = Price(created=self.now, livemode=self.livemode, product=product, unit_amount=unit_amount, **fields)
        self._put(price)
        self._emit_with_plan("created", price)
        return price

    @api_call
    def update_price(self, id: str, *, metadata: Mapping[str, str] | None = None, **changes: Any) -> Price:
        """Change active, nickname, lookup_key or metadata; Stripe never changes an amount."""
        price = self.prices[id]
        changed = replace(price, metadata=merged(price.metadata, metadata), **changes)
        if changed != price:
            self._put(changed)
            self._reprice(changed)
            self._emit_with_plan("updated", changed, price)
        return changed

    def archive_price(self, id: str) -> Price:
        """No new subscriptions at this price; those that have it go on."""
        return self.update_price(id, active=False)

    @api_call
    def delete_price(self, id: str) -> None:
        """What deleting a legacy plan or a Dashboard price does; the event shows it as inactive."""
        self._emit_with_plan("deleted", replace(self._remove(self.prices[id]), active=False))

    def _emit_with_plan(self, verb: str, price: Price, previous: Price | None = None) -> None:
        """Every recurring price has a twin of the older type `plan`, whose events come along."""
        self._emit(f"price.{verb}", price, previous)
        if price.interval is not None:
            self._emit(f"plan.{verb}", _plan(price), _plan(previous) if previous else None)

    def _reprice(self, price: Price) -> None:
        """Subscriptions show their prices as they are now; that is no event of theirs."""
        for subscription in list(self.subscriptions.values()):
            if any(item.price.id == price.id for item in subscription.items):
                items = (replace(i, price=price) if i.price.id == price.id else i for i in subscription.items)
                self._change(subscription, items=tuple(items))


def _plan(price: Price) -> Plan:
    return Plan(id=price.id, created=price.created, livemode=price.livemode, price=price)
