"""/healthz, /readyz and /metrics: is the process alive, could it store an event now, and what it has seen."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from alembic.script import ScriptDirectory
from flask import Blueprint, Response, jsonify
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.core import GaugeMetricFamily
from sqlalchemy import Connection, Row, text

from ingest import metrics
from ingest.auth import needs_token
from ingest.database import Database, UnavailableError
from models import sync_runs
from models.ledger import LANES
from models.settings import Settings
from workers.bell import Bell

MIGRATIONS = Path(__file__).parents[1] / "migrations"
# A backlog is counted up to here: beyond, "more than" says enough.
MOST_COUNTED = 100_000
# How long the costlier figures are kept, in seconds.
FRESH = 10.0


def blueprint(settings: Settings, database: Database, bell: Bell) -> Blueprint:
    """The routes; /metrics only if there is a token to protect it."""
    routes = Blueprint("health", __name__)
    redis = _Redis(bell, database.seconds)
    figures = _Figures(database)

    def healthz() -> Response:
        return jsonify(alive=True)

    def readyz() -> tuple[Response, int]:
        asked = redis.ask()
        state = _storage(database)
        state["redis"] = redis.answer(asked)
        is_ready = state["postgres"] and state["schema"]
        return jsonify(ready=is_ready, **state), 200 if is_ready else 503

    def show_metrics() -> Response:
        asked = redis.ask()
        gauges = list(figures.gauges())
        gauges.append(_gauge("dues_redis_up", "Whether Redis answers.", [([], float(redis.answer(asked)))]))
        return Response(metrics.exposition(gauges), content_type=CONTENT_TYPE_LATEST)

    routes.add_url_rule("/healthz", "healthz", healthz)
    routes.add_url_rule("/readyz", "readyz", readyz)
    if settings.api_tokens:
        routes.add_url_rule("/metrics", "metrics", needs_token(settings.api_tokens, show_metrics))
    return routes


# --- ready? -----------------------------------------------------------------------------------------------------------


@functools.cache
def newest_migration() -> str | None:
    """The schema version that this code is made for."""
    return ScriptDirectory(str(MIGRATIONS)).get_current_head()


_VERSION = text(
    "SELECT version_num, has_table_privilege('stripe_events', 'INSERT')"
    " AND current_setting('transaction_read_only') = 'off' AS writable FROM alembic_version",
)


def _storage(database: Database) -> dict[str, bool]:
    """Whether PostgreSQL takes writes, and whether its schema is ours."""
    try:
        rows = database.run(lambda connection: connection.execute(_VERSION).all())
    except UnavailableError as error:
        # 42P01: there is no such table. PostgreSQL is there, but nobody has migrated it.
        return {"postgres": error.sqlstate == "42P01", "schema": False}
    return {
        "postgres": all(row.writable for row in rows),
        "schema": [row.version_num for row in rows] == [newest_migration()],
    }


class _Redis:
    """Asks whether Redis is there, in a thread: names that do not resolve keep a request longer than any time-out."""

    def __init__(self, bell: Bell, seconds: float) -> None:
        self._bell = bell
        self._seconds = seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="redis")
        self._asked: Future[bool] | None = None

    def ask(self) -> Future[bool]:
        if self._asked is None or self._asked.done():
            self._asked = self._thread.submit(self._bell.is_heard)
        return self._asked

    def answer(self, asked: Future[bool]) -> bool:
        try:
            return asked.result(self._seconds)
        except TimeoutError:
            return False


# --- figures ----------------------------------------------------------------------------------------------------------

# Every one reads an index of what is waiting, dead or recent, never the whole ledger.
_WAITING = text(
    f"""
    SELECT lane, count(w.received_at) AS n, extract(epoch FROM clock_timestamp() - min(w.received_at)) AS age
    FROM unnest(CAST(:lanes AS text[])) AS lane LEFT JOIN LATERAL (
        SELECT received_at FROM stripe_events e WHERE e.status = 'received' AND e.lane = lane.lane
        ORDER BY e.due_at, e.id LIMIT {MOST_COUNTED}
    ) AS w ON true GROUP BY lane ORDER BY lane
    """,  # noqa: S608 - a number of ours
)
_DEAD = text(f"SELECT count(*) FROM (SELECT FROM stripe_events WHERE status = 'dead' LIMIT {MOST_COUNTED}) AS d")  # noqa: S608
_RECENT = text(
    f"""
    SELECT status, coalesce(reason, '') AS reason, type, count(*) AS n FROM (
        SELECT status, reason, type FROM stripe_events
        WHERE received_at > now() - interval '1 hour' ORDER BY received_at DESC LIMIT {MOST_COUNTED}
    ) AS e GROUP BY 1, 2, 3 ORDER BY n DESC
    """,  # noqa: S608
)


class _Figures:
    """What the ledger says, asked at most every FRESH seconds."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._gauges: list[GaugeMetricFamily] = []
        self._until = 0.0

    def gauges(self) -> Iterable[GaugeMetricFamily]:
        """The gauges; if PostgreSQL is away only the one that says so."""
        if time.monotonic() >= self._until:
            try:
                self._gauges = self._database.run(
                    lambda connection: [*_ledger_gauges(connection), *_run_gauges(connection)]
                )
            except UnavailableError:
                return [_gauge("dues_postgres_up", "Whether PostgreSQL answers.", [([], 0.0)])]
            self._until = time.monotonic() + FRESH
        return self._gauges


def _ledger_gauges(connection: Connection) -> Iterator[GaugeMetricFamily]:
    yield _gauge("dues_postgres_up", "Whether PostgreSQL answers.", [([], 1.0)])
    waiting = connection.execute(_WAITING, {"lanes": list(LANES)}).all()
    yield _gauge(
        "dues_events_waiting",
        f"Events that wait for a worker or for their next try, by lane; counted up to {MOST_COUNTED}.",
        [([row.lane], row.n) for row in waiting],
        ["lane"],
    )
    yield _gauge(
        "dues_events_waiting_oldest_seconds",
        "Age of the oldest of them, by lane; 0 if none.",
        [([row.lane], float(row.age or 0)) for row in waiting],
        ["lane"],
    )
    yield _gauge("dues_events_dead", "Dead letters.", [([], connection.execute(_DEAD).scalar_one())])
    yield _gauge(
        "dues_events_last_hour",
        f"Events received in the last hour, by status, reason and type; of the newest {MOST_COUNTED}.",
        _few_types(connection.execute(_RECENT).all()),
        ["status", "reason", "type"],
    )


def _run_gauges(connection: Connection) -> Iterator[GaugeMetricFamily]:
    done = sync_runs.last_done(connection)
    yield _gauge(
        "dues_sync_last_done_seconds",
        "Seconds since the last run that came to its end was begun, by kind.",
        [([kind], run.age) for kind, run in done.items()],
        ["kind"],
    )
    yield _gauge(
        "dues_sync_failed_last_day",
        "Runs of the last day that failed, by kind.",
        [([kind], n) for kind, n in sync_runs.failed_lately(connection).items()],
        ["kind"],
    )
    counts = done["reconcile"].counts if "reconcile" in done else {}
    by_table = [(table, what, n) for table, found in counts.get("drift", {}).items() for what, n in found.items()]
    yield _gauge(
        "dues_reconcile_found",
        "What the last reconciliation found, by kind and, for drift, table; docs/operations.md says what each means.",
        [
            *(([what, ""], counts.get(what, 0)) for what in ("missed", "unreadable", "repaired", "gap_days")),
            *(([what, ""], n) for what, n in counts.get("people", {}).items()),
            (["money", ""], len(counts.get("money", {}))),
            *(([what, table], n) for table, what, n in by_table if "." not in what),
        ],
        ["what", "table"],
    )
    findings = done["watchdog"].counts.get("findings", ()) if "watchdog" in done else ()
    yield _gauge(
        "dues_watchdog_findings",
        "What the last look of the watchdog found, by check and level: ok, warning, problem.",
        [(list(key), n) for key, n in Counter((one["check"], one["level"]) for one in findings).items()],
        ["check", "level"],
    )


def _few_types(rows: Iterable[Row[Any]]) -> list[tuple[list[str], float]]:
    """Label values and counts; types beyond the most frequent ones are counted together."""
    counts: dict[tuple[str, str, str], float] = {}
    for place, row in enumerate(rows):
        key = (row.status, row.reason, row.type if place < metrics.MANY_TYPES else metrics.OTHER)
        counts[key] = counts.get(key, 0) + row.n
    return [(list(key), n) for key, n in counts.items()]


def _gauge(
    name: str, documentation: str, values: Iterable[tuple[list[str], float]], labels: list[str] | None = None
) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(name, documentation, labels=labels or [])
    for label_values, value in values:
        gauge.add_metric(label_values, value)
    return gauge
