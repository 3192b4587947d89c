"""`dues db`: migrations up and down, drift found, SQL for others to run, a reset that asks."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Column, Integer, MetaData, Table, make_url

from models.tables import Base
from ops import migrating
from tests.ops.command_line import Dues
from tests.support import ROOT, running

DUES = [sys.executable, "-m", "ops.cli"]
BEFORE, HEAD, NEXT = "0002", "0003", "0004"


@pytest.fixture
def empty(tmp_path: Path, empty_database_url: str) -> Dues:
    return Dues(tmp_path, {"DATABASE_URL": empty_database_url})


def test_up_down_and_up_again_with_data(dues: Dues, plain: psycopg.Connection) -> None:
    plain.execute("INSERT INTO users (id, email) VALUES ('c1', 'ada@example.com')")
    down = dues.fine("db", "downgrade", "-1", "--yes", "--json").json
    assert (down["from"], down["to"], len(down["steps"])) == (HEAD, BEFORE, 1)
    up = dues.fine("db", "upgrade", "--json").json
    assert (up["from"], up["to"], len(up["steps"])) == (BEFORE, HEAD, 1)
    assert dues.fine("db", "check", "--json").json["ok"]
    assert plain.execute("SELECT FROM users").rowcount == 1


def test_an_upgrade_with_nothing_to_do_says_so(dues: Dues) -> None:
    assert dues.fine("db", "upgrade").stdout == f"The database is at revision {HEAD} already.\n"


def test_a_downgrade_asks_first(dues: Dues, plain: psycopg.Connection) -> None:
    answer = dues("db", "downgrade", "base")
    assert answer.code == 2
    assert "say --yes" in answer.stderr
    plain.execute("SELECT FROM users")


def test_a_revision_that_does_not_exist_is_one_sentence(dues: Dues) -> None:
    answer = dues("db", "upgrade", "9999")
    assert answer.code == 2
    assert answer.stderr.startswith("Error: Can't locate revision identified by '9999'.")


def test_two_upgrades_at_once_take_turns(empty_database_url: str) -> None:
    with contextlib.ExitStack() as stack:
        blocker = stack.enter_context(psycopg.connect(empty_database_url))
        blocker.execute("SELECT pg_advisory_xact_lock(%s)", [migrating.UPGRADE_LOCK])
        environment = {"DATABASE_URL": empty_database_url}
        both = [stack.enter_context(running([*DUES, "db", "upgrade"], env=environment)) for _ in range(2)]
        for one in both:
            one.says("Another migration is running; waiting for its end.")
        blocker.rollback()
        assert [one.ends() for one in both] == [0, 0]
        said = sorted(one.output.splitlines()[-1] for one in both)
    assert said == [f"The database is at revision {HEAD} already.", f"The database is at revision {HEAD}."]


# --- drift --------------------------------------------------------------------------------------------------------


def test_a_migrated_database_has_no_drift_and_checking_leaves_nothing_behind(
    dues: Dues, plain: psycopg.Connection
) -> None:
    answer = dues.fine("db", "check", "--json").json
    assert answer == {"ok": True, "revision": HEAD, "head": HEAD, "findings": [], "complete": True}
    assert dues.fine("db", "check").stdout == f"No drift: the database is what revision {HEAD} makes of it.\n"
    schemas = plain.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'dues%'").fetchall()
    assert schemas == []


# A change to the database, and how the finding begins.
DRIFT = {
    "ALTER TABLE users DROP COLUMN image": "column image of users is missing",
    "ALTER TABLE users ADD COLUMN nickname text": "column nickname of users is in the database and not in",
    "ALTER TABLE accounts ALTER scope TYPE varchar(9)": "column scope of accounts differs: it is `character",
    "ALTER TABLE accounts ALTER type DROP NOT NULL": "column type of accounts differs: it is `text` and",
    "ALTER TABLE stripe_events ALTER attempts DROP DEFAULT": "column attempts of stripe_events differs",
    'ALTER TABLE stripe_products ALTER name TYPE text COLLATE "C"': "column name of stripe_products differs",
    "ALTER TABLE users DROP CONSTRAINT users_tokens_check": "constraint users_tokens_check of users is missing",
    "ALTER TABLE sessions DROP CONSTRAINT sessions_user_id_fkey, ADD CONSTRAINT sessions_user_id_fkey"
    " FOREIGN KEY (user_id) REFERENCES users (id)": "constraint sessions_user_id_fkey of sessions differs",
    "DROP INDEX users_lower_email_key": "index users_lower_email_key of users is missing",
    "DROP TRIGGER dues_touch ON users": "trigger dues_touch of users is missing",
    "ALTER TABLE token_ledger DISABLE TRIGGER dues_append_only": "trigger dues_append_only of token_ledger differs",
    "CREATE OR REPLACE FUNCTION dues_touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'":
        "function dues_touch() differs",
    "DROP TRIGGER dues_add_to_balance ON token_ledger": "trigger dues_add_to_balance of token_ledger is missing",
    "DROP FUNCTION dues_add_to_balance": "function dues_add_to_balance() is missing",
    "ALTER TYPE membership_status ADD VALUE 'FROZEN'": "type membership_status differs",
}  # fmt: skip


def test_drift_of_every_kind_is_found(dues: Dues, plain: psycopg.Connection) -> None:
    for change in DRIFT:
        plain.execute(change)
    answer = dues("db", "check", "--json")
    assert answer.code == 1
    findings = answer.json["findings"]
    assert {begin: any(one.startswith(begin) for one in findings) for begin in DRIFT.values()} == dict.fromkeys(
        DRIFT.values(), True
    )
    assert len(findings) == len(DRIFT)


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ("UPDATE alembic_version SET version_num = '9999'", "which this version of Dues does not know: upgrade Dues"),
        ("DROP TABLE alembic_version", "no migration has been applied: run `dues db upgrade`"),
    ],
)
def test_a_database_at_another_revision_is_told_what_to_do(
    dues: Dues, plain: psycopg.Connection, change: str, finding: str
) -> None:
    plain.execute(change)
    answer = dues("db", "check")
    assert answer.code == 1
    assert answer.stdout.endswith(f"{finding}\n")


def test_what_the_front_end_keeps_there_is_no_drift(dues: Dues, plain: psycopg.Connection) -> None:
    plain.execute("CREATE TABLE posts (id text PRIMARY KEY, user_id text REFERENCES users (id))")
    plain.execute("CREATE TYPE mood AS ENUM ('good'); CREATE FUNCTION one() RETURNS int LANGUAGE sql RETURN 1")
    plain.execute("CREATE SCHEMA other; CREATE TABLE other.users (id int)")
    dues.fine("db", "check")


def test_models_that_ran_ahead_of_the_migrations_are_found(dues: Dues, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = MetaData(naming_convention=Base.metadata.naming_convention)
    for table in Base.metadata.tables.values():
        table.to_metadata(ahead)
    ahead.tables["users"].append_column(Column("nickname", Integer))
    Table("coupons", ahead, Column("id", Integer, primary_key=True))
    monkeypatch.setattr(migrating, "Base", SimpleNamespace(metadata=ahead))
    assert dues("db", "check", "--json").json["findings"] == [
        "models and migrations differ: add_table coupons",
        "models and migrations differ: add_column users nickname",
    ]


def test_a_database_in_another_schema_is_checked_there(empty: Dues, empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute('CREATE SCHEMA "A b"')
        database = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL('ALTER DATABASE {} SET search_path = "A b"').format(database))
    empty.fine("db", "upgrade")
    empty.fine("db", "check")


@pytest.fixture
def reader(plain: psycopg.Connection, database_url: str) -> Iterator[str]:
    """The URL of a role that may read everything and create nothing."""
    name = f"{plain.info.dbname}_reader"
    role = sql.Identifier(name)
    plain.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'reader' IN ROLE pg_read_all_data").format(role))
    try:
        yield make_url(database_url).set(username=name, password="reader").render_as_string(hide_password=False)
    finally:
        plain.execute(sql.SQL("DROP ROLE {}").format(role))


def test_a_role_that_may_not_create_schemas_compares_what_it_can(
    dues: Dues, plain: psycopg.Connection, reader: str
) -> None:
    plain.execute("CREATE TABLE posts (id text PRIMARY KEY)")
    answer = dues.fine("db", "check", "--json", DATABASE_URL=reader)
    assert (answer.json["ok"], answer.json["complete"]) == (True, False)
    assert "were not compared" in answer.stderr
    plain.execute("ALTER TABLE users DROP COLUMN image")
    assert dues("db", "check", DATABASE_URL=reader).code == 1


def test_what_the_role_may_not_do_is_one_sentence(dues: Dues, reader: str) -> None:
    answer = dues("setup-admin", "ada@example.com", DATABASE_URL=reader)
    assert answer.code == 2
    assert answer.stderr.startswith("Error: The database role may not do that: permission denied")


# --- SQL, revisions, reset ----------------------------------------------------------------------------------------


def test_the_sql_of_an_upgrade_can_be_run_by_hand(bare: Dues, empty: Dues, empty_database_url: str) -> None:
    statements = bare.fine("db", "sql").stdout
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute(statements.encode())
    empty.fine("db", "check")
    assert empty.fine("db", "sql", "--from", "current").stdout == f"-- Nothing to run: {HEAD} is where it would end.\n"
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute(bare.fine("db", "sql", "downgrade", "base").stdout.encode())
        assert connection.execute("SELECT to_regclass('users')").fetchone() == (None,)


def test_a_new_revision_follows_the_newest_and_is_found(tmp_path: Path, database_url: str) -> None:
    for package in ("migrations", "models", "ops"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "ops.cli", "db", "revision", "-m", "Coupons of subscriptions"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    file = Path(done.stdout.strip())
    assert file == tmp_path / "migrations" / "versions" / f"{NEXT}_coupons_of_subscriptions.py"
    assert f'down_revision = "{HEAD}"' in file.read_text().replace("'", '"')
    upgrade = [sys.executable, "-m", "ops.cli", "db", "upgrade"]
    with running(upgrade, env={"DATABASE_URL": database_url}, cwd=tmp_path) as child:
        assert child.ends() == 0
        assert f"{NEXT} Coupons of subscriptions" in child.output


def test_a_reset_makes_everything_anew_however_it_looked(dues: Dues, plain: psycopg.Connection) -> None:
    plain.execute("INSERT INTO users (id) VALUES ('c1')")
    plain.execute("CREATE TABLE posts (id text PRIMARY KEY, user_id text REFERENCES users (id))")
    plain.execute("INSERT INTO posts VALUES ('p1', 'c1')")
    plain.execute("ALTER TABLE users DROP COLUMN image; DROP TABLE sync_runs; DROP FUNCTION dues_touch CASCADE")
    dues.fine("db", "reset", "--yes")
    dues.fine("db", "check")
    assert plain.execute("SELECT FROM users").rowcount == 0
    assert plain.execute("SELECT FROM posts").rowcount == 1


def test_a_reset_refuses_in_production_and_asks_elsewhere(dues: Dues, plain: psycopg.Connection) -> None:
    plain.execute("INSERT INTO users (id) VALUES ('c1')")
    refused = dues("db", "reset", "--yes", DUES_ENV="production")
    assert refused.code == 2
    assert "refuses in production" in refused.stderr
    assert dues("db", "reset").code == 2
    assert plain.execute("SELECT FROM users").rowcount == 1


def test_a_lock_that_somebody_else_holds_is_one_sentence(dues: Dues, database_url: str) -> None:
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE users")
        answer = dues("db", "downgrade", "base", "--yes", DUES_LOCK_TIMEOUT="0.2")
    assert answer.code == 2
    assert answer.stderr.startswith("Error: Something else held a lock for too long")
