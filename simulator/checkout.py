"""Checkout sessions, made by the merchant's server or by a Payment Link."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from simulator.calendar import DAY
from simulator.objects import Customer, Session, Subscription
from simulator.prorations import Prorations
from simulator.world import InvalidRequestError, Timer, api_call, at_once, merged

COMPLETED = "checkout.session.completed"


class Checkout(Prorations):
    """Where customers put in their cards."""

    def __init__(self, seed: int | str, clock: int, *, livemode: bool = False, burst: bool = True) -> None:
        super().__init__(seed, clock, livemode=livemode, burst=burst)
        self._timers[Session] = self._session_timers

    @api_call
    def open_checkout(  # noqa: PLR0913 - Stripe's own parameters
        self,
        prices: str | Sequence[tuple[str, int]],
        *,
        customer: str | None = None,
        client_reference_id: str | None = None,
        email: str | None = None,
        payment_link: str | None = None,
        metadata: Mapping[str, str] | None = None,
        subscription_metadata: Mapping[str, str] | None = None,
        payment_metadata: Mapping[str, str] | None = None,
        trial_days: int | None = None,
    ) -> Session:
        """A session for one price, or several (id, quantity); mode `subscription` if one of them recurs.

        `email` is filled in beforehand. Session metadata are copied neither to the subscription nor to the
        PaymentIntent: give `subscription_metadata`, or `payment_metadata` (payment mode), which the charge repeats.
        No event tells that a session was opened.
        """
        if isinstance(prices, str):
            prices = [(prices, 1)]
        bought = [(self.prices[price], quantity) for price, quantity in prices]
        mode = "subscription" if any(price.interval for price, _ in bought) else "payment"
        if mode == "subscription" and payment_metadata:
            raise InvalidRequestError("You can not pass `payment_intent_data` in `subscription` mode.")
        if mode == "payment" and (trial_days or subscription_metadata):
            raise InvalidRequestError("You can not pass `subscription_data` in `payment` mode.")
        return self._create(
            Session(
                id=self.new_id("cs_live_a1" if self.livemode else "cs_test_a1"),
                created=self.now,
                livemode=self.livemode,
                mode=mode,
                prices=tuple(prices),
                amount_total=0 if trial_days else sum(price.amount(quantity) for price, quantity in bought),
                currency=bought[0][0].currency,
                expires_at=self.now + DAY,
                client_reference_id=client_reference_id,
                customer=customer,
                customer_email=email,
                payment_link=payment_link,
                metadata=merged({}, metadata),
                subscription_metadata=merged({}, subscription_metadata),
                payment_metadata=merged({}, payment_metadata),
                trial_days=trial_days,
            )
        )

    @at_once
    def complete_checkout(  # noqa: PLR0913 - what the person at Checkout types and what Stripe makes of it
        self,
        id: str,
        *,
        email: str | None = None,
        name: str | None = None,
        card: str = "ok",
        guest: bool = False,
        delayed: bool = False,
        completed_first: bool = False,
        created_incomplete: bool = False,
    ) -> Session:
        """Fill the form in and pay; with a card that is declined the session stays open.

        `guest`: no customer is made (payment mode). `delayed`: the bank answers later, see `settle_checkout` (payment
        mode). `completed_first`: the session's event comes before those of the subscription. `created_incomplete`:
        the subscription turns active in an event of its own.
        """
        session = self.sessions[id]
        if session.status != "open":
            raise InvalidRequestError(f"Session {id} is {session.status}")
        if session.mode == "subscription" and (guest or delayed):
            raise InvalidRequestError("Only payments can be made by guests or settle later")
        email = email or session.customer_email
        session = replace(session, paid_by_email=email, paid_by_name=name)
        if session.mode == "payment":
            return self._complete_payment(session, card, guest=guest, delayed=delayed)
        return self._complete_subscription(
            session, card, completed_first=completed_first, created_incomplete=created_incomplete
        )

    @at_once
    def settle_checkout(self, id: str, *, ok: bool = True) -> Session:
        """The bank's late answer to a delayed payment."""
        session = self.sessions[id]
        intent = self.payment_intents[session.payment_intent or ""]
        self._charge(intent, self.new_id("pm_1"), ok=ok, email=session.paid_by_email)
        # A failure leaves the session as it was; its event comes all the same.
        settled = replace(session, payment_status="paid" if ok else "unpaid")
        return self._create(settled, f"checkout.session.async_payment_{'succeeded' if ok else 'failed'}")

    def _session_timers(self, session: Session) -> Iterator[Timer]:
        if session.status == "open":
            yield session.expires_at, self._expire_session

    def _expire_session(self, session: Session) -> None:
        self._change(session, "checkout.session.expired", status="expired")

    def _payer(self, session: Session, card: str) -> Customer:
        if session.customer is None:
            return self.create_customer(session.paid_by_email, name=session.paid_by_name, card=card)
        customer = self.customers[session.customer]
        return customer if customer.card == card else self.set_card(customer.id, card)

    def _complete_payment(self, session: Session, card: str, *, guest: bool, delayed: bool) -> Session:
        customer = None if guest else self._payer(session, card)
        buyer = customer.id if customer else None
        session = replace(session, customer=buyer, status="complete")
        if session.amount_total == 0:
            return self._complete(session, payment_status="no_payment_required")
        intent = self._open_intent(
            session.amount_total,
            session.currency,
            buyer,
            description=None,
            metadata=session.payment_metadata,
            setup_future_usage=None,
        )
        session = replace(session, payment_intent=intent.id)
        if delayed:
            self._change(intent, "payment_intent.processing", status="processing")
            return self._complete(session)
        payment_method = customer.payment_method if customer else None
        payment_method = payment_method or self.new_id("pm_1")
        intent = self._charge(intent, payment_method, ok=card == "ok", email=session.paid_by_email)
        if intent.status != "succeeded":
            return self._put(replace(session, status="open"))
        return self._complete(session, payment_status="paid")

    def _complete_subscription(
        self, session: Session, card: str, *, completed_first: bool, created_incomplete: bool
    ) -> Session:
        customer = self._payer(session, card)
        intent = None
        # Since basil the subscription and its invoice come into being only after the payment has succeeded.
        due = max(session.amount_total + customer.balance, 0)
        if due:
            intent = self._open_intent(due, session.currency, customer.id, description="Subscription creation")
            intent = self._charge(intent, customer.payment_method or "", ok=card == "ok")
            if intent.status != "succeeded":
                return self._put(replace(session, customer=customer.id))
        subscription = self._new_subscription(
            customer.id, session.prices, session.trial_days, session.subscription_metadata
        )
        if intent is not None:
            intent = self._change(intent, invoice=subscription.latest_invoice)
        session = replace(
            session,
            status="complete",
            payment_status="paid" if due else "no_payment_required",
            customer=customer.id,
            subscription=subscription.id,
            invoice=subscription.latest_invoice,
        )
        if completed_first:
            self._complete(session)
        self._begin(subscription, created_incomplete=created_incomplete, intent=intent)
        return session if completed_first else self._complete(session)

    def _complete(self, session: Session, payment_status: str | None = None) -> Session:
        session = replace(session, payment_status=payment_status or session.payment_status)
        return self._create(session, COMPLETED)

    def checkout(
        self,
        prices: str | Sequence[tuple[str, int]],
        *,
        client_reference_id: str | None = None,
        email: str | None = None,
        name: str | None = None,
        customer: str | None = None,
        payment_link: str | None = None,
    ) -> Subscription:
        """Open a session and complete it at once: the way most subscriptions begin."""
        session = self.open_checkout(
            prices,
            client_reference_id=client_reference_id,
            customer=customer,
            email=email,
            payment_link=payment_link,
        )
        session = self.complete_checkout(session.id, name=name)
        return self.subscriptions[session.subscription or ""]

    def purchase(  # noqa: PLR0913 - Stripe's own parameters
        self,
        prices: str | Sequence[tuple[str, int]],
        *,
        client_reference_id: str | None = None,
        email: str | None = None,
        name: str | None = None,
        customer: str | None = None,
        guest: bool = False,
        metadata: Mapping[str, str] | None = None,
        payment_metadata: Mapping[str, str] | None = None,
    ) -> Session:
        """Somebody buys something once, and pays at once.

        No webhook shows what was bought: whoever sells tokens so says how many in the metadata of the session or of
        its payment.
        """
        session = self.open_checkout(
            prices,
            client_reference_id=client_reference_id,
            customer=customer,
            email=email,
            metadata=metadata,
            payment_metadata=payment_metadata,
        )
        return self.complete_checkout(session.id, name=name, guest=guest)
