"""CONTRACT §4, written out as data and compared with the catalogue of a migrated database."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from models.upsert import LOCK_ORDER
from tests.conftest import new_database
from tests.models.rows import LEAST, MIRRORED, insert

# A word per column: name:type, "!" for NOT NULL, "=" and the default ("_" for its blank).
# `id` is text COLLATE "C", `time` timestamptz(3), `money` bigint.
STAMPS = "created_at:time!=now() updated_at:time!=now()"
OF_STRIPE = (
    "id:id! created:time as_of:time!='1970-01-01_00:00:00+00' source:id!='stub' deleted_at:time contested:bool!=false"
    " livemode:bool"
)
METADATA = "metadata:jsonb!='{}'"
TABLES = {
    "users": "id:id! email:text name:text email_verified:time image:text role:user_role!='USER' stripe_product_id:id"
    " membership_status:membership_status!='ACTIVE' tokens:int!=0 tokens_expires_at:time grace_until:time"
    " next_change_at:time=now() email_changed_at:time",
    "accounts": "id:id! user_id:id! type:text! provider:text! provider_account_id:text! refresh_token:text"
    " access_token:text expires_at:int token_type:text scope:text id_token:text session_state:text"
    " refresh_token_expires_in:int",
    "sessions": "id:id! session_token:text! user_id:id! expires:time!",
    "verification_tokens": "identifier:text! token:text! expires:time!",
    "stripe_products": f"name:text description:text active:bool default_price_id:id {METADATA}",
    "stripe_prices": "stripe_product_id:id active:bool currency:text type:text unit_amount:money"
    " unit_amount_decimal:numeric recurring_interval:text recurring_interval_count:int nickname:text lookup_key:text"
    f" {METADATA}",
    "stripe_customers": f"user_id:id alias_of:id linked_by:text email:text name:text {METADATA}",
    "user_subscriptions": "user_id:id stripe_customer_id:id stripe_product_id:id stripe_price_id:id status:text"
    " quantity:money current_period_start:time current_period_end:time cancel_at_period_end:bool cancel_at:time"
    " canceled_at:time ended_at:time trial_start:time trial_end:time latest_invoice_id:id items:jsonb!='[]'"
    f" {METADATA}",
    "payment_history": "user_id:id stripe_customer_id:id amount:money amount_received:money currency:text status:text"
    f" description:text failure_code:text failure_message:text {METADATA}",
    "stripe_invoices": "stripe_customer_id:id stripe_subscription_id:id status:text billing_reason:text"
    " collection_method:text number:text currency:text amount_due:money amount_paid:money amount_remaining:money"
    " total:money starting_balance:money ending_balance:money post_payment_credit_notes_amount:money attempt_count:int"
    " period_start:time period_end:time due_date:time finalized_at:time paid_at:time hosted_invoice_url:text"
    " lines:jsonb!='[]' lines_complete:bool!=true",
    "stripe_invoice_payments": "stripe_invoice_id:id payment_intent_id:id charge_id:id status:text amount_paid:money"
    " currency:text",
    "stripe_charges": "payment_intent_id:id stripe_customer_id:id status:text amount:money amount_captured:money"
    " amount_refunded:money currency:text refunded:bool disputed:bool failure_code:text failure_message:text"
    " receipt_url:text",
    "stripe_refunds": "charge_id:id payment_intent_id:id amount:money currency:text status:text reason:text",
    "stripe_disputes": "charge_id:id payment_intent_id:id amount:money currency:text status:text reason:text",
    "stripe_checkout_sessions": "mode:text status:text payment_status:text client_reference_id:id payment_link:id"
    " stripe_customer_id:id stripe_subscription_id:id payment_intent_id:id stripe_invoice_id:id amount_total:money"
    f" currency:text email:text line_items:jsonb {METADATA}",
    "stripe_metadata_history": f"object_id:id! as_of:time! {METADATA}",
    "stripe_events": "id:id! type:text! object_type:id object_id:id created:time api_version:text livemode:bool"
    " account:text payload:bytea status:text!='received' reason:text attempts:int!=0 claim:uuid"
    " due_at:time!=clock_timestamp() lane:text!='live' received_at:time!=clock_timestamp() processed_at:time error:text"
    " code_version:text",
    "token_ledger": "id:serial! user_id:id kind:text! amount:int! key:id! grant_id:bigint source:id expires_at:time"
    " email_hash:id",
    "membership_changes": "id:serial! user_id:id at:time!=clock_timestamp() role_from:user_role role_to:user_role"
    " status_from:membership_status status_to:membership_status product_from:id product_to:id reasons:jsonb!='[]'"
    " event_id:id",
    "customer_links": "id:serial! stripe_customer_id:id! user_id:id author:text! reason:text"
    " at:time!=clock_timestamp()",
    "user_overrides": "id:serial! user_id:id email_hash:id kind:text! role:user_role stripe_product_id:id author:text!"
    " reason:text starts_at:time expires_at:time ended_at:time",
    "sync_runs": "id:serial! kind:text! started_at:time!=clock_timestamp() finished_at:time status:text!='running'"
    " cursor:text counts:jsonb!='{}' error:text",
}
TYPES = {
    "id": 'text COLLATE "C"',
    "time": "timestamp(3) with time zone",
    "int": "integer",
    "money": "bigint",
    "serial": "bigint",
    "bool": "boolean",
}
ENUMS = {
    "user_role": ["USER", "PREMIUM", "ADMIN", "BANNED"],
    "membership_status": ["ACTIVE", "INACTIVE", "CANCELED", "PAST_DUE"],
}

# table.column → table it names, and what happens when that row goes.
FOREIGN_KEYS = {
    "users.stripe_product_id": ("stripe_products", "SET NULL"),
    "accounts.user_id": ("users", "CASCADE"),
    "sessions.user_id": ("users", "CASCADE"),
    "stripe_prices.stripe_product_id": ("stripe_products", "CASCADE"),
    "stripe_customers.user_id": ("users", "SET NULL"),
    "stripe_customers.alias_of": ("stripe_customers", "SET NULL"),
    "user_subscriptions.user_id": ("users", "CASCADE"),
    "user_subscriptions.stripe_customer_id": ("stripe_customers", "CASCADE"),
    "user_subscriptions.stripe_product_id": ("stripe_products", "SET NULL"),
    "user_subscriptions.stripe_price_id": ("stripe_prices", "SET NULL"),
    "payment_history.user_id": ("users", "CASCADE"),
    "payment_history.stripe_customer_id": ("stripe_customers", "CASCADE"),
    "stripe_invoices.stripe_customer_id": ("stripe_customers", "SET NULL"),
    "stripe_invoices.stripe_subscription_id": ("user_subscriptions", "SET NULL"),
    "stripe_invoice_payments.stripe_invoice_id": ("stripe_invoices", "CASCADE"),
    "stripe_charges.stripe_customer_id": ("stripe_customers", "SET NULL"),
    "stripe_checkout_sessions.stripe_customer_id": ("stripe_customers", "SET NULL"),
    "token_ledger.user_id": ("users", "SET NULL"),
    "token_ledger.grant_id": ("token_ledger", "NO ACTION"),
    "membership_changes.user_id": ("users", "SET NULL"),
    "user_overrides.user_id": ("users", "SET NULL"),
    "user_overrides.stripe_product_id": ("stripe_products", "SET NULL"),
}
UNIQUE = {
    "users(email)",
    "accounts(provider, provider_account_id)",
    "sessions(session_token)",
    "verification_tokens(token)",
    "stripe_customers(user_id)",
    "token_ledger(key)",
}
PRIMARY = {
    **dict.fromkeys(TABLES, "id"),
    "verification_tokens": "identifier, token",
    "stripe_metadata_history": "object_id, as_of",
}
# What they serve, in the contract's words → table, the columns or expressions an index begins with, its condition.
INDEXES = {
    "e-mail compared as lower(email)": ("users", "lower(email)", None),
    "a user's live subscriptions": ("user_subscriptions", "user_id, status", None),
    "a user's payments by (created, id)": ("payment_history", "user_id, created, id", None),
    "waiting events by lane and due_at": ("stripe_events", "lane, due_at, id", "(status = 'received'::text)"),
    "an object's events by second": ("stripe_events", "object_id, object_type, created", None),
    "due decisions": ("users", "next_change_at, id", None),
}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a negative balance": ("users", {"id": "u2", "tokens": -1}, "users_tokens_check"),
    "an unknown status of an event": ("stripe_events", {"status": "lost"}, "stripe_events_status_check"),
    "an unknown lane": ("stripe_events", {"lane": "fast"}, "stripe_events_lane_check"),
    "an unknown kind of entry": ("token_ledger", {"kind": "gift"}, "token_ledger_kind_check"),
    "an unknown kind of override": ("user_overrides", {"kind": "demote"}, "user_overrides_kind_check"),
}


@pytest.fixture(scope="module")
def catalogue(postgres_url: str, template_database: str) -> Iterator[psycopg.Connection]:
    """A migrated database that these tests only look at."""
    with (
        new_database(postgres_url, template_database) as url,
        contextlib.closing(psycopg.connect(url, autocommit=True)) as connection,
    ):
        yield connection


def expected_columns(table: str) -> dict[str, tuple[str, bool, str | None]]:
    words = f"{OF_STRIPE if table in MIRRORED else ''} {TABLES[table]} {STAMPS}".split()
    columns = {}
    for word in words:
        name, kind, required, default = re.fullmatch(r"(\w+):(\w+)(!?)(?:=(.+))?", word).groups()  # type: ignore[union-attr]
        if kind == "serial":
            default = f"nextval('{table}_{name}_seq')"
        columns[name] = (TYPES.get(kind, kind), bool(required), default.replace("_00:", " 00:") if default else None)
    return columns


def actual_columns(connection: psycopg.Connection, table: str) -> dict[str, tuple[str, bool, str | None]]:
    rows = connection.execute(
        """
        SELECT a.attname, format_type(a.atttypid, a.atttypmod)
                || CASE WHEN a.attcollation <> t.typcollation THEN format(' COLLATE "%%s"', c.collname) ELSE '' END,
            a.attnotnull, pg_get_expr(d.adbin, d.adrelid)
        FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
        LEFT JOIN pg_collation c ON c.oid = a.attcollation
        LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
        WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped
        """,
        [table],
    ).fetchall()
    return {
        name: (kind, required, default and re.sub(r"::[a-z_ ]+", "", default)) for name, kind, required, default in rows
    }


def constraints(connection: psycopg.Connection, kind: str) -> dict[str, tuple[Any, ...]]:
    """{name: (table, columns, target table, action)} of the constraints of a kind: p, u, f."""
    rows = connection.execute(
        """
        SELECT conname, conrelid::regclass::text,
            (SELECT string_agg(a.attname, ', ' ORDER BY k.place)
             FROM unnest(conkey) WITH ORDINALITY AS k(attnum, place)
             JOIN pg_attribute a ON a.attrelid = conrelid AND a.attnum = k.attnum),
            confrelid::regclass::text,
            CASE confdeltype WHEN 'a' THEN 'NO ACTION' WHEN 'c' THEN 'CASCADE' WHEN 'n' THEN 'SET NULL' END
        FROM pg_constraint WHERE contype = %s AND connamespace = 'public'::regnamespace
            AND conrelid <> 'alembic_version'::regclass
        """,
        [kind],
    ).fetchall()
    return {name: tuple(rest) for name, *rest in rows}


def indexes(connection: psycopg.Connection) -> list[tuple[str, str, str, bool, str | None, str]]:
    """(table, name, columns, is unique, condition, method) of every index."""
    return connection.execute(
        """
        SELECT i.indrelid::regclass::text, i.indexrelid::regclass::text,
            (SELECT string_agg(pg_get_indexdef(i.indexrelid, n, true), ', ' ORDER BY n)
             FROM generate_series(1, i.indnkeyatts) AS n),
            i.indisunique, pg_get_expr(i.indpred, i.indrelid), m.amname
        FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
        WHERE c.relnamespace = 'public'::regnamespace AND i.indrelid <> 'alembic_version'::regclass
        """
    ).fetchall()


def test_the_tables_are_those_of_the_contract_and_no_others(catalogue: psycopg.Connection) -> None:
    found = catalogue.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert {name for (name,) in found} == {*TABLES, "alembic_version"}


@pytest.mark.parametrize("table", TABLES)
def test_the_columns_are_those_of_the_contract(catalogue: psycopg.Connection, table: str) -> None:
    assert actual_columns(catalogue, table) == expected_columns(table)


@pytest.mark.parametrize("name", ENUMS)
def test_the_enums_have_their_labels_in_order(catalogue: psycopg.Connection, name: str) -> None:
    found = catalogue.execute("SELECT enum_range(NULL::user_role)::text[]".replace("user_role", name)).fetchone()
    assert found == (ENUMS[name],)


def test_primary_keys_are_those_of_the_contract(catalogue: psycopg.Connection) -> None:
    found = constraints(catalogue, "p")
    assert {row[0]: row[1] for row in found.values()} == PRIMARY
    assert set(found) == {f"{table}_pkey" for table in TABLES}


def test_unique_constraints_are_those_of_the_contract_with_their_names(catalogue: psycopg.Connection) -> None:
    found = constraints(catalogue, "u")
    assert {f"{table}({columns})" for table, columns, *_ in found.values()} == UNIQUE
    assert set(found) == {f"{re.sub(r'[(), ]+', '_', one)}key" for one in UNIQUE}


def test_foreign_keys_do_what_the_contract_says_when_their_row_goes(catalogue: psycopg.Connection) -> None:
    found = constraints(catalogue, "f")
    assert {f"{table}.{column}": (target, action) for table, column, target, action in found.values()} == FOREIGN_KEYS
    assert set(found) == {f"{one.replace('.', '_')}_fkey" for one in FOREIGN_KEYS}


@pytest.mark.parametrize("key", FOREIGN_KEYS)
def test_each_foreign_key_can_be_followed_back_by_an_index(catalogue: psycopg.Connection, key: str) -> None:
    table, column = key.split(".")
    leading = {
        columns.split(", ")[0] for of, _, columns, _, condition, method in indexes(catalogue)
        if of == table and condition is None and method == "btree"
    }  # fmt: skip
    assert column in leading


@pytest.mark.parametrize("purpose", INDEXES)
def test_each_query_that_the_contract_names_has_its_index(catalogue: psycopg.Connection, purpose: str) -> None:
    table, columns, condition = INDEXES[purpose]
    assert (table, columns, condition) in {(row[0], row[2], row[4]) for row in indexes(catalogue)}


def test_indexes_are_named_after_their_table_and_columns(catalogue: psycopg.Connection) -> None:
    for table, name, columns, is_unique, _, _ in indexes(catalogue):
        suffixes = ("key", "pkey") if is_unique else ("idx",)
        if "(" in columns:  # of an expression: the names in it, in their order
            *words, suffix = re.sub(rf"^{table}_", "", name).split("_")
            assert suffix in suffixes
            assert re.search(".*".join(words), columns.lower()), name
        else:
            expected = {f"{table}_{columns.replace(', ', '_')}_{suffix}" for suffix in suffixes} | {f"{table}_pkey"}
            assert name in expected


def test_e_mails_that_differ_in_case_are_the_same(site: psycopg.Connection) -> None:
    insert(site, "users", email="Ann@example.com")
    with pytest.raises(psycopg.errors.UniqueViolation, match="users_lower_email_key"):
        insert(site, "users", id="u2", email="aNN@example.com")


def test_several_users_and_customers_may_have_no_e_mail_and_no_user(site: psycopg.Connection) -> None:
    for number in ("1", "2"):
        insert(site, "users", id=number)
        insert(site, "stripe_customers", id=number)
    assert site.execute("SELECT count(*) FROM users, stripe_customers").fetchone() == (4,)


@pytest.mark.parametrize("what", REFUSED)
def test_the_database_refuses(site: psycopg.Connection, what: str) -> None:
    table, values, constraint = REFUSED[what]
    with pytest.raises(psycopg.errors.CheckViolation, match=constraint):
        insert(site, table, **values)


def test_a_writer_who_knows_nothing_of_dues_may_leave_everything_else_out(site: psycopg.Connection) -> None:
    rows = {table: insert(site, table) for table in LEAST}
    assert set(rows) == set(TABLES)
    user, event = rows["users"], rows["stripe_events"]
    assert (user["role"], user["membership_status"], user["tokens"]) == ("USER", "ACTIVE", 0)
    assert user["next_change_at"] is not None
    assert (event["status"], event["lane"], event["attempts"]) == ("received", "live", 0)
    for table, row in rows.items():
        assert None not in (row["created_at"], row["updated_at"]), table
    for table in MIRRORED:
        assert (rows[table]["source"], rows[table]["contested"]) == ("stub", False)
        assert rows[table]["as_of"].startswith("1970-01-01T00:00:00")


def test_users_have_no_default_id(site: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.NotNullViolation):
        site.execute("INSERT INTO users (email) VALUES ('a@example.com')")


def test_ids_sort_in_the_database_as_in_python(site: psycopg.Connection) -> None:
    ids = ["".join(letters) for letters in itertools.product("aB_é💶-1", repeat=2)]
    for one in ids:
        insert(site, "stripe_products", id=one)
    found = [row[0] for row in site.execute("SELECT id FROM stripe_products ORDER BY id")]
    assert found == sorted(ids)


def test_every_mirrored_table_has_its_place_in_the_order_of_locks() -> None:
    assert set(LOCK_ORDER) == set(MIRRORED)
