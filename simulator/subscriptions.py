"""Subscriptions: how they begin, renew, pause and end."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from simulator.calendar import DAY, HOUR, period_end
from simulator.invoices import DRAFT_S, Invoices
from simulator.objects import Invoice, Item, Line, PaymentIntent, Price, Subscription
from simulator.world import InvalidRequestError, Timer, api_call, merged

LIVE = ("trialing", "active", "past_due", "unpaid")
UPDATED = "customer.subscription.updated"


class Subscriptions(Invoices):
    """What customers pay for again and again. `dunning`: "cancel", "unpaid" or "past_due" after the last retry."""

    dunning = "cancel"

    def __init__(self, seed: int | str, clock: int, *, livemode: bool = False, burst: bool = True) -> None:
        super().__init__(seed, clock, livemode=livemode, burst=burst)
        self._timers[Subscription] = self._subscription_timers

    @api_call
    def subscribe(  # noqa: PLR0913 - Stripe's own parameters
        self,
        customer: str,
        prices: str | Sequence[tuple[str, int | None]],
        *,
        trial_days: int | None = None,
        billing_mode: str = "flexible",
        missing_payment_method: str = "create_invoice",
        created_incomplete: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> Subscription:
        """Subscribe a customer to one price, or to several (id, quantity), and try to collect the first invoice.

        With `created_incomplete` the subscription is `incomplete` until its first payment, even if that succeeds.
        """
        if isinstance(prices, str):
            prices = [(prices, 1)]
        subscription = self._new_subscription(customer, prices, trial_days, merged({}, metadata))
        return self._begin(
            replace(subscription, billing_mode=billing_mode, missing_payment_method=missing_payment_method),
            created_incomplete=created_incomplete,
        )

    @api_call
    def update_subscription(self, id: str, *, metadata: Mapping[str, str]) -> Subscription:
        """Change metadata (merged; an empty value removes the key)."""
        subscription = self.subscriptions[id]
        return self._change(subscription, UPDATED, metadata=merged(subscription.metadata, metadata))

    @api_call
    def schedule_cancel(self, id: str, *, portal: bool = True, feedback: str | None = None) -> Subscription:
        """Cancel at the period's end.

        The Customer Portal sets only `cancel_at` on subscriptions in flexible billing mode; everything else sets
        `cancel_at_period_end` too (docs.stripe.com/billing/subscriptions/billing-mode/compare).
        """
        subscription = self._live(id)
        return self._change(
            subscription,
            UPDATED,
            cancel_at=max(item.current_period_end for item in subscription.items),
            cancel_at_period_end=not (portal and subscription.billing_mode == "flexible"),
            canceled_at=self.now,
            cancellation_feedback=feedback,
            cancellation_reason="cancellation_requested",
        )

    @api_call
    def uncancel(self, id: str) -> Subscription:
        """Take a scheduled cancellation back."""
        return self._change(
            self._live(id),
            UPDATED,
            cancel_at=None,
            cancel_at_period_end=False,
            canceled_at=None,
            cancellation_feedback=None,
            cancellation_reason=None,
        )

    @api_call
    def cancel(self, id: str, *, reason: str = "cancellation_requested") -> Subscription:
        """End it now."""
        subscription = self.subscriptions[id]
        if subscription.ended_at is not None:
            raise InvalidRequestError(f"No such subscription: '{id}'")
        return self._end(subscription, reason)

    @api_call
    def pause_collection(self, id: str, behavior: str, resumes_at: int | None = None) -> Subscription:
        """Stop collecting ("keep_as_draft", "mark_uncollectible" or "void"); the status does not change."""
        return self._change(self._live(id), UPDATED, pause_behavior=behavior, pause_resumes_at=resumes_at)

    @api_call
    def resume_collection(self, id: str) -> Subscription:
        """Collect again from the next invoice on."""
        return self._resume_collection(self._live(id))

    @api_call
    def pause(self, id: str) -> Subscription:
        """Pause it altogether: no access, no invoices (2026-09-30.endive; flexible billing mode only)."""
        subscription = self._live(id)
        if subscription.billing_mode != "flexible":
            raise InvalidRequestError("Pausing needs flexible billing mode")
        return self._pause(subscription, "pause_requested")

    @api_call
    def resume(self, id: str) -> Subscription:
        """End a pause: a new period begins now, and is billed now."""
        subscription = self.subscriptions[id]
        if subscription.status != "paused":
            raise InvalidRequestError(f"Subscription {id} is {subscription.status}")
        subscription = replace(subscription, billing_cycle_anchor=self.now)
        items = tuple(_renewed(subscription, item, self.now) for item in subscription.items)
        return self._bill(
            subscription, items, (self.now, self.now), ("customer.subscription.resumed", UPDATED), status="active"
        )

    @api_call
    def delete_customer(self, id: str) -> None:
        """Delete a customer, whose subscriptions end at once."""
        for subscription in list(self.subscriptions.values()):
            if subscription.customer == id and subscription.ended_at is None:
                self._end(subscription, None)
        self._change(self.customers[id], "customer.deleted", deleted=True)

    def _live(self, id: str) -> Subscription:
        subscription = self.subscriptions[id]
        if subscription.status not in LIVE:
            raise InvalidRequestError(f"Subscription {id} is {subscription.status}")
        return subscription

    def _subscription_timers(self, subscription: Subscription) -> Iterator[Timer]:
        if subscription.status == "incomplete":
            yield subscription.created + 23 * HOUR, self._expire
        if subscription.status not in LIVE:
            return
        if subscription.cancel_at is not None:
            yield subscription.cancel_at, self._end_on_schedule
        if subscription.pause_resumes_at is not None:
            yield subscription.pause_resumes_at, self._resume_collection
        end = min(item.current_period_end for item in subscription.items)
        if subscription.warned != end and subscription.cancel_at is None:
            yield max(end - 3 * DAY, subscription.created), self._announce
        yield end, self._end_trial if subscription.status == "trialing" else self._renew

    def _new_subscription(
        self,
        customer: str,
        prices: Sequence[tuple[str, int | None]],
        trial_days: int | None,
        metadata: Mapping[str, str],
    ) -> Subscription:
        buyer = self.customers[customer]
        trial_end = self.now + trial_days * DAY if trial_days else None
        id = self.new_id("sub_1")
        items = tuple(self._new_item(id, self.prices[price], quantity, trial_end) for price, quantity in prices)
        return Subscription(
            id=id,
            created=self.now,
            livemode=self.livemode,
            customer=customer,
            items=items,
            status="trialing" if trial_end else "active",
            billing_cycle_anchor=trial_end or self.now,
            currency=items[0].price.currency,
            default_payment_method=buyer.payment_method,
            latest_invoice=self.new_id("in_1"),
            trial_start=self.now if trial_end else None,
            trial_end=trial_end,
            metadata=metadata,
        )

    def _new_item(self, subscription: str, price: Price, quantity: int | None, trial_end: int | None) -> Item:
        if price.interval is None or not price.active:
            raise InvalidRequestError(f"Price {price.id} is not an active recurring price")
        return Item(
            id=self.new_id("si_"),
            created=self.now,
            livemode=self.livemode,
            subscription=subscription,
            price=price,
            quantity=None if price.usage_type == "metered" else quantity,
            current_period_start=self.now,
            current_period_end=trial_end or period_end(self.now, self.now, price.interval, price.interval_count),
        )

    def _begin(
        self, subscription: Subscription, *, created_incomplete: bool = False, intent: PaymentIntent | None = None
    ) -> Subscription:
        """Announce a subscription with its first invoice; `intent` has paid it already (Checkout)."""
        customer = self.customers[subscription.customer]
        self._change(customer, currency=subscription.currency)
        billed = self._trial_line if subscription.trial_end else self._line
        lines = [billed(subscription, item) for item in subscription.items]
        due = sum(line.amount for line in lines) + customer.balance > 0
        paid = intent is not None or customer.card == "ok" or not due
        if subscription.status == "active" and (created_incomplete or not paid):
            subscription = replace(subscription, status="incomplete")
        items = _billed(subscription.items, lines, subscription.latest_invoice)
        subscription = self._create(replace(subscription, items=items), "customer.subscription.created")
        period = (self.now, self.now)
        invoice = self._draft(
            subscription, lines, "subscription_create", period, id=subscription.latest_invoice, intent=intent
        )
        invoice = self._finalize(invoice)
        if intent is None:
            self._collect(invoice)
        else:
            self._settle(invoice, intent)
        return self.subscriptions[subscription.id]

    def _renew(self, subscription: Subscription) -> None:
        at = min(item.current_period_end for item in subscription.items)
        items = tuple(
            _renewed(subscription, item, at) if item.current_period_end == at else item for item in subscription.items
        )
        start = min(item.current_period_start for item in subscription.items)
        self._bill(subscription, items, (start, at), (UPDATED,), wait=DRAFT_S)

    def _end_trial(self, subscription: Subscription) -> None:
        card = self.customers[subscription.customer].card
        if card is None and subscription.missing_payment_method == "pause":
            self._pause(subscription, "trial_end_without_payment_method")
        elif card is None and subscription.missing_payment_method == "cancel":
            self._end(subscription, None)
        else:
            at = subscription.billing_cycle_anchor
            items = tuple(_renewed(subscription, item, at) for item in subscription.items)
            start = subscription.trial_start or subscription.created
            self._bill(subscription, items, (start, at), (UPDATED,), wait=DRAFT_S, status="active")

    def _bill(
        self,
        subscription: Subscription,
        items: tuple[Item, ...],
        period: tuple[int, int],
        event_types: tuple[str, ...],
        *,
        wait: int = 0,
        status: str | None = None,
    ) -> Subscription:
        """Begin a period of those items that changed: the subscription rolls on, and a new invoice says so."""
        id = self.new_id("in_1")
        rolled = [new for old, new in zip(subscription.items, items, strict=True) if old != new]
        lines = [self._line(subscription, item) for item in rolled]
        known = self.subscriptions[subscription.id]
        changed = self._change(
            known,
            *event_types,
            billing_cycle_anchor=subscription.billing_cycle_anchor,
            items=_billed(items, lines, id),
            latest_invoice=id,
            status=status or known.status,
            pending=(),
            paused_at=None,
            paused_by=None,
        )
        held = changed.status == "unpaid" or changed.pause_behavior == "keep_as_draft"
        reason = "subscription_cycle" if wait else "subscription_update"
        invoice = self._draft(changed, [*known.pending, *lines], reason, period, id=id, wait=None if held else wait)
        if not held and not wait:
            self._finalize_and_collect(invoice)
        return self.subscriptions[changed.id]

    def _announce(self, subscription: Subscription) -> None:
        """Three days ahead: the trial's end, or the next invoice, which has no id that will last."""
        end = min(item.current_period_end for item in subscription.items)
        subscription = self._change(subscription, warned=end)
        if subscription.status == "trialing":
            self._emit("customer.subscription.trial_will_end", subscription)
            return
        due = [i for i in subscription.items if i.current_period_end == end]
        lines = [*subscription.pending, *(self._line(subscription, _renewed(subscription, item, end)) for item in due)]
        customer = self.customers[subscription.customer]
        preview = Invoice(
            id=self.new_id("upcoming_in_1"),
            created=end,
            livemode=self.livemode,
            customer=customer.id,
            customer_email=customer.email,
            customer_name=customer.name,
            subscription=subscription.id,
            subscription_metadata=subscription.metadata,
            currency=subscription.currency,
            billing_reason="upcoming",
            lines=tuple(lines),
            period_start=due[0].current_period_start,
            period_end=end,
            starting_balance=customer.balance,
            amount_due=max(sum(line.amount for line in lines) + customer.balance, 0),
        )
        self._emit("invoice.upcoming", preview)

    def _line(self, subscription: Subscription, item: Item, *, amount: int | None = None) -> Line:
        if amount is None:
            amount = item.price.amount(item.quantity)
        name = self._name_of(item.price)
        price = f"{(item.price.unit_amount or 0) / 100:.2f} {item.price.currency}"
        return Line(
            id=self.new_id("il_1"),
            created=self.now,
            livemode=self.livemode,
            amount=amount,
            description=f"{item.quantity or 0} × {name} (at {price} / {item.price.interval})",
            price=item.price,
            quantity=item.quantity,
            subscription=subscription.id,
            item=item.id,
            period_start=item.current_period_start,
            period_end=item.current_period_end,
            metadata=subscription.metadata,
        )

    def _trial_line(self, subscription: Subscription, item: Item) -> Line:
        line = self._line(subscription, item, amount=0)
        return replace(line, description=f"Trial period for {self._name_of(item.price)}")

    def _name_of(self, price: Price) -> str:
        product = self.products.get(price.product)
        return product.name if product else price.product

    def _pause(self, subscription: Subscription, paused_by: str) -> Subscription:
        return self._change(
            subscription,
            "customer.subscription.paused",
            UPDATED,
            status="paused",
            paused_at=self.now,
            paused_by=paused_by,
        )

    def _resume_collection(self, subscription: Subscription) -> Subscription:
        return self._change(subscription, UPDATED, pause_behavior=None, pause_resumes_at=None)

    def _end_on_schedule(self, subscription: Subscription) -> None:
        self._end(subscription, subscription.cancellation_reason)

    def _end(self, subscription: Subscription, reason: str | None) -> Subscription:
        ended = self._change(
            subscription,
            "customer.subscription.deleted",
            status="canceled",
            ended_at=self.now,
            canceled_at=subscription.canceled_at or self.now,
            cancellation_reason=reason,
        )
        self._stop_collecting(ended)
        return ended

    def _expire(self, subscription: Subscription) -> None:
        for invoice in self._invoices_of(subscription, ("open",)):
            self._void(invoice)
        self._change(subscription, UPDATED, status="incomplete_expired", ended_at=self.now)

    def _on_paid(self, invoice: Invoice) -> None:
        subscription = self.subscriptions[invoice.subscription]
        if subscription.status in {"incomplete", "past_due", "unpaid"} and subscription.latest_invoice == invoice.id:
            self._change(subscription, UPDATED, status="active")

    def _on_failed(self, invoice: Invoice, *, exhausted: bool) -> None:
        subscription = self.subscriptions[invoice.subscription]
        if subscription.status == "active":
            subscription = self._change(subscription, UPDATED, status="past_due")
        if exhausted and subscription.status == "past_due":
            if self.dunning == "cancel":
                self._end(subscription, "payment_failed")
            else:
                self._change(subscription, UPDATED, status=self.dunning)


def _renewed(subscription: Subscription, item: Item, at: int) -> Item:
    price = item.price
    end = period_end(subscription.billing_cycle_anchor, at, price.interval or "month", price.interval_count)
    return replace(item, current_period_start=at, current_period_end=end)


def _billed(items: Sequence[Item], lines: Sequence[Line], invoice: str | None) -> tuple[Item, ...]:
    """The items, each remembering the line that billed its running period."""
    by_item = {line.item: line.id for line in lines}
    return tuple(
        replace(item, billed_by=(invoice, by_item[item.id])) if invoice and item.id in by_item else item
        for item in items
    )
