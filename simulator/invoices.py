"""Invoices from draft to paid, and what happens when they are not."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from simulator.calendar import DAY, HOUR
from simulator.disputes import Disputes
from simulator.objects import Invoice, InvoicePayment, Line, PaymentIntent, Subscription
from simulator.world import InvalidRequestError, Timer, api_call

# Days between the attempts to collect a renewal; after the last one dunning is over.
RETRY_DAYS = (3, 5, 7)

# An hour for the merchant to add to a draft, once every endpoint has taken its `invoice.created`.
DRAFT_S = HOUR

DESCRIPTIONS = {"subscription_create": "Subscription creation"}


class Invoices(Disputes):
    """Bills for subscriptions, collected by card."""

    def __init__(self, seed: int | str, clock: int, *, livemode: bool = False, burst: bool = True) -> None:
        super().__init__(seed, clock, livemode=livemode, burst=burst)
        self._timers[Invoice] = self._invoice_timers

    @api_call
    def pay_invoice(self, id: str) -> Invoice:
        """Try to collect an open invoice now."""
        invoice = self.invoices[id]
        if invoice.status != "open":
            raise InvalidRequestError(f"Invoice {id} is {invoice.status}")
        return self._collect(invoice)

    @api_call
    def void_invoice(self, id: str) -> Invoice:
        """Give up an open invoice as a mistake."""
        return self._void(self.invoices[id])

    @api_call
    def mark_uncollectible(self, id: str) -> Invoice:
        """Give up an open invoice as a bad debt; the subscription stays as it is."""
        return self._mark_uncollectible(self.invoices[id])

    def _invoice_timers(self, invoice: Invoice) -> Iterator[Timer]:
        if invoice.status == "draft" and invoice.automatically_finalizes_at is not None:
            yield invoice.automatically_finalizes_at, self._finalize_and_collect
        if invoice.status == "open" and invoice.next_payment_attempt is not None:
            yield invoice.next_payment_attempt, self._collect

    def _draft(  # noqa: PLR0913 - what makes an invoice
        self,
        subscription: Subscription,
        lines: Iterable[Line],
        reason: str,
        period: tuple[int, int],
        *,
        id: str | None = None,
        wait: int | None = 0,
        intent: PaymentIntent | None = None,
    ) -> Invoice:
        """A draft: finalized by the caller, or by itself after `wait` seconds, or (None) by nobody."""
        customer = self.customers[subscription.customer]
        invoice = Invoice(
            id=id or self.new_id("in_1"),
            created=self.now,
            livemode=self.livemode,
            customer=customer.id,
            customer_email=customer.email,
            customer_name=customer.name,
            subscription=subscription.id,
            subscription_metadata=subscription.metadata,
            currency=subscription.currency,
            billing_reason=reason,
            lines=tuple(lines),
            period_start=period[0],
            period_end=period[1],
            starting_balance=customer.balance,
            auto_advance=wait is not None,
            automatically_finalizes_at=self.now + wait if wait else None,
            payment_intent=intent.id if intent else None,
        )
        due = max(invoice.total + customer.balance, 0)
        return self._create(replace(invoice, amount_due=due), "invoice.created")

    def _finalize(self, invoice: Invoice) -> Invoice:
        """Number the invoice, use the customer's balance, and open the PaymentIntent that is to pay it."""
        customer = self.customers[invoice.customer]
        rest = invoice.total + customer.balance
        invoice = self._change(
            invoice,
            "invoice.finalized",
            status="open",
            number=f"{customer.invoice_prefix}-{customer.next_invoice_sequence:04d}",
            starting_balance=customer.balance,
            ending_balance=min(rest, 0),
            amount_due=max(rest, 0),
            finalized_at=self.now,
            automatically_finalizes_at=None,
        )
        customer = self._change(customer, next_invoice_sequence=customer.next_invoice_sequence + 1)
        self._change(customer, "customer.updated", balance=min(rest, 0))
        if invoice.amount_due > 0 and invoice.payment_intent is None:
            intent = self._open_intent(
                invoice.amount_due,
                invoice.currency,
                invoice.customer,
                description=DESCRIPTIONS.get(invoice.billing_reason, "Subscription update"),
                invoice=invoice.id,
            )
            invoice = self._change(invoice, payment_intent=intent.id)
        return invoice

    def _finalize_and_collect(self, invoice: Invoice) -> Invoice:
        paused = self.subscriptions[invoice.subscription].pause_behavior
        invoice = self._finalize(invoice)
        if paused == "void":
            return self._void(invoice)
        if paused == "mark_uncollectible":
            return self._mark_uncollectible(invoice)
        return self._collect(invoice)

    def _collect(self, invoice: Invoice) -> Invoice:
        customer = self.customers[invoice.customer]
        if invoice.payment_intent is None or invoice.amount_due == 0:
            return self._settle(invoice, None)
        intent = self.payment_intents[invoice.payment_intent]
        if customer.payment_method is not None:
            intent = self._charge(intent, customer.payment_method, ok=customer.card == "ok")
        if intent.status == "succeeded":
            return self._settle(invoice, intent)
        return self._fail(invoice, intent)

    def _settle(self, invoice: Invoice, intent: PaymentIntent | None) -> Invoice:
        """Book a payment that succeeded, or that was not needed."""
        invoice = self._change(
            invoice,
            "invoice.updated",
            "invoice.paid",
            "invoice.payment_succeeded",
            status="paid",
            amount_paid=invoice.amount_due,
            attempt_count=invoice.attempt_count + (intent is not None),
            auto_advance=False,
            next_payment_attempt=None,
            paid_at=self.now,
            payment_intent=intent.id if intent else None,
            charge=intent.latest_charge if intent else None,
        )
        if intent is not None:
            self._create(_payment_of(invoice, intent, self.new_id("inpay_1"), self.now), "invoice_payment.paid")
            self._change(self.customers[invoice.customer], "customer.updated", delinquent=False)
        self._on_paid(invoice)
        return invoice

    def _fail(self, invoice: Invoice, intent: PaymentIntent) -> Invoice:
        first = invoice.billing_reason == "subscription_create"
        again = invoice.retries < len(RETRY_DAYS) and not first
        retries = invoice.retries
        invoice = self._change(
            invoice,
            "invoice.payment_failed",
            "invoice.updated",
            attempt_count=invoice.attempt_count + 1,
            auto_advance=again,
            next_payment_attempt=self.now + RETRY_DAYS[retries] * DAY if again else None,
            retries=retries + again,
            charge=intent.latest_charge,
        )
        if not first:
            self._change(self.customers[invoice.customer], "customer.updated", delinquent=True)
        self._on_failed(invoice, exhausted=not again)
        return self.invoices[invoice.id]

    def _void(self, invoice: Invoice) -> Invoice:
        return self._change(
            invoice,
            "invoice.voided",
            "invoice.updated",
            status="void",
            voided_at=self.now,
            auto_advance=False,
            next_payment_attempt=None,
        )

    def _mark_uncollectible(self, invoice: Invoice) -> Invoice:
        return self._change(
            invoice,
            "invoice.marked_uncollectible",
            "invoice.updated",
            status="uncollectible",
            marked_uncollectible_at=self.now,
            auto_advance=False,
            next_payment_attempt=None,
        )

    def _stop_collecting(self, subscription: Subscription) -> None:
        for invoice in self._invoices_of(subscription, ("draft", "open")):
            self._change(
                invoice,
                "invoice.updated",
                auto_advance=False,
                automatically_finalizes_at=None,
                next_payment_attempt=None,
            )

    def _invoices_of(self, subscription: Subscription, statuses: Sequence[str]) -> list[Invoice]:
        found = (i for i in self.invoices.values() if i.subscription == subscription.id and i.status in statuses)
        return list(found)

    def _on_paid(self, invoice: Invoice) -> None:
        """What a paid invoice means for its subscription."""

    def _on_failed(self, invoice: Invoice, *, exhausted: bool) -> None:
        """What a failed payment means for its subscription."""


def _payment_of(invoice: Invoice, intent: PaymentIntent, id: str, now: int) -> InvoicePayment:
    return InvoicePayment(
        id=id,
        created=invoice.finalized_at or now,
        livemode=invoice.livemode,
        invoice=invoice.id,
        payment_intent=intent.id,
        amount_requested=intent.amount,
        currency=intent.currency,
        status="paid",
        amount_paid=intent.amount_received,
        paid_at=now,
    )
