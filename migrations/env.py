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
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        include_name=is_ours,
        compare_server_default=True,
    )
    with context.begin_transaction():
        wait_for_turn(connection)
        context.run_migrations()


def is_ours(name: str | None, kind: str, _: object) -> bool:
    """Whether Alembic compares it: the front end keeps tables of its own in the same database."""
    return kind != "table" or name in Base.metadata.tables


def wait_for_turn(connection: Connection) -> None:
    """Wait for another upgrade, however long that takes: unlike a wait for a table, this one holds up nobody."""
    limit = connection.execute(text("SELECT current_setting('lock_timeout')")).scalar_one()
    connection.execute(text("SET LOCAL lock_timeout = 0"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": UPGRADE_LOCK})
    connection.execute(text("SELECT set_config('lock_timeout', :limit, true)"), {"limit": limit})


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
    # Any style but psycopg's own: that one doubles each "%" of the SQL.
    context.configure(
        dialect_name="postgresql",
        dialect_opts={"paramstyle": "named"},
        target_metadata=Base.metadata,
        literal_binds=True,
    )
    with context.begin_transaction():
        context.run_migrations()
else:
    run_online()
