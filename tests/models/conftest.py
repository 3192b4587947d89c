"""Both kinds of writers: Dues itself, and a site that shares the database and knows nothing of Dues."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import Engine

from models.database import connect
from models.settings import Settings, read_settings
from tests.conftest import new_database

CHILDREN_FIRST = (
    "token_ledger",
    "membership_changes",
    "customer_links",
    "user_overrides",
    "sync_runs",
    "stripe_events",
    "stripe_metadata_history",
    "users",
    "verification_tokens",
    "stripe_checkout_sessions",
    "stripe_disputes",
    "stripe_refunds",
    "stripe_charges",
    "stripe_invoice_payments",
    "stripe_invoices",
    "payment_history",
    "user_subscriptions",
    "stripe_customers",
    "stripe_prices",
    "stripe_products",
)


@pytest.fixture(scope="module")
def shared_database_url(postgres_url: str, template_database: str) -> Iterator[str]:
    with new_database(postgres_url, template_database) as url:
        yield url


@pytest.fixture
def database_url(shared_database_url: str) -> Iterator[str]:
    """A migrated, empty database; tests of a module use the same one in turn, since making one takes half a second."""
    yield shared_database_url
    with psycopg.connect(shared_database_url, options="-c lock_timeout=5s") as connection:
        connection.execute("ALTER TABLE token_ledger DISABLE TRIGGER USER")
        for table in CHILDREN_FIRST:
            connection.execute(f"DELETE FROM {table}")
        connection.execute("ALTER TABLE token_ledger ENABLE TRIGGER USER")


@pytest.fixture
def settings(database_url: str) -> Settings:
    return read_settings({"DATABASE_URL": database_url})


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    """Dues's own sessions."""
    engine = connect(settings, application="tests", pool_size=8)
    yield engine
    engine.dispose()


@pytest.fixture
def site(database_url: str) -> Iterator[psycopg.Connection]:
    """A session of the site's, each statement a transaction."""
    with contextlib.closing(psycopg.connect(database_url, autocommit=True)) as connection:
        yield connection
