"""What Dues knows of a person, and what people decide: whose a customer is, and who is an administrator."""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, text

from models.settings import Settings
from ops.failures import Failed
from workers.link import link
from workers.recompute import decide

CHANGES = 20
LONGEST_ID = 255  # characters; Stripe's own bound

_USER = """
    SELECT id, email, name, email_verified, role::text, membership_status::text, stripe_product_id, grace_until, tokens,
        tokens_expires_at, next_change_at, created_at, updated_at
    FROM users WHERE id = :id
"""

# What a person has, by the key it stands under in the answer. `:customers` are all of their customers' ids.
_PARTS = {
    "customers": """
        SELECT id, user_id IS NOT NULL AS is_primary, alias_of, linked_by, email, name, metadata, created, deleted_at,
            as_of, contested, livemode
        FROM stripe_customers WHERE id = ANY(:customers) ORDER BY user_id IS NULL, created, id
    """,
    "subscriptions": """
        SELECT s.id, s.stripe_customer_id, s.status, s.stripe_product_id, p.name AS product_name, s.stripe_price_id,
            s.quantity, s.current_period_start, s.current_period_end, s.cancel_at_period_end, s.cancel_at,
            s.canceled_at, s.ended_at, s.trial_start, s.trial_end, s.created, s.as_of, s.source, s.contested
        FROM user_subscriptions s LEFT JOIN stripe_products p ON p.id = s.stripe_product_id
        WHERE s.user_id = :id OR s.stripe_customer_id = ANY(:customers) ORDER BY s.created DESC, s.id
    """,
    "overrides": """
        SELECT id, kind, role::text, stripe_product_id, author, reason, starts_at, expires_at, ended_at, created_at,
            ended_at IS NULL AND coalesce(starts_at <= clock_timestamp(), true)
                AND coalesce(expires_at > clock_timestamp(), true) AS is_running
        FROM user_overrides
        WHERE user_id = :id OR (kind = 'ban' AND email_hash = dues_email_hash(:email)) ORDER BY id DESC
    """,
    "links_by_hand": """
        SELECT stripe_customer_id, user_id, author, reason, at FROM customer_links
        WHERE user_id = :id OR stripe_customer_id = ANY(:customers) ORDER BY at DESC, id DESC
    """,
    "changes": """
        SELECT at, role_from::text, role_to::text, status_from::text, status_to::text, product_from, product_to,
            reasons, event_id
        FROM membership_changes WHERE user_id = :id ORDER BY at DESC, id DESC LIMIT :changes
    """,
}

_CUSTOMERS = """
    SELECT id FROM stripe_customers WHERE user_id = :id
    UNION SELECT a.id FROM stripe_customers p JOIN stripe_customers a ON a.alias_of = p.id WHERE p.user_id = :id
"""


def find(connection: Connection, id_or_email: str) -> str:
    """The id of the user with this id or e-mail address. Raises Failed: nobody."""
    column = "lower(email) = lower(:who)" if "@" in id_or_email else "id = :who"
    user_id = connection.execute(text(f"SELECT id FROM users WHERE {column}"), {"who": id_or_email}).scalar()
    if user_id is None:
        raise Failed(f"There is no user {id_or_email!r}.")
    return str(user_id)


def show(connection: Connection, id_or_email: str) -> dict[str, Any]:
    """Everything that Dues knows of a user; payments and entries of tokens are not among it. Raises Failed: nobody."""
    user = connection.execute(text(_USER), {"id": find(connection, id_or_email)}).one()
    customers = list(connection.execute(text(_CUSTOMERS), {"id": user.id}).scalars())
    parameters = {"id": user.id, "email": user.email, "customers": customers, "changes": CHANGES}
    return dict(user._mapping) | {  # noqa: SLF001 - SQLAlchemy's public name for it
        key: [dict(row) for row in connection.execute(text(query), parameters).mappings()]
        for key, query in _PARTS.items()
    }


# --- whose customer -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a customer is after a person's decision; `is_known` if Stripe has told of the customer yet."""

    stripe_customer_id: str
    user_id: str | None
    alias_of: str | None
    is_known: bool


_OWNER = """
    SELECT coalesce(c.user_id, p.user_id) AS user_id, c.alias_of
    FROM stripe_customers c LEFT JOIN stripe_customers p ON p.id = c.alias_of WHERE c.id = :id
"""


def link_by_hand(
    engine: Engine, settings: Settings, customer: str, id_or_email: str | None, *, author: str, reason: str | None
) -> Owner:
    """Make a customer the user's whatever the evidence says, or nobody's (null), until somebody decides otherwise.

    It takes effect at once, for all that the customer has paid too; of a customer who is not known yet as soon as it
    is. Raises Failed: there is no such user, or no such id.
    """
    if not 0 < len(customer) <= LONGEST_ID or not customer.isprintable():
        raise Failed(f"{customer!r} is no id of a customer.")
    with engine.begin() as connection:
        user_id = find(connection, id_or_email) if id_or_email is not None else None
        connection.execute(
            text(
                "INSERT INTO customer_links (stripe_customer_id, user_id, author, reason)"
                " VALUES (:customer, :user, :author, :reason)"
            ),
            {"customer": customer, "user": user_id, "author": author, "reason": reason},
        )
    _decide_at_once(engine, settings, users={user_id} if user_id else (), customers={customer})
    with engine.connect() as connection:
        row = connection.execute(text(_OWNER), {"id": customer}).one_or_none()
    if row is None:
        return Owner(customer, None, None, is_known=False)
    return Owner(customer, row.user_id, row.alias_of, is_known=True)


def _decide_at_once(
    engine: Engine, settings: Settings, *, users: Collection[str], customers: Collection[str] = ()
) -> None:
    """Link and decide. Should we end in between, a trigger has made those users due: beat decides within a minute."""
    concerned = {*users, *link(engine, settings, users=users, customers=customers)}
    with engine.begin() as connection:
        decide(connection, settings, concerned, customers=customers)


# --- administrators -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Admin:
    """Somebody who is, or should be, an administrator, and what had to be done for it."""

    id: str
    email: str
    role: str
    is_new: bool
    is_promoted: bool


def new_id() -> str:
    """An id for a user, shaped like those that Prisma's `cuid()` makes."""
    return "c" + "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(24))


def plain_email(email: str) -> str:
    """The address in lower case; raises Failed if it can't be one."""
    if len(email) > 254 or not re.fullmatch(r"[^@\s]+@[^@\s]+", email) or not email.isprintable():
        raise Failed(f"{email!r} is not an e-mail address.")
    return email.lower()


def set_up_admin(engine: Engine, settings: Settings, email: str, *, author: str) -> Admin:
    """Make the user with this address (a new one if there is none) an administrator at once, until further notice."""
    address = plain_email(email)
    with engine.begin() as connection:
        user_id, is_new = _find_or_make(connection, address)
        is_promoted = _promote(connection, user_id, author)
    _decide_at_once(engine, settings, users={user_id})
    with engine.connect() as connection:
        role = connection.execute(text("SELECT role::text FROM users WHERE id = :id"), {"id": user_id}).scalar_one()
    return Admin(user_id, address, role, is_new, is_promoted)


def _find_or_make(connection: Connection, email: str) -> tuple[str, bool]:
    made = connection.execute(
        text("INSERT INTO users (id, email) VALUES (:id, :email) ON CONFLICT DO NOTHING RETURNING id"),
        {"id": new_id(), "email": email},
    ).scalar_one_or_none()
    if made is not None:
        return made, True
    found = connection.execute(text("SELECT id FROM users WHERE lower(email) = lower(:email)"), {"email": email})
    return str(found.scalar_one()), False


def _promote(connection: Connection, user_id: str, author: str) -> bool:
    """Lay on the override, unless one is there that does not end; two at once take turns on the user."""
    connection.execute(text("SELECT FROM users WHERE id = :id FOR NO KEY UPDATE"), {"id": user_id})
    added = connection.execute(
        text(
            "INSERT INTO user_overrides (user_id, kind, role, author, reason)"
            " SELECT :id, 'admin', 'ADMIN', :author, 'dues setup-admin' WHERE NOT EXISTS ("
            "  SELECT FROM user_overrides WHERE user_id = :id AND kind = 'admin' AND ended_at IS NULL"
            "  AND expires_at IS NULL AND coalesce(starts_at <= clock_timestamp(), true))"
        ),
        {"id": user_id, "author": author},
    )
    return added.rowcount == 1


def reasons_in_words(change: dict[str, Any]) -> Sequence[str]:
    """What a change was (`role USER → PREMIUM`), then why."""
    pairs = [
        f"{name} {change[f'{name}_from']} → {change[f'{name}_to']}"
        for name in ("role", "status", "product")
        if change[f"{name}_from"] != change[f"{name}_to"]
    ]
    return [*pairs, *change["reasons"]]
