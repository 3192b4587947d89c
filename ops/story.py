"""Plays a story of the simulated Stripe against the real thing, and tells what came of it.

Whatever is told is read from the database, and after each step compared with what Stripe's own state implies.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any, TypeVar

import psycopg
from celery import Celery
from sqlalchemy import Connection, Engine

from models import ledger
from ops import expected, observed
from ops.failures import Failed
from ops.narrator import BOLD, DIM, GREEN, Narrator
from simulator.delivery import Plan, Report, deliver
from simulator.objects import Event
from simulator.people import USERS
from simulator.state import Stripe
from simulator.stories import STORIES, Step
from simulator.versions import VERSIONS
from workers.bell import Bell
from workers.broker import broker

T = TypeVar("T")

STORY = STORIES["membership"]
PEOPLE = USERS[: STORY.users]
DUPLICATES = 0.25
# More types than these are told by family.
FEW_TYPES = 4
# More than the ledger waits before it tries again what failed for a reason that passes.
STEP_SECONDS = 75.0
POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Stage:
    """Where the story plays: the database as Dues and as a front end reach it, the receiver, and the bell's Redis."""

    engine: Engine
    database_url: str
    redis_url: str
    webhook: str
    secret: str
    is_stopping: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Result:
    """What the database holds: events by status, and every user."""

    events: Mapping[str, int]
    users: Sequence[Mapping[str, Any]]


def result(engine: Engine) -> Result:
    """Read how it all stands."""
    with engine.connect() as connection:
        return Result(observed.events_by_status(connection), observed.users(connection))


class Stopped(Failed):
    """Somebody ended the demo before the story's end."""

    def __init__(self) -> None:
        super().__init__("Stopped before the story was over; nothing is left behind.")


class Play:
    """One telling of the story; equal seeds give equal events and an equal journey (at the same time of the day)."""

    def __init__(self, stage: Stage, narrator: Narrator, seed: int) -> None:
        self._stage = stage
        self._narrator = narrator
        self._random = Random(seed)
        self._stripe = Stripe(seed, STORY.begin(int(time.time())))
        self._chapters = 0

    def play(self) -> Result:
        """Play all of it. Raises Failed if the database does not get where it should, and Stopped."""
        self._sign_up()
        for step in STORY.tell(self._stripe, PEOPLE):
            self._step(step)
        self._all_again()
        return result(self._stage.engine)

    def _sign_up(self) -> None:
        """Write users as the front end would, and let the task decide them that beat sends every 20 seconds."""
        *names, last = (person.name or person.email for person in PEOPLE)
        sentence = f"{', '.join(names)} and {last} sign up: the front end writes them into `users`."
        self._begin("Sign-up", self._stripe.now, sentence)
        with self._observing():
            with psycopg.connect(self._stage.database_url) as connection:
                for person in PEOPLE:
                    connection.execute(
                        "INSERT INTO users (id, email, name) VALUES (%s, %s, %s)",
                        [person.id, person.email, person.name],
                    )
            url, options = broker(self._stage.redis_url)
            with Celery(broker=url, set_as_current=False) as app:
                app.conf.broker_transport_options = options
                app.send_task("decide_due", queue="live", ignore_result=True)
            self._wait(())

    def _step(self, step: Step) -> None:
        """Deliver what happened in this step, wait until it is done, and tell what it changed."""
        self._begin(step.title, step.at, step.sentence)
        with self._observing():
            began = time.monotonic()
            report = self._deliver(step.events)
            ids = {event.id for event in step.events}
            self._wait(ids)
            self._tell_delivery(step.events, report, time.monotonic() - began)
            self._tell_endings(ids)

    def _all_again(self) -> None:
        """Deliver and process everything once more: not a row may differ."""
        events = self._stripe.events
        sentence = (
            "Stripe delivers every event of the story once more: all are known, and nothing is done. Then each of them"
            " is processed again from the start, as `dues events replay` does."
        )
        self._begin("Everything once more", int(time.time()), sentence)
        before = self._read(observed.fingerprint)
        began = time.monotonic()
        report = self._deliver(events)
        self._replay([event.id for event in events])
        self._tell_delivery(events, report, time.monotonic() - began)
        after = self._read(observed.fingerprint)
        differing = sorted(row for row in {*before, *after} if before.get(row) != after.get(row))
        if differing:
            raise Failed(f"After a replay these rows differ: {', '.join(f'{table} {id}' for table, id in differing)}.")
        tables = len({table for table, _ in after})
        counted = self._read(observed.events_by_status)
        self._narrator.fact("ledger", ", ".join(f"{number} {status}" for status, number in counted.items()))
        self._narrator.fact("database", f"not one of {len(after)} rows in {tables} tables differs", GREEN)

    def _replay(self, ids: Sequence[str]) -> None:
        with self._stage.engine.begin() as connection:
            ledger.replay(connection, ids)
        bell = Bell(self._stage.redis_url)
        bell.ring("bulk")
        bell.close()
        self._wait(ids)

    # --- delivering and waiting ---

    def _deliver(self, events: Sequence[Event]) -> Report:
        plan = Plan(
            seed=self._random.randrange(2**32),
            shuffle=True,
            duplicates=DUPLICATES,
            api_versions=VERSIONS,
            timeout_s=5.0,
        )
        report = deliver(events, self._stage.webhook, [self._stage.secret], plan)
        if self._stage.is_stopping():
            raise Stopped
        if not report.ok:
            answers = ", ".join(f"{times} × {answer}" for answer, times in report.answers.items())
            raise Failed(f"The receiver did not take {len(report.undelivered)} events; its answers: {answers}.")
        return report

    def _wait(self, ids: Collection[str]) -> None:
        """Wait until these events have ended and the database is what Stripe's state implies."""
        deadline = time.monotonic() + STEP_SECONDS
        while problems := self._read(lambda connection: self._problems(connection, ids)):
            if self._stage.is_stopping():
                raise Stopped
            if time.monotonic() > deadline:
                raise Failed(
                    f"After {STEP_SECONDS:.0f} s the database is not where it should be: {'; '.join(problems)}."
                )
            time.sleep(POLL_SECONDS)
        dead = self._read(lambda connection: observed.dead(connection, ids))
        if dead:
            raise Failed(f"Events were given up: {'; '.join(dead)}.")

    def _problems(self, connection: Connection, ids: Collection[str]) -> list[str]:
        return observed.waiting(connection, ids) or expected.differences(connection, self._stripe, PEOPLE)

    def _read(self, question: Callable[[Connection], T]) -> T:
        with self._stage.engine.connect() as connection:
            return question(connection)

    # --- telling ---

    def _begin(self, title: str, at: int, sentence: str) -> None:
        self._chapters += 1
        moment = datetime.fromtimestamp(at, UTC)
        self._narrator.chapter(self._chapters, title, f"{moment.day} {moment:%B %Y}", sentence)

    def _tell_delivery(self, events: Sequence[Event], report: Report, seconds: float) -> None:
        again = report.posted - len(events)
        told = f"{len(events)} events, shuffled" if len(events) > 1 else "1 event"
        twice = f", {again} of them twice" if len(events) > 1 else ", sent twice"
        self._narrator.fact("Stripe", f"{told}{twice if again else ''}; all done in {seconds:.2f} s")

    def _tell_endings(self, ids: Collection[str]) -> None:
        for (status, reason), types in self._read(lambda connection: observed.endings(connection, ids)).items():
            why = f" ({reason})" if reason not in {None, "type"} else ""
            self._narrator.fact(status, (in_words if len(types) <= FEW_TYPES else in_families)(types) + why)

    @contextlib.contextmanager
    def _observing(self) -> Iterator[None]:
        """Tell what changed in the database from the beginning to the end of this."""
        before, last = self._read(observed.rows), self._read(observed.last_change)
        yield
        after, decided = (
            self._read(observed.rows),
            self._read(lambda connection: observed.changes_since(connection, last)),
        )
        lines = list(observed.changes(before, after))
        for number, (mark, line) in enumerate(lines):
            self._narrator.row("" if number else "database", mark, line)
        for number, change in enumerate(decided):
            self._narrator.row("" if number else "decided", "~", f"user {change.email}: {change.what}", BOLD)
            self._narrator.row("", " ", " ".join(change.reasons), DIM)
        if not lines and not decided:
            self._narrator.fact("database", "nothing that is told here has changed")


def in_words(types: Mapping[str, int]) -> str:
    """Event types and how many of each."""
    return ", ".join(f"{type} ×{number}" if number > 1 else type for type, number in types.items())


def in_families(types: Mapping[str, int]) -> str:
    """The same, shorter: several types that differ in the last word only are told as a family."""
    families: dict[str, dict[str, int]] = {}
    for type, number in types.items():
        families.setdefault(type.rpartition(".")[0], {})[type] = number
    told = {f"{name}.*" if len(some) > 1 else next(iter(some)): sum(some.values()) for name, some in families.items()}
    return in_words(told)
