"""Rows beside what Stripe says: every column that differs is named, and nothing that is no drift."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, text

from models import drift, ledger, upsert
from models.tables import Base

AS_OF = "2026-01-31T12:00:00Z"
LATER = "2026-01-31T13:00:00Z"
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
EXAMPLES: dict[str, Any] = {
    "TEXT": "x", "BOOLEAN": True, "BIGINT": 7, "INTEGER": 7, "NUMERIC": "7.50", "TIMESTAMP": "2026-01-01T00:00:00Z",
    "JSONB": [{"id": "x"}],
}  # fmt: skip


def told(name: str, **changes: Any) -> dict[str, Any]:
    """A row as a snapshot of the API would write it, with a value in every column."""
    types = {column.name: str(column.type).split()[0].split("(")[0] for column in upsert.table_of(name).columns}
    row = {column: EXAMPLES[types[column]] for column in upsert.columns_of(name)}
    row |= {column: None for column, _ in upsert.parents_of(name)}
    row |= {"id": "x_1", "as_of": LATER, "source": "api", "deleted_at": None, "contested": False, "livemode": False}
    return {**row, **changes}


def store(engine: Engine, name: str, **changes: Any) -> None:
    with engine.begin() as connection:
        upsert.write(connection, name, [told(name, **{"as_of": AS_OF, "source": "evt_1", **changes})])


def compared(engine: Engine, name: str, **changes: Any) -> list[drift.Difference]:
    with engine.connect() as connection:
        return drift.differences(connection, name, [told(name, **changes)])


@pytest.mark.parametrize("name", upsert.LOCK_ORDER)
def test_a_row_that_says_the_same_is_no_drift(engine: Engine, name: str) -> None:
    store(engine, name)
    assert compared(engine, name) == []


@pytest.mark.parametrize("name", upsert.LOCK_ORDER)
def test_a_wrong_value_in_any_mirror_column_is_found(engine: Engine, site: psycopg.Connection, name: str) -> None:
    store(engine, name)
    columns = set(upsert.columns_of(name)) - {"id", "as_of", "source", "contested", "deleted_at"} - drift.VOLATILE
    parents = {column for column, _ in upsert.parents_of(name)}
    for column in sorted(columns - parents):
        site.execute("BEGIN")
        null = (
            "'[]'" if not Base.metadata.tables[name].columns[column].nullable and column != "lines_complete" else "NULL"
        )
        wrong = "false" if column == "lines_complete" else null
        site.execute(f"UPDATE {name} SET {column} = {wrong}".encode())
        site.execute("COMMIT")
        assert compared(engine, name) == [drift.Difference("x_1", (column,))], column
        store(engine, name, as_of=LATER)
        site.execute(f"UPDATE {name} SET as_of = '{AS_OF}'".encode())


def test_a_missing_row_and_a_stub_are_missing(engine: Engine) -> None:
    assert compared(engine, "stripe_products") == [drift.Difference("x_1", ())]
    with engine.begin() as connection:
        upsert.write(connection, "stripe_products", [], stubs=["x_1"])
    assert compared(engine, "stripe_products") == [drift.Difference("x_1", ())]


def test_a_tombstone_of_what_stripe_still_has_is_drift(engine: Engine) -> None:
    store(engine, "stripe_products", deleted_at=AS_OF)
    assert compared(engine, "stripe_products") == [drift.Difference("x_1", ("deleted_at",))]


def test_what_is_newer_here_is_not_drift(engine: Engine) -> None:
    store(engine, "stripe_products", description="new", as_of="2026-01-31T14:00:00Z")
    assert compared(engine, "stripe_products") == []


def test_what_is_on_its_way_through_the_ledger_is_not_drift(engine: Engine) -> None:
    store(engine, "stripe_products", description="old")
    with engine.begin() as connection:
        ledger.record(connection, ledger.Received(id="evt_2", type="product.updated", payload=b"", object_id="x_1"))
    assert compared(engine, "stripe_products") == []


@pytest.mark.parametrize(
    ("name", "status"), [("stripe_checkout_sessions", "open"), ("stripe_invoice_payments", "open")]
)
def test_what_stripe_has_sent_no_event_of_is_not_missing(engine: Engine, name: str, status: str) -> None:
    assert compared(engine, name, status=status) == []
    assert compared(engine, name, status="paid") == [drift.Difference("x_1", ())]


def test_an_item_that_was_chosen_among_several_is_no_drift_and_a_mixture_of_two_is(engine: Engine) -> None:
    one, other = ({"product": f"prod_{n}", "price": f"price_{n}", "quantity": n} for n in (1, 2))
    with engine.begin() as connection:
        for n in (1, 2):
            upsert.write(connection, "stripe_products", [], stubs=[f"prod_{n}"])
            upsert.write(connection, "stripe_prices", [], stubs=[f"price_{n}"])
    best = {"stripe_product_id": "prod_2", "stripe_price_id": "price_2", "quantity": 2, "items": [one, other]}
    store(engine, "user_subscriptions", **best)
    first = {**best, "stripe_product_id": "prod_1", "stripe_price_id": "price_1", "quantity": 1}
    assert compared(engine, "user_subscriptions", **first) == []
    store(engine, "user_subscriptions", **{**best, "quantity": 1, "as_of": "2026-01-31T12:30:00Z"})
    assert compared(engine, "user_subscriptions", **best) == [drift.Difference("x_1", ("quantity",))]


def test_lines_that_a_list_cuts_off_are_not_compared(engine: Engine) -> None:
    store(engine, "stripe_invoices", lines=[{"id": "il_1"}, {"id": "il_2"}])
    assert compared(engine, "stripe_invoices", lines=[{"id": "il_1"}], lines_complete=False) == []
    assert compared(engine, "stripe_invoices", lines=[{"id": "il_1"}]) == [drift.Difference("x_1", ("lines",))]


def test_a_stretch_of_a_list_tells_which_rows_are_absent(engine: Engine) -> None:
    for n, created in enumerate(("11:00", "12:00", "12:00", "13:00", "14:00")):
        store(engine, "stripe_customers", id=f"cus_{n}", created=f"2026-01-31T{created}:00Z")
    store(engine, "stripe_customers", id="cus_gone", created="2026-01-31T12:30:00Z", deleted_at=AS_OF)
    store(engine, "stripe_customers", id="cus_live", created="2026-01-31T12:30:00Z", livemode=True)
    until = NOON.replace(hour=13)
    with engine.connect() as connection:

        def absent(seen: set[str], after: datetime | None) -> list[str]:
            return drift.absent(connection, "stripe_customers", seen, livemode=False, after=after, until=until)

        assert absent({"cus_1"}, NOON.replace(hour=11)) == ["cus_2", "cus_3"]
        assert absent({"cus_1", "cus_2"}, NOON) == ["cus_3"]
        assert absent(set(), None) == ["cus_0", "cus_1", "cus_2", "cus_3"]


def test_money_adds_up_by_currency(engine: Engine) -> None:
    for n, (amount, currency, created) in enumerate(
        [(5, "usd", "11:00"), (7, "usd", "12:00"), (9, "eur", "12:30"), (1000, "usd", "13:00")]
    ):
        store(engine, "payment_history", id=f"pi_{n}", amount_received=amount, currency=currency,
              created=f"2026-01-31T{created}:00Z")  # fmt: skip
    store(engine, "payment_history", id="pi_live", amount_received=1, livemode=True)
    with engine.connect() as connection:

        def sums(since: datetime | None) -> drift.Totals:
            until = NOON.replace(hour=13)
            return drift.totals(connection, "payment_history", livemode=False, since=since, until=until)

        assert sums(None) == {"eur": {"amount_received": 9}, "usd": {"amount_received": 12}}
        assert sums(NOON) == {"eur": {"amount_received": 9}, "usd": {"amount_received": 7}}


def test_comparing_changes_nothing(engine: Engine) -> None:
    store(engine, "stripe_products", description="old")
    with engine.connect() as connection:
        before = connection.execute(text("SELECT *, xmin FROM stripe_products")).all()
        drift.differences(connection, "stripe_products", [told("stripe_products")])
        assert connection.execute(text("SELECT *, xmin FROM stripe_products")).all() == before
