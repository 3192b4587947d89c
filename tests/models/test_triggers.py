"""What the database itself keeps true, whoever writes: balances, bookings of direct writes, what is due."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from models.settings import Settings
from tests.models.rows import LATER, LEAST, insert
from tests.support import eventually
from workers.recompute import decide_due

LONG_AGO = "2020-01-01T00:00:00+00:00"
ROLES = ("USER", "PREMIUM", "ADMIN", "BANNED")
HASH = hashlib.sha256(b"ann@example.com").hexdigest()

# Never due unless a test says so: some moment in the far future.
UNDUE = "UPDATE users SET next_change_at = '2100-01-01'"


@pytest.fixture
def dues(engine: Engine) -> Callable[..., Any]:
    """Run a statement as Dues and commit it."""

    def run(statement: str, **parameters: Any) -> Any:
        with engine.begin() as connection:
            result = connection.execute(text(statement), parameters)
            return result.all() if result.returns_rows else None

    return run


@pytest.fixture
def ann(site: psycopg.Connection) -> str:
    """A user, decided long ago."""
    insert(site, "users", email="ann@example.com", updated_at=LONG_AGO)
    quietly(site, UNDUE)
    return "u1"


def quietly(site: psycopg.Connection, statement: str) -> None:
    """Set the stage as Dues would, which is not booked, without touching `updated_at`."""
    site.execute("SET dues.session = 'on'")
    site.execute(statement)
    site.execute("RESET dues.session")


def one(site: psycopg.Connection, query: str) -> Any:
    row = site.execute(query).fetchone()
    assert row is not None
    return row[0] if len(row) == 1 else row


def entries(site: psycopg.Connection) -> list[tuple[Any, ...]]:
    return site.execute(
        "SELECT user_id, kind, amount, expires_at IS NOT NULL, source = 'direct:' || current_user FROM token_ledger"
        " ORDER BY id"
    ).fetchall()


def overrides(site: psycopg.Connection, *, ended: bool = False) -> list[tuple[Any, ...]]:
    return site.execute(
        "SELECT user_id, kind, role::text, author = current_user FROM user_overrides"
        " WHERE (ended_at IS NOT NULL) = %s ORDER BY id",
        [ended],
    ).fetchall()


def is_due(site: psycopg.Connection, user: str = "u1") -> bool:
    found = site.execute("SELECT next_change_at <= now()::timestamptz(3) FROM users WHERE id = %s", [user]).fetchone()
    return found is not None and found[0] is True


def balances_are_sums(site: psycopg.Connection) -> bool:
    return not site.execute(
        "SELECT FROM users u WHERE tokens <> (SELECT coalesce(sum(amount), 0) FROM token_ledger WHERE user_id = u.id)"
    ).fetchall()


@contextlib.contextmanager
def transaction(url: str, options: str = "") -> Iterator[psycopg.Connection]:
    """A session of its own in a transaction, rolled back if nobody commits."""
    with contextlib.closing(psycopg.connect(url, options=options)) as connection:
        yield connection


@contextlib.contextmanager
def waiting(work: Callable[[], Any]) -> Iterator[threading.Thread]:
    """Do `work` in a thread, which must have ended ten seconds after the block."""
    thread = threading.Thread(target=work)
    thread.start()
    yield thread
    thread.join(10)
    assert not thread.is_alive()


def is_blocked(site: psycopg.Connection) -> bool:
    return bool(one(site, "SELECT count(*) FROM pg_locks WHERE NOT granted"))


# --- updated_at ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [table for table in LEAST if table != "token_ledger"])
def test_a_change_touches_updated_at(site: psycopg.Connection, table: str) -> None:
    insert(site, "users")
    if table != "users":
        insert(site, table, updated_at=LONG_AGO)
    site.execute(f"UPDATE {table} SET created_at = '2019-01-01'")
    assert one(site, f"SELECT updated_at > now() - interval '1 minute' FROM {table}")


def test_a_writer_who_sets_updated_at_is_respected(site: psycopg.Connection, ann: str) -> None:
    site.execute("UPDATE users SET name = 'Ann', updated_at = '2021-01-01 00:00Z'")
    assert one(site, "SELECT updated_at = '2021-01-01 00:00Z' FROM users")


def test_a_row_that_did_not_change_is_not_touched(site: psycopg.Connection) -> None:
    insert(site, "sessions", user_id=insert(site, "users")["id"], updated_at=LONG_AGO)
    site.execute("UPDATE sessions SET expires = expires")
    assert one(site, "SELECT updated_at = '2020-01-01 00:00Z' FROM sessions")


def test_a_column_of_the_sites_own_may_be_of_a_type_without_equality(database_url: str) -> None:
    with transaction(database_url) as site:
        site.execute("ALTER TABLE users ADD preferences json, ADD place point")
        insert(site, "users", updated_at=LONG_AGO, preferences="{}")
        site.execute("""UPDATE users SET preferences = '{"theme": "dark"}'""")
        assert one(site, "SELECT updated_at > now() - interval '1 minute' FROM users")


# --- the token ledger ---------------------------------------------------------------------------------------------


def test_every_entry_changes_the_balance(site: psycopg.Connection, ann: str, dues: Callable[..., Any]) -> None:
    dues(
        "INSERT INTO token_ledger (user_id, kind, amount, key) VALUES"
        " ('u1', 'grant', 500, 'a'), ('u1', 'spend', -120, 'b'), ('u1', 'expire', -80, 'c')"
    )
    assert one(site, "SELECT tokens FROM users") == 300
    assert len(entries(site)) == 3


def test_an_entry_refused_as_a_repetition_changes_nothing(
    site: psycopg.Connection, ann: str, dues: Callable[..., Any]
) -> None:
    for _ in range(2):
        dues(
            "INSERT INTO token_ledger (user_id, kind, amount, key) VALUES ('u1', 'grant', 5, 'a')"
            " ON CONFLICT (key) DO NOTHING"
        )
    assert one(site, "SELECT tokens FROM users") == 5


def test_a_balance_never_becomes_negative(site: psycopg.Connection, ann: str, dues: Callable[..., Any]) -> None:
    dues("INSERT INTO token_ledger (user_id, kind, amount, key) VALUES ('u1', 'grant', 5, 'a')")
    with pytest.raises(IntegrityError, match="users_tokens_check"):
        dues("INSERT INTO token_ledger (user_id, kind, amount, key) VALUES ('u1', 'spend', -6, 'b')")
    assert (one(site, "SELECT tokens FROM users"), len(entries(site))) == (5, 1)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE token_ledger SET amount = 6",
        "UPDATE token_ledger SET user_id = 'u2'",
        "UPDATE token_ledger SET user_id = NULL",
        "UPDATE token_ledger SET user_id = NULL, amount = 6",
        "DELETE FROM token_ledger",
        "TRUNCATE token_ledger",
        "TRUNCATE users CASCADE",
    ],
)
@pytest.mark.parametrize("options", ["", "-c dues.session=on"])
def test_the_token_ledger_is_append_only_for_everybody(
    database_url: str, site: psycopg.Connection, ann: str, statement: str, options: str
) -> None:
    insert(site, "users", id="u2")
    insert(site, "token_ledger", user_id="u1", amount=5)
    with transaction(database_url, options) as other, pytest.raises(psycopg.errors.RestrictViolation):
        other.execute(statement)
    assert site.execute("SELECT user_id, amount FROM token_ledger").fetchall() == [("u1", 5)]


def test_deleting_a_user_takes_only_the_name_off_the_entries(site: psycopg.Connection, ann: str) -> None:
    insert(site, "token_ledger", user_id="u1", amount=5, source="pi_1", expires_at=LATER, email_hash=HASH)
    before = one(site, "SELECT to_jsonb(t) - 'user_id' FROM token_ledger t")
    site.execute("DELETE FROM users")
    assert one(site, "SELECT to_jsonb(t) - 'user_id' FROM token_ledger t") == before
    assert one(site, "SELECT user_id FROM token_ledger") is None


def test_two_spends_that_race_cannot_spend_the_same_tokens(
    database_url: str, site: psycopg.Connection, ann: str
) -> None:
    insert(site, "token_ledger", user_id="u1", amount=100)
    spend = "INSERT INTO token_ledger (user_id, kind, amount, key) VALUES ('u1', 'spend', -80, %s)"
    errors: list[psycopg.Error] = []
    with transaction(database_url) as first, transaction(database_url) as second:
        first.execute(spend, ["first"])

        def race() -> None:
            try:
                second.execute(spend, ["second"])
                second.commit()
            except psycopg.Error as error:
                errors.append(error)

        with waiting(race):
            eventually(lambda: is_blocked(site))
            first.commit()
    assert [type(error) for error in errors] == [psycopg.errors.CheckViolation]
    assert one(site, "SELECT tokens FROM users") == 20
    assert balances_are_sums(site)


def test_many_spends_at_once_leave_the_sum_of_what_was_booked(database_url: str, site: psycopg.Connection) -> None:
    insert(site, "users")
    insert(site, "token_ledger", user_id="u1", amount=10)

    def spend(number: int) -> bool:
        with transaction(database_url) as other:
            try:
                other.execute(
                    "INSERT INTO token_ledger (user_id, kind, amount, key) VALUES ('u1', 'spend', -1, %s)",
                    [f"spend {number}"],
                )
            except psycopg.errors.CheckViolation:
                return False
            other.commit()
            return True

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(spend, range(24))) == 10
    assert one(site, "SELECT tokens FROM users") == 0
    assert balances_are_sums(site)


# --- direct writes of tokens --------------------------------------------------------------------------------------


def test_tokens_written_by_the_site_are_booked_with_their_expiry(site: psycopg.Connection, ann: str) -> None:
    site.execute("UPDATE users SET tokens = 70, tokens_expires_at = %s", [LATER])
    site.execute("UPDATE users SET tokens = tokens - 20")
    assert entries(site) == [("u1", "adjust", 70, True, True), ("u1", "adjust", -20, False, True)]
    assert one(site, "SELECT expires_at = '2030-01-01 00:00Z' FROM token_ledger WHERE amount > 0")
    assert balances_are_sums(site)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE users SET tokens = 70, tokens_expires_at = {soon}",
        "INSERT INTO token_ledger (user_id, kind, amount, key, expires_at) VALUES ('u1', 'adjust', 70, 'k1', {soon})",
    ],
    ids=["into users", "into the ledger"],
)
def test_tokens_written_by_the_site_expire_by_the_clock_alone(
    site: psycopg.Connection, ann: str, engine: Engine, statement: str
) -> None:
    settings = Settings()
    decide_due(engine, settings)
    site.execute(statement.format(soon="clock_timestamp() + interval '0.2 seconds'"))
    assert one(site, "SELECT tokens FROM users") == 70
    assert is_due(site)
    eventually(lambda: decide_due(engine, settings) and one(site, "SELECT tokens FROM users") == 0)
    assert one(site, "SELECT (tokens_expires_at, next_change_at) IS NULL FROM users")
    assert balances_are_sums(site)


def test_spending_by_plain_sql_moves_the_next_expiry(site: psycopg.Connection, ann: str, engine: Engine) -> None:
    site.execute("UPDATE users SET tokens = 70, tokens_expires_at = '2031-01-01Z'")
    site.execute("UPDATE users SET tokens = tokens + 20, tokens_expires_at = '2030-01-01Z'")
    decide_due(engine, Settings())
    site.execute("UPDATE users SET tokens = tokens - 20")
    decide_due(engine, Settings())
    assert one(site, "SELECT tokens_expires_at = '2031-01-01Z' FROM users")


def test_tokens_of_a_new_user_are_booked(site: psycopg.Connection) -> None:
    insert(site, "users", tokens=30, tokens_expires_at=LATER)
    insert(site, "users", id="u2", tokens=40)
    insert(site, "users", id="u3")
    assert entries(site) == [("u1", "adjust", 30, True, True), ("u2", "adjust", 40, False, True)]
    assert balances_are_sums(site)


def test_each_row_of_a_statement_is_booked(site: psycopg.Connection) -> None:
    site.execute("INSERT INTO users (id, tokens) SELECT n::text, n FROM generate_series(1, 5) AS n")
    site.execute("UPDATE users SET tokens = tokens * 2 WHERE tokens > 2")
    assert [row[2] for row in entries(site)] == [1, 2, 3, 4, 5, 3, 4, 5]
    assert balances_are_sums(site)


def test_each_write_of_a_transaction_is_booked(database_url: str, site: psycopg.Connection, ann: str) -> None:
    with transaction(database_url) as other:
        other.execute("UPDATE users SET tokens = 10")
        insert(other, "token_ledger", user_id="u1", amount=5)
        other.execute("UPDATE users SET tokens = tokens + 1")
        insert(other, "token_ledger", user_id="u1", amount=7, key="k2")
        other.commit()
    assert [row[1:3] for row in entries(site)] == [("adjust", 10), ("grant", 5), ("adjust", 1), ("grant", 7)]
    assert one(site, "SELECT tokens FROM users") == 23


def test_an_upsert_and_a_write_rolled_back_to_a_savepoint_are_booked_as_they_end(
    database_url: str, site: psycopg.Connection, ann: str
) -> None:
    with transaction(database_url) as other:
        with contextlib.suppress(psycopg.errors.CheckViolation), other.transaction():
            other.execute("UPDATE users SET tokens = 9")
            other.execute("UPDATE users SET tokens = -1")
        other.execute("INSERT INTO users (id) VALUES ('u1') ON CONFLICT (id) DO UPDATE SET tokens = users.tokens + 4")
        insert(other, "token_ledger", user_id="u1", amount=5)
        other.commit()
    assert [row[2] for row in entries(site)] == [4, 5]
    assert one(site, "SELECT tokens FROM users") == 9


def test_an_entry_that_the_site_writes_itself_is_not_booked_a_second_time(site: psycopg.Connection, ann: str) -> None:
    insert(site, "token_ledger", user_id="u1", amount=5)
    assert [row[1] for row in entries(site)] == ["grant"]
    assert one(site, "SELECT tokens FROM users") == 5


def test_tokens_left_as_they_are_are_not_booked(site: psycopg.Connection, ann: str) -> None:
    site.execute("UPDATE users SET tokens = tokens, name = 'Ann', tokens_expires_at = %s", [LATER])
    assert entries(site) == []


def test_what_dues_writes_is_not_booked(site: psycopg.Connection, ann: str, dues: Callable[..., Any]) -> None:
    dues("UPDATE users SET role = 'ADMIN', tokens = 3")
    dues("INSERT INTO users (id, role, tokens) VALUES ('u2', 'BANNED', 3)")
    assert (entries(site), overrides(site)) == ([], [])


def test_a_pooler_that_discards_everything_leaves_a_session_of_dues_one_of_dues(engine: Engine, ann: str) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("DISCARD ALL"))
        connection.execute(text("UPDATE users SET tokens = 3, role = 'ADMIN'"))
        written = connection.execute(
            text("SELECT (SELECT count(*) FROM token_ledger), (SELECT count(*) FROM user_overrides)")
        )
        assert written.one() == (0, 0)


# --- direct writes of roles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("role", "kind"), [("BANNED", "ban"), ("ADMIN", "admin"), ("PREMIUM", "comp")])
def test_a_role_given_by_the_site_becomes_an_override_by_the_database_user(
    site: psycopg.Connection, ann: str, role: str, kind: str
) -> None:
    site.execute("UPDATE users SET role = %s", [role])
    insert(site, "users", id="u2", role=role)
    assert overrides(site) == [("u1", kind, role, True), ("u2", kind, role, True)]
    assert is_due(site)


def test_a_new_user_with_the_default_role_is_no_decision(site: psycopg.Connection) -> None:
    insert(site, "users", role="USER")
    assert overrides(site) == []


def test_taking_away_what_stripe_gives_is_a_pause(site: psycopg.Connection, ann: str) -> None:
    quietly(site, "UPDATE users SET role = 'PREMIUM'")
    site.execute("UPDATE users SET role = 'USER'")
    assert overrides(site) == [("u1", "pause", "USER", True)]


def test_taking_away_what_a_person_gave_ends_that_and_pauses_nothing(site: psycopg.Connection, ann: str) -> None:
    site.execute("UPDATE users SET role = 'PREMIUM'")
    site.execute("UPDATE users SET role = 'USER'")
    assert overrides(site) == []
    assert overrides(site, ended=True) == [("u1", "comp", "PREMIUM", True)]


def test_overrides_that_are_over_or_have_not_begun_are_left_alone(site: psycopg.Connection, ann: str) -> None:
    insert(site, "user_overrides", user_id="u1", kind="comp", expires_at=LONG_AGO)
    insert(site, "user_overrides", user_id="u1", kind="comp", starts_at=LATER)
    site.execute("UPDATE users SET role = 'ADMIN'")
    assert [row[1] for row in overrides(site)] == ["comp", "comp", "admin"]


def test_role_tokens_and_e_mail_in_one_statement_are_each_seen(site: psycopg.Connection, ann: str) -> None:
    site.execute("UPDATE users SET role = 'BANNED', tokens = 8, email = 'anna@example.com'")
    assert (overrides(site)[0][1], entries(site)[0][2]) == ("ban", 8)
    assert one(site, "SELECT email_changed_at IS NOT NULL FROM users")


def test_roles_of_several_rows_are_each_booked_once(site: psycopg.Connection) -> None:
    site.execute("INSERT INTO users (id) SELECT n::text FROM generate_series(1, 3) AS n")
    site.execute("UPDATE users SET role = 'ADMIN' WHERE id <> '2'")
    site.execute("UPDATE users SET role = 'ADMIN'")
    assert [row[0] for row in overrides(site)] == ["1", "3", "2"]


@pytest.mark.parametrize("new", ROLES)
@pytest.mark.parametrize("old", ROLES)
@pytest.mark.parametrize("pays", [False, True], ids=["free", "pays"])
def test_the_role_that_the_site_wrote_comes_out_of_the_next_decision(
    site: psycopg.Connection, engine: Engine, settings: Settings, ann: str, pays: bool, old: str, new: str
) -> None:
    insert(site, "stripe_customers", created=LONG_AGO, metadata='{"user_id": "u1"}')
    if pays:
        insert(site, "user_subscriptions", user_id="u1", stripe_customer_id="x1", status="active", created=LONG_AGO)
    quietly(site, "UPDATE users SET next_change_at = now()")
    decide_due(engine, settings)
    before = one(site, "SELECT role::text FROM users")
    assert before == ("PREMIUM" if pays else "USER")
    for role in (old, new):
        site.execute("UPDATE users SET role = %s", [role])
        decide_due(engine, settings)
    # Lifting a ban or dismissing an admin says nothing against what somebody pays for.
    lifted = new == "USER" and old in {"BANNED", "ADMIN"}
    assert one(site, "SELECT role::text FROM users") == (before if lifted else new)


def test_a_comp_taken_from_somebody_who_also_pays_withholds_both(
    site: psycopg.Connection, engine: Engine, settings: Settings, ann: str
) -> None:
    insert(site, "stripe_customers", created=LONG_AGO, metadata='{"user_id": "u1"}')
    site.execute("UPDATE users SET role = 'PREMIUM'")
    insert(site, "user_subscriptions", stripe_customer_id="x1", status="active", created=LONG_AGO)
    decide_due(engine, settings)
    site.execute("UPDATE users SET role = 'USER'")
    assert [row[1] for row in overrides(site)] == ["pause"]
    decide_due(engine, settings)
    assert one(site, "SELECT role::text FROM users") == "USER"


def test_a_role_that_nothing_explains_is_decided_anew_when_it_is_written(site: psycopg.Connection, ann: str) -> None:
    quietly(site, "UPDATE users SET role = 'BANNED', next_change_at = '2100-01-01'")
    site.execute("UPDATE users SET role = 'USER'")
    assert overrides(site) == []
    assert is_due(site)


# --- bans ---------------------------------------------------------------------------------------------------------


def test_a_ban_remembers_the_address_and_outlives_the_account(site: psycopg.Connection) -> None:
    insert(site, "users", email="Ann@Example.com")
    site.execute("UPDATE users SET role = 'BANNED'")
    assert one(site, "SELECT email_hash FROM user_overrides") == HASH
    site.execute("DELETE FROM users")
    assert site.execute("SELECT user_id, email_hash, kind FROM user_overrides").fetchall() == [(None, HASH, "ban")]


def test_only_bans_remember_an_address_and_a_given_hash_is_kept(site: psycopg.Connection, ann: str) -> None:
    insert(site, "user_overrides", user_id="u1", kind="admin")
    insert(site, "user_overrides", user_id="u1", kind="ban", email_hash="another")
    assert site.execute("SELECT email_hash FROM user_overrides ORDER BY id").fetchall() == [(None,), ("another",)]


def test_lifting_a_ban_from_a_new_account_ends_the_ban_of_the_former(
    site: psycopg.Connection, engine: Engine, settings: Settings, ann: str
) -> None:
    site.execute("UPDATE users SET role = 'BANNED'")
    site.execute("DELETE FROM users")
    insert(site, "users", id="u2", email="ANN@example.com")
    decide_due(engine, settings)
    assert one(site, "SELECT role::text FROM users") == "BANNED"
    quietly(site, UNDUE)
    site.execute("UPDATE users SET role = 'USER'")
    assert overrides(site) == []
    assert is_due(site, "u2")
    decide_due(engine, settings)
    assert one(site, "SELECT role::text FROM users") == "USER"


@pytest.mark.parametrize("change", ["UPDATE user_overrides SET ended_at = now()", "DELETE FROM user_overrides"])
def test_ending_the_ban_of_a_deleted_account_makes_whoever_has_the_address_due(
    site: psycopg.Connection, ann: str, change: str
) -> None:
    site.execute("UPDATE users SET role = 'BANNED'")
    site.execute("DELETE FROM users")
    for user, email in (("u2", "ann@example.com"), ("u3", "bob@example.com")):
        insert(site, "users", id=user, email=email)
    quietly(site, UNDUE)
    site.execute(change)
    assert (is_due(site, "u2"), is_due(site, "u3")) == (True, False)


def test_a_ban_of_a_bare_address_makes_its_user_due(site: psycopg.Connection, ann: str) -> None:
    insert(site, "user_overrides", kind="ban", email_hash=HASH)
    assert is_due(site)


# --- e-mail addresses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "changed", "due"),
    [
        ("email = 'anna@example.com'", True, True),
        ("email = NULL", True, True),
        ("email = 'ANN@example.com'", False, False),
        ("email = email, name = 'Ann'", False, False),
        ("email_verified = now()", False, True),
        ("name = 'Ann', image = 'x'", False, False),
    ],
)
def test_only_another_address_counts_as_changed(
    site: psycopg.Connection, ann: str, change: str, changed: bool, due: bool
) -> None:
    site.execute(f"UPDATE users SET {change}")
    assert one(site, "SELECT email_changed_at > now() - interval '1 minute' IS TRUE FROM users") is changed
    assert is_due(site) is due


def test_an_address_verified_once_more_changes_nothing(site: psycopg.Connection, ann: str) -> None:
    site.execute("UPDATE users SET email_verified = now()")
    quietly(site, UNDUE)
    site.execute("UPDATE users SET email_verified = now()")
    assert not is_due(site)


def test_a_new_user_has_not_changed_the_address(site: psycopg.Connection) -> None:
    assert insert(site, "users", email="ann@example.com")["email_changed_at"] is None


def test_an_address_that_dues_itself_changes_counts_too(
    site: psycopg.Connection, ann: str, dues: Callable[..., Any]
) -> None:
    dues("UPDATE users SET email = 'anna@example.com'")
    assert one(site, "SELECT email_changed_at IS NOT NULL FROM users")
    assert is_due(site)


# --- what makes a decision due ------------------------------------------------------------------------------------

ACCOUNT = (
    "INSERT INTO accounts (id, user_id, type, provider, provider_account_id) VALUES ('a1', 'u1', 'oauth', 'x', '1')"
)
LINKED = "INSERT INTO stripe_customers (id, user_id) VALUES ('cus_1', 'u1')"
ALIAS = "INSERT INTO stripe_customers (id, alias_of) VALUES ('cus_2', 'cus_1')"
OVERRIDE = "INSERT INTO user_overrides (user_id, kind, author) VALUES ('u1', 'pause', 'x')"
LINK = "INSERT INTO customer_links (stripe_customer_id, user_id, author) VALUES ('cus_9', 'u1', 'x')"


@pytest.mark.parametrize(
    ("before", "change"),
    [
        ([], ACCOUNT),
        ([ACCOUNT], "DELETE FROM accounts"),
        ([ACCOUNT], "UPDATE accounts SET user_id = 'u2'"),
        ([], OVERRIDE),
        ([OVERRIDE], "UPDATE user_overrides SET ended_at = now()"),
        ([OVERRIDE], "UPDATE user_overrides SET user_id = 'u2'"),
        ([OVERRIDE], "DELETE FROM user_overrides"),
        ([], LINK),
        ([LINK], "DELETE FROM customer_links"),
        ([LINK], "UPDATE customer_links SET user_id = NULL"),
        ([LINKED], "INSERT INTO customer_links (stripe_customer_id, author) VALUES ('cus_1', 'x')"),
        ([LINKED, ALIAS], "INSERT INTO customer_links (stripe_customer_id, author) VALUES ('cus_2', 'x')"),
        ([LINKED], "INSERT INTO customer_links (stripe_customer_id, user_id, author) VALUES ('cus_1', 'u2', 'x')"),
    ],
)
def test_what_people_decide_and_how_they_sign_in_makes_a_decision_due(
    site: psycopg.Connection, ann: str, before: list[str], change: str
) -> None:
    insert(site, "users", id="u2")
    insert(site, "users", id="u3")
    for statement in before:
        site.execute(statement)
    quietly(site, UNDUE)
    site.execute(change)
    assert is_due(site)
    assert is_due(site, "u2") is ("'u2'" in change)
    assert not is_due(site, "u3")


def test_a_new_user_is_due(site: psycopg.Connection) -> None:
    insert(site, "users")
    assert is_due(site)


def test_refreshing_the_tokens_of_an_account_is_no_reason_to_decide(site: psycopg.Connection, ann: str) -> None:
    site.execute(ACCOUNT)
    quietly(site, UNDUE)
    site.execute("UPDATE accounts SET access_token = 'x', expires_at = 1")
    assert not is_due(site)


@pytest.mark.parametrize("change", [ACCOUNT, OVERRIDE, LINK])
def test_a_decision_made_meanwhile_without_seeing_it_is_made_again(
    database_url: str, site: psycopg.Connection, ann: str, change: str
) -> None:
    quietly(site, "UPDATE users SET next_change_at = now()")
    with transaction(database_url, "-c dues.session=on") as dues, transaction(database_url) as person:
        dues.execute("SELECT FROM users WHERE id = 'u1' FOR NO KEY UPDATE")

        def write() -> None:
            person.execute(change)
            person.commit()

        with waiting(write):
            eventually(lambda: is_blocked(site))
            dues.execute("UPDATE users SET next_change_at = NULL WHERE id = 'u1'")
            dues.commit()
    assert is_due(site)


# --- a site with its own schema -----------------------------------------------------------------------------------


def test_a_site_whose_search_path_leads_elsewhere_can_write_all_the_same(
    database_url: str, site: psycopg.Connection, ann: str
) -> None:
    with transaction(database_url) as other:
        other.execute("CREATE SCHEMA authjs; CREATE VIEW authjs.users AS SELECT id, email, tokens FROM public.users")
        other.execute("SET search_path = authjs")
        other.execute("UPDATE users SET tokens = 5, email = 'anna@example.com'")
        other.execute("UPDATE public.users SET role = 'BANNED'")
        other.execute(ACCOUNT.replace("INTO ", "INTO public."))
        other.execute(LINK.replace("INTO ", "INTO public."))
        other.execute("DELETE FROM users")
        other.execute("SET search_path = public")
        assert [row[:3] for row in entries(other)] == [(None, "adjust", 5)]
        assert [row[1] for row in overrides(other)] == ["ban"]


# --- deletion -----------------------------------------------------------------------------------------------------


def test_a_deleted_user_takes_along_what_is_theirs_and_leaves_what_is_stripes_and_the_record(
    site: psycopg.Connection, ann: str
) -> None:
    for table in ("accounts", "sessions", "membership_changes"):
        insert(site, table)
    insert(site, "stripe_customers", user_id="u1")
    insert(site, "stripe_customers", id="x2", alias_of="x1")
    insert(site, "user_subscriptions", user_id="u1", stripe_customer_id="x1")
    insert(site, "payment_history", user_id="u1", stripe_customer_id="x1")
    insert(site, "stripe_invoices", stripe_customer_id="x1", stripe_subscription_id="x1")
    insert(site, "user_overrides", user_id="u1")
    insert(site, "customer_links", user_id="u1")
    insert(site, "token_ledger", user_id="u1")
    site.execute("DELETE FROM users")
    gone = ("accounts", "sessions", "user_subscriptions", "payment_history")
    for table in gone:
        assert one(site, f"SELECT count(*) FROM {table}") == 0, table
    for table in ("stripe_customers", "membership_changes", "user_overrides", "token_ledger"):
        assert one(site, f"SELECT count(*) > 0 AND bool_and(user_id IS NULL) FROM {table}") is True, table
    assert one(site, "SELECT stripe_customer_id, stripe_subscription_id FROM stripe_invoices") == ("x1", None)
    # A decision of a person's stays as it was made.
    assert one(site, "SELECT user_id FROM customer_links") == "u1"


# --- together with the front end ----------------------------------------------------------------------------------


def test_sign_ins_pass_while_dues_holds_the_user(database_url: str, site: psycopg.Connection, ann: str) -> None:
    with transaction(database_url, "-c dues.session=on") as dues:
        dues.execute("SELECT FROM users WHERE id = 'u1' FOR NO KEY UPDATE")
        dues.execute("UPDATE users SET role = 'PREMIUM', tokens = 0")
        site.execute("SET lock_timeout = '1s'")
        insert(site, "sessions")
        site.execute("UPDATE sessions SET expires = now()")
        site.execute("DELETE FROM sessions")
        dues.commit()


def test_a_name_changed_while_dues_decides_waits_and_overwrites_nothing(
    database_url: str, site: psycopg.Connection, ann: str
) -> None:
    with transaction(database_url, "-c dues.session=on") as dues, transaction(database_url) as other:
        dues.execute("SELECT FROM users WHERE id = 'u1' FOR NO KEY UPDATE")

        def rename() -> None:
            other.execute("UPDATE users SET name = 'Ann' WHERE id = 'u1'")
            other.commit()

        with waiting(rename):
            eventually(lambda: is_blocked(site))
            dues.execute("UPDATE users SET role = 'PREMIUM' WHERE id = 'u1'")
            dues.commit()
    assert one(site, "SELECT name, role::text FROM users") == ("Ann", "PREMIUM")
    assert overrides(site) == []
