"""Compute what every paid fact grants: a target of tokens per source.

Pure: no database, clock, Redis or Stripe; the same facts give the same targets in whatever order they stand. What time
and the ledger have to say (expiry, spending, bans, accounts that were deleted) is the business of `workers.balance`.

A source is a line of a subscription's invoice, a PaymentIntent or free Checkout session that bought tokens once, or a
subscription on trial. The rule is CONTRACT §5 "Tokens"; what stands in quotation marks here is its wording.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, TypeVar

MAX_FIGURE: Final = 1_000_000_000
"""The greatest number of tokens that metadata can name, after multiplying by the quantity."""

SETTLED: Final = frozenset({"lost", "won", "warning_closed", "prevented"})
"""The states in which a dispute holds nothing any more."""

OWED: Final = frozenset({"open", "uncollectible"})
UNPAID: Final = frozenset({"open", "canceled"})
"""The states of an invoice payment whose amount says nothing yet."""

NEVER_BEGUN: Final = frozenset({"incomplete", "incomplete_expired"})
LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)

_DIGITS: Final = re.compile(r"[0-9]+")
_NOTHING: Final = Fraction(0)
_ALL: Final = Fraction(1)

Metadata = Mapping[str, object]
Thing = TypeVar("Thing")


# --- facts ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Product:
    """A product; a stub is one of which only the id is known."""

    id: str
    metadata: Metadata | None = None
    stub: bool = False


@dataclass(frozen=True, slots=True)
class Price:
    """A price; amounts in minor units, the decimal one may have fractions of them."""

    id: str
    product_id: str | None = None
    unit_amount: int | None = None
    unit_amount_decimal: Decimal | None = None
    metadata: Metadata | None = None
    stub: bool = False

    @property
    def free(self) -> bool:
        """Say whether it is 0; a price that only its tiers know is not."""
        amount = self.unit_amount_decimal if self.unit_amount is None else self.unit_amount
        return amount is not None and amount == 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A row of `stripe_metadata_history`: the metadata that a product or price had from `as_of` on."""

    object_id: str
    as_of: datetime
    metadata: Metadata | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A line of an invoice; it bills its subscription item for [start, end)."""

    id: str
    amount: int
    price_id: str | None = None
    product_id: str | None = None
    subscription_item: str | None = None
    quantity: int | None = None
    proration: bool = False
    start: datetime | None = None
    end: datetime | None = None


@dataclass(frozen=True, slots=True)
class Invoice:
    """An invoice; `credited` is its `post_payment_credit_notes_amount`."""

    id: str
    subscription_id: str | None = None
    status: str | None = None
    created: datetime | None = None
    paid_at: datetime | None = None
    total: int | None = None
    amount_paid: int | None = None
    credited: int | None = None
    lines: Sequence[Line] = ()
    lines_complete: bool = True
    stub: bool = False


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscription; price, product and quantity are those of its best item."""

    id: str
    status: str | None = None
    price_id: str | None = None
    product_id: str | None = None
    quantity: int | None = None
    trial_start: datetime | None = None
    trial_end: datetime | None = None
    ended_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class InvoicePayment:
    """Which PaymentIntent or charge pays which invoice, how much of it, and whether it has."""

    invoice_id: str
    payment_intent_id: str | None = None
    charge_id: str | None = None
    amount_paid: int | None = None
    status: str | None = None


@dataclass(frozen=True, slots=True)
class PaymentIntent:
    """A row of `payment_history`."""

    id: str
    status: str | None = None
    created: datetime | None = None
    amount_received: int | None = None
    metadata: Metadata | None = None
    stub: bool = False


@dataclass(frozen=True, slots=True)
class Charge:
    """A charge; a refund that failed is no longer in its `amount_refunded`."""

    id: str
    payment_intent_id: str | None = None
    status: str | None = None
    amount: int | None = None
    amount_captured: int | None = None
    amount_refunded: int | None = None

    @property
    def paid(self) -> int:
        """Return what was captured; as long as nothing says so, the amount."""
        amount = self.amount if self.amount_captured is None else self.amount_captured
        return 0 if self.status == "failed" else amount or 0


@dataclass(frozen=True, slots=True)
class Dispute:
    """A dispute; it names the charge, the PaymentIntent or both."""

    id: str
    charge_id: str | None = None
    payment_intent_id: str | None = None
    status: str | None = None


@dataclass(frozen=True, slots=True)
class LineItem:
    """A line item of a Checkout session."""

    price_id: str | None = None
    quantity: int | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """A Checkout session; `line_items` is null until they were fetched."""

    id: str
    mode: str | None = None
    status: str | None = None
    payment_status: str | None = None
    created: datetime | None = None
    payment_intent_id: str | None = None
    invoice_id: str | None = None
    metadata: Metadata | None = None
    line_items: Sequence[LineItem] | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything of one user: of all customers linked to them, aliases too, and of guests' sessions that name them.

    Products, prices and snapshots are those that the rest refers to. It must be the whole: what is left out grants
    nothing, and what it has granted is taken back. `grace_days` is the setting DUES_GRACE_DAYS.
    """

    products: Sequence[Product] = ()
    prices: Sequence[Price] = ()
    snapshots: Sequence[Snapshot] = ()
    subscriptions: Sequence[Subscription] = ()
    invoices: Sequence[Invoice] = ()
    invoice_payments: Sequence[InvoicePayment] = ()
    payment_intents: Sequence[PaymentIntent] = ()
    charges: Sequence[Charge] = ()
    disputes: Sequence[Dispute] = ()
    sessions: Sequence[Session] = ()
    grace_days: int = 3


def read_lines(lines: Iterable[Mapping[str, Any]]) -> tuple[Line, ...]:
    """Read `stripe_invoices.lines`; times may be ISO 8601 or, as Stripe writes them, seconds since 1970."""
    return tuple(_read_line(line, line.get("period") or {}) for line in lines)


def _read_line(line: Mapping[str, Any], period: Mapping[str, Any]) -> Line:
    return Line(
        id=line["id"],
        amount=line.get("amount") or 0,
        price_id=line.get("price"),
        product_id=line.get("product"),
        subscription_item=line.get("subscription_item"),
        quantity=line.get("quantity"),
        proration=bool(line.get("proration")),
        start=_read_time(period.get("start")),
        end=_read_time(period.get("end")),
    )


def _read_time(value: object) -> datetime | None:
    if isinstance(value, str):
        return datetime.fromisoformat(value)
    return datetime.fromtimestamp(value, UTC) if isinstance(value, int) else None


# --- answers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stretch:
    """Lines of one item, and of items swapped for it, whose billed periods overlap; `id` is that of the first line."""

    id: str
    subscription_id: str
    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class Target:
    """What one source grants to the user whose facts were given; 0 while it waits for data.

    `share` is the part of the amount that is to be taken back, `held` says that an open dispute holds all of it.
    `expires_at` is the end at the latest (null: never); if it `resets`, what is left ends already when a line of a
    later stretch of the subscription is booked. `trial_of` is the product that is tried.
    """

    source: str
    amount: int
    expires_at: datetime | None = None
    share: Fraction = _NOTHING
    held: bool = False
    stretch: Stretch | None = None
    resets: bool = False
    trial_of: str | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """What people should know about an object: why it waits, or what of it can't be read."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Targets:
    """The targets of a user by source, what waits for data, and figures that count as 0 because they are malformed."""

    targets: tuple[Target, ...] = ()
    waiting: tuple[Note, ...] = ()
    reports: tuple[Note, ...] = ()


def targets(facts: Facts) -> Targets:
    """Compute the targets of one user from everything that is known."""
    book = _Book(facts)
    found = [*_of_lines(book), *_of_trials(book), *_of_purchases(book)]
    return Targets(
        tuple(sorted(found, key=lambda target: target.source)),
        tuple(sorted(set(book.waiting), key=lambda note: (note.id, note.reason))),
        tuple(sorted(set(book.reports), key=lambda note: (note.id, note.reason))),
    )


def half_up(amount: Fraction) -> int:
    """Round to the nearest integer, a half upwards."""
    return (2 * amount.numerator + amount.denominator) // (2 * amount.denominator)


# --- figures ----------------------------------------------------------------------------------------------------------

_Said = Iterable[tuple[str, Metadata]]
"""Ids and metadata: of a key the first that has it is heard."""


class _WaitsError(Exception):
    """A figure can't be known yet; the message says what for."""


@dataclass(frozen=True, slots=True)
class _Tariff:
    """What a price said, and after it its product."""

    said: tuple[tuple[str, Metadata], ...]
    product_id: str | None
    free: bool


class _Book:
    """The facts by what they are looked up by, and what is to be told about them."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.prices = {price.id: price for price in facts.prices}
        self.products = {product.id: product for product in facts.products}
        self.subscriptions = {subscription.id: subscription for subscription in facts.subscriptions}
        self.invoices = {invoice.id: invoice for invoice in facts.invoices}
        self.payments = _grouped((payment.invoice_id, payment) for payment in facts.invoice_payments)
        self.charges = {charge.id: charge for charge in facts.charges}
        self.paid_invoices = _grouped((self._payer(payment), payment.invoice_id) for payment in facts.invoice_payments)
        self.charges_of = _grouped((charge.payment_intent_id, charge) for charge in facts.charges)
        self.disputes = _grouped(
            (bearer, dispute) for dispute in facts.disputes for bearer in (dispute.charge_id, dispute.payment_intent_id)
        )
        self.snapshots = _grouped((s.object_id, s) for s in sorted(facts.snapshots, key=lambda s: s.as_of))
        self.waiting: list[Note] = []
        self.reports: list[Note] = []

    def tariff(self, price_id: str | None, product_id: str | None, at: datetime) -> _Tariff:
        """Return what price and product said at `at`; raise _WaitsError while one of them is a stub."""
        price = self.prices.get(price_id) if price_id is not None else None
        if price_id is not None and (price is None or price.stub):
            raise _WaitsError(f"price {price_id} is not known yet")
        product_id = product_id or (price.product_id if price else None)
        product = self.products.get(product_id) if product_id is not None else None
        if product_id is not None and (product is None or product.stub):
            raise _WaitsError(f"product {product_id} is not known yet")
        said = [(bearer.id, self._in_force(bearer, at)) for bearer in (price, product) if bearer is not None]
        return _Tariff(tuple(said), product_id, price is not None and price.free)

    def figure(self, said: _Said, key: str, quantity: int | None = None) -> int | None:
        """Return a number of tokens × quantity (null = 1); null if nobody names one.

        "ASCII digits only, and at most 1,000,000,000 after multiplying; anything else counts as 0 and is reported."
        """
        for bearer, value in _naming(said, key):
            figure = _number(value, MAX_FIGURE)
            product = -1 if figure is None else figure * (1 if quantity is None else quantity)
            if 0 <= product <= MAX_FIGURE:
                return product
            self.reports.append(Note(bearer, f"{key}, times the quantity, is no whole number from 0 to {MAX_FIGURE:,}"))
            return 0
        return None

    def allotment(self, tariff: _Tariff, quantity: int | None) -> int:
        """Return "`metadata.tokens` of its price, else of its product, × quantity"."""
        return self.figure(tariff.said, "tokens", quantity) or 0

    def days(self, said: _Said) -> int | None:
        """Return `metadata.tokens_days`; null if nobody names them, or not as a number."""
        for bearer, value in _naming(said, "tokens_days"):
            days = _number(value, MAX_FIGURE)
            if days is None:
                self.reports.append(Note(bearer, f"tokens_days is no whole number from 0 to {MAX_FIGURE:,}"))
            return days
        return None

    def _payer(self, payment: InvoicePayment) -> str | None:
        charge = self.charges.get(payment.charge_id or "")
        return payment.payment_intent_id or (charge.payment_intent_id if charge else None)

    def _in_force(self, bearer: Price | Product, at: datetime) -> Metadata:
        """Return the metadata of a moment: "latest not after `paid_at`, else the earliest"."""
        snapshots = self.snapshots.get(bearer.id)
        if not snapshots:
            return bearer.metadata or {}
        past = [snapshot for snapshot in snapshots if snapshot.as_of <= at]
        return (past[-1] if past else snapshots[0]).metadata or {}


def _grouped(pairs: Iterable[tuple[str | None, Thing]]) -> dict[str, list[Thing]]:
    groups: dict[str, list[Thing]] = defaultdict(list)
    for key, thing in pairs:
        if key is not None:
            groups[key].append(thing)
    return dict(groups)


def _naming(said: _Said, key: str) -> Iterator[tuple[str, object]]:
    return ((bearer, metadata[key]) for bearer, metadata in said if metadata.get(key) is not None)


def _number(value: object, greatest: int) -> int | None:
    """Read ASCII digits; null if it is anything else or more than `greatest`."""
    if not isinstance(value, str) or not _DIGITS.fullmatch(value):
        return None
    digits = value.lstrip("0") or "0"
    # `int` refuses to read more than 4300 digits.
    return int(digits) if len(digits) <= len(str(greatest)) and int(digits) <= greatest else None


def _add_days(start: datetime, days: int) -> datetime | None:
    """Return the moment; null, which is never, if no calendar has it."""
    try:
        return start + timedelta(days=days)
    except OverflowError:
        return None


# --- taken back -------------------------------------------------------------------------------------------------------


def _ratio(part: int | Fraction, whole: int | Fraction) -> Fraction:
    return min(_ALL, Fraction(part) / whole) if part > 0 and whole > 0 else _NOTHING


def _invoice_share(book: _Book, invoice: Invoice) -> Fraction:
    """Return max("refunded ÷ paid, credit notes after payment ÷ total, 1 for a lost dispute")."""
    paid, refunded = Fraction(0), Fraction(0)
    for payment in book.payments.get(invoice.id, ()):
        charges = _charges(book, payment.payment_intent_id, payment.charge_id)
        said, whole = (None, 0) if payment.status in UNPAID else (payment.amount_paid, invoice.amount_paid or 0)
        captured = sum(charge.paid for charge in charges) or said or whole
        # One payment may pay several invoices: each has its part of what was refunded.
        part = captured if said is None else said
        paid += part
        refunded += part * _ratio(sum(charge.amount_refunded or 0 for charge in charges), captured)
    return max(
        _ratio(refunded, max(paid, Fraction(invoice.amount_paid or 0))),
        _ratio(invoice.credited or 0, invoice.total or 0),
        _ALL if "lost" in _invoice_disputes(book, invoice) else _NOTHING,
    )


def _invoice_disputes(book: _Book, invoice: Invoice) -> set[str | None]:
    """Return the states of all disputes about payments of an invoice."""
    return {
        status
        for payment in book.payments.get(invoice.id, ())
        for status in _disputes(book, payment.payment_intent_id, payment.charge_id)
    }


def _charges(book: _Book, payment_intent_id: str | None, charge_id: str | None = None) -> list[Charge]:
    named = {charge.id: charge for charge in book.charges_of.get(payment_intent_id or "", ())}
    if charge_id is not None and charge_id in book.charges:
        named[charge_id] = book.charges[charge_id]
    return [*named.values()]


def _disputes(book: _Book, payment_intent_id: str | None, charge_id: str | None = None) -> set[str | None]:
    charges = [charge.id for charge in _charges(book, payment_intent_id, charge_id)]
    return {
        dispute.status
        for bearer in (payment_intent_id, charge_id, *charges)
        for dispute in book.disputes.get(bearer or "", ())
    }


# --- lines of invoices ------------------------------------------------------------------------------------------------

_Place = tuple[datetime, datetime, bool, str]
"""Where in the order: "invoice `created`, period start, line id"; at one moment credits are first, see `_Credit`."""


@dataclass(eq=False, slots=True)
class _Billing:
    """A line of amount ≥ 0 of a paid invoice; it covers [start, until) for its item.

    `waits` says why its allotment is not known; it is empty if the invoice is named as waiting in its stead. A `gap`
    stands for a line that must have been billed but is not there. A `trial` line only shows that its item is there.
    """

    invoice: Invoice
    line: Line
    item: str
    start: datetime
    end: datetime
    allotment: int = 0
    rolls_over: bool = False
    waits: str | None = None
    trial: bool = False
    gap: bool = False
    until: datetime = field(init=False)
    credited: int = 0
    increase: int = 0
    group: _Group = field(init=False)

    def __post_init__(self) -> None:
        self.until = self.end
        self.group = _Group([self])

    @property
    def place(self) -> _Place:
        return self.invoice.created or LONG_AGO, self.start, True, self.line.id

    def overlaps(self, other: _Billing) -> bool:
        """Say whether the billed periods overlap, "credits not shortening them"."""
        return self.start < other.end and other.start < self.end


@dataclass(frozen=True, eq=False, slots=True)
class _Credit:
    """A credit line: "proration, negative, of a paid invoice".

    It precedes the billings of its moment: it ends coverage, "but never what its own change begins".
    """

    invoice: Invoice
    line: Line
    item: str
    start: datetime
    end: datetime

    @property
    def place(self) -> _Place:
        return self.invoice.created or LONG_AGO, self.start, False, self.line.id


_Entry = _Billing | _Credit


@dataclass(eq=False, slots=True)
class _Group:
    """A stretch in the making; `peak` is the running maximum of what it covered, `waits_for` its first that waits."""

    members: list[_Billing]
    peak: int = 0
    waits_for: _Billing | None = None

    def join(self, other: _Group) -> None:
        """Take another stretch in."""
        if other is not self:
            for member in other.members:
                member.group = self
            self.members += other.members


def _of_lines(book: _Book) -> Iterator[Target]:
    """Yield a target for every paid line."""
    for subscription_id, entries in _stories(book).items():
        subscription = book.subscriptions.get(subscription_id)
        story = _with_gaps(sorted(entries, key=lambda entry: entry.place))
        _join_stretches(story)
        _measure(story, _final_from(book, subscription, story))
        groups = {id(entry.group): entry.group for entry in story if isinstance(entry, _Billing) and not entry.trial}
        for group in groups.values():
            yield from _of_stretch(book, group, subscription_id, subscription)


def _of_stretch(
    book: _Book, group: _Group, subscription_id: str, subscription: Subscription | None
) -> Iterator[Target]:
    members = sorted(group.members, key=lambda member: member.place)
    start, end = min(member.start for member in members), max(member.end for member in members)
    stretch = Stretch(members[0].line.id, subscription_id, start, end)
    ended_at = subscription.ended_at if subscription else None
    for member in members:
        if member.waits:
            book.waiting.append(Note(member.line.id, member.waits))
        if not member.gap:
            yield Target(
                member.line.id,
                member.increase,
                expires_at=ended_at if member.rolls_over else _add_days(member.end, book.facts.grace_days),
                share=max(_invoice_share(book, member.invoice), _ratio(member.credited, member.line.amount)),
                held=bool(_invoice_disputes(book, member.invoice) - SETTLED),
                stretch=stretch,
                resets=not member.rolls_over,
            )


def _stories(book: _Book) -> dict[str, list[_Entry]]:
    """Return the billings and credits of all paid invoices by subscription.

    A line whose invoice names no subscription belongs to the one that other invoices bill its item for. "An invoice
    made by [a purchase's] session grants nothing of its own."
    """
    purchases = {session.invoice_id for session in book.facts.sessions if session.mode == "payment"}
    invoices = sorted(
        (invoice for invoice in book.facts.invoices if not invoice.stub and invoice.id not in purchases),
        key=lambda invoice: invoice.id,
    )
    billed_for = {line.subscription_item: i.subscription_id for i in invoices if i.subscription_id for line in i.lines}
    stories: dict[str, list[_Entry]] = defaultdict(list)
    for invoice in invoices:
        if invoice.status == "paid":
            for entry in _entries(book, invoice):
                stories[invoice.subscription_id or billed_for.get(entry.item) or entry.item].append(entry)
    return stories


def _entries(book: _Book, invoice: Invoice) -> Iterator[_Entry]:
    if not invoice.lines_complete and _bills_subscription(invoice):
        book.waiting.append(Note(invoice.id, "not all of its lines are known yet"))
    # Pages of lines that were fetched while the list grew may overlap.
    for line in {line.id: line for line in invoice.lines}.values():
        item, start, end = line.subscription_item, line.start, line.end
        if item is None:
            continue
        if start is None or end is None:
            book.reports.append(Note(line.id, "the line has no period"))
        elif line.amount >= 0:
            yield _billing(book, _Billing(invoice, line, item, start, end))
        elif line.proration:
            yield _Credit(invoice, line, item, start, end)


def _bills_subscription(invoice: Invoice) -> bool:
    return invoice.subscription_id is not None or any(line.subscription_item is not None for line in invoice.lines)


def _billing(book: _Book, billing: _Billing) -> _Billing:
    """Fill in what the line's price and product said when the invoice was paid."""
    invoice, line = billing.invoice, billing.line
    if not invoice.lines_complete:
        return replace(billing, waits="")
    try:
        tariff = book.tariff(line.price_id, line.product_id, invoice.paid_at or invoice.created or LONG_AGO)
    except _WaitsError as reason:
        return replace(billing, waits=str(reason))
    if line.amount == 0 and not tariff.free:
        return replace(billing, trial=True)
    policy = next(_naming(tariff.said, "tokens_policy"), (None, "reset"))[1]
    return replace(billing, allotment=book.allotment(tariff, line.quantity), rolls_over=policy == "rollover")


def _with_gaps(story: Iterable[_Entry]) -> list[_Entry]:
    """Put a gap before a credit for what nobody billed, if an earlier invoice is incomplete and must have done so."""
    whole: list[_Entry] = []
    known: set[str] = set()
    incomplete = False
    for entry in story:
        if isinstance(entry, _Credit) and incomplete and entry.item not in known:
            whole.append(_Billing(entry.invoice, entry.line, entry.item, entry.start, entry.end, waits="", gap=True))
        whole.append(entry)
        known.add(entry.item)
        incomplete = incomplete or not entry.invoice.lines_complete
    return whole


def _join_stretches(story: Sequence[_Entry]) -> None:
    """Put the billings of an item whose periods overlap into one stretch; an item swapped for another one joins its.

    `kin` are, for each item, itself and those whose place it took: their stretches are its own.
    """
    billings: dict[str, list[_Billing]] = defaultdict(list)
    kin: dict[str, tuple[str, ...]] = {}
    ended: dict[str, None] = {}
    for entry in story:
        item = entry.item
        if isinstance(entry, _Credit):
            kin.setdefault(item, (item,))
            ended.setdefault(item)
            continue
        relatives = kin.setdefault(item, (item,)) if entry.gap else kin.get(item)
        if relatives is None:
            closed = {other: [billing for relative in kin[other] for billing in billings[relative]] for other in ended}
            other, swapped = _credited_beside(entry, story) or _ended_before(entry, closed)
            relatives = (item, *kin.get(other, ()))
            kin[item] = relatives if swapped else (item,)
        ended.pop(item, None)
        if not entry.trial:
            for billing in [b for relative in relatives for b in billings[relative] if b.overlaps(entry)]:
                billing.group.join(entry.group)
            billings[item].append(entry)


def _credited_beside(first: _Billing, story: Iterable[_Entry]) -> tuple[str, bool] | None:
    """Return the item that is credited by the invoice in which another first appears, and whether that ends it.

    "If several, the first that the invoice no longer bills"; one that it still bills lives on beside the new one.
    """
    same = [entry for entry in story if entry.invoice is first.invoice]
    billed = {entry.item for entry in same if isinstance(entry, _Billing) and not entry.gap}
    credited = [entry.item for entry in same if isinstance(entry, _Credit) and entry.item != first.item]
    gone = [item for item in credited if item not in billed]
    return ((gone or credited)[0], bool(gone)) if credited else None


def _ended_before(first: _Billing, closed: Mapping[str, Sequence[_Billing]]) -> tuple[str, bool]:
    """Return the first "item already ended by a credit" whose stretch the first line of a new item overlaps."""
    return next((item for item, billings in closed.items() if any(b.overlaps(first) for b in billings)), ""), True


def _measure(story: Iterable[_Entry], final_from: _Place | None) -> None:
    """Give each billing "its increase of the running maximum of the sum of allotments covered" in its stretch.

    Credits beyond `final_from` (null: none) are those "after which the ended subscription billed nothing more".
    """
    covers: dict[str, list[_Billing]] = defaultdict(list)
    for entry in story:
        if isinstance(entry, _Credit):
            final = final_from is not None and entry.place > final_from
            _cut(covers[entry.item], entry.start, -entry.line.amount if final else 0)
        elif not entry.trial and not _waits(entry):
            _cut(covers[entry.item], entry.start)
            covers[entry.item].append(entry)
            group = entry.group
            peak = _peak([billing for item in covers.values() for billing in item if billing.group is group])
            entry.increase = max(0, peak - group.peak)
            group.peak += entry.increase


def _waits(billing: _Billing) -> bool:
    """Say whether a billing waits; "later lines of its stretch wait behind it"."""
    group = billing.group
    if group.waits_for is not None and billing.waits is None:
        billing.waits = f"its stretch waits for {group.waits_for.line.id}"
    if billing.waits is not None:
        group.waits_for = group.waits_for or billing
    return billing.waits is not None


def _cut(covers: list[_Billing], at: datetime, credit: int = 0) -> None:
    """End an item's coverage at a moment, and remember the credit that was given for the rest."""
    for billing in covers:
        if billing.until > at:
            billing.until = at
            billing.credited += credit
    covers[:] = [billing for billing in covers if billing.until > billing.start]


def _peak(covers: Sequence[_Billing]) -> int:
    """Return the greatest sum of allotments covered at one moment."""
    moments = {billing.start for billing in covers}
    return max((sum(b.allotment for b in covers if b.start <= m < b.until) for m in moments), default=0)


def _final_from(book: _Book, subscription: Subscription | None, story: Iterable[_Entry]) -> _Place | None:
    """Return where the last line above 0 stands that an ended subscription billed, paid or not; null if it goes on."""
    if subscription is None or (subscription.ended_at is None and subscription.status != "canceled"):
        return None
    paid = [entry.place for entry in story if entry.line.amount > 0]
    owed = [
        (invoice.created or LONG_AGO, line.start, True, line.id)
        for invoice in book.facts.invoices
        if invoice.subscription_id == subscription.id and invoice.status in OWED
        for line in invoice.lines
        if line.start is not None and line.amount > 0
    ]
    return max([*paid, *owed], default=(LONG_AGO, LONG_AGO, False, ""))


# --- trials -----------------------------------------------------------------------------------------------------------


def _of_trials(book: _Book) -> Iterator[Target]:
    """Yield a target for every trial; of a product only the "earliest `trial_start`" has one above 0."""
    tried: set[str | None] = set()
    for subscription in sorted(book.facts.subscriptions, key=lambda s: (s.trial_start or LONG_AGO, s.id)):
        start, end = subscription.trial_start, subscription.trial_end
        if start is None or end is None or subscription.status in NEVER_BEGUN:
            continue
        product, amount = subscription.product_id, 0
        try:
            tariff = book.tariff(subscription.price_id, product, start)
        except _WaitsError as reason:
            book.waiting.append(Note(subscription.id, str(reason)))
        else:
            product = tariff.product_id
            amount = 0 if product in tried else _trial_tokens(book, tariff, subscription.quantity)
        if product is not None:
            tried.add(product)
            yield Target(subscription.id, amount, expires_at=end, trial_of=product)


def _trial_tokens(book: _Book, tariff: _Tariff, quantity: int | None) -> int:
    """Return "`metadata.trial_tokens` (not multiplied), else the allotment"."""
    figure = book.figure(tariff.said, "trial_tokens")
    return book.allotment(tariff, quantity) if figure is None else figure


# --- purchases --------------------------------------------------------------------------------------------------------


def _of_purchases(book: _Book) -> Iterator[Target]:
    """Yield a target "per PaymentIntent that succeeded (for `no_payment_required`: per session)"."""
    intents = {intent.id: intent for intent in book.facts.payment_intents if not intent.stub}
    sessions = sorted(book.facts.sessions, key=lambda session: (session.created or LONG_AGO, session.id))
    of_intents = _grouped((session.payment_intent_id, session) for session in sessions)
    for intent in intents.values():
        session = next(iter(of_intents.get(intent.id, ())), None)
        if intent.status == "succeeded" and (session is None or session.mode == "payment"):
            yield from _purchase(book, session, intent)
    for session in sessions:
        if session.mode != "payment":
            continue
        if session.payment_intent_id is None and _is_free_and_done(session):
            yield from _purchase(book, session, None)
        elif session.payment_status == "paid" and session.payment_intent_id not in {None, *intents}:
            book.waiting.append(Note(session.payment_intent_id or "", "the PaymentIntent is not known yet"))


def _is_free_and_done(session: Session) -> bool:
    """Say whether nothing was to be paid; "a free session must be `complete`"."""
    return session.payment_status == "no_payment_required" and session.status == "complete"


def _purchase(book: _Book, session: Session | None, intent: PaymentIntent | None) -> Iterator[Target]:
    """Yield the target of a purchase, unless its PaymentIntent pays a subscription's invoice."""
    bearers = [bearer for bearer in (session, intent) if bearer is not None]
    source, created = bearers[-1].id, bearers[-1].created or LONG_AGO
    invoices = [(invoice, book.invoices.get(invoice)) for invoice in book.paid_invoices.get(source, ())]
    if any(invoice is not None and _bills_subscription(invoice) for _, invoice in invoices):
        return
    said: list[tuple[str, Metadata]] = [(bearer.id, bearer.metadata or {}) for bearer in bearers]
    amount = book.figure(said, "tokens")
    try:
        tariffs = _tariffs(book, session, created, needed=amount is None)
        if amount is None:
            amount = sum(book.allotment(tariff, quantity) for tariff, quantity in tariffs)
        unknown = [invoice_id for invoice_id, invoice in invoices if invoice is None or invoice.stub]
        if amount > 0 and unknown:
            raise _WaitsError(f"invoice {min(unknown)} is not known yet")
    except _WaitsError as reason:
        book.waiting.append(Note(source, str(reason)))
        return
    days = book.days([*said, *(words for tariff, _ in tariffs for words in tariff.said)])
    yield Target(
        source,
        amount,
        expires_at=None if days is None else _add_days(created, days),
        share=_purchase_share(book, intent, [invoice for _, invoice in invoices if invoice is not None]),
        held=intent is not None and bool(_disputes(book, intent.id) - SETTLED),
    )


def _tariffs(book: _Book, session: Session | None, at: datetime, *, needed: bool) -> list[tuple[_Tariff, int | None]]:
    """Return tariff and quantity of the session's line items; what is not `needed` may as well be missing."""
    if session is None:
        return []
    if session.line_items is None:
        if needed:
            raise _WaitsError("the line items of its session are not known yet")
        return []
    try:
        return [(book.tariff(item.price_id, None, at), item.quantity) for item in session.line_items]
    except _WaitsError:
        if needed:
            raise
        return []


def _purchase_share(book: _Book, intent: PaymentIntent | None, invoices: Iterable[Invoice]) -> Fraction:
    """Return the same as for invoices, of the charges of a PaymentIntent."""
    if intent is None:
        return _NOTHING
    charges = _charges(book, intent.id)
    return max(
        _ratio(
            sum(charge.amount_refunded or 0 for charge in charges),
            sum(charge.paid for charge in charges) or intent.amount_received or 0,
        ),
        _ALL if "lost" in _disputes(book, intent.id) else _NOTHING,
        *(_ratio(invoice.credited or 0, invoice.total or 0) for invoice in invoices),
    )
