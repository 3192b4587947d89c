"""Migrations through Alembic's Python API, and whether a database is what they make of it.

Works from a checkout and from an installed package alike: the scripts are found beside the `migrations` package.
"""

from __future__ import annotations

import io
import secrets
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

import migrations
from models.tables import Base
from ops.failures import Failed

# The one that migrations/env.py takes; taken here first, because waiting for another upgrade may be long.
UPGRADE_LOCK = 0x44756573
TURN_SECONDS = 600.0


def config(connection: Connection | None = None, output: io.StringIO | None = None) -> Config:
    """Alembic's configuration, for `connection` or to write SQL into `output`."""
    made = Config(output_buffer=output, cmd_opts=Namespace(quiet=True))
    made.set_main_option("script_location", str(Path(migrations.__file__).parent).replace("%", "%%"))
    made.set_main_option("timezone", "UTC")
    if connection is not None:
        made.attributes["connection"] = connection
    return made


def scripts() -> ScriptDirectory:
    """Every migration of this version of Dues."""
    return ScriptDirectory.from_config(config())


def head() -> str:
    """The newest revision."""
    return scripts().get_current_head() or "base"


def current(connection: Connection) -> str | None:
    """The revision that the database is at; None before the first."""
    return MigrationContext.configure(connection).get_current_revision()


@dataclass(frozen=True, slots=True)
class Move:
    """A database went from one revision to another, by these steps (`0001 First tables`)."""

    before: str | None
    after: str | None
    steps: tuple[str, ...]


def move(
    engine: Engine,
    direction: Callable[[Config, str], None],
    revision: str,
    *,
    waiting: Callable[[], None] = lambda: None,
) -> Move:
    """Upgrade or downgrade in one transaction; `waiting` is called once if another one is at it."""
    with engine.begin() as connection:
        _take_turn(connection, waiting)
        before = current(connection)
        direction(config(connection), revision)
        after = current(connection)
    return Move(before, after, tuple(_steps(before, after)))


def upgrade(engine: Engine, revision: str = "head", *, waiting: Callable[[], None] = lambda: None) -> Move:
    """Apply migrations; see `move`."""
    return move(engine, command.upgrade, revision, waiting=waiting)


def downgrade(engine: Engine, revision: str, *, waiting: Callable[[], None] = lambda: None) -> Move:
    """Take migrations back, with the data in what they made; see `move`."""
    return move(engine, command.downgrade, revision, waiting=waiting)


def _take_turn(connection: Connection, waiting: Callable[[], None]) -> None:
    deadline = time.monotonic() + TURN_SECONDS
    is_told = False
    while not connection.execute(text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": UPGRADE_LOCK}).scalar():
        if time.monotonic() > deadline:
            raise Failed(f"Another migration has been running for {TURN_SECONDS:.0f} s.")
        if not is_told:
            waiting()
            is_told = True
        time.sleep(0.2)


def _steps(before: str | None, after: str | None) -> Iterator[str]:
    def titles(upper: str | None, lower: str | None) -> list[str]:
        return [f"{one.revision} {one.doc}" for one in scripts().iterate_revisions(upper or "base", lower or "base")]

    if before == after:
        return
    ancestors = {one.revision for one in scripts().iterate_revisions(after or "base", "base")}
    is_up = before is None or before in ancestors
    yield from reversed(titles(after, before)) if is_up else titles(before, after)


def sql(direction: str, start: str, revision: str) -> str:
    """The statements that going from `start` to `revision` would run."""
    output = io.StringIO()
    run = {"upgrade": command.upgrade, "downgrade": command.downgrade}[direction]
    run(config(output=output), f"{start}:{revision}", sql=True)
    return output.getvalue()


def new_revision(message: str, connection: Connection | None) -> Path:
    """Write a new migration; with a connection, what differs between models and that database is filled in."""
    folder = Path(scripts().versions)
    number = max(int(one.revision) for one in scripts().walk_revisions()) + 1
    made = command.revision(config(connection), message, rev_id=f"{number:04d}", autogenerate=connection is not None)
    if made is None or isinstance(made, list):
        raise Failed(f"Alembic made no file in {folder}.")
    return Path(made.path)


def reset(engine: Engine, *, waiting: Callable[[], None] = lambda: None) -> Move:
    """Drop all that Dues ever made in this schema, however it looks by now, and make it anew."""
    with engine.begin() as connection:
        _take_turn(connection, waiting)
        before = current(connection)
        for statement in _drops(connection):
            connection.exec_driver_sql(statement)
        command.upgrade(config(connection), "head")
        return Move(before, current(connection), tuple(_steps(None, current(connection))))


def _drops(connection: Connection) -> list[str]:
    tables = [*Base.metadata.tables, "alembic_version"]
    functions = connection.execute(
        text(
            "SELECT oid::regprocedure::text FROM pg_proc"
            r" WHERE pronamespace = current_schema()::regnamespace AND proname LIKE 'dues\_%'"
        )
    ).scalars()
    return [
        f"DROP TABLE IF EXISTS {', '.join(tables)} CASCADE",
        *(f"DROP FUNCTION {function} CASCADE" for function in functions),
        "DROP TYPE IF EXISTS user_role, membership_status CASCADE",
    ]


# --- drift --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `check` found; without `complete` only models and database were compared."""

    revision: str | None
    head: str
    findings: tuple[str, ...]
    complete: bool = True


def check(engine: Engine) -> Comparison:
    """Compare the database with what the migrations make, and what the migrations make with the models.

    The migrations are run once more, in a schema of its own inside a transaction that is rolled back.
    """
    with engine.connect() as connection:
        at = current(connection)
        if at != head():
            return Comparison(at, head(), (_wrong_revision(at),))
        may_compare = connection.execute(
            text("SELECT has_database_privilege(current_database(), 'CREATE')"),
        ).scalar_one()
        if not may_compare:
            return Comparison(at, head(), tuple(_model_drift(connection)), complete=False)
        is_here = connection.execute(text("SELECT current_schema()")).scalar_one()
        here = catalogue(connection, is_here)
        with _scratch(connection) as scratch:
            drift = [f"models and migrations differ: {one}" for one in _model_drift(connection)]
            made = catalogue(connection, scratch)
    return Comparison(at, head(), (*differences(made, here), *drift))


def _wrong_revision(at: str | None) -> str:
    if at is None:
        return "no migration has been applied: run `dues db upgrade`"
    if at not in {one.revision for one in scripts().walk_revisions()}:
        return f"the database is at revision {at}, which this version of Dues does not know: upgrade Dues"
    return f"the database is at revision {at} and should be at {head()}: run `dues db upgrade`"


class _scratch:  # noqa: N801 - used as a function
    """A schema with freshly run migrations, first in the search path, that is gone at the end."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.name = f"dues_check_{secrets.token_hex(6)}"

    def __enter__(self) -> str:
        self.connection.exec_driver_sql(f"CREATE SCHEMA {self.name}")
        self.connection.exec_driver_sql(f"SET LOCAL search_path = {self.name}")
        command.upgrade(config(self.connection), "head")
        return self.name

    def __exit__(self, *_: object) -> None:
        self.connection.rollback()


def _model_drift(connection: Connection) -> Iterator[str]:
    ours = set(Base.metadata.tables)

    def is_ours(name: str | None, kind: str, _: Mapping[str, Any]) -> bool:
        return kind != "table" or name in ours

    context = MigrationContext.configure(
        connection,
        opts={"compare_server_default": True, "include_name": is_ours, "target_metadata": Base.metadata},
    )
    for change in compare_metadata(context, Base.metadata):
        for one in change if isinstance(change, list) else [change]:
            yield _told(one)


def _told(change: tuple[Any, ...]) -> str:
    """An entry of Alembic's, such as ("add_column", None, "users", Column(…)), in words."""
    words = [getattr(part, "name", None) or part for part in change if isinstance(part, str) or hasattr(part, "name")]
    return " ".join(str(word) for word in words)


# What PostgreSQL says of itself: kind, table or "", name, definition. Definitions name no schema when it is the only
# one in the search path.
_CATALOGUE = """
    SELECT 'column', c.relname, a.attname, format_type(a.atttypid, a.atttypmod)
        || coalesce(' COLLATE ' || CASE WHEN a.attcollation <> t.typcollation THEN k.collname END, '')
        || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END
        || coalesce(' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid), '')
        || CASE WHEN a.attidentity <> '' THEN ' IDENTITY' ELSE '' END
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_collation k ON k.oid = a.attcollation
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE c.relnamespace = %(schema)s::regnamespace AND c.relkind IN ('r', 'p') AND a.attnum > 0
        AND NOT a.attisdropped
    UNION ALL
    SELECT 'constraint', c.relname, o.conname, pg_get_constraintdef(o.oid, true)
    FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid
    WHERE c.relnamespace = %(schema)s::regnamespace AND o.contype <> 'n'
    UNION ALL
    SELECT 'index', c.relname, i.relname, pg_get_indexdef(i.oid, 0, true)
        || CASE WHEN x.indisvalid THEN '' ELSE ' (invalid)' END
    FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class c ON c.oid = x.indrelid
    WHERE c.relnamespace = %(schema)s::regnamespace AND c.relkind IN ('r', 'p')
        AND NOT EXISTS (SELECT FROM pg_constraint o WHERE o.conindid = i.oid AND o.contype IN ('p', 'u', 'x'))
    UNION ALL
    SELECT 'trigger', c.relname, t.tgname, pg_get_triggerdef(t.oid, true)
        || CASE WHEN t.tgenabled = 'O' THEN '' ELSE ' (disabled)' END
    FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
    WHERE c.relnamespace = %(schema)s::regnamespace AND NOT t.tgisinternal
    UNION ALL
    SELECT 'function', '', p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')',
        pg_get_functiondef(p.oid)
    FROM pg_proc p WHERE p.pronamespace = %(schema)s::regnamespace AND p.prokind = 'f' AND p.proname LIKE 'dues\\_%%'
    UNION ALL
    SELECT 'type', '', t.typname, string_agg(e.enumlabel, ', ' ORDER BY e.enumsortorder)
    FROM pg_type t JOIN pg_enum e ON e.enumtypid = t.oid
    WHERE t.typnamespace = %(schema)s::regnamespace GROUP BY t.typname
    ORDER BY 1, 2, 3
"""

Catalogue = dict[tuple[str, str, str], str]


def catalogue(connection: Connection, schema: str) -> Catalogue:
    """{(kind, table or "", name): definition} of everything in a schema that migrations may make."""
    quoted = connection.dialect.identifier_preparer.quote(schema)
    path = connection.exec_driver_sql("SHOW search_path").scalar_one()
    connection.exec_driver_sql(f"SET LOCAL search_path = {quoted}")
    rows = connection.exec_driver_sql(_CATALOGUE, {"schema": quoted}).all()
    connection.execute(text("SELECT set_config('search_path', :path, true)"), {"path": path})
    return {(kind, table, name): _anywhere(definition, schema, quoted) for kind, table, name, definition in rows}


def _anywhere(definition: str, schema: str, quoted: str) -> str:
    """A definition without the schema, which that of a function names in its head and as its search path."""
    without_head = definition.replace(f"FUNCTION {quoted}.", "FUNCTION ", 1)
    return without_head.replace(f"SET search_path TO '{schema}'", "SET search_path TO '*'", 1)


def differences(made: Catalogue, here: Catalogue) -> list[str]:
    """What the migrations make and the database has not, or has otherwise, or has on their tables besides."""
    tables = {table for _, table, _ in made}
    found = []
    for key in sorted(made.keys() | here.keys()):
        kind, table, name = key
        what = f"{kind} {name}{f' of {table}' if table else ''}"
        if key not in here:
            found.append(f"{what} is missing")
        elif key not in made:
            # Tables, functions and types of others are none of our business.
            if table in tables and table:
                found.append(f"{what} is in the database and not in the migrations")
        elif made[key] != here[key]:
            told = f": it is `{here[key]}` and should be `{made[key]}`" if "\n" not in made[key] + here[key] else ""
            found.append(f"{what} differs{told}")
    return found
