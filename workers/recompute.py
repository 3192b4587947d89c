"""DECIDE: the shell around the pure decisions. Lock users, load facts, decide, book tokens, write what differs.

Facts are loaded by statements that start after the users are locked, and were committed by earlier transactions:
whichever of two lists decides last has seen what the other wrote.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Engine, Row, text

from models.settings import Settings
from workers import balance, bookkeeping, entitlements, tokens
from workers.link import link, own_payments, own_subscriptions

# Users of one transaction: so that locks are held for moments, and a front end waits no longer.
SLICE = 500
# While grants are paused (DUES_PAUSE), whoever waits for one is looked at again so often.
PAUSED = timedelta(minutes=5)


def decide(
    connection: Connection,
    settings: Settings,
    users: Collection[str],
    *,
    customers: Collection[str] = (),
    now: datetime | None = None,
    causes: Mapping[str, str] | None = None,
) -> dict[str, entitlements.Decision]:
    """Decide `users` (at most SLICE) at `now` (default: the database's clock), and write what differs.

    `customers` are further ones, whose subscriptions' best items may have changed although nobody, or nobody here, owns
    them; `causes` names the event that led here, for the record. The caller commits.
    """
    people = _lock_users(connection, users)
    owners = owners_among(connection, people)
    _choose_best_items(connection, owners, customers)
    own_subscriptions(connection, owners)
    money = bookkeeping.load_facts(connection, settings, people.keys(), owners)
    guests = {intent.id: user for user, found in money.items() for intent in found.payment_intents}
    own_payments(connection, owners, guests=guests, users=people)
    moment = now or connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    facts = load_facts(connection, owners, settings.grace_days)
    overrides = load_overrides(connection, people)
    nothing = entitlements.Facts((), settings.grace_days)
    decisions = {user: entitlements.decide(facts.get(user, nothing), overrides[user], moment) for user in people}
    _record_changes(connection, people, decisions, causes or {}, shadow=settings.shadow)
    if not settings.shadow:
        plans = _bring_tokens(connection, settings, people, money, decisions, moment)
        again = moment + PAUSED if "grants" in settings.pause else None
        decisions = {user: _until_due(decision, plans[user], again) for user, decision in decisions.items()}
        _write(connection, people, decisions, plans)
    return decisions


def _until_due(decision: entitlements.Decision, plan: balance.Plan, again: datetime | None) -> entitlements.Decision:
    """The decision with its next moment, if tokens expire before that, or are withheld until grants go on."""
    moments = [decision.next_change_at, plan.tokens_expires_at, again if plan.withheld else None]
    return replace(decision, next_change_at=min((at for at in moments if at is not None), default=None))


def _bring_tokens(
    connection: Connection,
    settings: Settings,
    people: Mapping[str, Row[Any]],
    money: Mapping[str, tokens.Facts],
    decisions: Mapping[str, entitlements.Decision],
    now: datetime,
) -> dict[str, balance.Plan]:
    targets = {user: tokens.targets(found) for user, found in money.items()}
    paused = "grants" in settings.pause
    banned = {user for user, decision in decisions.items() if paused or decision.role == "BANNED"}
    hashes = {user: row.email_hash for user, row in people.items()}
    return bookkeeping.bring(connection, targets, hashes, now, without_grants=banned)


def decide_due(engine: Engine, settings: Settings, *, limit: int = SLICE) -> int:
    """Link and decide the users whose time has come: sign-ups, ends of grace, overrides; returns how many."""
    with engine.connect() as connection:
        due = connection.execute(
            text(
                "SELECT id FROM users WHERE next_change_at <= clock_timestamp()::timestamptz(3)"
                " ORDER BY next_change_at, id LIMIT :limit",
            ),
            {"limit": limit},
        )
        users = {row.id for row in due}
    if users:
        concerned = sorted(users | link(engine, settings, users=users))
        for start in range(0, len(concerned), SLICE):
            with engine.begin() as connection:
                decide(connection, settings, concerned[start : start + SLICE])
    return len(users)


# --- reading ------------------------------------------------------------------------------------------------------


def _lock_users(connection: Connection, users: Collection[str]) -> dict[str, Row[Any]]:
    rows = connection.execute(
        text(
            "SELECT id, role::text, membership_status::text, stripe_product_id, grace_until, tokens_expires_at,"
            " next_change_at, dues_email_hash(email) AS email_hash FROM users"
            " WHERE id = ANY(:ids) ORDER BY id FOR NO KEY UPDATE",
        ),
        {"ids": sorted(users)},
    )
    return {row.id: row for row in rows}


def owners_among(connection: Connection, users: Collection[str]) -> dict[str, str | None]:
    """{customer: user} of all customers of these users, aliases too."""
    rows = connection.execute(
        text(
            "SELECT id, user_id FROM stripe_customers WHERE user_id = ANY(:ids)"
            " UNION SELECT a.id, p.user_id FROM stripe_customers p JOIN stripe_customers a ON a.alias_of = p.id"
            " WHERE p.user_id = ANY(:ids)",
        ),
        {"ids": sorted(users)},
    )
    return {row.id: row.user_id for row in rows}


_FACTS = text(
    """
    SELECT s.id, s.stripe_customer_id, s.status, s.stripe_product_id, s.stripe_price_id, s.current_period_start,
        s.current_period_end, p.metadata AS product_metadata, r.metadata AS price_metadata
    FROM user_subscriptions s
    LEFT JOIN stripe_products p ON p.id = s.stripe_product_id
    LEFT JOIN stripe_prices r ON r.id = s.stripe_price_id
    WHERE s.stripe_customer_id = ANY(:customers)
    """,
)

_UNPAID = text(
    """
    SELECT stripe_subscription_id, id, status, created, collection_method, finalized_at, due_date FROM stripe_invoices
    WHERE stripe_subscription_id = ANY(:ids) AND status IN ('open', 'uncollectible')
    """,
)


def load_facts(
    connection: Connection,
    owners: Mapping[str, str | None],
    grace_days: int,
) -> dict[str, entitlements.Facts]:
    """What each user's role and status follow from; `owners` are their customers (`{customer: user}`)."""
    rows = connection.execute(_FACTS, {"customers": sorted(owners)}).all()
    invoices: dict[str, list[entitlements.Invoice]] = defaultdict(list)
    late = [row.id for row in rows if row.status == "past_due"]
    for row in connection.execute(_UNPAID, {"ids": late}) if late else ():
        invoices[row.stripe_subscription_id].append(entitlements.Invoice(*row[1:]))
    by_user: dict[str, list[entitlements.Subscription]] = defaultdict(list)
    for row in rows:
        by_user[owners[row.stripe_customer_id] or ""].append(
            entitlements.Subscription(
                id=row.id,
                status=row.status,
                product_id=row.stripe_product_id,
                price_id=row.stripe_price_id,
                current_period_start=row.current_period_start,
                current_period_end=row.current_period_end,
                product_metadata=row.product_metadata,
                price_metadata=row.price_metadata,
                invoices=tuple(invoices[row.id]),
            ),
        )
    return {user: entitlements.Facts(tuple(found), grace_days) for user, found in by_user.items()}


_OVERRIDES = text(
    """
    SELECT o.user_id AS owner, o.id::text, o.kind, o.role::text, o.stripe_product_id, o.starts_at, o.expires_at,
        o.ended_at
    FROM user_overrides o WHERE o.user_id = ANY(:ids)
    UNION
    SELECT u.id, o.id::text, o.kind, o.role::text, o.stripe_product_id, o.starts_at, o.expires_at, o.ended_at
    FROM users u JOIN user_overrides o ON o.kind = 'ban' AND o.email_hash = dues_email_hash(u.email)
    WHERE u.id = ANY(:ids)
    """,
)


def load_overrides(connection: Connection, users: Collection[str]) -> dict[str, list[entitlements.Override]]:
    """What people have decided about each user, bans of their e-mail address too."""
    found: dict[str, list[entitlements.Override]] = defaultdict(list)
    for row in connection.execute(_OVERRIDES, {"ids": sorted(users)}):
        found[row.owner].append(entitlements.Override(*row[1:]))
    return found


# --- the best item ------------------------------------------------------------------------------------------------


def _choose_best_items(connection: Connection, owners: Mapping[str, str | None], customers: Collection[str]) -> None:
    """Of subscriptions with several items, write product, price and quantity of the best.

    Which one that is depends on products' metadata, which the snapshot of the subscription can't know. Those that
    `own_subscriptions` is about to write are locked along with them: WRITE locks this table once, by id, then later
    tables.
    """
    rows = connection.execute(
        text(
            "SELECT s.id, s.items, s.stripe_product_id, s.stripe_price_id, s.quantity FROM user_subscriptions s"
            " JOIN jsonb_to_recordset(CAST(:rows AS jsonb)) AS o(id text, owner text) ON o.id = s.stripe_customer_id"
            " WHERE jsonb_array_length(s.items) > 1 OR s.user_id IS DISTINCT FROM o.owner"
            " ORDER BY s.id FOR NO KEY UPDATE OF s",
        ),
        {"rows": json.dumps([{"id": one, "owner": owners.get(one)} for one in sorted({*owners, *customers})])},
    ).all()
    rows = [row for row in rows if len(row.items) > 1]
    if not rows:
        return
    products = sorted({item["product"] for row in rows for item in row.items if item.get("product")})
    metadata: dict[str, Mapping[str, object]] = {
        row.id: row.metadata
        for row in connection.execute(
            text("SELECT id, metadata FROM stripe_products WHERE id = ANY(:ids)"),
            {"ids": products},
        )
    }
    changed = []
    for row in rows:
        item = max(row.items, key=lambda item: _goodness(item, metadata.get(item.get("product"))))
        best = (item.get("product"), item.get("price"), item.get("quantity"))
        if best != (row.stripe_product_id, row.stripe_price_id, row.quantity):
            changed.append({"id": row.id, "product": best[0], "price": best[1], "quantity": best[2]})
    if changed:
        connection.execute(_WRITE_BEST, {"rows": json.dumps(changed)})


def _goodness(item: Mapping[str, Any], metadata: Mapping[str, object] | None) -> tuple[int, Decimal, str, str]:
    role = entitlements.ROLES[entitlements.role_of(metadata)]
    return role, entitlements.rank_of(metadata), item.get("current_period_end") or "", item.get("id") or ""


_WRITE_BEST = text(
    """
    UPDATE user_subscriptions s SET stripe_product_id = r.product, stripe_price_id = r.price, quantity = r.quantity
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(id text, product text, price text, quantity bigint)
    WHERE s.id = r.id
    """,
)


# --- writing ------------------------------------------------------------------------------------------------------


_COLUMNS = ("role", "membership_status", "stripe_product_id", "grace_until", "tokens_expires_at", "next_change_at")


def _write(
    connection: Connection,
    people: Mapping[str, Row[Any]],
    decisions: Mapping[str, entitlements.Decision],
    plans: Mapping[str, balance.Plan],
) -> None:
    rows = []
    for user, decision in decisions.items():
        expires_at = plans[user].tokens_expires_at
        grace, next_change_at = decision.grace_until, decision.next_change_at
        answer = (decision.role, decision.status, decision.product_id, grace, expires_at, next_change_at)
        if tuple(people[user])[1:7] != answer:
            rows.append({"id": user, **{name: _json(value) for name, value in zip(_COLUMNS, answer, strict=True)}})
    if rows:
        connection.execute(_WRITE, {"rows": json.dumps(rows)})


_WRITE = text(
    """
    UPDATE users u SET role = r.role, membership_status = r.membership_status, stripe_product_id = r.stripe_product_id,
        grace_until = r.grace_until, tokens_expires_at = r.tokens_expires_at, next_change_at = r.next_change_at
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(id text, role user_role, membership_status membership_status,
        stripe_product_id text, grace_until timestamptz, tokens_expires_at timestamptz, next_change_at timestamptz)
    WHERE u.id = r.id
    """,
)


def _json(value: Any) -> Any:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value


_RECORD = text(
    """
    INSERT INTO membership_changes
        (user_id, role_from, role_to, status_from, status_to, product_from, product_to, reasons, event_id)
    SELECT r.user_id, r.role_from, r.role_to, r.status_from, r.status_to, r.product_from, r.product_to, r.reasons,
        r.event_id
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(user_id text, role_from user_role, role_to user_role,
        status_from membership_status, status_to membership_status, product_from text, product_to text,
        reasons jsonb, event_id text)
    WHERE NOT :shadow OR NOT EXISTS (
        -- In shadow mode nothing was written, so the same change comes up again and again: once is enough.
        SELECT FROM (SELECT * FROM membership_changes m WHERE m.user_id = r.user_id ORDER BY id DESC LIMIT 1) AS m
        WHERE (m.role_to, m.status_to) = (r.role_to, r.status_to) AND m.product_to IS NOT DISTINCT FROM r.product_to
    )
    """,
)


def _record_changes(
    connection: Connection,
    people: Mapping[str, Row[Any]],
    decisions: Mapping[str, entitlements.Decision],
    causes: Mapping[str, str],
    *,
    shadow: bool,
) -> None:
    rows: Sequence[dict[str, Any]] = [
        {
            "user_id": user,
            "role_from": people[user].role,
            "role_to": decision.role,
            "status_from": people[user].membership_status,
            "status_to": decision.status,
            "product_from": people[user].stripe_product_id,
            "product_to": decision.product_id,
            "reasons": decision.reasons,
            "event_id": causes.get(user),
        }
        for user, decision in decisions.items()
        if tuple(people[user])[1:4] != (decision.role, decision.status, decision.product_id)
    ]
    if rows:
        connection.execute(_RECORD, {"rows": json.dumps(rows), "shadow": shadow})
