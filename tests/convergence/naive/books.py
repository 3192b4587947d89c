"""The score of tokens: what was granted to whom, and what is left of it at a moment."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from tests.convergence.naive import LAST, Facts, Row, Settings, by_id, of
from tests.convergence.naive.links import links, owners
from tests.convergence.naive.roles import answer
from tests.convergence.naive.tokens import Target, targets

BIGGEST: Final = 2**31 - 1


@dataclass(slots=True)
class Grant:
    """A target that was booked for one user; `spent` never comes back."""

    target: Target
    mail: str
    spent: int = 0
    over: bool = False

    def unspent(self, now: datetime) -> int:
        """What can be spent of it at `now`."""
        end = self.target.expires_at
        if self.over or self.target.held or (end is not None and end <= now):
            return 0
        return max(0, self.target.left - self.spent)


@dataclass(slots=True)
class Books:
    """All grants so far, by source; one source is granted to one living user at a time."""

    settings: Settings
    grants: dict[str, Grant] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    waiting: set[str] = field(default_factory=set)

    def look(self, facts: Facts, now: datetime, spends: Iterable[Row] = ()) -> dict[str, Any]:
        """Bring the books to `now`, spend, and answer as `expect` of a case does."""
        owned = owners(facts, self.settings)
        users = {row["id"]: answer(facts, self.settings, owned, row, now) for row in of(facts, "users")}
        self._forget_the_deleted(users)
        found, self.waiting = targets(facts, self.settings, owned)
        self._bring(facts, found, {user for user, one in users.items() if one["role"] == "BANNED"}, now)
        for one in spends:
            self._spend(one["user"], one["amount"], now)
        for user, row in users.items():
            left = [(grant, grant.unspent(now)) for grant in self.grants.values() if grant.target.user == user]
            row["tokens"] = sum(unspent for _, unspent in left)
            ends = [grant.target.expires_at for grant, unspent in left if unspent and grant.target.expires_at]
            row["tokens_expires_at"] = min(ends, default=None)
        return {
            "users": users,
            "links": links(facts, self.settings),
            "grants": {(source, grant.target.amount, grant.target.expires_at) for source, grant in self.grants.items()},
            "waiting": self.waiting,
        }

    def sums(self, now: datetime) -> dict[tuple[str, str], tuple[datetime | None, int]]:
        """{(user, source): (expiry, unspent)} of what is left."""
        return {
            (grant.target.user, source): (grant.target.expires_at, grant.unspent(now))
            for source, grant in self.grants.items()
            if grant.unspent(now)
        }

    def _forget_the_deleted(self, users: Collection[str]) -> None:
        self.gone |= {source for source, grant in self.grants.items() if grant.target.user not in users}

    def _bring(self, facts: Facts, found: Iterable[Target], banned: Collection[str], now: datetime) -> None:
        # The latest first: what a later grant has ended is not booked any more.
        for target in sorted(found, key=lambda one: (one.expires_at or LAST, one.source), reverse=True):
            known = self.grants.get(target.source)
            if target.source in self.gone or (target.trial_of and self._had_trial(facts, target)):
                continue
            if known is not None and known.target.user == target.user:
                known.target = target
            elif self._may_be_booked(target, banned, now):
                user = by_id(facts, "users", target.user) or {}
                self.grants[target.source] = Grant(target, (user.get("email") or "").lower())
            elif known is not None:
                known.over = True
        for grant in self.grants.values():
            grant.over |= self._is_ended(grant.target)
        self.grants = {source: grant for source, grant in self.grants.items() if grant.target.amount > 0}

    def _is_ended(self, target: Target) -> bool:
        return any(self.grants[source].target.amount > 0 for source in target.ended_by if source in self.grants)

    def _may_be_booked(self, target: Target, banned: Collection[str], now: datetime) -> bool:
        has_passed = target.expires_at is not None and target.expires_at <= now
        if target.amount <= 0 or target.user in banned or has_passed or self._is_ended(target):
            return False
        balance = sum(grant.unspent(now) for grant in self.grants.values() if grant.target.user == target.user)
        return balance + target.amount <= BIGGEST

    def _had_trial(self, facts: Facts, target: Target) -> bool:
        user = by_id(facts, "users", target.user) or {}
        mail = (user.get("email") or "").lower()
        return any(
            source != target.source and grant.target.trial_of == target.trial_of and mail and grant.mail == mail
            for source, grant in self.grants.items()
        )

    def _spend(self, user: str, amount: int, now: datetime) -> None:
        own = [grant for grant in self.grants.values() if grant.target.user == user and grant.unspent(now)]
        if sum(grant.unspent(now) for grant in own) < amount:
            return
        for grant in sorted(own, key=lambda one: (one.target.expires_at or LAST, one.target.source)):
            part = min(amount, grant.unspent(now))
            grant.spent += part
            amount -= part


def facts_of(rows: Mapping[str, Mapping[str, Row]]) -> Facts:
    """Facts from a database's rows by table and id."""
    return {name: list(rows[table].values()) for name, table in TABLES.items() if table in rows}


TABLES: Final = {
    "users": "users",
    "accounts": "accounts",
    "customers": "stripe_customers",
    "products": "stripe_products",
    "prices": "stripe_prices",
    "metadata_history": "stripe_metadata_history",
    "subscriptions": "user_subscriptions",
    "invoices": "stripe_invoices",
    "invoice_payments": "stripe_invoice_payments",
    "payment_intents": "payment_history",
    "charges": "stripe_charges",
    "refunds": "stripe_refunds",
    "disputes": "stripe_disputes",
    "sessions": "stripe_checkout_sessions",
}
