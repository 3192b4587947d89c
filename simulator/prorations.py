"""Upgrades, downgrades and other quantities, with what they cost for the rest of the period."""

from dataclasses import replace

from simulator.calendar import period_end
from simulator.objects import InvoiceItem, Item, Line, Price, Subscription
from simulator.subscriptions import UPDATED, Subscriptions
from simulator.world import InvalidRequestError, api_call


class Prorations(Subscriptions):
    """Changes in the middle of a period."""

    @api_call
    def change_item(
        self,
        id: str,
        *,
        price: str | None = None,
        quantity: int | None = 1,
        item: str | None = None,
        proration_behavior: str = "always_invoice",
    ) -> Subscription:
        """Another price or quantity for one item of a subscription (the first, unless named).

        `proration_behavior`: "always_invoice" bills the difference now, "create_prorations" with the next invoice,
        "none" never. Another interval starts a new period, which is always billed now.
        """
        subscription = self._live(id)
        old = next((i for i in subscription.items if item in {None, i.id}), None)
        if old is None or subscription.status == "trialing":
            raise InvalidRequestError(f"No item of {id} to change")
        new_price = self.prices[price] if price else old.price
        new = replace(old, price=new_price, quantity=quantity)
        restarts = (new_price.interval, new_price.interval_count) != (old.price.interval, old.price.interval_count)
        if restarts:
            end = period_end(self.now, self.now, new_price.interval or "month", new_price.interval_count)
            new = replace(new, current_period_start=self.now, current_period_end=end)
        if new == old:
            return subscription
        lines = [] if proration_behavior == "none" else self._prorations(subscription, old, new, restarts=restarts)
        if restarts and not lines:
            lines = [self._line(subscription, new)]
        return self._apply(
            subscription, new, lines, bill_now=restarts or proration_behavior == "always_invoice", restarts=restarts
        )

    def _apply(
        self, subscription: Subscription, new: Item, lines: list[Line], *, bill_now: bool, restarts: bool
    ) -> Subscription:
        bill_now = bill_now and bool(lines)
        invoice_id = self.new_id("in_1") if bill_now else None
        if invoice_id:
            new = replace(new, billed_by=(invoice_id, lines[-1].id))
        changed = self._change(
            subscription,
            UPDATED,
            items=tuple(new if item.id == new.id else item for item in subscription.items),
            latest_invoice=invoice_id or subscription.latest_invoice,
            billing_cycle_anchor=self.now if restarts else subscription.billing_cycle_anchor,
            pending=subscription.pending if bill_now else (*subscription.pending, *lines),
        )
        for line in lines:
            if line.invoice_item is not None:
                item = InvoiceItem(
                    id=line.invoice_item,
                    created=self.now,
                    livemode=self.livemode,
                    customer=changed.customer,
                    line=line,
                )
                self._emit("invoiceitem.created", item)
        if bill_now:
            invoice = self._draft(changed, lines, "subscription_update", (self.now, self.now), id=invoice_id)
            self._finalize_and_collect(invoice)
        return self.subscriptions[subscription.id]

    def _prorations(self, subscription: Subscription, old: Item, new: Item, *, restarts: bool) -> list[Line]:
        """The credit for what is not used, and the charge for what takes its place."""
        name, end = self._name_of(old.price), old.current_period_end
        credit = self._proration(subscription, old, -_rest(old.price, old, self.now), f"Unused time on {name}", end)
        credit = replace(credit, credited=old.billed_by)
        if restarts:
            return [credit, self._line(subscription, new)]
        name = self._name_of(new.price)
        charge = _rest(new.price, new, self.now)
        return [credit, self._proration(subscription, new, charge, f"Remaining time on {name}", end)]

    def _proration(self, subscription: Subscription, item: Item, amount: int, description: str, end: int) -> Line:
        line = self._line(subscription, item, amount=amount)
        return replace(
            line,
            description=description,
            period_start=self.now,
            period_end=end,
            proration=True,
            invoice_item=self.new_id("ii_1"),
        )


def _rest(price: Price, item: Item, now: int) -> int:
    """The part of the price for the rest of the item's period, half a cent rounded up."""
    whole = item.current_period_end - item.current_period_start
    left = max(item.current_period_end - now, 0)
    return (price.amount(item.quantity) * left * 2 + whole) // (whole * 2)
