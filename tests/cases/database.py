"""The database roads: rows in through the one write path, links and decisions by the shells, answers out of the tables.

`rows` brings all rows of a step at once. `shuffled` brings them one by one in random order and runs LINK and DECIDE
after each: whatever came last, the end must be the same. Both decide only whom production would: the users whom the
rows concern, and those whose time has come.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime

from sqlalchemy import Engine, make_url, text

from models import token_ledger
from models.database import connect
from models.settings import Settings
from ops.embedded import EmbeddedPostgres
from tests.cases import rows
from tests.cases.loading import Case, Row, Step
from tests.cases.roads import Answers, Outcome, as_set, compare
from tests.cases.world import World
from tests.conftest import migrate, new_database, scratch_folder
from workers import balance, bookkeeping, concern, snapshots, tokens
from workers.link import link, owners_of
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
            visit.spend(step)
            compare(step, visit.answers(step, one_by_one=self._seed is not None), outcome)
        return outcome

    def _lists(self, case: Case, step: Step) -> Iterator[Sequence[Fact]]:
        facts = [(table, row) for table, some in step.add.items() for row in some]
        # What carries a foreign key to a user can't be there before the user is.
        if self._seed is None:
            yield sorted(facts, key=lambda fact: fact[0] != "users")
            return
        random.Random(f"{self._seed} {case.name} {step.at}").shuffle(facts)
        # Stripe's words may come in any order; what people decide at a moment stands before what arrives at it.
        decided = {"users", "overrides"} if "overrides" in step.add else set()
        for fact in sorted(facts, key=lambda fact: (fact[0] not in decided, fact[0] in {"accounts", "overrides"})):
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
        # A row of the history stands for the snapshot that left it.
        effects.catalogue |= {row["object_id"] for table, row in facts if table == "metadata_history"}
        with self._engine.begin() as connection:
            customers = effects.customers | concern.customers_of(connection, effects.objects)
            customers |= set(concern.customers_with(connection, effects.catalogue, limit=SLICE))
            people = moved | due | concern.guests_of(connection, self._settings, effects)
            people |= set(owners_of(connection, customers).values())
        with self._engine.begin() as connection:
            decisions = decide(connection, self._settings, people, customers=customers, now=now)
            # What is next by the case's clock is kept here, so that in the column only triggers speak, by the real one.
            connection.execute(
                text("UPDATE users SET next_change_at = NULL WHERE id = ANY(:ids)"), {"ids": sorted(decisions)}
            )
        self._next_changes |= {user_id: decision.next_change_at for user_id, decision in decisions.items()}

    def spend(self, step: Step) -> None:
        """Spend as the API does, then let the users concerned be decided once more."""
        for number, one in enumerate(step.spends):
            user = one["user"]
            with self._engine.begin() as connection:
                connection.execute(text("SELECT FROM users WHERE id = :id FOR NO KEY UPDATE"), {"id": user})
                entries = [balance.Entry(*row) for row in token_ledger.entries(connection, [user])]
                key = f"{step.at} {number}"
                token_ledger.book(connection, balance.spend(user, one["amount"], key, entries, step.at).plan.bookings)
                decide(connection, self._settings, [user], now=step.at)

    def answers(self, step: Step, *, one_by_one: bool) -> Answers:
        """Read what the front end would read, and from the ledger what was granted.

        Where rows came one by one, something may have been granted and have ended that is not granted when all is known
        at once: the ledger's sum is the same, and such a source is left out if the case does not expect it.
        """
        with self._engine.begin() as connection:
            people = connection.execute(
                text(
                    "SELECT id, role::text, membership_status::text, stripe_product_id, grace_until, tokens,"
                    " tokens_expires_at, dues_email_hash(email) AS email_hash FROM users",
                ),
            ).mappings()
            users = {row["id"]: dict(row) for row in people}
            customers = connection.execute(text("SELECT id, user_id, alias_of FROM stripe_customers")).mappings()
            links = {row["id"]: dict(row) for row in customers}
            owners = {one: owners_of(connection, [one]).get(one, "") for one in links}
            facts = bookkeeping.load_facts(connection, self._settings, {*users, ""}, owners)
            targets = {user: tokens.targets(found) for user, found in facts.items()}
            sources = {target.source for found in targets.values() for target in found.targets}
            booked = [balance.Entry(*row) for row in token_ledger.entries(connection, users, sources=sources)]
        grants = {
            (grant.source, grant.amount, grant.expires_at)
            for user, row in users.items()
            for grant in balance.grants(user, targets[user].targets, booked, row["email_hash"])
        }
        if one_by_one and "grants" in step.expect:
            expected = {source for source, *_ in as_set("grants", step.expect["grants"])}
            left = Counter[str]()
            for entry in booked:
                left[entry.source or ""] += entry.amount
            grants = {grant for grant in grants if grant[0] in expected or left[grant[0]] != 0}
        waiting = {note.id for found in targets.values() for note in found.waiting}
        return {"users": users, "links": links, "grants": grants, "waiting": waiting}

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
