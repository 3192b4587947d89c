"""The database roads: rows in through the one write path, links and decisions by the shells, answers out of the tables.

`rows` brings all rows of a step at once. `shuffled` brings them one by one in random order and runs LINK and DECIDE
after each: whatever came last, the end must be the same. Both decide only whom production would: the users whom the
rows concern, and those whose time has come.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator, Sequence
from datetime import datetime

from sqlalchemy import Engine, make_url, text

from models.database import connect
from models.settings import Settings
from ops.embedded import EmbeddedPostgres
from tests.cases import rows
from tests.cases.loading import Case, Row, Step
from tests.cases.roads import Answers, Outcome, compare
from tests.cases.world import World
from tests.conftest import migrate, new_database, scratch_folder
from workers import snapshots
from workers.link import link, owners_of
from workers.process import subscriptions_with
from workers.recompute import SLICE, decide

Fact = tuple[str, Row]
"""A table of the cases, and one of its rows."""


class DatabaseRoad:
    """Rows of each step → tables → LINK → DECIDE, by the modules that production runs."""

    def __init__(self, engine: Engine, seed: int | None = None) -> None:
        """Take a migrated database that nobody else uses; with a `seed` the rows come one by one, shuffled by it."""
        self.name = "rows" if seed is None else "shuffled"
        self._engine = engine
        self._seed = seed

    def run(self, case: Case) -> Outcome:
        """Empty the database, go through the steps of a case and compare after each."""
        outcome, visit = Outcome(), _Visit(self._engine, case)
        for step in case.steps:
            visit.remove(step.removed_users)
            for facts in self._lists(case, step):
                visit.bring(facts, step.at)
            compare(step, visit.answers(), outcome)
        return outcome

    def _lists(self, case: Case, step: Step) -> Iterator[Sequence[Fact]]:
        facts = [(table, row) for table, some in step.add.items() for row in some]
        # What carries a foreign key to a user can't be there before the user is.
        if self._seed is None:
            yield sorted(facts, key=lambda fact: fact[0] != "users")
            return
        random.Random(f"{self._seed} {case.name} {step.at}").shuffle(facts)
        for fact in sorted(facts, key=lambda fact: fact[0] in {"accounts", "overrides"}):
            yield [fact]
        yield []  # the clock moves even if nothing comes


class _Visit:
    """One case in the database."""

    def __init__(self, engine: Engine, case: Case) -> None:
        self._engine = engine
        self._world = World()
        self._settings = Settings(
            grace_days=case.settings["DUES_GRACE_DAYS"],
            link_by_email=case.settings["DUES_LINK_BY_EMAIL"],
            trusted_providers=tuple(case.settings["DUES_TRUSTED_PROVIDERS"].split(",")),
        )
        names = sorted({row["id"] for step in case.steps for row in step.add.get("overrides", ())})
        self._override_ids = {name: number for number, name in enumerate(names, 1)}
        self._next_changes: dict[str, datetime | None] = {}
        with engine.begin() as connection:
            rows.empty(connection)

    def remove(self, users: Sequence[str]) -> None:
        """Delete users as a front end would."""
        for user_id in users:
            self._world.remove_user(user_id)
            self._next_changes.pop(user_id, None)
            with self._engine.begin() as connection:
                connection.execute(text("DELETE FROM users WHERE id = :id"), {"id": user_id})

    def bring(self, facts: Sequence[Fact], now: datetime) -> None:
        """Write the rows of a list, then link and decide those whom they concern or whose time has come."""
        mirrored = []
        with self._engine.begin() as connection:
            for table, row in facts:
                whole = self._world.put(table, row)
                if table in rows.MIRRORED:
                    mirrored.append(rows.snapshot_of(table, whole, now))
                    continue
                if table == "overrides":
                    whole = {**whole, "id": self._override_ids[whole["id"]]}
                rows.write(connection, table, row, whole, now)
        with self._engine.begin() as connection:
            effects = snapshots.write(connection, mirrored, applies=lambda _: True)
        due = self._due(now)
        moved = link(self._engine, self._settings, customers=effects.evidence_changed, users=due)
        with self._engine.begin() as connection:
            concerned = subscriptions_with(connection, effects.catalogue, limit=SLICE)
            owners = owners_of(connection, effects.customers | set(concerned.values()))
        people, subscriptions = moved | due | set(owners.values()), effects.subscriptions | concerned.keys()
        with self._engine.begin() as connection:
            decisions = decide(connection, self._settings, people, subscriptions=subscriptions, now=now)
            # What is next by the case's clock is kept here, so that in the column only triggers speak, by the real one.
            connection.execute(
                text("UPDATE users SET next_change_at = NULL WHERE id = ANY(:ids)"), {"ids": sorted(decisions)}
            )
        self._next_changes |= {user_id: decision.next_change_at for user_id, decision in decisions.items()}

    def answers(self) -> Answers:
        """Read what the front end would read. A balance is no answer before tokens are booked."""
        with self._engine.begin() as connection:
            people = connection.execute(
                text("SELECT id, role::text, membership_status::text, stripe_product_id, grace_until FROM users"),
            ).mappings()
            customers = connection.execute(text("SELECT id, user_id, alias_of FROM stripe_customers")).mappings()
            return {
                "users": {row["id"]: dict(row) for row in people},
                "links": {row["id"]: dict(row) for row in customers},
            }

    def _due(self, now: datetime) -> set[str]:
        """Return whom beat would decide: who signed up, whom a trigger made due, whose time has come."""
        with self._engine.begin() as connection:
            found = connection.execute(text("SELECT id FROM users WHERE next_change_at IS NOT NULL"))
            by_trigger = {row.id for row in found}
        return by_trigger | {user_id for user_id, at in self._next_changes.items() if at is not None and at <= now}


@contextlib.contextmanager
def scratch_engine() -> Iterator[Engine]:
    """Make a migrated database, on the server of DATABASE_URL or else an embedded one; it is dropped at the end."""
    given = os.environ.get("DATABASE_URL")
    with contextlib.ExitStack() as stack:
        if given:
            server = make_url(given).set(drivername="postgresql").render_as_string(hide_password=False)
        else:
            server = stack.enter_context(EmbeddedPostgres(scratch_folder(), throwaway=True)).url
        url = stack.enter_context(new_database(server))
        migrate(url)
        yield stack.enter_context(engine_for(url))


@contextlib.contextmanager
def engine_for(url: str) -> Iterator[Engine]:
    """Connect to a database as Dues itself, so that nothing written counts as a person's direct write."""
    address = make_url(url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    engine = connect(Settings(database_url=address), application="cases", pool_size=2)
    try:
        yield engine
    finally:
        engine.dispose()
