"""What every source should grant: CONTRACT §5, read aloud.

A `Target` says what a source is worth, to whom, until when, and what of it is taken back; `books.py` keeps the score.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Any, Final

from tests.convergence.naive import LAST, Facts, Row, Settings, age, by_id, moment, of
from tests.convergence.naive.links import named_by

MOST: Final = 1_000_000_000
SETTLED: Final = {"lost", "won", "warning_closed", "prevented"}


@dataclass(slots=True)
class Target:
    """One source: `amount` tokens for `user`; `ended_by` are the sources whose booking ends what is left of it."""

    source: str
    user: str
    amount: int
    expires_at: datetime | None
    share: Fraction = Fraction(0)
    held: bool = False
    ended_by: Collection[str] = ()
    trial_of: str | None = None

    @property
    def left(self) -> int:
        """What is not taken back, half a token rounded up in favour of taking."""
        return self.amount - int(self.amount * self.share + Fraction(1, 2))


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of a paid invoice; `key` is its place in the order of the contract."""

    invoice: Row
    raw: Row

    @property
    def id(self) -> str:
        return str(self.raw["id"])

    @property
    def item(self) -> str:
        return str(self.raw["subscription_item"])

    @property
    def amount(self) -> int:
        return int(self.raw["amount"])

    @property
    def start(self) -> datetime:
        return moment(self.raw["period"]["start"])

    @property
    def end(self) -> datetime:
        return moment(self.raw["period"]["end"])

    @property
    def bill(self) -> tuple[datetime, str]:
        return age(self.invoice)

    @property
    def key(self) -> tuple[datetime, datetime, str]:
        return self.bill[0], self.start, self.id


@dataclass(slots=True)
class _Stretch:
    """Lines that pay for the same time, and the greatest sum that they have covered so far."""

    lines: list[_Line] = field(default_factory=list)
    greatest: int = 0
    waits: bool = False

    @property
    def start(self) -> datetime:
        return min(line.start for line in self.lines)

    @property
    def end(self) -> datetime:
        return max(line.end for line in self.lines)

    def overlaps(self, line: _Line) -> bool:
        return any(line.start < other.end and other.start < line.end for other in self.lines)


def targets(facts: Facts, settings: Settings, owned: Mapping[str, str]) -> tuple[list[Target], set[str]]:
    """All targets of all users, and the ids of what waits for data."""
    found: list[Target] = []
    waiting: set[str] = set()
    for subscription in of(facts, "subscriptions"):
        user = owned.get(subscription["stripe_customer_id"])
        if user is not None:
            found += _of_lines(facts, settings, subscription, user, waiting)
    found += _of_trials(facts, owned, waiting)
    found += _of_purchases(facts, settings, owned, waiting)
    return found, waiting


# --- figures ----------------------------------------------------------------------------------------------------------


def _in_force(facts: Facts, object_id: str | None, at: datetime) -> Mapping[str, Any]:
    kept = sorted(
        (row for row in of(facts, "metadata_history") if row["object_id"] == object_id),
        key=lambda row: row["as_of"],
    )
    if not kept:
        row = by_id(facts, "prices", object_id) or by_id(facts, "products", object_id) or {}
        return row.get("metadata") or {}
    earlier = [row for row in kept if row["as_of"] <= at]
    return (earlier[-1] if earlier else kept[0])["metadata"] or {}


def _named(facts: Facts, raw: Row, key: str, at: datetime) -> Any:
    """`key` of the price's metadata, else of its product's."""
    price = by_id(facts, "prices", raw["price"]) or {}
    for object_id in (raw["price"], price.get("stripe_product_id") or raw.get("product")):
        metadata = _in_force(facts, object_id, at)
        if key in metadata:
            return metadata[key]
    return None


def _figure(text: Any, quantity: int | None = 1) -> int:
    if not (isinstance(text, str) and text.isascii() and text.isdigit()):
        return 0
    product = int(text) * (1 if quantity is None else quantity)
    return product if 0 <= product <= MOST else 0


def _is_known(facts: Facts, raw: Row) -> bool:
    price = by_id(facts, "prices", raw["price"])
    if price is None or price["source"] == "stub":
        return False
    product = by_id(facts, "products", price["stripe_product_id"] or raw.get("product"))
    return product is not None and product["source"] != "stub"


# --- paid lines -------------------------------------------------------------------------------------------------------


def _of_lines(
    facts: Facts,
    settings: Settings,
    subscription: Row,
    user: str,
    waiting: set[str],
) -> Iterable[Target]:
    paid = [
        invoice
        for invoice in of(facts, "invoices")
        if invoice["stripe_subscription_id"] == subscription["id"]
        and invoice["status"] == "paid"
        and not _is_of_purchase(facts, invoice)
    ]
    whole = [invoice for invoice in paid if invoice["lines_complete"]]
    waiting |= {invoice["id"] for invoice in paid if not invoice["lines_complete"]}
    lines = [_Line(invoice, raw) for invoice in whole for raw in invoice["lines"] if raw.get("subscription_item")]
    charged = sorted((line for line in lines if line.amount >= 0 and not _is_trial(facts, line)), key=lambda x: x.key)
    credits_ = [line for line in lines if line.amount < 0 and line.raw.get("proration")]
    stretches = _stretches(charged, credits_)
    amounts: dict[str, int] = {}
    for number, line in enumerate(charged):
        stretch = next(one for one in stretches if line in one.lines)
        stretch.waits |= not _is_known(facts, line.raw)
        if stretch.waits:
            waiting.add(line.id)
            continue
        covering = _covering(stretch, charged[: number + 1], credits_, line)
        total = sum(_allotment(facts, one) for one in covering)
        amounts[line.id] = max(0, total - stretch.greatest)
        stretch.greatest = max(stretch.greatest, total)
    for line in charged:
        if line.id in amounts:
            stretch = next(one for one in stretches if line in one.lines)
            later = [x.id for one in stretches if one is not stretch and one.start >= stretch.end for x in one.lines]
            yield _target_of(facts, settings, subscription, user, line, amounts, later, charged, credits_)


def _target_of(
    facts: Facts,
    settings: Settings,
    subscription: Row,
    user: str,
    line: _Line,
    amounts: Mapping[str, int],
    later: Collection[str],
    charged: Sequence[_Line],
    credits_: Sequence[_Line],
) -> Target:
    rolls = _named(facts, line.raw, "tokens_policy", line.invoice["paid_at"]) == "rollover"
    end = subscription["ended_at"] if rolls else line.end + timedelta(days=settings["DUES_GRACE_DAYS"])
    share, held = _taken_of_invoice(facts, line.invoice)
    share = max(share, _unused(subscription, line, charged, credits_))
    return Target(
        line.id,
        user,
        amounts[line.id],
        end,
        share=min(share, Fraction(1)),
        held=held,
        ended_by=() if rolls else [id for id in later if amounts.get(id, 0) > 0],
    )


def _is_of_purchase(facts: Facts, invoice: Row) -> bool:
    return any(
        session["mode"] == "payment" and session["stripe_invoice_id"] == invoice["id"]
        for session in of(facts, "sessions")
    )


def _is_trial(facts: Facts, line: _Line) -> bool:
    price = by_id(facts, "prices", line.raw["price"])
    is_free = price is not None and price["source"] != "stub" and price["unit_amount"] == 0
    return line.amount == 0 and not is_free


def _allotment(facts: Facts, line: _Line) -> int:
    figure = _named(facts, line.raw, "tokens", line.invoice["paid_at"])
    return _figure(figure, line.raw.get("quantity"))


def _stretches(charged: Sequence[_Line], credits_: Sequence[_Line]) -> list[_Stretch]:
    found: list[_Stretch] = []
    for line in charged:
        own = [one for one in found if one.overlaps(line) and any(x.item == line.item for x in one.lines)]
        stretch = own[0] if own else _swapped(line, found, charged, credits_) or _Stretch()
        if stretch not in found:
            found.append(stretch)
        for other in own[1:]:
            stretch.lines += other.lines
            found.remove(other)
        stretch.lines.append(line)
    return found


def _swapped(
    line: _Line,
    stretches: Sequence[_Stretch],
    charged: Sequence[_Line],
    credits_: Sequence[_Line],
) -> _Stretch | None:
    """The stretch of the item whose place this line's item takes, if it takes one."""
    is_new = not any(x.item == line.item and x.key < line.key for x in (*charged, *credits_))
    beside = [x for x in credits_ if is_new and x.bill == line.bill and x.item != line.item]
    before = [x for x in credits_ if x.bill <= line.bill and x.item != line.item]
    billed = {x.item for x in charged if x.bill == line.bill}
    candidates = sorted(beside or before, key=lambda x: (x.item in billed, x.key))
    for credit in candidates:
        for stretch in stretches:
            of_item = [x for x in stretch.lines if x.item == credit.item]
            hit = any(x.start <= credit.start < x.end for x in of_item)
            if hit and (beside or (stretch.overlaps(line) and _is_over(credit, line, charged))):
                return stretch
    return None


def _is_over(credit: _Line, line: _Line, charged: Sequence[_Line]) -> bool:
    """Whether a credit has ended its item, so that nothing is billed for it where `line` begins."""
    return not any(
        x.item == credit.item and x.start >= credit.start and x.bill >= credit.bill and x.key <= line.key
        for x in charged
    )


def _covering(
    stretch: _Stretch,
    so_far: Sequence[_Line],
    credits_: Sequence[_Line],
    line: _Line,
) -> list[_Line]:
    """What the stretch's items are paid for where `line` begins, as far as bills up to its own tell."""
    latest: dict[str, _Line] = {}
    for one in so_far:
        if one in stretch.lines and one.start <= line.start < one.end:
            latest[one.item] = one
    ends = [x for x in credits_ if x.bill <= line.bill and x.start <= line.start]
    return [one for one in latest.values() if not any(_ends(credit, one) for credit in ends)]


def _ends(credit: _Line, line: _Line) -> bool:
    """Whether a credit ends what a line has begun: not a later bill's line, nor what its own change begins."""
    if credit.item != line.item or line.bill > credit.bill or line.start > credit.start:
        return False
    return line.bill < credit.bill or line.start < credit.start


# --- taken back -------------------------------------------------------------------------------------------------------


def _unused(subscription: Row, line: _Line, charged: Sequence[_Line], credits_: Sequence[_Line]) -> Fraction:
    """The share of a line that was credited when its subscription ended."""
    if subscription["ended_at"] is None or line.amount == 0:
        return Fraction(0)
    last = [
        credit
        for credit in credits_
        if credit.start < line.end
        and _ends(credit, line)
        and not any(_ends(credit, x) and x.key > line.key and x.start <= credit.start < x.end for x in charged)
        and not any(x.bill > credit.bill or (x.bill == credit.bill and x.start >= credit.start) for x in charged)
    ]
    return Fraction(-sum(credit.amount for credit in last), line.amount)


def _taken_of_invoice(facts: Facts, invoice: Row) -> tuple[Fraction, bool]:
    payments = [row for row in of(facts, "invoice_payments") if row["stripe_invoice_id"] == invoice["id"]]
    intents = {row["payment_intent_id"] for row in payments if row.get("payment_intent_id")}
    charges = {row["charge_id"] for row in payments if row.get("charge_id")}
    share, held = _taken(facts, intents, charges, invoice["amount_paid"])
    noted, total = invoice["post_payment_credit_notes_amount"] or 0, invoice["total"] or 0
    return max(share, Fraction(noted, total) if total > 0 else Fraction(0)), held


def _taken(facts: Facts, intents: Collection[str], charges: Collection[str], paid: int) -> tuple[Fraction, bool]:
    own = {row["id"] for row in of(facts, "charges") if row["payment_intent_id"] in intents} | set(charges)
    refunded = sum(row["amount_refunded"] or 0 for row in of(facts, "charges") if row["id"] in own)
    share = Fraction(refunded, paid) if paid and paid > 0 else Fraction(0)
    disputes = [
        row["status"]
        for row in of(facts, "disputes")
        if row["charge_id"] in own or (row.get("payment_intent_id") and row["payment_intent_id"] in intents)
    ]
    if "lost" in disputes:
        share = max(share, Fraction(1))
    return share, any(status not in SETTLED for status in disputes)


# --- trials -----------------------------------------------------------------------------------------------------------


def _of_trials(facts: Facts, owned: Mapping[str, str], waiting: set[str]) -> Iterable[Target]:
    with_trial = [row for row in of(facts, "subscriptions") if row["trial_start"] is not None]
    had: set[tuple[str, str]] = set()
    for row in sorted(with_trial, key=lambda row: (row["trial_start"], row["id"])):
        user = owned.get(row["stripe_customer_id"])
        if user is None:
            continue
        raw = {"price": row["stripe_price_id"], "product": row["stripe_product_id"]}
        if not _is_known(facts, raw):
            waiting.add(row["id"])
            continue
        if (user, row["stripe_product_id"]) in had:
            continue
        had.add((user, row["stripe_product_id"]))
        named = _named(facts, raw, "trial_tokens", row["trial_start"])
        allotment = _figure(_named(facts, raw, "tokens", row["trial_start"]), row["quantity"])
        amount = allotment if named is None else _figure(named)
        yield Target(row["id"], user, amount, row["trial_end"], trial_of=row["stripe_product_id"])


# --- purchases --------------------------------------------------------------------------------------------------------


def _of_purchases(
    facts: Facts,
    settings: Settings,
    owned: Mapping[str, str],
    waiting: set[str],
) -> Iterable[Target]:
    bought = [row for row in of(facts, "sessions") if row["mode"] == "payment"]
    for intent in of(facts, "payment_intents"):
        if intent["status"] == "succeeded" and not _pays_subscription(facts, intent["id"]):
            own = sorted((row for row in bought if row["payment_intent_id"] == intent["id"]), key=age)
            share, held = _taken(facts, {intent["id"]}, (), intent["amount_received"])
            yield from _purchase(facts, settings, owned, waiting, (intent, own, share, held))
    for session in bought:
        if session["payment_status"] == "no_payment_required" and session["status"] == "complete":
            yield from _purchase(facts, settings, owned, waiting, (session, [session], Fraction(0), False))


def _pays_subscription(facts: Facts, intent: str) -> bool:
    return any(
        row["payment_intent_id"] == intent
        and (by_id(facts, "invoices", row["stripe_invoice_id"]) or {}).get("stripe_subscription_id")
        for row in of(facts, "invoice_payments")
    )


def _purchase(
    facts: Facts,
    settings: Settings,
    owned: Mapping[str, str],
    waiting: set[str],
    what: tuple[Row, Sequence[Row], Fraction, bool],
) -> Iterable[Target]:
    source, sessions, share, held = what
    user = _buyer(facts, settings, owned, source, sessions)
    if user is None:
        return
    sources = [*sessions, source]
    tokens = next((row["metadata"]["tokens"] for row in sources if "tokens" in (row["metadata"] or {})), None)
    items = next((row["line_items"] for row in sessions if row["line_items"] is not None), None)
    at = source["created"] or LAST
    if tokens is not None:
        amount = _figure(tokens)
    elif not sessions:
        return
    elif items is None or not all(_is_known(facts, item) for item in items):
        waiting.add(source["id"])
        return
    else:
        amount = sum(_figure(_named(facts, item, "tokens", at), item.get("quantity")) for item in items)
    days = next((row["metadata"]["tokens_days"] for row in sources if "tokens_days" in (row["metadata"] or {})), None)
    if days is None:
        found = (_named(facts, item, "tokens_days", at) for item in items or ())
        days = next((one for one in found if one is not None), None)
    end = at + timedelta(days=int(days)) if isinstance(days, str) and days.isascii() and days.isdigit() else None
    yield Target(source["id"], user, amount, end, share=min(share, Fraction(1)), held=held)


def _buyer(
    facts: Facts,
    settings: Settings,
    owned: Mapping[str, str],
    source: Row,
    sessions: Sequence[Row],
) -> str | None:
    customers = [row["stripe_customer_id"] for row in (source, *sessions) if row["stripe_customer_id"]]
    if customers:
        return owned.get(customers[0])
    return next((user for user in (named_by(facts, settings, row) for row in sessions) if user), None)
