"""True histories at random: what could have happened to some customers over some months."""

from collections.abc import Callable, Iterator, Sequence
from random import Random

from simulator.calendar import DAY
from simulator.objects import Charge, Customer, Subscription
from simulator.people import User, people
from simulator.state import Stripe

# 2026-01-05 00:00:00 UTC
CLOCK = 1767571200
LINK = "plink_1practice"

Action = Callable[[], object]


def history(  # noqa: PLR0913 - what makes a history
    seed: int | str,
    customers: int = 3,
    months: int = 3,
    *,
    clock: int = CLOCK,
    burst: bool = True,
    twins: float = 0.0,
    restless: bool = False,
    users: Sequence[User] | None = None,
) -> Stripe:
    """A Stripe to which `months` of 30 days have happened; its `events` are the history, in the true order.

    Equal arguments give equal histories. One user per customer, from `people(seed, customers)` unless given. `burst`
    as in `World`: events of one call share a second, and some unrelated calls do too. `twins` is the share of changes
    that are told by two events. A `restless` merchant changes what is on sale again and again: raises prices and moves
    subscribers, archives and deletes products and prices, gives up invoices, and cancels after a lost dispute.
    """
    stripe = Stripe(seed, clock, burst=burst)
    stripe.twins = twins
    for _ in days(stripe, seed, months, users or people(seed, customers), restless=restless):
        pass
    return stripe


def days(
    stripe: Stripe, seed: int | str, months: int, users: Sequence[User], *, restless: bool = False
) -> Iterator[int]:
    """The same history in a Stripe of one's own, day by day: gives out each day, from 0, when people have acted on it.

    What falls due by itself on the last day has happened only when no more days are given out.
    """
    random = Random(f"history {seed}")
    stripe.dunning = random.choice(["cancel", "unpaid", "past_due"])
    life = _RestlessLife if restless else _Life
    yield from life(stripe, random, users).live(months * 30)


class _Life:
    """Chance acts on the merchant and on each user, a few times a month."""

    # The chance that the merchant does something on a day.
    merchant_acts = 0.05

    def __init__(self, stripe: Stripe, random: Random, users: Sequence[User]) -> None:
        self.stripe = stripe
        self.random = random
        self.users = users
        self.customers: dict[str, str] = {}
        self.prices: list[str] = []
        self.one_time = ""

    def live(self, days: int) -> Iterator[int]:
        """From the opening of the shop to the last day, one by one."""
        self._open_shop()
        begin = self.stripe.now
        for day in range(days):
            for user in self.users:
                if self.random.random() < (0.08 if user.id in self.customers else 0.2):
                    self._wait_until(begin + day * DAY + self.random.randrange(DAY))
                    self._pick(self._what_may_happen_to(user))
            if self.random.random() < self.merchant_acts:
                self._pick(self._what_the_merchant_may_do())
            yield day
        self._wait_until(begin + days * DAY)

    def _open_shop(self) -> None:
        for name, amount, metadata in (
            ("Basic", 500, {"tokens": "100"}),
            ("Pro", 900, {"role": "PREMIUM", "tokens": "500"}),
            ("Studio", 2900, {"role": "PREMIUM", "rank": "1", "tokens": "2000", "tokens_policy": "rollover"}),
        ):
            product = self.stripe.create_product(name, metadata=metadata)
            self.prices.append(self.stripe.create_price(product.id, amount).id)
        self.prices.append(self.stripe.create_price(product.id, 29000, interval="year").id)
        pack = self.stripe.create_product("Token pack")
        self.one_time = self.stripe.create_price(pack.id, 300, interval=None).id

    def _wait_until(self, at: int) -> None:
        if at > self.stripe.now:
            self.stripe.advance(at)

    def _pick(self, actions: Sequence[Action]) -> None:
        self.random.choice(actions)()

    def _price(self) -> str:
        return self.random.choice([price for price in self.prices if self.stripe.prices[price].active])

    def _what_may_happen_to(self, user: User) -> Sequence[Action]:
        if user.id not in self.customers:
            return [
                lambda: self._check_out(user, None),
                lambda: self._check_out(user, LINK),
                lambda: self._sign_up_first(user),
                lambda: self._subscribe_by_api(user),
            ]
        customer = self.stripe.customers[self.customers[user.id]]
        subscriptions = [s for s in self.stripe.subscriptions.values() if s.customer == customer.id]
        living = [s for s in subscriptions if s.ended_at is None]
        if customer.deleted:
            return [lambda: self._check_out(user, None)]
        actions = self._with_customer(customer)
        if living:
            actions += self._with_subscription(self.random.choice(living)) * 2
        else:
            actions += [lambda: self._subscribe_again(customer)] * 4
        return actions

    def _check_out(self, user: User, payment_link: str | None) -> None:
        session = self.stripe.open_checkout(
            self._price(),
            client_reference_id=user.id,
            email=user.email,
            payment_link=payment_link,
            trial_days=self.random.choice([None, None, 7]),
        )
        if self.random.random() < 0.1:
            return  # never paid: the session expires
        session = self.stripe.complete_checkout(
            session.id,
            name=user.name,
            card=self.random.choice(["ok"] * 9 + ["declined"]),
            completed_first=self.random.random() < 0.5,
            created_incomplete=self.random.random() < 0.5,
        )
        if session.customer is not None and session.subscription is not None:
            self.customers[user.id] = session.customer

    def _sign_up_first(self, user: User) -> None:
        customer = self.stripe.create_customer(user.email, name=user.name, metadata={"user_id": user.id})
        self.customers[user.id] = customer.id
        if self.random.random() < 0.7:
            self.stripe.checkout(self._price(), customer=customer.id, client_reference_id=user.id, name=user.name)

    def _subscribe_by_api(self, user: User) -> None:
        card = self.random.choice(["ok", "ok", "declined", None])
        customer = self.stripe.create_customer(user.email, name=user.name, card=card)
        self.customers[user.id] = customer.id
        prices = [(self._price(), self.random.choice([1, 1, 3]))]
        if self.random.random() < 0.3:
            prices += [(other, 1) for other in {self._price()} - {prices[0][0]}]
        self.stripe.subscribe(
            customer.id,
            prices,
            trial_days=self.random.choice([None, None, 14]),
            billing_mode=self.random.choice(["flexible", "classic"]),
            missing_payment_method=self.random.choice(["create_invoice", "pause", "cancel"]),
            created_incomplete=self.random.random() < 0.5,
            metadata={"user_id": user.id},
        )

    def _subscribe_again(self, customer: Customer) -> None:
        self.stripe.set_card(customer.id, "ok")
        self.stripe.subscribe(customer.id, self._price())

    def _with_customer(self, customer: Customer) -> list[Action]:
        stripe, id, charges = self.stripe, customer.id, self._charges_of(customer)
        return [
            lambda: stripe.set_card(id, "ok"),
            lambda: stripe.card_starts_failing(id),
            lambda: stripe.update_customer(id, email=f"new.{customer.email}"),
            lambda: stripe.update_customer(id, metadata={"note": f"seen at {stripe.now}"}),
            *[lambda: self._buy_tokens(customer)] * 2,
            *([lambda: self._take_back(charges[-1])] if charges else []),
            *([lambda: stripe.delete_customer(id)] if self.random.random() < 0.1 else []),
        ]

    def _buy_tokens(self, customer: Customer) -> None:
        guest, in_session = self.random.random() < 0.2, self.random.random() < 0.5
        tokens = {"tokens": self.random.choice(["50", "200"])}
        session = self.stripe.open_checkout(
            self.one_time,
            customer=None if guest else customer.id,
            client_reference_id=next(user for user, id in self.customers.items() if id == customer.id),
            email=customer.email,
            metadata=tokens if in_session else None,
            payment_metadata=None if in_session else tokens,
        )
        session = self.stripe.complete_checkout(session.id, guest=guest, delayed=self.random.random() < 0.5)
        if session.payment_status == "unpaid":
            self._wait_until(self.stripe.now + self.random.randrange(2 * DAY))
            self.stripe.settle_checkout(session.id, ok=self.random.random() < 0.6)

    def _charges_of(self, customer: Customer) -> list[Charge]:
        """Those that can be taken back."""
        charges = (charge for charge in self.stripe.charges.values() if charge.customer == customer.id)
        return [c for c in charges if c.status == "succeeded" and not c.disputed and c.amount_refunded < c.amount]

    def _take_back(self, charge: Charge) -> None:
        self.random.choice([self._refund, self._refund, self._dispute])(charge)

    def _refund(self, charge: Charge) -> None:
        left = charge.amount - charge.amount_refunded
        refund = self.stripe.refund(charge.id, self.random.choice([None, (left + 1) // 2, 1]))
        if self.random.random() < 0.3:
            self._wait_until(self.stripe.now + self.random.randrange(DAY, 4 * DAY))
            self.stripe.fail_refund(refund.id)

    def _dispute(self, charge: Charge) -> None:
        dispute = self.stripe.dispute(charge.id, reason=self.random.choice(["fraudulent", "product_not_received"]))
        if self.random.random() < 0.2:
            return  # the bank takes its time
        self._wait_until(self.stripe.now + self.random.randrange(DAY, 9 * DAY))
        if self.random.random() < 0.6:
            self.stripe.submit_evidence(dispute.id)
            self._wait_until(self.stripe.now + self.random.randrange(DAY, 9 * DAY))
        self.stripe.close_dispute(dispute.id, self.random.choice(["won", "lost"]))

    def _with_subscription(self, subscription: Subscription) -> list[Action]:
        stripe, id = self.stripe, subscription.id
        if subscription.status == "paused":
            return [lambda: stripe.resume(id), lambda: stripe.cancel(id)]
        if subscription.status == "incomplete":
            return [lambda: self._pay(subscription)]
        actions: list[Action] = [
            lambda: stripe.pause_collection(id, self.random.choice(["keep_as_draft", "mark_uncollectible", "void"])),
            lambda: stripe.update_subscription(id, metadata={"seat": str(stripe.now)}),
            lambda: stripe.card_starts_failing(subscription.customer),
        ]
        if self.random.random() < 0.3:
            actions.append(lambda: stripe.cancel(id))
        if subscription.cancel_at is None:
            actions.append(lambda: stripe.schedule_cancel(id, portal=self.random.random() < 0.5))
        else:
            actions.append(lambda: stripe.uncancel(id))
        if subscription.pause_behavior is not None:
            actions += [lambda: stripe.resume_collection(id)] * 3
        if subscription.status == "active":
            actions += [lambda: self._change(subscription)] * 3
            if subscription.billing_mode == "flexible" and self.random.random() < 0.3:
                actions.append(lambda: stripe.pause(id))
        if subscription.status in {"past_due", "unpaid"}:
            actions += [lambda: self._pay(subscription)] * 3
        return actions

    def _change(self, subscription: Subscription) -> None:
        self.stripe.change_item(
            subscription.id,
            price=self._price(),
            quantity=self.random.choice([1, 1, 2]),
            item=self.random.choice(subscription.items).id,
            proration_behavior=self.random.choice(["always_invoice", "create_prorations", "none"]),
        )

    def _pay(self, subscription: Subscription) -> None:
        self.stripe.set_card(subscription.customer, "ok")
        for invoice in list(self.stripe.invoices.values()):
            if invoice.subscription == subscription.id and invoice.status == "open":
                self.stripe.pay_invoice(invoice.id)

    def _what_the_merchant_may_do(self) -> Sequence[Action]:
        product = self.random.choice(list(self.stripe.products))
        price = self.random.choice(self.prices)
        return [
            lambda: self.stripe.update_product(product, name=f"Renamed at {self.stripe.now}"),
            lambda: self.stripe.update_product(product, metadata={"tokens": str(self.random.randrange(1, 99))}),
            lambda: self.stripe.update_product(product, metadata={"role": self.random.choice(["USER", "PREMIUM"])}),
            lambda: self.stripe.update_price(price, metadata={"tokens": str(self.random.randrange(1, 99))}),
            lambda: self.stripe.update_price(price, active=price == self.prices[0]),
            lambda: self.stripe.update_price(price, nickname=f"at {self.stripe.now}"),
        ]


class _RestlessLife(_Life):
    """The same, at a merchant's who leaves nothing as it is."""

    merchant_acts = 0.2

    def _what_the_merchant_may_do(self) -> Sequence[Action]:
        return [
            *super()._what_the_merchant_may_do(),
            self._put_on_sale,
            self._take_off_the_shelf,
            self._delete_a_product,
            self._raise_a_price,
            self._give_up_an_invoice,
            self._cancel_after_a_lost_dispute,
        ]

    def _put_on_sale(self) -> None:
        product = self.stripe.create_product(f"Limited {self.stripe.now}", metadata={"tokens": "10"})
        self.prices.append(self.stripe.create_price(product.id, self.random.randrange(100, 5000)).id)

    def _take_off_the_shelf(self) -> None:
        """Archive a product and its prices, except the one that keeps the shop open; or bring one back."""
        product = self.random.choice(list(self.stripe.products.values()))
        for price in self._prices_of(product.id):
            if price not in {self.prices[0], self.one_time}:
                self.stripe.update_price(price, active=not product.active)
        self.stripe.update_product(product.id, active=not product.active)

    def _delete_a_product(self) -> None:
        """Delete one of the limited products, prices first; who subscribed to it keeps it."""
        limited = [id for id, product in self.stripe.products.items() if product.name.startswith("Limited")]
        if not limited:
            return
        product = self.random.choice(limited)
        for price in self._prices_of(product):
            self.stripe.delete_price(price)
        self.prices = [price for price in self.prices if price in self.stripe.prices]
        self.stripe.delete_product(product)

    def _raise_a_price(self) -> None:
        """A new price in the place of an old one; some subscribers are moved to it."""
        at = self.random.randrange(len(self.prices))
        old = self.stripe.prices[self.prices[at]]
        new = self.stripe.create_price(
            old.product, (old.unit_amount or 0) + 100, interval=old.interval, metadata=old.metadata
        )
        self.prices[at] = new.id
        self.stripe.archive_price(old.id)
        for subscription in list(self.stripe.subscriptions.values()):
            items = [item for item in subscription.items if item.price.id == old.id]
            if subscription.status == "active" and items and self.random.random() < 0.5:
                self.stripe.change_item(
                    subscription.id,
                    price=new.id,
                    quantity=items[0].quantity,
                    item=items[0].id,
                    proration_behavior="none",
                )

    def _give_up_an_invoice(self) -> None:
        unpaid = [invoice.id for invoice in self.stripe.invoices.values() if invoice.status == "open"]
        if unpaid:
            self.random.choice([self.stripe.void_invoice, self.stripe.mark_uncollectible])(self.random.choice(unpaid))

    def _cancel_after_a_lost_dispute(self) -> None:
        lost = {self.stripe.charges[d.charge].customer for d in self.stripe.disputes.values() if d.status == "lost"}
        for subscription in list(self.stripe.subscriptions.values()):
            if subscription.customer in lost and subscription.ended_at is None:
                self.stripe.cancel(subscription.id, reason="payment_disputed")

    def _prices_of(self, product: str) -> list[str]:
        return [price.id for price in self.stripe.prices.values() if price.product == product]
