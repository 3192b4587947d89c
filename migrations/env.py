"""Alembic's entry: runs the migrations on the connection it is given, or on the database that DATABASE_URL names."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from alembic import context
from sqlalchemy import text

from models.database import connect
from models.settings import read_settings, require
from models.tables import Base

if TYPE_CHECKING:
    from sqlalchemy import Connection

# Any constant will do: two upgrades at once take turns instead of failing half-way.
UPGRADE_LOCK = 0x44756573


def run(connection: Connection) -> None:
    """Run what was asked for in one transaction: all or nothing."""
    context.configure(connection=connection, target_metadata=Base.metadata, compare_server_default=True)
    with context.begin_transaction():
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": UPGRADE_LOCK})
        context.run_migrations()


def run_online() -> None:
    """Take the caller's connection (tests, `dues db`) or make one from the environment."""
    given = context.config.attributes.get("connection")
    if given is not None:
        run(given)
        return
    settings = require(read_settings(os.environ), "DATABASE_URL")
    # A migration may take longer than a request, but must not queue behind one for ever while others queue behind it.
    engine = connect(replace(settings, statement_timeout=600), application="migrate")
    with engine.connect() as connection:
        run(connection)
        connection.commit()
    engine.dispose()


if context.is_offline_mode():
    context.configure(dialect_name="postgresql", target_metadata=Base.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    run_online()
