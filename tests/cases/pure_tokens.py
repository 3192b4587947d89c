"""The pure road: facts through the pure modules, and a ledger in memory; no database anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from tests.cases import pure
from tests.cases.loading import Case, Row, Step
from tests.cases.roads import Answers, Outcome, compare
from tests.cases.world import World, email_hash
from workers import balance, entitlements, identity, tokens

Links = Mapping[str, identity.Link]


class PureRoad:
    """Facts → links → decisions → targets → entries, all of it in memory."""

    name = "pure"

    def run(self, case: Case) -> Outcome:
        """Go through the steps of a case and compare after each."""
        outcome = Outcome()
        for step, answers in zip(case.steps, self.answers(case), strict=True):
            compare(step, answers, outcome)
        return outcome

    def answers(self, case: Case) -> Iterator[Answers]:
        """Yield, step by step, everything that the pure functions say, expected or not."""
        world, ledger = World(), Ledger()
        for step in case.steps:
            for user_id in step.removed_users:
                world.remove_user(user_id)
                ledger.forget(user_id)
            world.add(step)
            links = identity.resolve(pure.evidence(world), pure.users(world), pure.rules(case))
            decided, booked = pure.answers(world, links, case, step.at), ledger.answers(world, case, step, links)
            users = {user_id: {**columns, **booked["users"][user_id]} for user_id, columns in decided["users"].items()}
            yield {**decided, **booked, "users": users}


class Ledger:
    """The rows of `token_ledger` through the steps of a case."""

    def __init__(self) -> None:
        self.entries: list[balance.Entry] = []
        self._spent = 0

    def forget(self, user_id: str) -> None:
        """Do what the foreign key does when a user is deleted."""
        self.entries = [replace(e, user_id=None) if e.user_id == user_id else e for e in self.entries]

    def answers(self, world: World, case: Case, step: Step, links: Links) -> dict[str, Any]:
        """Bring everybody's ledger to the targets, make the step's spends, and answer what it says then.

        `users` have `tokens` and `tokens_expires_at`; `grants` are (source, amount, expiry), `waiting` ids.
        """
        owned = Owned(world, links, guests(world, case))
        targets = {user["id"]: tokens.targets(owned.facts(user["id"], case)) for user in world.rows("users")}
        for user in world.rows("users"):
            self._bring(user, targets[user["id"]].targets, step.at, may_book=not is_banned(world, user, case, step.at))
        for spend in step.spends:
            self._spent += 1
            self.book(balance.spend(spend["user"], spend["amount"], f"{self._spent}", self.entries, step.at).plan)
        orphans = tokens.targets(owned.facts(None, case))
        return {
            "users": {user_id: _columns(balance.standing(user_id, self.entries)) for user_id in targets},
            "grants": {
                (grant.source, grant.amount, grant.expires_at)
                for user in world.rows("users")
                for grant in balance.grants(
                    user["id"], targets[user["id"]].targets, self.entries, hash_of(user["email"])
                )
            },
            "waiting": {note.id for found in (orphans, *targets.values()) for note in found.waiting},
        }

    def book(self, plan: balance.Plan) -> None:
        """Append the rows of a plan as the database would."""
        for booking in plan.bookings:
            self.append(booking)

    def append(self, booking: balance.Booking) -> None:
        """Append one row; a key that was booked before breaks the road, as it would break the transaction."""
        ids = {entry.key: entry.id for entry in self.entries}
        if booking.key in ids:
            raise ValueError(f"booked before: {booking.key}")
        draws_on = booking.grant_id if booking.grant_key is None else ids[booking.grant_key]
        self.entries.append(
            balance.Entry(
                len(self.entries) + 1,
                booking.user_id,
                booking.kind,
                booking.amount,
                booking.key,
                draws_on,
                booking.source,
                booking.expires_at,
                booking.email_hash,
            ),
        )

    def _bring(self, user: Row, targets: Iterable[tokens.Target], now: datetime, *, may_book: bool) -> None:
        known = tuple(targets)
        hashed = hash_of(user["email"])
        self.book(balance.bring(user["id"], known, self.entries, now, may_book=may_book, email_hash=hashed))
        again = balance.bring(user["id"], known, self.entries, now, may_book=may_book, email_hash=hashed)
        if again.bookings:
            raise ValueError(f"planned again: {again.bookings}")


class Owned:
    """The rows of a world by whose they are."""

    def __init__(self, world: World, links: Links, guests_of: Links) -> None:
        self._world = world
        self._customers = {customer_id: link.owner_id for customer_id, link in links.items()}
        self._guests = {session_id: link.owner_id for session_id, link in guests_of.items()}
        self._sessions = {row["payment_intent_id"]: row for row in world.rows("sessions")}
        self._payers = {
            row["stripe_invoice_id"]: row.get("payment_intent_id") for row in world.rows("invoice_payments")
        }

    def facts(self, user_id: str | None, case: Case) -> tokens.Facts:
        """Return everything of one user; of nobody for null."""
        world = self._world
        subscriptions = [row for row in world.rows("subscriptions") if self._of_customer(row) == user_id]
        invoices = [row for row in world.rows("invoices") if self._of_invoice(row) == user_id]
        intents = [row for row in world.rows("payment_intents") if self._of_intent(row) == user_id]
        ids = {row["id"] for row in (*invoices, *intents)}
        payments = [
            row
            for row in world.rows("invoice_payments")
            if row["stripe_invoice_id"] in ids or row.get("payment_intent_id") in ids
        ]
        return tokens.Facts(
            products=[tokens.Product(row["id"], row["metadata"], _is_stub(row)) for row in world.rows("products")],
            prices=[_price(row) for row in world.rows("prices")],
            snapshots=[
                tokens.Snapshot(row["object_id"], row["as_of"], row["metadata"])
                for row in world.rows("metadata_history")
            ],
            subscriptions=[_subscription(row) for row in subscriptions],
            invoices=[_invoice(row) for row in invoices],
            invoice_payments=[_invoice_payment(row) for row in payments],
            payment_intents=[_payment_intent(row) for row in intents],
            charges=[_charge(row) for row in world.rows("charges")],
            disputes=[
                tokens.Dispute(row["id"], row.get("charge_id"), row.get("payment_intent_id"), row.get("status"))
                for row in world.rows("disputes")
            ],
            sessions=[_session(row) for row in world.rows("sessions") if self._of_session(row) == user_id],
            grace_days=case.settings["DUES_GRACE_DAYS"],
        )

    def _of_customer(self, row: Row) -> str | None:
        return self._customers.get(row.get("stripe_customer_id") or "")

    def _of_invoice(self, row: Row) -> str | None:
        """Find the owner by the invoice's customer, else its subscription's, else that of what pays it."""
        if row.get("stripe_customer_id"):
            return self._of_customer(row)
        subscription = self._world.find("subscriptions", row["stripe_subscription_id"])
        if subscription is not None:
            return self._of_customer(subscription)
        intent = self._world.find("payment_intents", self._payers.get(row["id"]))
        return self._of_intent(intent) if intent is not None else None

    def _of_intent(self, row: Row) -> str | None:
        session = self._sessions.get(row["id"])
        if row.get("stripe_customer_id") or session is None:
            return self._of_customer(row)
        return self._guests.get(session["id"]) or self._of_customer(session)

    def _of_session(self, row: Row) -> str | None:
        intent = self._world.find("payment_intents", row["payment_intent_id"])
        return self._of_intent(intent) if intent else self._guests.get(row["id"]) or self._of_customer(row)


def guests(world: World, case: Case) -> Links:
    """Link the sessions that have no customer."""
    return identity.resolve_guests(pure.evidence(world).sessions, pure.users(world), pure.rules(case))


def is_banned(world: World, user: Row, case: Case, now: datetime) -> bool:
    """Say whether the user's role is BANNED."""
    decision = entitlements.decide(pure.facts(world, case, set()), pure.overrides(world, user), now)
    return decision.role == "BANNED"


def hash_of(email: str | None) -> str | None:
    """Hash an address; there may be none."""
    return email_hash(email) if email else None


def _columns(plan: balance.Plan) -> dict[str, Any]:
    return {"tokens": plan.tokens, "tokens_expires_at": plan.tokens_expires_at}


def _is_stub(row: Row) -> bool:
    return bool(row["source"] == "stub")


def _price(row: Row) -> tokens.Price:
    return tokens.Price(
        row["id"],
        row["stripe_product_id"],
        row["unit_amount"],
        row.get("unit_amount_decimal"),
        row["metadata"],
        _is_stub(row),
    )


def _subscription(row: Row) -> tokens.Subscription:
    return tokens.Subscription(
        row["id"],
        row["status"],
        row["stripe_price_id"],
        row["stripe_product_id"],
        row["quantity"],
        row["trial_start"],
        row["trial_end"],
        row["ended_at"],
    )


def _invoice(row: Row) -> tokens.Invoice:
    return tokens.Invoice(
        row["id"],
        row["stripe_subscription_id"],
        row["status"],
        row["created"],
        row["paid_at"],
        row["total"],
        row["amount_paid"],
        row["post_payment_credit_notes_amount"],
        tokens.read_lines(row["lines"]),
        row["lines_complete"],
        _is_stub(row),
    )


def _invoice_payment(row: Row) -> tokens.InvoicePayment:
    return tokens.InvoicePayment(
        row["stripe_invoice_id"],
        row.get("payment_intent_id"),
        row.get("charge_id"),
        row.get("amount_paid"),
        row.get("status"),
    )


def _payment_intent(row: Row) -> tokens.PaymentIntent:
    return tokens.PaymentIntent(
        row["id"],
        row["status"],
        row["created"],
        row["amount_received"],
        row["metadata"],
        _is_stub(row),
    )


def _charge(row: Row) -> tokens.Charge:
    return tokens.Charge(
        row["id"],
        row.get("payment_intent_id"),
        row["status"],
        row.get("amount"),
        row.get("amount_captured"),
        row["amount_refunded"],
    )


def _session(row: Row) -> tokens.Session:
    items = row["line_items"]
    return tokens.Session(
        row["id"],
        row["mode"],
        row["status"],
        row["payment_status"],
        row["created"],
        row["payment_intent_id"],
        row["stripe_invoice_id"],
        row["metadata"],
        None if items is None else [tokens.LineItem(item.get("price"), item.get("quantity")) for item in items],
    )
