"""`dues doctor`: one small function for each thing that can be wrong; each says what to do.

docs/operations.md explains every finding.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from models import attention, sync_runs
from models.settings import Settings, SettingsError, read_settings, require
from ops import failures, migrating
from workers import reconcile, watchdog
from workers.bell import Bell
from workers.findings import Finding, Level, some
from workers.stripe_api import StripeApi, StripeApiError

# Seconds by which clocks may differ: beyond the second, signatures begin to look stale (they may be 300 s old).
CLOCK_WARNING, CLOCK_PROBLEM = 5.0, 60.0
# Beat has it done every hour, and a run may take a while.
RECONCILE_LATE_SECONDS = 3 * 3600.0


@dataclass(frozen=True, slots=True)
class Patient:
    """What is looked at; a check takes what it needs. With `fix` the endpoint may be enabled."""

    settings: Settings
    connection: Connection
    fix: bool = False


def examine(
    environ: Mapping[str, str], connect: Callable[[Settings], Engine], *, fix: bool = False
) -> Iterator[Finding]:
    """Look at everything, one finding after the other; what can't be looked at is a finding too."""
    try:
        settings = read_settings(environ)
        require(settings, "DATABASE_URL", "REDIS_URL")
    except SettingsError as error:
        for problem in error.problems:
            yield Finding("settings", "problem", problem, ".env.example describes every setting")
        return
    yield from check_settings(settings)
    yield check_redis(settings)
    engine = connect(settings)
    try:
        with engine.connect() as connection:
            yield from _with_database(Patient(settings, connection, fix))
    except SQLAlchemyError as error:
        yield Finding(
            "database", "problem", failures.without_secrets(failures.sentence(error)), "nothing else could be looked at"
        )
    finally:
        engine.dispose()


def _with_database(patient: Patient) -> Iterator[Finding]:
    yield check_database(patient.connection)
    schema = check_schema(patient.connection)
    yield schema
    if schema.level == "problem":
        return
    for check in CHECKS:
        yield from check(patient)


def check_settings(settings: Settings) -> Iterator[Finding]:
    """What is set well enough to start, and what Dues does without."""
    yield Finding("settings", "ok", f"DUES_ENV is {settings.env}; every setting can be read")
    if not settings.stripe_api_key:
        level: Level = "ok" if settings.env == "development" else "warning"
        yield Finding(
            "settings",
            level,
            "without STRIPE_API_KEY what never arrived is not found",
            "give the workers a restricted key",
        )
    for pause in sorted(settings.pause):
        yield Finding("settings", "warning", f"DUES_PAUSE holds {pause}", "take it out when it is no longer needed")
    if settings.shadow:
        yield Finding(
            "settings", "warning", "DUES_SHADOW is on: users are left alone", "set it to 0 to let Dues decide"
        )


def check_redis(settings: Settings) -> Finding:
    """Whether Redis answers: without it everything is late by up to half a minute."""
    bell = Bell(settings.redis_url)
    try:
        if bell.is_heard():
            return Finding("redis", "ok", "Redis answers")
    finally:
        bell.close(timeout=0)
    return Finding(
        "redis", "problem", "Redis does not answer: events wait for the sweep", "start it, or correct REDIS_URL"
    )


def check_database(connection: Connection) -> Finding:
    """Which PostgreSQL this is, and whether it takes writes."""
    row = connection.execute(
        text("SELECT current_setting('server_version') AS version, pg_is_in_recovery() AS standby")
    ).one()
    if row.standby:
        return Finding("database", "problem", "PostgreSQL is a standby", "let DATABASE_URL lead to the primary")
    return Finding("database", "ok", f"PostgreSQL {row.version} answers")


def check_schema(connection: Connection) -> Finding:
    """Whether the tables are those of this version."""
    now, head = migrating.current(connection), migrating.head()
    if now == head:
        return Finding("schema", "ok", f"the database is at revision {head}")
    found = f"the database is at revision {now or 'base'}, this version of Dues needs {head}"
    return Finding("schema", "problem", found, "run `dues db upgrade`, or the version of Dues that the database is for")


# --- checks that need the tables -------------------------------------------------------------------------------------


def check_clock(patient: Patient) -> Iterator[Finding]:
    """Whether this host's clock agrees with the database's."""
    begin = time.time()
    there = patient.connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one()
    yield clock("the database's", float(there) - (begin + time.time()) / 2)


def clock(whose: str, seconds: float) -> Finding:
    """Judge by how many seconds a clock is ahead of this host's."""
    if abs(seconds) < CLOCK_WARNING:
        return Finding("clock", "ok", f"this host's clock and {whose} agree to {max(abs(seconds), 0.1):.1f} s")
    level: Level = "warning" if abs(seconds) < CLOCK_PROBLEM else "problem"
    found = f"this host's clock is {abs(seconds):.0f} s {'behind' if seconds > 0 else 'ahead of'} {whose}"
    return Finding("clock", level, found, "let NTP set both: signatures are refused once they look 300 s old")


def check_beat(patient: Patient) -> Iterator[Finding]:
    """Whether the tasks that beat sends have been run."""
    run = sync_runs.latest(patient.connection, watchdog.KIND)
    todo = "see that `dues beat` and a `dues worker` with lane api are running"
    if run is None:
        yield Finding("beat", "warning", "the watchdog has not looked yet", f"{todo}; it looks every five minutes")
        return
    minutes = run.age / 60
    if minutes > watchdog.LATE_MINUTES:
        yield Finding("beat", "problem", f"the watchdog last looked {minutes:.0f} minutes ago", todo)
    else:
        yield Finding("beat", "ok", f"the watchdog looked {minutes:.0f} minutes ago")


def check_stripe(patient: Patient) -> Iterator[Finding]:
    """Whether Stripe answers, agrees about the time, and sends its events here."""
    if not patient.settings.stripe_api_key:
        return
    with contextlib.closing(StripeApi(patient.settings, urgent=True)) as stripe:
        try:
            begin = time.time()
            # `as_of` is a second, and what the answer took, before what Stripe's clock showed.
            there = next(stripe.pages("event", limit=1)).as_of + 1
            yield Finding("stripe", "ok", "Stripe answers, and takes STRIPE_API_KEY")
            yield clock("Stripe's", there - begin)
            found = watchdog.endpoints(stripe)
            if patient.fix:
                yield from _enable(stripe, watchdog.ours(found, patient.settings))
                found = watchdog.endpoints(stripe)
            hears_thin = watchdog.hears_thin(patient.connection)
            yield from watchdog.endpoint(found, patient.settings, hears_thin=hears_thin)
            yield watchdog.silence(patient.connection, stripe)
        except StripeApiError as error:
            todo = "see whether the key is right and may read, and whether Stripe can be reached from here"
            yield Finding("stripe", "problem", failures.without_secrets(str(error)), todo)


def _enable(stripe: StripeApi, endpoints: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    for one in endpoints:
        if one["status"] != "enabled":
            stripe.modify("webhook_endpoint", one["id"], disabled=False)
            said = f"endpoint {one['id']} has been enabled"
            yield Finding("endpoint", "warning", said, "`dues reconcile --repair` catches up with what was missed")


def check_watchdog(patient: Patient) -> Iterator[Finding]:
    """What only the watchdog can tell, who looks again and again: refused signatures, secrets that nobody uses."""
    run = sync_runs.latest(patient.connection, watchdog.KIND, "done")
    yield from (
        one for one in watchdog.load(run.counts if run else {}) if one.check in {"signature", "secret", "receiver"}
    )


def check_reconcile(patient: Patient) -> Iterator[Finding]:
    """When Dues last asked Stripe what it had missed."""
    if not patient.settings.stripe_api_key:
        return
    run = sync_runs.latest(patient.connection, reconcile.KIND, "done")
    todo = "`dues reconcile` asks at once; its row in sync_runs tells what went wrong"
    if run is None:
        yield Finding("reconcile", "warning", "Stripe has not been asked yet what was missed", todo)
    elif run.age > RECONCILE_LATE_SECONDS:
        yield Finding(
            "reconcile", "problem", f"Stripe was last asked {run.age / 3600:.0f} hours ago what was missed", todo
        )
    else:
        yield Finding("reconcile", "ok", f"Stripe was asked {run.age / 60:.0f} minutes ago what was missed")


@dataclass(frozen=True, slots=True)
class Look:
    """What is said of the cases that `models.attention` finds."""

    level: Level
    found: str
    todo: str
    none: str


LOOKS = {
    "waiting": Look(
        "problem",
        "{n} events are overdue: {ids}",
        "see that a `dues worker` runs for every lane",
        "no event is overdue",
    ),
    "undecided": Look(
        "problem",
        "{n} decisions are overdue: {ids}",
        "see that `dues beat` and a `dues worker` run",
        "no decision is overdue",
    ),
    "dead": Look(
        "warning",
        "{n} dead letters: {ids}",
        "`dues events show ID` tells why; `dues events replay` tries again",
        "no dead letters",
    ),
    "purchases": Look(
        "warning",
        "{n} purchases wait for their line items: {ids}",
        "give the workers STRIPE_API_KEY, or name the tokens in the session's metadata",
        "no purchase waits",
    ),
    "orphans": Look(
        "warning",
        "{n} customers have paid and are nobody's: {ids}",
        "`dues users link`, once you know whose they are",
        "whoever paid is somebody's",
    ),
    "conflicts": Look(
        "warning",
        "the evidence about {n} customers names several users: {ids}",
        "`dues users link` settles it",
        "no evidence conflicts",
    ),
    "overrides": Look(
        "warning",
        "{n} users' roles were written directly and hold against Stripe: {ids}",
        "end the override, or lay on one of your own",
        "no role was written directly",
    ),
    "contested": Look(
        "warning",
        "{n} rows are contested: {ids}",
        "with STRIPE_API_KEY Stripe is asked; else wait for the next event",
        "no row is contested",
    ),
    "metadata": Look(
        "warning",
        "{n} values of metadata count as nothing: {ids}",
        "correct them at Stripe; docs/policy.md says what may stand there",
        "all metadata can be read",
    ),
}


def check_attention(patient: Patient) -> Iterator[Finding]:
    """What waits for a person."""
    for name, say in LOOKS.items():
        cases = attention.look(patient.connection, name)
        if cases.n:
            yield Finding(name, say.level, say.found.format(n=cases.n, ids=some(cases.ids, cases.n)), say.todo)
        else:
            yield Finding(name, "ok", say.none)


CHECKS: tuple[Callable[[Patient], Iterator[Finding]], ...] = (
    check_clock,
    check_stripe,
    check_beat,
    check_reconcile,
    check_watchdog,
    check_attention,
)
