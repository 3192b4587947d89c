"""Every table that Dues owns or shares with the front end, as CONTRACT §4 lists them.

Triggers and functions (touching `updated_at`, balances, booking of direct writes, append-only) are in the migrations;
here are only the things that Alembic can compare.
"""

from __future__ import annotations

from datetime import datetime  # SQLAlchemy reads the annotations at run time
from decimal import Decimal
from typing import Annotated, Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ENUM, JSONB, TIMESTAMP, UUID
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# "C": Python and PostgreSQL must sort ids alike, or two lists lock rows in different orders.
ID = Text(collation="C")
TIME = TIMESTAMP(timezone=True, precision=3)
JSON = JSONB(none_as_null=True)
USER_ROLE = ENUM("USER", "PREMIUM", "ADMIN", "BANNED", name="user_role")
MEMBERSHIP_STATUS = ENUM("ACTIVE", "INACTIVE", "CANCELED", "PAST_DUE", name="membership_status")

Key = Annotated[str, mapped_column(ID, primary_key=True, sort_order=-1)]
Id = Annotated[str, mapped_column(ID)]
Words = Annotated[str, mapped_column(Text)]
Time = Annotated[datetime, mapped_column(TIME)]
Money = Annotated[int, mapped_column(BigInteger)]


def reference(target: str, ondelete: str, *, index: bool = True) -> Any:
    """Make a foreign key to `target`'s id."""
    return mapped_column(ID, ForeignKey(f"{target}.id", ondelete=ondelete), index=index)


def json_column(empty: str, name: str | None = None) -> Any:
    """Make a jsonb column that is never null; `empty` is what it holds by default: `{}` or `[]`."""
    return mapped_column(name, JSON, nullable=False, server_default=text(f"'{empty}'::jsonb"))


def flag(*, default: bool = False) -> Any:
    """Make a boolean that is never null."""
    return mapped_column(nullable=False, server_default=text(str(default).lower()))


class Base(DeclarativeBase):
    """Every table carries `created_at` and `updated_at`: when *we* wrote the row, not what Stripe says."""

    metadata = MetaData(
        naming_convention={
            "ix": "%(table_name)s_%(column_0_N_name)s_idx",
            "uq": "%(table_name)s_%(column_0_N_name)s_key",
            "ck": "%(table_name)s_%(constraint_name)s_check",
            "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
            "pk": "%(table_name)s_pkey",
        },
    )
    created_at: Mapped[datetime] = mapped_column(TIME, server_default=text("now()"))
    updated_at: Mapped[datetime] = mapped_column(TIME, server_default=text("now()"))


class Mirrored:
    """What every table that mirrors a Stripe object carries besides the object's own columns."""

    id: Mapped[Key]
    created: Mapped[Time | None]
    as_of: Mapped[datetime] = mapped_column(TIME, server_default=text("'1970-01-01 00:00:00+00'::timestamptz"))
    source: Mapped[str] = mapped_column(ID, server_default=text("'stub'"))
    deleted_at: Mapped[Time | None]
    contested: Mapped[bool] = flag()
    livemode: Mapped[bool | None]


class Metadata:
    """Stripe's `metadata`, under another name in Python because SQLAlchemy keeps that one for itself."""

    metadata_: Mapped[dict[str, Any]] = json_column("{}", "metadata")


# --- people -------------------------------------------------------------------------------------------------------


class User(Base):
    """A person of the site. The front end creates it; role, membership and tokens are what Dues decides."""

    __tablename__ = "users"
    id: Mapped[Key]
    email: Mapped[str | None] = mapped_column(Text, unique=True)
    name: Mapped[Words | None]
    email_verified: Mapped[Time | None]
    image: Mapped[Words | None]
    role: Mapped[str] = mapped_column(USER_ROLE, server_default=text("'USER'"))
    stripe_product_id: Mapped[str | None] = reference("stripe_products", "SET NULL")
    membership_status: Mapped[str] = mapped_column(MEMBERSHIP_STATUS, server_default=text("'ACTIVE'"))
    tokens: Mapped[int] = mapped_column(Integer, CheckConstraint("tokens >= 0", name="tokens"), server_default="0")
    tokens_expires_at: Mapped[Time | None]
    grace_until: Mapped[Time | None]
    next_change_at: Mapped[datetime | None] = mapped_column(TIME, server_default=text("now()"))
    email_changed_at: Mapped[Time | None]


Index("users_lower_email_key", func.lower(User.email), unique=True)
Index("users_next_change_at_id_idx", User.next_change_at, User.id)


class Account(Base):
    """Auth.js: one way in which a user signs in."""

    __tablename__ = "accounts"
    __table_args__ = (UniqueConstraint("provider", "provider_account_id"),)
    id: Mapped[Key]
    user_id: Mapped[str] = reference("users", "CASCADE")
    type: Mapped[Words]
    provider: Mapped[Words]
    provider_account_id: Mapped[Words]
    refresh_token: Mapped[Words | None]
    access_token: Mapped[Words | None]
    expires_at: Mapped[int | None] = mapped_column(Integer)
    token_type: Mapped[Words | None]
    scope: Mapped[Words | None]
    id_token: Mapped[Words | None]
    session_state: Mapped[Words | None]
    refresh_token_expires_in: Mapped[int | None] = mapped_column(Integer)


class Session(Base):
    """Auth.js: a signed-in browser."""

    __tablename__ = "sessions"
    id: Mapped[Key]
    session_token: Mapped[str] = mapped_column(Text, unique=True)
    user_id: Mapped[str] = reference("users", "CASCADE")
    expires: Mapped[Time]


class VerificationToken(Base):
    """Auth.js: a link sent by e-mail."""

    __tablename__ = "verification_tokens"
    identifier: Mapped[str] = mapped_column(Text, primary_key=True)
    token: Mapped[str] = mapped_column(Text, primary_key=True, unique=True)
    expires: Mapped[Time]


# --- what Stripe says -------------------------------------------------------------------------------------------------


class Product(Metadata, Mirrored, Base):
    """Something on sale; its metadata name the role, rank, grace and tokens it gives."""

    __tablename__ = "stripe_products"
    name: Mapped[Words | None]
    description: Mapped[Words | None]
    active: Mapped[bool | None]
    default_price_id: Mapped[Id | None]  # no foreign key: product and price name each other


class Price(Metadata, Mirrored, Base):
    """What a product costs; money in minor units of `currency`."""

    __tablename__ = "stripe_prices"
    stripe_product_id: Mapped[str | None] = reference("stripe_products", "CASCADE")
    active: Mapped[bool | None]
    currency: Mapped[Words | None]
    type: Mapped[Words | None]
    unit_amount: Mapped[Money | None]
    unit_amount_decimal: Mapped[Decimal | None] = mapped_column(Numeric)
    recurring_interval: Mapped[Words | None]
    recurring_interval_count: Mapped[int | None] = mapped_column(Integer)
    nickname: Mapped[Words | None]
    lookup_key: Mapped[Words | None]


class Customer(Metadata, Mirrored, Base):
    """Who pays. `user_id`, `alias_of` and `linked_by` are ours, computed by LINK."""

    __tablename__ = "stripe_customers"
    user_id: Mapped[str | None] = mapped_column(ID, ForeignKey("users.id", ondelete="SET NULL"), unique=True)
    alias_of: Mapped[str | None] = reference("stripe_customers", "SET NULL")
    linked_by: Mapped[Words | None]
    email: Mapped[Words | None]
    name: Mapped[Words | None]


class Subscription(Metadata, Mirrored, Base):
    """A subscription; product and price are those of its best item, the period end is the latest of its items."""

    __tablename__ = "user_subscriptions"
    user_id: Mapped[str | None] = reference("users", "CASCADE", index=False)
    stripe_customer_id: Mapped[str | None] = reference("stripe_customers", "CASCADE")
    stripe_product_id: Mapped[str | None] = reference("stripe_products", "SET NULL")
    stripe_price_id: Mapped[str | None] = reference("stripe_prices", "SET NULL")
    status: Mapped[Words | None]
    quantity: Mapped[Money | None]
    current_period_start: Mapped[Time | None]
    current_period_end: Mapped[Time | None]
    cancel_at_period_end: Mapped[bool | None]
    cancel_at: Mapped[Time | None]
    canceled_at: Mapped[Time | None]
    ended_at: Mapped[Time | None]
    trial_start: Mapped[Time | None]
    trial_end: Mapped[Time | None]
    latest_invoice_id: Mapped[Id | None]
    items: Mapped[list[dict[str, Any]]] = json_column("[]")


Index("user_subscriptions_user_id_status_idx", Subscription.user_id, Subscription.status)
Index(
    "user_subscriptions_items_idx",
    Subscription.items,
    postgresql_using="gin",
    postgresql_ops={"items": "jsonb_path_ops"},
)


class Payment(Metadata, Mirrored, Base):
    """One row per PaymentIntent; money in minor units of `currency`."""

    __tablename__ = "payment_history"
    user_id: Mapped[str | None] = reference("users", "CASCADE", index=False)
    stripe_customer_id: Mapped[str | None] = reference("stripe_customers", "CASCADE")
    amount: Mapped[Money | None]
    amount_received: Mapped[Money | None]
    currency: Mapped[Words | None]
    status: Mapped[Words | None]
    description: Mapped[Words | None]
    failure_code: Mapped[Words | None]
    failure_message: Mapped[Words | None]


Index("payment_history_user_id_created_id_idx", Payment.user_id, Payment.created, Payment.id)


class Invoice(Mirrored, Base):
    """A bill; `lines_complete` is false while Stripe's list of lines was cut off."""

    __tablename__ = "stripe_invoices"
    stripe_customer_id: Mapped[str | None] = reference("stripe_customers", "SET NULL")
    stripe_subscription_id: Mapped[str | None] = reference("user_subscriptions", "SET NULL", index=False)
    status: Mapped[Words | None]
    billing_reason: Mapped[Words | None]
    collection_method: Mapped[Words | None]
    number: Mapped[Words | None]
    currency: Mapped[Words | None]
    amount_due: Mapped[Money | None]
    amount_paid: Mapped[Money | None]
    amount_remaining: Mapped[Money | None]
    total: Mapped[Money | None]
    starting_balance: Mapped[Money | None]
    ending_balance: Mapped[Money | None]
    post_payment_credit_notes_amount: Mapped[Money | None]
    attempt_count: Mapped[int | None] = mapped_column(Integer)
    period_start: Mapped[Time | None]
    period_end: Mapped[Time | None]
    due_date: Mapped[Time | None]
    finalized_at: Mapped[Time | None]
    paid_at: Mapped[Time | None]
    hosted_invoice_url: Mapped[Words | None]
    lines: Mapped[list[dict[str, Any]]] = json_column("[]")
    lines_complete: Mapped[bool] = flag(default=True)


Index(
    "stripe_invoices_lines_idx",
    Invoice.lines,
    postgresql_using="gin",
    postgresql_ops={"lines": "jsonb_path_ops"},
)
Index("stripe_invoices_stripe_subscription_id_status_created_idx", Invoice.stripe_subscription_id, Invoice.status,
      Invoice.created)  # fmt: skip


class InvoicePayment(Mirrored, Base):
    """Which payment paid which invoice: since 2025 the only place where Stripe says so."""

    __tablename__ = "stripe_invoice_payments"
    stripe_invoice_id: Mapped[str | None] = reference("stripe_invoices", "CASCADE")
    payment_intent_id: Mapped[str | None] = mapped_column(ID, index=True)
    charge_id: Mapped[str | None] = mapped_column(ID, index=True)
    status: Mapped[Words | None]
    amount_paid: Mapped[Money | None]
    currency: Mapped[Words | None]


class Charge(Mirrored, Base):
    """One attempt to take money."""

    __tablename__ = "stripe_charges"
    payment_intent_id: Mapped[str | None] = mapped_column(ID, index=True)
    stripe_customer_id: Mapped[str | None] = reference("stripe_customers", "SET NULL")
    status: Mapped[Words | None]
    amount: Mapped[Money | None]
    amount_captured: Mapped[Money | None]
    amount_refunded: Mapped[Money | None]
    currency: Mapped[Words | None]
    refunded: Mapped[bool | None]
    disputed: Mapped[bool | None]
    failure_code: Mapped[Words | None]
    failure_message: Mapped[Words | None]
    receipt_url: Mapped[Words | None]


class MoneyBack(Mirrored):
    """What refunds and disputes have in common: an amount of a charge that goes, or may go, back."""

    charge_id: Mapped[str | None] = mapped_column(ID, index=True)
    payment_intent_id: Mapped[str | None] = mapped_column(ID, index=True)
    amount: Mapped[Money | None]
    currency: Mapped[Words | None]
    status: Mapped[Words | None]
    reason: Mapped[Words | None]


class Refund(MoneyBack, Base):
    """Money given back by the merchant."""

    __tablename__ = "stripe_refunds"


class Dispute(MoneyBack, Base):
    """Money claimed back by the cardholder's bank."""

    __tablename__ = "stripe_disputes"


class CheckoutSession(Metadata, Mirrored, Base):
    """One visit to Checkout; `line_items` is null until fetched from Stripe."""

    __tablename__ = "stripe_checkout_sessions"
    mode: Mapped[Words | None]
    status: Mapped[Words | None]
    payment_status: Mapped[Words | None]
    client_reference_id: Mapped[Id | None]
    payment_link: Mapped[Id | None]
    stripe_customer_id: Mapped[str | None] = reference("stripe_customers", "SET NULL")
    stripe_subscription_id: Mapped[str | None] = mapped_column(ID, index=True)
    payment_intent_id: Mapped[str | None] = mapped_column(ID, index=True)
    stripe_invoice_id: Mapped[str | None] = mapped_column(ID, index=True)
    amount_total: Mapped[Money | None]
    currency: Mapped[Words | None]
    email: Mapped[Words | None]
    line_items: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON)


# Whom does evidence name? LINK asks these. Hashes, because buyers choose these texts and a B-tree refuses long ones.
for _table in (Customer, Subscription, CheckoutSession):
    for _key in ("user_id", "userId"):
        Index(
            f"{_table.__tablename__}_metadata_{_key.lower()}_idx",
            _table.metadata_[_key].astext,
            postgresql_using="hash",
        )
Index(
    "stripe_checkout_sessions_line_items_idx",
    CheckoutSession.line_items,
    postgresql_using="gin",
    postgresql_ops={"line_items": "jsonb_path_ops"},
)
Index("stripe_customers_email_idx", func.lower(Customer.email), postgresql_using="hash")
Index(
    "stripe_checkout_sessions_client_reference_id_idx",
    CheckoutSession.client_reference_id,
    postgresql_using="hash",
)


class MetadataHistory(Metadata, Base):
    """The token-relevant metadata of a product or price, as each snapshot had it."""

    __tablename__ = "stripe_metadata_history"
    object_id: Mapped[Key]
    as_of: Mapped[datetime] = mapped_column(TIME, primary_key=True)


# --- what happened here -----------------------------------------------------------------------------------------------


class Event(Base):
    """The ledger of events: what Stripe sent, byte for byte, and what became of it."""

    __tablename__ = "stripe_events"
    __table_args__ = (
        CheckConstraint("status IN ('received', 'processed', 'ignored', 'dead')", name="status"),
        CheckConstraint("lane IN ('live', 'bulk', 'api')", name="lane"),
    )
    id: Mapped[Key]
    type: Mapped[Words]
    object_type: Mapped[Id | None]
    object_id: Mapped[Id | None]
    created: Mapped[Time | None]
    api_version: Mapped[Words | None]
    livemode: Mapped[bool | None]
    account: Mapped[Words | None]
    payload: Mapped[bytes | None] = mapped_column(LargeBinary)
    status: Mapped[str] = mapped_column(Text, server_default=text("'received'"))
    reason: Mapped[Words | None]
    attempts: Mapped[int] = mapped_column(Integer, server_default="0")
    claim: Mapped[str | None] = mapped_column(UUID(as_uuid=False))
    due_at: Mapped[datetime] = mapped_column(TIME, server_default=text("clock_timestamp()"))
    lane: Mapped[str] = mapped_column(Text, server_default=text("'live'"))
    received_at: Mapped[datetime] = mapped_column(TIME, server_default=text("clock_timestamp()"))
    processed_at: Mapped[Time | None]
    error: Mapped[Words | None]
    code_version: Mapped[Words | None]


Index(
    "stripe_events_lane_due_at_id_idx",
    Event.lane,
    Event.due_at,
    Event.id,
    postgresql_where=text("status = 'received'"),
)
Index("stripe_events_object_id_object_type_created_idx", Event.object_id, Event.object_type, Event.created)
Index("stripe_events_received_at_id_idx", Event.received_at, Event.id)
Index("stripe_events_received_at_idx", Event.received_at, postgresql_where=text("status = 'dead'"))


class TokenEntry(Base):
    """One entry of the token ledger; append-only, and `users.tokens` is the sum of all entries."""

    __tablename__ = "token_ledger"
    __table_args__ = (
        CheckConstraint("kind IN ('grant', 'spend', 'expire', 'clawback', 'adjust')", name="kind"),
        ForeignKeyConstraint(["grant_id"], ["token_ledger.id"]),
    )
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=True)
    user_id: Mapped[str | None] = reference("users", "SET NULL", index=False)
    kind: Mapped[Words]
    amount: Mapped[int] = mapped_column(Integer)
    key: Mapped[str] = mapped_column(ID, unique=True)
    grant_id: Mapped[int | None] = mapped_column(BigInteger, index=True)
    source: Mapped[str | None] = mapped_column(ID, index=True)
    expires_at: Mapped[Time | None]
    email_hash: Mapped[str | None] = mapped_column(ID, index=True)


Index("token_ledger_user_id_expires_at_idx", TokenEntry.user_id, TokenEntry.expires_at)


class MembershipChange(Base):
    """One change that a decision made to a user, with its reasons."""

    __tablename__ = "membership_changes"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=True)
    user_id: Mapped[str | None] = reference("users", "SET NULL", index=False)
    at: Mapped[datetime] = mapped_column(TIME, server_default=text("clock_timestamp()"))
    role_from: Mapped[str | None] = mapped_column(USER_ROLE)
    role_to: Mapped[str | None] = mapped_column(USER_ROLE)
    status_from: Mapped[str | None] = mapped_column(MEMBERSHIP_STATUS)
    status_to: Mapped[str | None] = mapped_column(MEMBERSHIP_STATUS)
    product_from: Mapped[Id | None]
    product_to: Mapped[Id | None]
    reasons: Mapped[list[str]] = json_column("[]")
    event_id: Mapped[Id | None]


Index("membership_changes_user_id_at_idx", MembershipChange.user_id, MembershipChange.at)


class CustomerLink(Base):
    """A person's decision whose customer it is (or, with `user_id` null, that it is nobody's); the latest counts."""

    __tablename__ = "customer_links"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=True)
    # No foreign keys: a decision may precede the customer's first event, and outlives the user it names.
    stripe_customer_id: Mapped[str] = mapped_column(ID)
    user_id: Mapped[str | None] = mapped_column(ID, index=True)
    author: Mapped[Words]
    reason: Mapped[Words | None]
    at: Mapped[datetime] = mapped_column(TIME, server_default=text("clock_timestamp()"))


Index("customer_links_stripe_customer_id_at_idx", CustomerLink.stripe_customer_id, CustomerLink.at)


class Override(Base):
    """A person's decision about a user's role; a ban holds for everyone with the same e-mail hash."""

    __tablename__ = "user_overrides"
    __table_args__ = (CheckConstraint("kind IN ('ban', 'admin', 'comp', 'pause')", name="kind"),)
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=True)
    user_id: Mapped[str | None] = reference("users", "SET NULL")
    email_hash: Mapped[str | None] = mapped_column(ID, index=True)
    kind: Mapped[Words]
    role: Mapped[str | None] = mapped_column(USER_ROLE)
    stripe_product_id: Mapped[str | None] = reference("stripe_products", "SET NULL")
    author: Mapped[Words]
    reason: Mapped[Words | None]
    starts_at: Mapped[Time | None]
    expires_at: Mapped[Time | None]
    ended_at: Mapped[Time | None]


class SyncRun(Base):
    """One sync, backfill, reconciliation, backup or drill."""

    __tablename__ = "sync_runs"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=True)
    kind: Mapped[Words]
    started_at: Mapped[datetime] = mapped_column(TIME, server_default=text("clock_timestamp()"))
    finished_at: Mapped[Time | None]
    status: Mapped[str] = mapped_column(Text, server_default=text("'running'"))
    cursor: Mapped[Words | None]
    counts: Mapped[dict[str, Any]] = json_column("{}")
    error: Mapped[Words | None]


Index("sync_runs_kind_started_at_idx", SyncRun.kind, SyncRun.started_at)
