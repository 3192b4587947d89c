"""A database with a road in it: what the tests of the road stand on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from models import ledger
from models.database import connect
from models.settings import Settings, read_settings
from models.upsert import LOCK_ORDER
from simulator.envelope import body_of, envelope
from workers.process import Road

FIXTURES = Path(__file__).parents[1] / "fixtures" / "events"
# What happened here, rather than what is true: DESIGN §1.3 leaves these out of the comparison.
NOT_COMPARED = frozenset({"created_at", "updated_at", "as_of", "source", "deleted_at", "contested"})

Event = dict[str, Any]
Rows = dict[str, dict[str, dict[str, Any]]]


def fixture(name: str) -> Event:
    """A recorded event by the name of its file."""
    event: Event = json.loads((FIXTURES / f"{name}.json").read_text())
    return event


def thing(fixture_name: str, **changes: Any) -> dict[str, Any]:
    """The object of a recorded event with some fields changed."""
    return {**fixture(fixture_name)["data"]["object"], **changes}


def event(obj: Mapping[str, Any], type_: str, created: int, **more: Any) -> Event:
    """An event of our own around an object."""
    return envelope(obj, type_, created, **more)


def received(one: Mapping[str, Any], lane: ledger.Lane = "live") -> ledger.Received:
    """What the receiver would record of an event."""
    data = one.get("data") or {}
    obj = data.get("object") or {}
    created = one.get("created")
    return ledger.Received(
        id=one["id"],
        type=one["type"],
        payload=body_of(one),
        created=created if isinstance(created, int) else None,
        object_type=obj.get("object"),
        object_id=obj.get("id"),
        api_version=one.get("api_version"),
        livemode=one.get("livemode"),
        account=one.get("account"),
        lane=lane,
    )


class World:
    """One database, its settings, and a road for each worker that is asked for."""

    def __init__(self, database_url: str, **settings: str) -> None:
        environ = {"DATABASE_URL": database_url, "DUES_POOL_SIZE": "8", **settings}
        self.settings: Settings = read_settings(environ)
        self.engine: Engine = connect(self.settings, application="test")
        self.road = Road(self.engine, self.settings)

    def another_road(self) -> Road:
        """A further worker of the same database."""
        return Road(self.engine, self.settings)

    def users(self, *ids: str) -> None:
        """Users as a front end makes them."""
        for one in ids:
            self.execute("INSERT INTO users (id, email) VALUES (:id, :email)", id=one, email=f"{one}@example.com")

    def record(self, *events: Mapping[str, Any], lane: ledger.Lane = "live") -> None:
        """Receive events, each in a transaction of its own."""
        for one in events:
            with self.engine.begin() as connection:
                ledger.record(connection, received(one, lane))

    def feed(self, *events: Mapping[str, Any]) -> None:
        """Receive and process events one after the other, each as a list of its own; the same one is replayed."""
        for one in events:
            with self.engine.begin() as connection:
                if not ledger.record(connection, received(one)):
                    ledger.replay(connection, [one["id"]], lane="live")
            self.road.process("live")

    def feed_as_list(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Receive all events, then process them as one list."""
        self.record(*events)
        self.road.process("live")

    def execute(self, sql: str, **parameters: Any) -> Sequence[Any]:
        """Run one statement; its rows, if it has any."""
        with self.engine.begin() as connection:
            result = connection.execute(text(sql), parameters)
            return result.all() if result.returns_rows else ()

    def one(self, sql: str, **parameters: Any) -> Any:
        """The only row of an answer."""
        (row,) = self.execute(sql, **parameters)
        return row

    def statuses(self) -> dict[str, int]:
        """How many events of the ledger have which status."""
        return {row.status: row.n for row in self.execute("SELECT status, count(*) AS n FROM stripe_events GROUP BY 1")}

    def rows(self) -> Rows:
        """Everything that must not depend on order: users and mirrored tables, by table and id."""
        return {table: self._table(table) for table in ("users", *LOCK_ORDER)}

    def _table(self, table: str) -> dict[str, dict[str, Any]]:
        return {
            row.id: {name: value for name, value in row._mapping.items() if name not in NOT_COMPARED}
            for row in self.execute(f"SELECT * FROM {table}")
        }

    def empty(self) -> None:
        """Delete everything, so that the next delivery starts afresh; only the owner of the tables may."""
        ours = ("membership_changes", "user_overrides", "customer_links", "stripe_metadata_history", "users")
        with self.engine.begin() as connection:
            connection.execute(text("ALTER TABLE token_ledger DISABLE TRIGGER dues_append_only"))
            connection.execute(text("DELETE FROM token_ledger"))
            connection.execute(text("ALTER TABLE token_ledger ENABLE TRIGGER dues_append_only"))
            # Events after users: a trigger asks for the customers of a deleted user to be linked anew.
            for table in (*ours, *reversed(LOCK_ORDER), "stripe_events"):
                connection.execute(text(f"DELETE FROM {table}"))


@contextmanager
def world(database_url: str, **settings: str) -> Iterator[World]:
    """A world that closes its connections at the end."""
    one = World(database_url, **settings)
    try:
        yield one
    finally:
        one.engine.dispose()
