"""The shell around tokens: load what users own, compute their targets, bring the token ledger to them.

Part of DECIDE: the users are locked by then, and everything is loaded by statements that start after that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from models import token_ledger
from models.settings import Settings
from workers import balance, identity, tokens
from workers.link import load_users, rules_of

Rows = Sequence[Row[Any]]


def load_facts(
    connection: Connection,
    settings: Settings,
    users: Collection[str],
    owners: Mapping[str, str | None],
) -> dict[str, tokens.Facts]:
    """Everything that can grant tokens to `users`, by user; `owners` are their customers (`{customer: user}`)."""
    return _Estate(connection, settings, users, owners).facts()


def bring(
    connection: Connection,
    targets: Mapping[str, tokens.Targets],
    hashes: Mapping[str, str | None],
    now: datetime,
    *,
    without_grants: Collection[str],
) -> dict[str, balance.Plan]:
    """Bring each user's ledger to the targets and return the plans that were booked, by user.

    `hashes` are those of the users' e-mails; `without_grants` are users to whom nothing new is granted (bans).
    """
    sources = {target.source for found in targets.values() for target in found.targets}
    addresses = {one for one in hashes.values() if one is not None}
    entries = _Entries(token_ledger.entries(connection, targets.keys(), sources=sources, hashes=addresses))
    plans = {}
    for user, found in targets.items():
        plan = balance.bring(
            user,
            found.targets,
            entries.of(user, {target.source for target in found.targets}, hashes[user]),
            now,
            may_book=user not in without_grants,
            email_hash=hashes[user],
        )
        token_ledger.book(connection, plan.bookings)
        plans[user] = plan
    return plans


class _Entries:
    """The entries that concern some users, in the order of booking."""

    def __init__(self, rows: Iterable[tuple[Any, ...]]) -> None:
        self._by: dict[tuple[str, str], list[balance.Entry]] = defaultdict(list)
        for entry in (balance.Entry(*row) for row in rows):
            for column in ("user_id", "source", "email_hash"):
                value = getattr(entry, column)
                if value is not None:
                    self._by[column, value].append(entry)

    def of(self, user: str, sources: Collection[str], email_hash: str | None) -> list[balance.Entry]:
        """One user's, those of their sources, and those of their address."""
        keys = [("user_id", user), *(("source", source) for source in sources)]
        keys += [("email_hash", email_hash)] if email_hash is not None else []
        found = {entry.id: entry for key in keys for entry in self._by[key]}
        return [found[one] for one in sorted(found)]


# --- facts --------------------------------------------------------------------------------------------------------

_SESSION = """id, stripe_customer_id, created, metadata, client_reference_id, payment_link, email, mode, status,
    payment_status, payment_intent_id, stripe_invoice_id, line_items"""

_GUEST_SESSIONS = f"""
    SELECT {_SESSION} FROM stripe_checkout_sessions
    WHERE stripe_customer_id IS NULL AND (client_reference_id = ANY(:users)
        OR metadata ->> 'user_id' = ANY(:users) OR metadata ->> 'userId' = ANY(:users))
"""

_SUBSCRIPTIONS = """
    SELECT id, status, stripe_price_id, stripe_product_id, quantity, trial_start, trial_end, ended_at,
        stripe_customer_id
    FROM user_subscriptions WHERE stripe_customer_id = ANY(:customers)
"""

_INTENTS = """
    SELECT id, status, created, amount_received, metadata, source, stripe_customer_id FROM payment_history
    WHERE stripe_customer_id = ANY(:customers) OR (stripe_customer_id IS NULL AND id = ANY(:intents))
"""

_INTENTS_OF_SESSIONS = """
    SELECT payment_intent_id AS id FROM stripe_checkout_sessions
    WHERE stripe_customer_id = ANY(:customers) AND payment_intent_id IS NOT NULL
"""

_SESSIONS = f"""
    SELECT {_SESSION} FROM stripe_checkout_sessions
    WHERE stripe_customer_id = ANY(:customers) OR payment_intent_id = ANY(:intents)
"""

_INVOICES = """
    SELECT i.id, i.stripe_subscription_id, i.status, i.created, i.paid_at, i.total, i.amount_paid,
        i.post_payment_credit_notes_amount, i.lines, i.lines_complete, i.source, i.stripe_customer_id
    FROM stripe_invoices i
    WHERE i.stripe_customer_id = ANY(:customers) OR (i.stripe_customer_id IS NULL AND (
        i.stripe_subscription_id = ANY(:subscriptions) OR (i.stripe_subscription_id IS NULL AND i.id IN (
            SELECT stripe_invoice_id FROM stripe_invoice_payments WHERE payment_intent_id = ANY(:intents)))))
"""

# A payment that several objects of old API versions tell of counts once. Whoever says that it was made comes first, as
# each attempt tells of itself and the first may have failed; then Stripe's own word for it.
_INVOICE_PAYMENTS = """
    SELECT DISTINCT ON (stripe_invoice_id, coalesce(payment_intent_id, charge_id))
        stripe_invoice_id, payment_intent_id, charge_id, amount_paid, status
    FROM stripe_invoice_payments
    WHERE stripe_invoice_id = ANY(:invoices) OR payment_intent_id = ANY(:intents)
    ORDER BY stripe_invoice_id, coalesce(payment_intent_id, charge_id), status = 'paid' DESC NULLS LAST,
        position(':' IN id) > 0, id
"""

_CHARGES = """
    SELECT id, payment_intent_id, status, amount, amount_captured, amount_refunded FROM stripe_charges
    WHERE payment_intent_id = ANY(:intents) OR id = ANY(:charges)
"""

_DISPUTES = """
    SELECT id, charge_id, payment_intent_id, status FROM stripe_disputes
    WHERE charge_id = ANY(:charges) OR payment_intent_id = ANY(:intents)
"""

_PRICES = """
    SELECT id, stripe_product_id, unit_amount, unit_amount_decimal, metadata, source FROM stripe_prices
    WHERE id = ANY(:prices)
"""

_PRODUCTS = "SELECT id, metadata, source FROM stripe_products WHERE id = ANY(:products)"

_HISTORY = "SELECT object_id, as_of, metadata FROM stripe_metadata_history WHERE object_id = ANY(:objects)"


@dataclass(slots=True)
class _Owned:
    """What one user owns."""

    subscriptions: list[tokens.Subscription] = field(default_factory=list)
    invoices: list[tokens.Invoice] = field(default_factory=list)
    intents: list[tokens.PaymentIntent] = field(default_factory=list)
    sessions: list[tokens.Session] = field(default_factory=list)


class _Estate:
    """What some users own, loaded together."""

    def __init__(
        self,
        connection: Connection,
        settings: Settings,
        users: Collection[str],
        owners: Mapping[str, str | None],
    ) -> None:
        self._connection = connection
        self._settings = settings
        self._users = users
        self._of_customer = owners
        self._owned: dict[str, _Owned] = defaultdict(_Owned)

    def facts(self) -> dict[str, tokens.Facts]:
        """Load everything and divide it by owner."""
        guests = self._guests()
        customers = sorted(self._of_customer)
        subscriptions = self._select(_SUBSCRIPTIONS, customers=customers)
        paid = {row.payment_intent_id for row, _ in guests if row.payment_intent_id}
        paid |= {row.id for row in self._select(_INTENTS_OF_SESSIONS, customers=customers)}
        intents = self._select(_INTENTS, customers=customers, intents=sorted(paid))
        intent_ids = sorted({row.id for row in intents})
        sessions = {row.id: row for row, _ in guests}
        sessions |= {row.id: row for row in self._select(_SESSIONS, customers=customers, intents=intent_ids)}
        invoices = self._select(
            _INVOICES,
            customers=customers,
            subscriptions=[row.id for row in subscriptions],
            intents=intent_ids,
        )
        payments = self._select(_INVOICE_PAYMENTS, invoices=[row.id for row in invoices], intents=intent_ids)
        self._divide(subscriptions, intents, invoices, payments, sessions, guests)
        shared = self._shared(intent_ids, payments)
        return {user: self._facts_of(user, payments, shared) for user in self._users}

    def _select(self, sql: str, **parameters: Sequence[str]) -> Rows:
        return self._connection.execute(text(sql), parameters).all()

    def _guests(self) -> list[tuple[Row[Any], str]]:
        """Sessions without a customer that name one of the users, each with the user that it names above all."""
        rows = self._select(_GUEST_SESSIONS, users=sorted(self._users))
        sessions = [identity.Session(*row[:7]) for row in rows]
        named = identity.named_users(identity.Evidence(sessions=sessions))
        people = load_users(self._connection, named.ids)
        links = identity.resolve_guests(sessions, people, rules_of(self._settings))
        return [(row, owner) for row in rows if (owner := links[row.id].owner_id) is not None]

    # --- whose ---

    def _divide(
        self,
        subscriptions: Rows,
        intents: Rows,
        invoices: Rows,
        payments: Rows,
        sessions: Mapping[str, Row[Any]],
        guests: Iterable[tuple[Row[Any], str]],
    ) -> None:
        guest = {row.id: owner for row, owner in guests}
        by_intent = {row.payment_intent_id: row for row in sessions.values() if row.payment_intent_id}
        of_subscription = {row.id: self._of_customer.get(row.stripe_customer_id) for row in subscriptions}

        def of_session(row: Row[Any]) -> str | None:
            return guest.get(row.id) or self._of_customer.get(row.stripe_customer_id)

        of_intent = {
            row.id: self._of_customer.get(row.stripe_customer_id)
            if row.stripe_customer_id or row.id not in by_intent
            else of_session(by_intent[row.id])
            for row in intents
        }
        paid_by = {row.stripe_invoice_id: row.payment_intent_id for row in payments}
        for row in subscriptions:
            self._give(of_subscription[row.id]).subscriptions.append(tokens.Subscription(*row[:8]))
        for row in intents:
            is_stub = row.source == "stub"
            self._give(of_intent[row.id]).intents.append(tokens.PaymentIntent(*row[:5], stub=is_stub))
        for row in invoices:
            if row.stripe_customer_id:
                owner = self._of_customer.get(row.stripe_customer_id)
            else:
                owner = of_subscription.get(row.stripe_subscription_id) or of_intent.get(paid_by.get(row.id))
            self._give(owner).invoices.append(_invoice(row))
        for row in sessions.values():
            known = of_intent.get(row.payment_intent_id)
            self._give(known if row.payment_intent_id in of_intent else of_session(row)).sessions.append(_session(row))

    def _give(self, owner: str | None) -> _Owned:
        return self._owned[owner or ""]

    # --- what is asked of everybody's ---

    def _shared(self, intents: Sequence[str], payments: Rows) -> dict[str, Any]:
        """Charges, disputes, prices, products and what they said when: by id, so it does no harm to know too many."""
        intent_ids = sorted({*intents, *(row.payment_intent_id for row in payments if row.payment_intent_id)})
        charge_ids = sorted({row.charge_id for row in payments if row.charge_id})
        charges = [tokens.Charge(*row) for row in self._select(_CHARGES, intents=intent_ids, charges=charge_ids)]
        all_charges = sorted({*charge_ids, *(charge.id for charge in charges)})
        disputes = self._select(_DISPUTES, charges=all_charges, intents=intent_ids)
        prices, products = self._named()
        price_rows = self._select(_PRICES, prices=sorted(prices))
        products |= {row.stripe_product_id for row in price_rows if row.stripe_product_id}
        product_rows = self._select(_PRODUCTS, products=sorted(products))
        history = self._select(_HISTORY, objects=sorted(prices | products))
        return {
            "charges": charges,
            "disputes": [tokens.Dispute(*row) for row in disputes],
            "prices": [tokens.Price(*row[:5], stub=row.source == "stub") for row in price_rows],
            "products": [tokens.Product(row.id, row.metadata, row.source == "stub") for row in product_rows],
            "snapshots": [tokens.Snapshot(row.object_id, row.as_of, row.metadata) for row in history],
        }

    def _named(self) -> tuple[set[str], set[str]]:
        prices: set[str | None] = set()
        products: set[str | None] = set()
        for owned in self._owned.values():
            lines = [line for invoice in owned.invoices for line in invoice.lines]
            items = [item for session in owned.sessions for item in session.line_items or ()]
            for subscription in owned.subscriptions:
                prices.add(subscription.price_id)
                products.add(subscription.product_id)
            for line in lines:
                prices.add(line.price_id)
                products.add(line.product_id)
            prices |= {item.price_id for item in items}
        return {one for one in prices if one is not None}, {one for one in products if one is not None}

    def _facts_of(self, user: str, payments: Rows, shared: Mapping[str, Any]) -> tokens.Facts:
        owned = self._owned.get(user) or _Owned()
        ids = {invoice.id for invoice in owned.invoices} | {intent.id for intent in owned.intents}
        return tokens.Facts(
            subscriptions=owned.subscriptions,
            invoices=owned.invoices,
            invoice_payments=[
                tokens.InvoicePayment(*row)
                for row in payments
                if row.stripe_invoice_id in ids or row.payment_intent_id in ids
            ],
            payment_intents=owned.intents,
            sessions=owned.sessions,
            grace_days=self._settings.grace_days,
            **shared,
        )


def _invoice(row: Row[Any]) -> tokens.Invoice:
    lines = tokens.read_lines(row.lines)
    return tokens.Invoice(*row[:8], lines=lines, lines_complete=row.lines_complete, stub=row.source == "stub")


def _session(row: Row[Any]) -> tokens.Session:
    items = row.line_items
    return tokens.Session(
        id=row.id,
        mode=row.mode,
        status=row.status,
        payment_status=row.payment_status,
        created=row.created,
        payment_intent_id=row.payment_intent_id,
        invoice_id=row.stripe_invoice_id,
        metadata=row.metadata,
        line_items=None if items is None else [tokens.LineItem(one.get("price"), one.get("quantity")) for one in items],
    )
