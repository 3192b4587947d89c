"""LINK: which user is each customer? The shell around `workers.identity`.

Users are locked before evidence is read for good; whichever of two lists commits its evidence last therefore sees the
other's. Everything is computed anew from the evidence stored, so repeating is harmless.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, text

from models.settings import Settings
from workers import identity

# Evidence may name users who have further customers, whose evidence names further users, …
ROUNDS = 8


class UnsettledError(Exception):
    """Evidence kept changing while its users were being locked; trying again later will do."""


def link(
    engine: Engine, settings: Settings, *, customers: Collection[str] = (), users: Collection[str] = ()
) -> set[str]:
    """Link `customers`, and every customer that evidence gives to `users`; returns the users who gained or lost one.

    Those users' next decision is due from the same commit on, so that it is made even if we end right after it.
    """
    candidates = set(users)
    for _ in range(ROUNDS):
        with engine.begin() as connection:
            people = load_users(connection, candidates, lock=True)
            known = _load(connection, customers, candidates)
            everybody = candidates | known.owners | _whom_it_names(connection, known.evidence)
            if everybody <= candidates:
                return _write(connection, known.stored, identity.resolve(known.evidence, people, rules_of(settings)))
            candidates = everybody
    raise UnsettledError(f"evidence did not settle in {ROUNDS} rounds")


def look(connection: Connection, settings: Settings, user: str) -> dict[str, identity.Link]:
    """The links that follow from all evidence that concerns a user, by customer; nothing is locked or written.

    In a transaction that sees one moment, or it may go on for as long as evidence changes.
    """
    candidates = {user}
    while True:
        known = _load(connection, (), candidates)
        everybody = candidates | known.owners | _whom_it_names(connection, known.evidence)
        if everybody <= candidates:
            people = load_users(connection, candidates)
            return identity.resolve(known.evidence, people, rules_of(settings))
        candidates = everybody


def rules_of(settings: Settings) -> identity.Rules:
    """How far this installation trusts e-mails."""
    return identity.Rules(settings.link_by_email, settings.trusted_providers)


def own_subscriptions(connection: Connection, owners: Mapping[str, str | None]) -> None:
    """Write the owner of each customer (`{customer: user}`) into its subscriptions. Users are locked."""
    connection.execute(_OWN_SUBSCRIPTIONS, {"owners": _pairs(owners)})


def own_payments(
    connection: Connection,
    owners: Mapping[str, str | None],
    *,
    guests: Mapping[str, str] | None = None,
    users: Collection[str] = (),
) -> None:
    """Write the owner of each customer into its payments, and of each payment without a customer (`guests`) into that.

    What `users` have as guests and `guests` does not name is theirs no more. One statement, so that payments are locked
    in one round, in the order of ids. Users are locked.
    """
    guests = guests or {}
    parameters = {"owners": _pairs(owners), "guests": _pairs(guests), "ids": sorted(guests), "users": sorted(users)}
    connection.execute(_OWN_PAYMENTS, parameters)


def _pairs(owners: Mapping[str, str | None]) -> str:
    return json.dumps([{"id": owned, "owner": owner} for owned, owner in owners.items()])


_OWN_SUBSCRIPTIONS = text(
    """
    WITH stale AS (
        SELECT s.id, o.owner FROM user_subscriptions s
        JOIN jsonb_to_recordset(CAST(:owners AS jsonb)) AS o(id text, owner text) ON s.stripe_customer_id = o.id
        WHERE s.user_id IS DISTINCT FROM o.owner ORDER BY s.id FOR NO KEY UPDATE OF s
    )
    UPDATE user_subscriptions s SET user_id = stale.owner FROM stale WHERE s.id = stale.id
    """,
)

_OWN_PAYMENTS = text(
    """
    WITH wanted AS (
        SELECT p.id, o.owner FROM payment_history p
        JOIN jsonb_to_recordset(CAST(:owners AS jsonb)) AS o(id text, owner text) ON p.stripe_customer_id = o.id
        UNION ALL
        SELECT p.id, g.owner FROM payment_history p
        LEFT JOIN jsonb_to_recordset(CAST(:guests AS jsonb)) AS g(id text, owner text) ON g.id = p.id
        WHERE p.id IN (
            SELECT id FROM payment_history WHERE id = ANY(:ids)
            UNION ALL SELECT id FROM payment_history WHERE user_id = ANY(:users)
        ) AND p.stripe_customer_id IS NULL AND p.source <> 'stub'
    ), stale AS (
        SELECT p.id, wanted.owner FROM payment_history p JOIN wanted ON wanted.id = p.id
        WHERE p.user_id IS DISTINCT FROM wanted.owner ORDER BY p.id FOR NO KEY UPDATE OF p
    )
    UPDATE payment_history p SET user_id = stale.owner FROM stale WHERE p.id = stale.id
    """,
)


# --- reading ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Stored:
    user_id: str | None
    alias_of: str | None
    linked_by: str | None
    owner: str | None


@dataclass(frozen=True, slots=True)
class _Known:
    evidence: identity.Evidence
    stored: Mapping[str, _Stored]

    @property
    def owners(self) -> set[str]:
        return {one.owner for one in self.stored.values() if one.owner is not None}


def load_users(connection: Connection, ids: Collection[str], *, lock: bool = False) -> list[identity.User]:
    """The users among `ids` who exist, with what tells whether their e-mail is theirs; with `lock` until the commit."""
    if not ids:
        return []
    rows = connection.execute(
        text(
            "SELECT id, email, email_verified, email_changed_at FROM users WHERE id = ANY(:ids) ORDER BY id"
            + (" FOR NO KEY UPDATE" if lock else ""),
        ),
        {"ids": sorted(ids)},
    ).all()
    accounts: dict[str, list[identity.Account]] = defaultdict(list)
    for row in connection.execute(
        text("SELECT user_id, provider, created_at FROM accounts WHERE user_id = ANY(:ids)"),
        {"ids": [row.id for row in rows]},
    ):
        accounts[row.user_id].append(identity.Account(row.provider, row.created_at))
    return [
        identity.User(row.id, row.email, row.email_verified, row.email_changed_at, tuple(accounts[row.id]))
        for row in rows
    ]


_RELATED = text(
    """
    SELECT id FROM stripe_customers WHERE id = ANY(:customers)
    UNION SELECT id FROM stripe_customers WHERE user_id = ANY(:users)
    UNION SELECT a.id FROM stripe_customers p JOIN stripe_customers a ON a.alias_of = p.id WHERE p.user_id = ANY(:users)
    UNION SELECT id FROM stripe_customers WHERE metadata ->> 'user_id' = ANY(:users)
    UNION SELECT id FROM stripe_customers WHERE metadata ->> 'userId' = ANY(:users)
    UNION SELECT c.id FROM users u JOIN stripe_customers c ON lower(c.email) = lower(u.email) WHERE u.id = ANY(:users)
    UNION SELECT stripe_customer_id FROM user_subscriptions WHERE metadata ->> 'user_id' = ANY(:users)
    UNION SELECT stripe_customer_id FROM user_subscriptions WHERE metadata ->> 'userId' = ANY(:users)
    UNION SELECT stripe_customer_id FROM stripe_checkout_sessions WHERE metadata ->> 'user_id' = ANY(:users)
    UNION SELECT stripe_customer_id FROM stripe_checkout_sessions WHERE metadata ->> 'userId' = ANY(:users)
    UNION SELECT stripe_customer_id FROM stripe_checkout_sessions WHERE client_reference_id = ANY(:users)
    UNION SELECT stripe_customer_id FROM customer_links WHERE user_id = ANY(:users)
    """,
)

_CUSTOMERS = text(
    """
    SELECT c.id, c.created, c.deleted_at, c.email, c.metadata, c.user_id, c.alias_of, c.linked_by,
        coalesce(c.user_id, p.user_id) AS owner
    FROM stripe_customers c LEFT JOIN stripe_customers p ON p.id = c.alias_of
    WHERE c.id = ANY(:ids)
    """,
)

_SUBSCRIPTIONS = text(
    "SELECT id, stripe_customer_id, created, metadata FROM user_subscriptions WHERE stripe_customer_id = ANY(:ids)",
)

_SESSIONS = text(
    """
    SELECT id, stripe_customer_id, created, metadata, client_reference_id, payment_link, email
    FROM stripe_checkout_sessions WHERE stripe_customer_id = ANY(:ids)
    """,
)

_BY_HAND = text(
    """
    SELECT DISTINCT ON (stripe_customer_id) stripe_customer_id, user_id FROM customer_links
    WHERE stripe_customer_id = ANY(:ids) ORDER BY stripe_customer_id, at DESC, id DESC
    """,
)


def _load(connection: Connection, customers: Collection[str], users: Collection[str]) -> _Known:
    related = connection.execute(_RELATED, {"customers": sorted(customers), "users": sorted(users)})
    ids = sorted(row.id for row in related if row.id is not None)
    rows = connection.execute(_CUSTOMERS, {"ids": ids}).all()
    evidence = identity.Evidence(
        customers=[identity.Customer(r.id, r.created, r.deleted_at is not None, r.email, r.metadata) for r in rows],
        subscriptions=[identity.Subscription(*r) for r in connection.execute(_SUBSCRIPTIONS, {"ids": ids})],
        sessions=[identity.Session(*r) for r in connection.execute(_SESSIONS, {"ids": ids})],
        by_hand={r.stripe_customer_id: r.user_id for r in connection.execute(_BY_HAND, {"ids": ids})},
    )
    return _Known(evidence, {r.id: _Stored(r.user_id, r.alias_of, r.linked_by, r.owner) for r in rows})


def _whom_it_names(connection: Connection, evidence: identity.Evidence) -> set[str]:
    """The users who exist and whom this evidence names, by id or by e-mail."""
    named = identity.named_users(evidence)
    rows = connection.execute(
        text("SELECT id FROM users WHERE id = ANY(:ids) UNION SELECT id FROM users WHERE lower(email) = ANY(:emails)"),
        {"ids": sorted(named.ids), "emails": sorted(named.emails)},
    )
    return {row.id for row in rows}


# --- writing ------------------------------------------------------------------------------------------------------


def _write(connection: Connection, stored: Mapping[str, _Stored], links: Mapping[str, identity.Link]) -> set[str]:
    different = [one for one in links if not _says_the_same(stored[one], links[one])]
    if different:
        _write_links(connection, {one: links[one] for one in different})
    owners = {one: found.owner_id for one, found in links.items()}
    own_subscriptions(connection, owners)
    own_payments(connection, owners)
    moved = [one for one in different if stored[one].owner != links[one].owner_id]
    concerned = {user for one in moved for user in (stored[one].owner, links[one].owner_id) if user is not None}
    if concerned:
        connection.execute(
            text("UPDATE users SET next_change_at = clock_timestamp() WHERE id = ANY(:ids)"),
            {"ids": sorted(concerned)},
        )
    return concerned


def _says_the_same(stored: _Stored, found: identity.Link) -> bool:
    return (stored.user_id, stored.alias_of, stored.linked_by) == (found.user_id, found.alias_of, found.linked_by)


def _write_links(connection: Connection, links: Mapping[str, identity.Link]) -> None:
    ids = sorted(links)
    lock = text("SELECT id FROM stripe_customers WHERE id = ANY(:ids) ORDER BY id FOR UPDATE")
    connection.execute(lock, {"ids": ids})
    # A user has one primary customer at any moment, also while it moves from one to another.
    free = text("UPDATE stripe_customers SET user_id = NULL WHERE id = ANY(:ids) AND user_id IS NOT NULL")
    connection.execute(free, {"ids": ids})
    rows = [
        {"id": one, "user_id": found.user_id, "alias_of": found.alias_of, "linked_by": found.linked_by}
        for one, found in links.items()
    ]
    connection.execute(
        text(
            "UPDATE stripe_customers c SET user_id = r.user_id, alias_of = r.alias_of, linked_by = r.linked_by"
            " FROM jsonb_to_recordset(CAST(:rows AS jsonb))"
            " AS r(id text, user_id text, alias_of text, linked_by text) WHERE c.id = r.id",
        ),
        {"rows": json.dumps(rows)},
    )


def owners_of(connection: Connection, customers: Iterable[str]) -> dict[str, str]:
    """The user of each customer that has one, as LINK has stored it."""
    rows = connection.execute(
        text(
            "SELECT c.id, coalesce(c.user_id, p.user_id) AS owner FROM stripe_customers c"
            " LEFT JOIN stripe_customers p ON p.id = c.alias_of WHERE c.id = ANY(:ids)",
        ),
        {"ids": sorted(customers)},
    )
    return {row.id: row.owner for row in rows if row.owner is not None}
