"""Stripe's objects as plain facts, in no API version: immutable, so whoever holds one holds a snapshot.

Names are Stripe's. Times are Unix seconds, money minor currency units. Fields marked "ours" are never rendered.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal

from simulator.versions import ENDIVE


def _no_metadata() -> Mapping[str, str]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """Anything that has an id."""

    id: str
    created: int
    livemode: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Product(Thing):
    """Something for sale."""

    name: str
    updated: int
    active: bool = True
    description: str | None = None
    default_price: str | None = None
    metadata: Mapping[str, str] = field(default_factory=_no_metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Price(Thing):
    """What a product costs; `interval` None means once."""

    product: str
    currency: str = "usd"
    unit_amount: int | None = None
    unit_amount_decimal: str | None = None
    interval: str | None = "month"
    interval_count: int = 1
    usage_type: str = "licensed"
    meter: str | None = None
    tiers_mode: str | None = None
    active: bool = True
    nickname: str | None = None
    lookup_key: str | None = None
    metadata: Mapping[str, str] = field(default_factory=_no_metadata)

    def amount(self, quantity: int | None) -> int:
        """What `quantity` units cost; nothing for tiers and for metered use that was not reported."""
        if quantity is None or self.unit_amount_decimal is None:
            return 0
        return int((Decimal(self.unit_amount_decimal) * quantity).quantize(Decimal(1), ROUND_HALF_UP))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(Thing):
    """The older twin that every recurring price has under the same id."""

    price: Price


@dataclass(frozen=True, slots=True, kw_only=True)
class Customer(Thing):
    """Somebody who pays. `card` is ours: "ok", "declined", or None without a payment method."""

    email: str | None = None
    name: str | None = None
    metadata: Mapping[str, str] = field(default_factory=_no_metadata)
    balance: int = 0
    currency: str | None = None
    delinquent: bool = False
    invoice_prefix: str = ""
    next_invoice_sequence: int = 1
    payment_method: str | None = None
    card: str | None = None
    deleted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Item(Thing):
    """One price of a subscription. `billed_by` (invoice and line that billed the running period) is ours."""

    subscription: str
    price: Price
    quantity: int | None
    current_period_start: int
    current_period_end: int
    billed_by: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line(Thing):
    """One line of an invoice. `invoice_item` is set on prorations, `credited` (invoice, line) on their credits."""

    amount: int
    description: str
    price: Price
    quantity: int | None
    subscription: str
    item: str
    period_start: int
    period_end: int
    proration: bool = False
    invoice_item: str | None = None
    credited: tuple[str, str] | None = None
    metadata: Mapping[str, str] = field(default_factory=_no_metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceItem(Thing):
    """A proration before, and after, it became a line of an invoice."""

    customer: str
    line: Line


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription(Thing):
    """What a customer pays for again and again.

    Ours: `pending` (prorations for the next invoice), `warned` (the period or trial end that was announced).
    """

    customer: str
    items: tuple[Item, ...]
    status: str
    billing_cycle_anchor: int
    billing_mode: str = "flexible"
    currency: str = "usd"
    default_payment_method: str | None = None
    latest_invoice: str | None = None
    cancel_at: int | None = None
    cancel_at_period_end: bool = False
    canceled_at: int | None = None
    cancellation_feedback: str | None = None
    cancellation_reason: str | None = None
    ended_at: int | None = None
    trial_start: int | None = None
    trial_end: int | None = None
    missing_payment_method: str = "create_invoice"
    pause_behavior: str | None = None
    pause_resumes_at: int | None = None
    paused_at: int | None = None
    paused_by: str | None = None
    metadata: Mapping[str, str] = field(default_factory=_no_metadata)
    pending: tuple[Line, ...] = ()
    warned: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoice(Thing):
    """A bill. `payment_intent` and `charge` are ours since basil; `retries` always was."""

    customer: str
    customer_email: str | None
    customer_name: str | None
    subscription: str
    currency: str
    billing_reason: str
    lines: tuple[Line, ...]
    period_start: int
    period_end: int
    status: str = "draft"
    number: str | None = None
    starting_balance: int = 0
    ending_balance: int | None = None
    amount_due: int = 0
    amount_paid: int = 0
    attempt_count: int = 0
    auto_advance: bool = True
    automatically_finalizes_at: int | None = None
    next_payment_attempt: int | None = None
    finalized_at: int | None = None
    paid_at: int | None = None
    voided_at: int | None = None
    marked_uncollectible_at: int | None = None
    payment_intent: str | None = None
    charge: str | None = None
    subscription_metadata: Mapping[str, str] = field(default_factory=_no_metadata)
    retries: int = 0

    @property
    def total(self) -> int:
        """The sum of the lines; below 0 when credits outweigh."""
        return sum(line.amount for line in self.lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoicePayment(Thing):
    """Which PaymentIntent paid which invoice."""

    invoice: str
    payment_intent: str
    amount_requested: int
    currency: str
    status: str = "open"
    amount_paid: int | None = None
    paid_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentIntent(Thing):
    """One attempt to be paid, over as many charges as it takes. `invoice` is ours since basil."""

    amount: int
    currency: str
    customer: str | None
    description: str | None
    status: str = "requires_payment_method"
    amount_received: int = 0
    invoice: str | None = None
    latest_charge: str | None = None
    payment_method: str | None = None
    failed_payment_method: str | None = None
    setup_future_usage: str | None = "off_session"
    metadata: Mapping[str, str] = field(default_factory=_no_metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge(Thing):
    """One movement of money, or one refused by the bank."""

    amount: int
    currency: str
    customer: str | None
    description: str | None
    payment_intent: str
    payment_method: str
    status: str
    email: str | None = None
    invoice: str | None = None
    balance_transaction: str | None = None
    amount_refunded: int = 0
    disputed: bool = False
    metadata: Mapping[str, str] = field(default_factory=_no_metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refund(Thing):
    """Money given back of one charge. `reference` is the card network's number for it, once known."""

    amount: int
    currency: str
    charge: str
    payment_intent: str
    payment_method: str
    customer: str | None
    balance_transaction: str
    reason: str | None = None
    status: str = "succeeded"
    reference: str | None = None
    failure_reason: str | None = None
    failure_balance_transaction: str | None = None
    metadata: Mapping[str, str] = field(default_factory=_no_metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceTransaction(Thing):
    """Money that a dispute took from the merchant's balance (below 0) or brought back; the fee is taken besides."""

    amount: int
    fee: int
    currency: str
    source: str
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispute(Thing):
    """A chargeback of one charge. `submissions` counts the merchant's answers, which are due by `due_by`."""

    amount: int
    currency: str
    charge: str
    payment_intent: str
    reason: str
    due_by: int
    status: str = "needs_response"
    submissions: int = 0
    balance_transactions: tuple[BalanceTransaction, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Session(Thing):
    """A visit to Checkout. Ours: `prices` (id, quantity), `trial_days`, the metadata of what it makes."""

    mode: str
    prices: tuple[tuple[str, int], ...]
    amount_total: int
    currency: str
    expires_at: int
    status: str = "open"
    payment_status: str = "unpaid"
    client_reference_id: str | None = None
    customer: str | None = None
    customer_email: str | None = None
    paid_by_email: str | None = None
    paid_by_name: str | None = None
    payment_link: str | None = None
    subscription: str | None = None
    payment_intent: str | None = None
    invoice: str | None = None
    metadata: Mapping[str, str] = field(default_factory=_no_metadata)
    subscription_metadata: Mapping[str, str] = field(default_factory=_no_metadata)
    payment_metadata: Mapping[str, str] = field(default_factory=_no_metadata)
    trial_days: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEndpoint(Thing):
    """Where events are posted. Ours: `payload`, and `secrets`, each with the moment at which it ends, if it does."""

    url: str
    secrets: tuple[tuple[str, int | None], ...]
    enabled_events: tuple[str, ...] = ("*",)
    api_version: str | None = None
    status: str = "enabled"
    payload: str = "snapshot"
    description: str | None = None
    metadata: Mapping[str, str] = field(default_factory=_no_metadata)

    def wants(self, type: str) -> bool:
        """Whether it is subscribed to events of this type."""
        return "*" in self.enabled_events or type in self.enabled_events


@dataclass(frozen=True, slots=True, kw_only=True)
class Event(Thing):
    """Something that happened to `object`, which stays as it was then; `previous` is its state just before.

    `api_version` is the account's default when it happened, in which the Events API shows it for ever.
    """

    type: str
    object: Thing
    previous: Thing | None = None
    request_id: str | None = None
    api_version: str = ENDIVE
