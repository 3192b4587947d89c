"""A site: a database of its own, and any number of workers on it."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from random import Random
from typing import Any

from sqlalchemy import Engine, text

from models import envelope, ledger
from models.database import connect
from models.settings import read_settings
from models.upsert import LOCK_ORDER
from simulator.envelope import body_of
from tests.convergence.rounds import Round, SignUp
from workers.process import Road
from workers.recompute import decide_due

Row = dict[str, Any]
Rows = dict[str, dict[str, Row]]
# Of one round at most: what is still not finished then will never be.
PATIENCE = 120.0
# The lanes in which events arrive.
DELIVERED: Sequence[ledger.Lane] = ("live", "bulk")
# Events of a list; one by one is slow, and so is rarer.
SIZES = (1, 3, 3, 20, 20, 200, 200, 1000)


class StuckError(AssertionError):
    """Events that no worker brought to an end."""


class Site:
    """Stands for one installation; `since` is when the round that is compared began, by the database's clock."""

    def __init__(self, database_url: str, **environ: str) -> None:
        self.environ = {"DATABASE_URL": database_url, "DUES_POOL_SIZE": "4", **environ}
        self.settings = read_settings(self.environ)
        self.engine: Engine = connect(self.settings, application="site")
        self.since = self.now()

    def now(self) -> datetime:
        """The database's clock, to the millisecond that has begun: rows know no more."""
        (row,) = self.execute("SELECT date_trunc('milliseconds', clock_timestamp()) AS now")
        moment: datetime = row.now
        return moment

    def execute(self, sql: str, **parameters: Any) -> Sequence[Any]:
        """Run one statement; its rows, if it has any."""
        with self.engine.begin() as connection:
            result = connection.execute(text(sql), parameters)
            return result.all() if result.returns_rows else ()

    # --- delivery ---

    def deliver_in_order(self, one: Round) -> None:
        """The true order, one worker, full lists."""
        self.since = self.now()
        self.receive(one.users, "live")
        self.receive(one.events, "live")
        with self.workers(Random(0), count=1, sizes=[200], lanes=["live"]):
            pass
        self.settle()

    def deliver_at_random(self, one: Round) -> None:
        """Any order, repetition and portions, while one to three workers are at it; then some of it replayed."""
        self.since, chance = self.now(), one.chance("delivery")
        with self.workers(chance, count=chance.choice([1, 2, 3]), sizes=SIZES, lanes=ledger.LANES):
            for portion in one.arrivals():
                self.receive(portion, chance.choice(DELIVERED))
            if chance.random() < 0.3:
                again = [event["id"] for event in chance.sample(one.events, k=len(one.events) // 3)]
                with self.engine.begin() as connection:
                    ledger.replay(connection, again, lane="bulk")
        self.settle()

    def receive(self, posts: Iterable[Mapping[str, Any] | SignUp], lane: ledger.Lane) -> None:
        """Store events as the receiver does, and users as the front end does."""
        with self.engine.begin() as connection:
            for post in posts:
                if isinstance(post, SignUp):
                    self._sign_up(post)
                else:
                    ledger.record(connection, envelope.read(body_of(post), lane=lane))

    def _sign_up(self, one: SignUp) -> None:
        verified = "to_timestamp(0)" if one.is_verified else "NULL"
        self.execute(
            f"INSERT INTO users (id, email, name, email_verified) VALUES (:id, :email, :name, {verified})",
            id=one.user.id,
            email=one.user.email,
            name=one.user.name,
        )
        if one.provider:
            self.execute(
                "INSERT INTO accounts (id, user_id, type, provider, provider_account_id)"
                " VALUES (:account, :id, 'oauth', :provider, :id)",
                account=f"account_{one.user.id}",
                id=one.user.id,
                provider=one.provider,
            )

    @contextmanager
    def workers(self, chance: Random, *, count: int, sizes: Sequence[int], lanes: Sequence[ledger.Lane]) -> Any:
        """Workers with connections of their own, at work until the block has ended and nothing is left."""
        closing, errors = threading.Event(), list[BaseException]()
        with ExitStack() as engines:
            threads = []
            for _ in range(count):
                settings = read_settings({**self.environ, "DUES_LIST_SIZE": str(chance.choice(sizes))})
                engine = connect(settings, application="worker")
                engines.callback(engine.dispose)
                road = Road(engine, settings)
                own = chance.sample(lanes, len(lanes))
                threads.append(threading.Thread(target=_work, args=(road, own, closing, errors), daemon=True))
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                closing.set()
                for thread in threads:
                    thread.join(PATIENCE)
        if errors:
            raise errors[0]

    def settle(self) -> None:
        """Let what was postponed be tried again at once, and decide what is due."""
        road = Road(self.engine, self.settings)
        for _ in range(12):
            waiting = self.execute(
                "UPDATE stripe_events SET due_at = clock_timestamp() WHERE status = 'received'"
                " RETURNING id, type, reason, error",
            )
            if not waiting:
                break
            for row in waiting:
                if row.error and "40P01" in row.error:
                    raise StuckError(f"deadlock: {row.id} {row.type}: {row.error}")
            for lane in ledger.LANES:
                road.process(lane)
        else:
            raise StuckError(f"never finished: {waiting}")
        bad = self.execute("SELECT id, type, error FROM stripe_events WHERE status = 'dead'")
        if bad:
            raise StuckError(f"dead: {bad[0]}")
        decide_due(self.engine, self.settings, limit=100_000)

    # --- answers ---

    def rows(self) -> Rows:
        """All rows of this round, by table and id, with every column."""
        return {table: self._table(table) for table in ("users", *LOCK_ORDER, "stripe_metadata_history", "accounts")}

    def _table(self, table: str) -> dict[str, Row]:
        rows = self.execute(f"SELECT * FROM {table} WHERE created_at >= :since", since=self.since)
        key: Callable[[Any], str] = (
            (lambda row: f"{row.object_id} {row.as_of}") if table == "stripe_metadata_history" else lambda row: row.id
        )
        return {key(row): dict(row._mapping) for row in rows}

    def sums(self, users: Collection[str]) -> dict[str, Row]:
        """{user: {source and expiry: tokens}}, as far as they are not 0."""
        found: dict[str, Row] = defaultdict(dict)
        for row in self.execute(
            "SELECT user_id, source, expires_at, sum(amount)::integer AS total FROM token_ledger"
            " WHERE user_id = ANY(:users) GROUP BY 1, 2, 3 HAVING sum(amount) <> 0",
            users=sorted(users),
        ):
            found[row.user_id][f"{row.source} until {row.expires_at}"] = row.total
        return dict(found)


def _work(road: Road, lanes: Sequence[ledger.Lane], closing: threading.Event, errors: list[BaseException]) -> None:
    try:
        while True:
            is_last = closing.is_set()
            done = sum(sum(road.process(lane).values()) for lane in lanes)
            if not done:
                if is_last:
                    return
                closing.wait(0.005)
    except BaseException as error:  # noqa: BLE001 - a thread has nobody else to tell
        errors.append(error)
