"""Why has this user this role, status and balance today? Every input and every rule that had a say, and what waits.

It loads what a decision loads, by the same functions, decides as that does, and writes nothing. What it says is for
operators and the site's own server: ids, times, figures and people's decisions, no payload and no e-mail address.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, text

from models import token_ledger
from models.settings import Settings
from workers import balance, bookkeeping, entitlements, identity, tokens
from workers.link import look
from workers.recompute import load_facts, load_overrides, owners_among

Json = dict[str, Any]

CHANGES: Final = 20
EVENTS: Final = 50
# The columns of `users` that a decision writes, as its fields are called.
DECIDED: Final = {
    "role": "role",
    "membership_status": "status",
    "stripe_product_id": "product_id",
    "grace_until": "grace_until",
    "next_change_at": "next_change_at",
}
HAND_CLASS: Final = 1


def explain(connection: Connection, settings: Settings, user_id: str) -> Json | None:
    """Explain one user, in one moment (the caller's transaction is REPEATABLE READ); null if there is none."""
    user = connection.execute(_USER, {"user": user_id}).one_or_none()
    if user is None:
        return None
    owners = owners_among(connection, [user_id])
    facts = load_facts(connection, owners, settings.grace_days).get(user_id)
    overrides = load_overrides(connection, [user_id])[user_id]
    decision = entitlements.decide(facts or entitlements.Facts((), settings.grace_days), overrides, user.now)
    money = _Money.load(connection, settings, user, owners, decision)
    answer = {
        "id": user.id,
        "at": user.now,
        "stored": {name: getattr(user, name) for name in (*DECIDED, "tokens", "tokens_expires_at")},
        "decided": {name: getattr(decision, field) for name, field in DECIDED.items()}
        | {"tokens": money.plan.tokens, "tokens_expires_at": money.plan.tokens_expires_at},
        "reasons": decision.reasons,
        "rules": _rules(settings),
        "customers": _customers(connection, settings, user_id, owners),
        "subscriptions": _subscriptions(connection, facts, user.now),
        "overrides": _overrides(connection, overrides, user.now),
        "tokens": money.told(),
        "waiting": _waiting(connection, settings, user, decision, money, owners),
        "changes": _rows(connection, _CHANGES, user=user_id, limit=CHANGES),
    }
    plain: Json = _plain(answer)
    return plain


def _rules(settings: Settings) -> Json:
    return {
        "grace_days": settings.grace_days,
        "link_by_email": settings.link_by_email,
        "trusted_providers": settings.trusted_providers,
        "pause": sorted(settings.pause),
        "shadow": settings.shadow,
    }


_USER = text(
    """
    SELECT id, role::text, membership_status::text, stripe_product_id, grace_until, next_change_at, tokens,
        tokens_expires_at, dues_email_hash(email) AS email_hash, now() AS now
    FROM users WHERE id = :user
    """,
)


def _rows(connection: Connection, query: str, **parameters: Any) -> list[Json]:
    return [dict(row) for row in connection.execute(text(query), parameters).mappings()]


# --- whose ------------------------------------------------------------------------------------------------------------

_CUSTOMERS = """
    SELECT id, alias_of, user_id, linked_by, created, deleted_at, as_of, source, contested FROM stripe_customers
    WHERE id = ANY(:ids) ORDER BY created, id
"""

_BY_HAND = """
    SELECT stripe_customer_id, user_id, author, reason, at FROM customer_links
    WHERE stripe_customer_id = ANY(:ids) ORDER BY at DESC, id DESC
"""


def _customers(connection: Connection, settings: Settings, user_id: str, owned: Collection[str]) -> list[Json]:
    """Customers that are this user's (`owned`), or that some evidence gives to them; what decides, what contradicts."""
    links = look(connection, settings, user_id)
    named = {
        one for one, link in links.items() if user_id in {link.owner_id, *(claim.user_id for claim in link.conflicts)}
    }
    ids = sorted(named | set(owned))
    by_hand: dict[str, list[Json]] = defaultdict(list)
    for row in _rows(connection, _BY_HAND, ids=ids):
        by_hand[row.pop("stripe_customer_id")].append(row)
    return [
        {**row, **_link(links[row["id"]]), "by_hand": by_hand[row["id"]]}
        for row in _rows(connection, _CUSTOMERS, ids=ids)
    ]


def _link(link: identity.Link) -> Json:
    """Whose a customer is by the evidence of this moment; `class` 1 is the strongest."""
    conflicts = [{**asdict(claim), "class": identity.STRENGTH[claim.linked_by]} for claim in link.conflicts]
    decided_by = link.linked_by
    strength = None if decided_by is None else identity.STRENGTH.get(decided_by, HAND_CLASS)
    return {"owner_id": link.owner_id, "decided_by": decided_by, "class": strength, "conflicts": conflicts}


# --- role and status --------------------------------------------------------------------------------------------------

_ORIGINS = """
    SELECT id, stripe_customer_id, cancel_at_period_end, cancel_at, canceled_at, ended_at, as_of, source, contested
    FROM user_subscriptions WHERE id = ANY(:ids)
"""

_REASONS = "SELECT id::text, author, reason FROM user_overrides WHERE id::text = ANY(:ids)"


def _subscriptions(connection: Connection, facts: entitlements.Facts | None, now: datetime) -> list[Json]:
    """Each subscription as the decision saw it, with what it is worth by itself."""
    known = sorted(facts.subscriptions if facts else (), key=lambda one: one.id)
    origins = {row["id"]: row for row in _rows(connection, _ORIGINS, ids=[one.id for one in known])}
    grace_days = facts.grace_days if facts else 0
    told = []
    for one in known:
        alone = entitlements.decide(entitlements.Facts((one,), grace_days), (), now)
        worth = {
            "gives_access": one.status in entitlements.LIVE or alone.grace_until is not None,
            "role": entitlements.role_of(one.product_metadata),
            "rank": str(entitlements.rank_of(one.product_metadata)),
            "grace_days": entitlements.grace_days_of(one, grace_days),
            "grace_until": alone.grace_until,
            "reasons": alone.reasons,
        }
        told.append({**asdict(one), **worth, **origins[one.id]})
    return told


def _overrides(connection: Connection, overrides: Sequence[entitlements.Override], now: datetime) -> list[Json]:
    why = {row.pop("id"): row for row in _rows(connection, _REASONS, ids=[one.id for one in overrides])}
    return [
        {**asdict(one), "is_running": entitlements.is_running(one, now), **why[one.id]}
        for one in sorted(overrides, key=lambda one: int(one.id))
    ]


# --- tokens -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Money:
    """A user's targets beside their ledger, and what would be booked now."""

    targets: tokens.Targets
    holdings: tuple[balance.Holding, ...]
    plan: balance.Plan

    @staticmethod
    def load(
        connection: Connection,
        settings: Settings,
        user: Row[Any],
        owners: Mapping[str, str | None],
        decision: entitlements.Decision,
    ) -> _Money:
        found = tokens.targets(bookkeeping.load_facts(connection, settings, [user.id], owners)[user.id])
        sources = {target.source for target in found.targets}
        hashes = [] if user.email_hash is None else [user.email_hash]
        rows = token_ledger.entries(connection, [user.id], sources=sources, hashes=hashes)
        entries = [balance.Entry(*row) for row in rows]
        may_book = decision.role != "BANNED" and "grants" not in settings.pause
        plan = balance.bring(user.id, found.targets, entries, user.now, may_book=may_book, email_hash=user.email_hash)
        return _Money(found, balance.holdings(user.id, entries), plan)

    def told(self) -> Json:
        held = {holding.source: holding for holding in self.holdings if holding.kind == balance.GRANT}
        others = [holding for holding in self.holdings if holding.kind != balance.GRANT]
        sources = {target.source for target in self.targets.targets}
        return {
            "grants": [
                {**asdict(target), "share": float(target.share), **_held(held.get(target.source))}
                for target in self.targets.targets
            ],
            # What no fact grants any more, and what people wrote directly.
            "others": [
                {"source": holding.source, "kind": holding.kind, **_held(holding)}
                for holding in (*(held[one] for one in held if one not in sources), *others)
            ],
            "waiting": [asdict(note) for note in self.targets.waiting],
            "reports": [asdict(note) for note in self.targets.reports],
            "to_be_booked": [
                {"kind": one.kind, "amount": one.amount, "source": one.source, "expires_at": one.expires_at}
                for one in self.plan.bookings
            ],
            "refused": self.plan.refused,
        }


def _held(holding: balance.Holding | None) -> Json:
    """What the ledger says of a grant: booked, and what became of it (negative: gone)."""
    sums = {} if holding is None else holding.sums
    left = () if holding is None else holding.left
    return {
        "booked": {kind: amount for kind, amount in sums.items() if amount},
        "left": [{"tokens": amount, "expires_at": end} for end, amount in left if amount],
    }


# --- what waits -------------------------------------------------------------------------------------------------------

# Objects of this user's that the ledger may still hold news of.
_EVENTS = """
    WITH objects AS (
        SELECT unnest(CAST(:customers AS text[])) AS id
        UNION SELECT id FROM user_subscriptions WHERE stripe_customer_id = ANY(:customers)
        UNION SELECT id FROM payment_history WHERE stripe_customer_id = ANY(:customers)
        UNION SELECT id FROM stripe_invoices WHERE stripe_customer_id = ANY(:customers)
        UNION SELECT id FROM stripe_checkout_sessions WHERE stripe_customer_id = ANY(:customers)
    )
    SELECT e.id, e.type, e.object_id, e.created, e.status, e.reason, e.attempts, e.lane, e.due_at FROM objects o
    JOIN stripe_events e ON e.object_id = o.id WHERE e.status IN ('received', 'dead')
    ORDER BY e.created, e.id LIMIT :limit
"""

_STUBS = """
    SELECT id FROM stripe_customers WHERE id = ANY(:customers) AND source = 'stub'
    UNION ALL SELECT id FROM user_subscriptions WHERE stripe_customer_id = ANY(:customers) AND source = 'stub'
    UNION ALL SELECT id FROM payment_history WHERE stripe_customer_id = ANY(:customers) AND source = 'stub'
    UNION ALL SELECT p.id FROM stripe_products p JOIN user_subscriptions s ON s.stripe_product_id = p.id
        WHERE s.stripe_customer_id = ANY(:customers) AND p.source = 'stub'
    UNION ALL SELECT p.id FROM stripe_prices p JOIN user_subscriptions s ON s.stripe_price_id = p.id
        WHERE s.stripe_customer_id = ANY(:customers) AND p.source = 'stub'
"""

_CHANGES = """
    SELECT at, role_from::text, role_to::text, status_from::text, status_to::text, product_from, product_to, reasons,
        event_id
    FROM membership_changes WHERE user_id = :user ORDER BY at DESC, id DESC LIMIT :limit
"""


def _waiting(
    connection: Connection,
    settings: Settings,
    user: Row[Any],
    decision: entitlements.Decision,
    money: _Money,
    customers: Collection[str],
) -> list[Json]:
    """Everything that keeps the stored answer from being the last word: `what` waits, and `why`."""
    ids = sorted(customers)
    found: list[Json] = [
        {"what": switch, "why": f"DUES_PAUSE holds {switch}"}
        for switch in sorted(settings.pause & {"processing", "grants"})
    ]
    if settings.shadow:
        found.append({"what": "users", "why": "DUES_SHADOW: decisions are recorded and not written"})
    if user.next_change_at is not None and user.next_change_at <= user.now:
        found.append({"what": "decision", "why": "it is due and will be made within a minute"})
    differing = [name for name, field in DECIDED.items() if getattr(user, name) != getattr(decision, field)]
    if set(differing) - {"next_change_at"} or money.plan.bookings:
        what = [*(name for name in differing if name != "next_change_at"), *(["tokens"] if money.plan.bookings else [])]
        found.append({"what": ", ".join(what), "why": "the next decision will change it"})
    found += [{"what": row["id"], "why": "only its id is known"} for row in _rows(connection, _STUBS, customers=ids)]
    found += [{"what": note.id, "why": note.reason} for note in money.targets.waiting]
    for row in _rows(connection, _EVENTS, customers=ids, limit=EVENTS):
        why = f"it is {row['status']}" + (f" ({row['reason']})" if row["reason"] else "")
        found.append({"what": row["id"], "why": f"{why} after {row['attempts']} tries", "event": row})
    return found


# --- texts ------------------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """The same in what JSON knows; times as every answer of Dues has them."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
