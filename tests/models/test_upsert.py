"""The guarded upsert: newer wins, older is dropped, ties are told, and locks are taken in one order."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from sqlalchemy import BigInteger, Boolean, Connection, Engine, Integer, Numeric, Text, text
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.exc import DBAPIError

from models import upsert
from models.upsert import BOOKKEEPING, EPOCH, LOCK_ORDER, Row, Written, columns_of, stub, table_of

PRODUCTS, PRICES, CUSTOMERS = "stripe_products", "stripe_prices", "stripe_customers"
UNICODE = "Zoë 💶 \"quoted\" \\ and '' \t\n%s :name {} …"
WATCHED = ("t.metadata", "t.active")


def at(second: int) -> str:
    return datetime.fromtimestamp(1_800_000_000 + second, UTC).isoformat().replace("+00:00", "Z")


def product(row_id: str = "prod_1", second: int = 0, **values: Any) -> Row:
    """A whole row; `source` says who told it."""
    given = {"id": row_id, "as_of": at(second), "source": f"evt_{second}", **values}
    return {**stub(PRODUCTS, row_id), "metadata": {}, **given}


def tombstone(row_id: str = "prod_1", second: int = 0) -> Row:
    """What is left if Stripe said no more than that the object is deleted."""
    told = {"as_of": at(second), "source": f"evt_{second}", "deleted_at": at(second), "contested": False}
    return {"id": row_id, **told, "livemode": False}


def write(engine: Engine, rows: list[Row], name: str = PRODUCTS, **keywords: Any) -> Written:
    with engine.begin() as connection:
        return upsert.write(connection, name, rows, **keywords)


def stored(engine: Engine, row_id: str = "prod_1", name: str = PRODUCTS) -> dict[str, Any]:
    with engine.connect() as connection:
        row = connection.execute(text(f"SELECT * FROM {name} WHERE id = :id"), {"id": row_id}).one()
    return dict(row._mapping)


# --- newer, older, equal ------------------------------------------------------------------------------------------


def test_the_newer_wins_and_the_older_is_dropped(engine: Engine) -> None:
    assert write(engine, [product(second=5, name="five")]).written == {"prod_1"}
    assert write(engine, [product(second=4, name="four")]) == Written()
    assert stored(engine)["name"] == "five"
    assert write(engine, [product(second=6, name="six")]).written == {"prod_1"}
    assert (stored(engine)["name"], stored(engine)["source"]) == ("six", "evt_6")


def test_a_newer_snapshot_that_says_the_same_advances_as_of(engine: Engine) -> None:
    write(engine, [product(second=5)], watched=WATCHED)
    result = write(engine, [product(second=9)], watched=WATCHED)
    assert (result.written, result.changed) == ({"prod_1"}, set())
    assert stored(engine)["source"] == "evt_9"


def test_an_equal_second_is_told_as_a_tie_and_writes_nothing(engine: Engine) -> None:
    write(engine, [product(second=5, name="first")])
    result = write(engine, [product(second=5, name="second"), product("prod_2", 5)])
    assert (result.written, result.tied) == ({"prod_2"}, {"prod_1"})
    assert stored(engine)["name"] == "first"


def test_a_tied_row_stays_locked_until_it_is_decided(engine: Engine, site: psycopg.Connection) -> None:
    write(engine, [product(second=5)])
    with engine.begin() as connection:
        assert upsert.write(connection, PRODUCTS, [product(second=5)]).tied == {"prod_1"}
        with pytest.raises(psycopg.errors.LockNotAvailable):
            site.execute("SELECT FROM stripe_products FOR NO KEY UPDATE NOWAIT")
        # A child's foreign key may be checked meanwhile.
        site.execute("SELECT FROM stripe_products FOR KEY SHARE NOWAIT")


def test_the_winner_of_a_tie_is_written_over_its_own_second_but_over_nothing_newer(engine: Engine) -> None:
    write(engine, [product(second=5, name="first"), product("prod_2", 6, name="newer")])
    with engine.begin() as connection:
        rows = [product(second=5, name="winner", contested=True), product("prod_2", 5, name="late")]
        assert upsert.overwrite(connection, PRODUCTS, rows).written == {"prod_1"}
    assert (stored(engine)["name"], stored(engine)["contested"]) == ("winner", True)
    assert stored(engine, "prod_2")["name"] == "newer"


def test_what_the_api_said_beats_the_events_of_its_second_in_either_order(engine: Engine) -> None:
    write(engine, [product(second=5, name="event")])
    assert write(engine, [product(second=5, name="api", source="api")]).written == {"prod_1"}
    assert write(engine, [product(second=5, name="event")]) == Written()
    assert stored(engine)["name"] == "api"
    assert write(engine, [product(second=5, name="asked again", source="api")]).written == {"prod_1"}
    assert write(engine, [product(second=6, name="later")]).written == {"prod_1"}
    assert write(engine, [product(second=5, name="api", source="api")]) == Written()
    assert stored(engine)["name"] == "later"


def test_any_order_of_arrival_ends_in_the_newest(engine: Engine) -> None:
    for number, order in enumerate(([1, 2, 3], [3, 2, 1], [2, 3, 1], [3, 1, 2])):
        for second in order:
            write(engine, [product(f"prod_{number}", second, name=str(second))])
        assert stored(engine, f"prod_{number}")["name"] == "3"


# --- stubs and tombstones -----------------------------------------------------------------------------------------


def test_a_stub_is_written_for_who_is_missing_and_never_over_anything(engine: Engine) -> None:
    write(engine, [product(second=5, name="real")])
    result = write(engine, [product("prod_2", 5)], stubs=["prod_1", "prod_3", "prod_2"])
    assert result == Written(written={"prod_2"}, changed={"prod_2"})
    assert stored(engine)["name"] == "real"
    assert stored(engine, "prod_2")["source"] == "evt_5"
    assert (stored(engine, "prod_3")["source"], stored(engine, "prod_3")["created"]) == ("stub", None)
    assert write(engine, [], stubs=["prod_3"]) == Written()


def test_anything_that_stripe_says_is_newer_than_a_stub(engine: Engine) -> None:
    write(engine, [], stubs=["prod_1"])
    assert write(engine, [product(second=-1_799_999_999, name="old")]).written == {"prod_1"}
    assert stored(engine)["name"] == "old"


@pytest.mark.parametrize("name", LOCK_ORDER)
def test_a_stub_is_what_the_database_would_make_of_a_bare_id(
    engine: Engine, site: psycopg.Connection, name: str
) -> None:
    write(engine, [], name=name, stubs=["a"])
    site.execute(f"INSERT INTO {name} (id) VALUES ('b')")
    left, right = (
        {column: value for column, value in stored(engine, one, name).items() if column not in upsert.OURS | {"id"}}
        for one in "ab"
    )
    assert left == right


def test_a_tombstone_keeps_what_was_known_and_nothing_older_revives_it(engine: Engine) -> None:
    write(engine, [product(second=5, name="Pro", metadata={"tokens": "5"})])
    assert write(engine, [tombstone(second=7)]).written == {"prod_1"}
    assert write(engine, [product(second=6, name="late")]) == Written()
    row = stored(engine)
    assert (row["name"], row["metadata"], row["source"]) == ("Pro", {"tokens": "5"}, "evt_7")
    assert row["deleted_at"] == row["as_of"]
    # Only something newer can: it says that there is no deletion.
    write(engine, [product(second=8, name="back")])
    assert stored(engine)["deleted_at"] is None


def test_a_tombstone_of_something_never_seen_is_a_row_too(engine: Engine) -> None:
    for name in LOCK_ORDER:
        assert write(engine, [tombstone("x", 5)], name=name).written == {"x"}
        assert stored(engine, "x", name)["deleted_at"] is not None


def test_whole_rows_tombstones_and_stubs_go_in_one_list(engine: Engine) -> None:
    write(engine, [product("prod_3", 9, name="newer"), product("prod_4", 5)])
    rows = [product("prod_5", 5), tombstone("prod_4", 6), tombstone("prod_3", 8), product("prod_1", 5)]
    result = write(engine, rows, stubs=["prod_2"], watched=WATCHED)
    assert result.written == {"prod_5", "prod_4", "prod_1"}
    assert stored(engine, "prod_3")["deleted_at"] is None
    assert stored(engine, "prod_2")["source"] == "stub"


# --- what is watched ----------------------------------------------------------------------------------------------


def test_only_a_watched_value_that_comes_out_different_is_a_change(engine: Engine) -> None:
    one, two = {"tokens": "1"}, {"tokens": "2"}
    steps: list[tuple[dict[str, Any], set[str]]] = [
        ({"metadata": one}, {"prod_1"}),  # new
        ({"metadata": one, "name": "Pro"}, set()),
        ({"metadata": two, "name": "Pro"}, {"prod_1"}),
        ({"metadata": two, "active": True}, {"prod_1"}),
        ({"metadata": two, "active": True}, set()),
        ({"metadata": two, "active": None}, {"prod_1"}),
    ]
    for second, (values, changed) in enumerate(steps):
        assert write(engine, [product(second=second, **values)], watched=WATCHED).changed == changed, second


def test_an_expression_may_be_watched(engine: Engine) -> None:
    watched = ("t.metadata ->> 'tokens'", "lower(t.name)")
    assert write(engine, [product(second=1, name="Pro")], watched=watched).changed == {"prod_1"}
    assert write(engine, [product(second=2, name="PRO", metadata={"x": "1"})], watched=watched).changed == set()
    assert write(engine, [product(second=3, name="PRO", metadata={"tokens": "1"})], watched=watched).changed


def test_what_was_dropped_or_tied_is_not_a_change(engine: Engine) -> None:
    write(engine, [product(second=5), product("prod_2", 5)], watched=WATCHED)
    rows = [product(second=4, active=True), product("prod_2", 5, active=True)]
    assert write(engine, rows, watched=WATCHED) == Written(tied={"prod_2"})


def test_the_winner_of_a_tie_is_compared_with_what_stands_there(engine: Engine) -> None:
    write(engine, [product(second=5), product("prod_2", 5)], watched=WATCHED)
    with engine.begin() as connection:
        rows = [product(second=5, active=True), product("prod_2", 5, name="other")]
        assert upsert.overwrite(connection, PRODUCTS, rows, watched=WATCHED).changed == {"prod_1"}


def test_a_snapshot_never_touches_what_link_and_decide_compute(engine: Engine, site: psycopg.Connection) -> None:
    site.execute("INSERT INTO users (id) VALUES ('u1')")
    row = {**stub(CUSTOMERS, "cus_1"), "as_of": at(1), "source": "evt_1"}
    write(engine, [row], name=CUSTOMERS)
    site.execute("UPDATE stripe_customers SET user_id = 'u1', linked_by = 'hand'")
    write(engine, [{**row, "as_of": at(2), "email": "ann@example.com"}], name=CUSTOMERS)
    after = stored(engine, "cus_1", CUSTOMERS)
    assert (after["user_id"], after["linked_by"], after["email"]) == ("u1", "hand", "ann@example.com")


# --- every type of column -----------------------------------------------------------------------------------------

LOW: dict[type, Any] = {
    Text: "",
    BigInteger: -(2**63),
    Integer: -(2**31),
    Boolean: False,
    Numeric: Decimal("-0.000000000001"),
    JSONB: [],
    TIMESTAMP: datetime(1970, 1, 1, tzinfo=UTC),
}
HIGH: dict[type, Any] = {
    Text: UNICODE,
    BigInteger: 2**63 - 1,
    Integer: 2**31 - 1,
    Boolean: True,
    Numeric: Decimal("123456789012345678901234567890.123456789012"),
    JSONB: {UNICODE: [UNICODE, 2**63, -1, 0.5, None, True, {"": {}}]},
    TIMESTAMP: datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC),
}


def as_json(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, Decimal) else value


@pytest.mark.parametrize("values", [LOW, HIGH], ids=["low", "high"])
def test_every_column_comes_back_as_it_was_written(engine: Engine, values: dict[type, Any]) -> None:
    # In the order of the locks parents come before their children, so that foreign keys find them.
    for name in LOCK_ORDER:
        table = table_of(name)
        expected = {
            column: next(value for kind, value in values.items() if isinstance(table.columns[column].type, kind))
            for column in columns_of(name)
        }
        expected |= {"id": "x", "as_of": datetime(2030, 1, 1, tzinfo=UTC), "source": "evt_1"}
        expected |= {column: "x" for column, _ in upsert.parents_of(name)}
        row = {column: as_json(value) for column, value in expected.items()}
        assert write(engine, [row], name=name).written == {"x"}
        found = stored(engine, "x", name)
        assert {column: found[column] for column in expected} == expected, name


def test_null_is_null_in_every_column_that_allows_it(engine: Engine) -> None:
    for name in LOCK_ORDER:
        write(engine, [{**stub(name, "x"), "as_of": at(1)}], name=name)
        nullable = [column.name for column in table_of(name).columns if column.nullable]
        with engine.connect() as connection:  # SQL's null, not JSON's
            condition = " AND ".join(f"{column} IS NULL" for column in nullable)
            assert connection.execute(text(f"SELECT {condition} FROM {name}")).scalar_one(), name


def test_a_number_that_json_does_not_know_is_refused_before_it_is_sent(engine: Engine) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write(engine, [product(metadata={"x": float("nan")})])


# --- how it is sent -----------------------------------------------------------------------------------------------


def test_one_prepared_statement_serves_lists_of_any_length(engine: Engine) -> None:
    with engine.connect() as connection:
        for second in range(1, 30):
            rows = [product(f"prod_{number}", second) for number in range(second * 7 % 23 + 1)]
            upsert.write(connection, PRODUCTS, rows, watched=WATCHED, stubs=["prod_1", "prod_50"][: second % 3])
            connection.commit()
        prepared = [row[0] for row in connection.execute(text("SELECT statement FROM pg_prepared_statements"))]
    assert len([one for one in prepared if one.startswith("INSERT INTO stripe_products")]) == 1
    assert len([one for one in prepared if "FROM stripe_products" in one and one.startswith("SELECT")]) <= 2


def test_a_thousand_rows_go_in_one_statement(engine: Engine, site: psycopg.Connection) -> None:
    rows = [product(f"prod_{number}", 1, description=UNICODE * 20) for number in range(1000)]
    assert len(write(engine, rows).written) == 1000
    # xmin is the transaction, cmin the statement in it.
    assert site.execute("SELECT count(DISTINCT (xmin::text, cmin::text)) FROM stripe_products").fetchone() == (1,)


def test_nothing_to_write_asks_the_database_nothing(engine: Engine) -> None:
    with engine.connect() as connection:
        assert upsert.write(connection, PRODUCTS, []) == Written()
        assert not connection.in_transaction()


def test_locking_parents_tells_who_exists_and_keeps_customers_from_being_moved(
    engine: Engine, site: psycopg.Connection
) -> None:
    site.execute("INSERT INTO stripe_customers (id) VALUES ('cus_1'), ('cus_2')")
    with engine.begin() as connection:
        assert upsert.lock_parents(connection, CUSTOMERS, ["cus_2", "cus_9", "cus_1"]) == {"cus_1", "cus_2"}
        assert upsert.lock_parents(connection, CUSTOMERS, []) == set()
        with pytest.raises(psycopg.errors.LockNotAvailable):
            site.execute("SELECT FROM stripe_customers FOR UPDATE NOWAIT")
        site.execute("SELECT FROM stripe_customers FOR NO KEY UPDATE NOWAIT")


@pytest.mark.parametrize("name", LOCK_ORDER)
def test_every_parent_is_locked_before_its_children(name: str) -> None:
    assert all(LOCK_ORDER.index(parent) < LOCK_ORDER.index(name) for _, parent in upsert.parents_of(name))


def test_the_columns_of_a_snapshot_are_neither_ours_nor_computed() -> None:
    for name in LOCK_ORDER:
        assert columns_of(name)[0] == "id"
        assert not set(columns_of(name)) & {"user_id", "alias_of", "linked_by", "created_at", "updated_at"}
        assert set(BOOKKEEPING) < set(columns_of(name))
    assert json.loads(f'"{EPOCH}"') == stub(PRODUCTS, "x")["as_of"]


# --- two at once --------------------------------------------------------------------------------------------------


def race(engine: Engine, rounds: int, *lists: Any) -> list[BaseException]:
    """Write each of `lists` (a function: connection, round) `rounds` times, side by side; what went wrong."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(lists))

    def work(write_list: Any) -> None:
        try:
            for number in range(rounds):
                barrier.wait(10)
                with engine.begin() as connection:
                    write_list(connection, number)
        except (DBAPIError, threading.BrokenBarrierError) as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(one,)) for one in lists]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [error for error in errors if isinstance(error, DBAPIError)]


@pytest.mark.parametrize("watched", [(), WATCHED], ids=["", "watched"])
def test_overlapping_lists_in_opposite_order_never_deadlock(engine: Engine, watched: tuple[str, ...]) -> None:
    def ids(number: int) -> list[str]:
        # Half of them new in each round, the others written before.
        return [f"prod_{number + offset}" for offset in range(16)]

    def forward(connection: Connection, number: int) -> None:
        upsert.write(connection, PRODUCTS, [product(one, number) for one in ids(number)], watched=watched)

    def backward(connection: Connection, number: int) -> None:
        rows = [product(one, number + 1) for one in reversed(ids(number))]
        upsert.write(connection, PRODUCTS, rows[::2], stubs=ids(number + 2), watched=watched)

    assert race(engine, 100, forward, backward) == []


def test_tombstones_among_whole_rows_never_deadlock(engine: Engine) -> None:
    ids = [f"prod_{number:02}" for number in range(12)]

    def even(connection: Connection, number: int) -> None:
        rows = [(product if place % 2 else tombstone)(one, 2 * number) for place, one in enumerate(ids)]
        upsert.write(connection, PRODUCTS, rows)

    def odd(connection: Connection, number: int) -> None:
        rows = [(tombstone if place % 2 else product)(one, 2 * number + 1) for place, one in enumerate(ids)]
        upsert.write(connection, PRODUCTS, rows[::-1])

    assert race(engine, 100, even, odd) == []


def test_whichever_of_two_writes_last_the_newest_stands(engine: Engine) -> None:
    def of(parity: int) -> Any:
        def work(connection: Connection, number: int) -> None:
            second = 2 * number + (parity + number) % 2
            upsert.write(connection, PRODUCTS, [product(second=second, name=str(second))])

        return work

    assert race(engine, 60, of(0), of(1)) == []
    assert stored(engine)["name"] == "119"
