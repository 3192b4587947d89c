"""Syncs, backfills, reconciliations and looks of the watchdog: one row each, one at a time of each kind.

Long work goes slice by slice. Whoever makes a slice takes the turn of its kind, continues the running row from its
cursor and saves the cursor with every step; so a run whose maker has died is continued by whoever comes next, and
however many beats ask, there is one run.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

Ended = Literal["done", "failed"]


@dataclass(slots=True)
class Run:
    """A row of `sync_runs`; `cursor` and `counts` are what `save` writes. By the database's clock it is `age` s old."""

    id: int
    started_at: datetime
    cursor: str | None = None
    counts: dict[str, Any] = field(default_factory=dict)
    age: float = field(default=0.0, compare=False)


@contextlib.contextmanager
def turn(engine: Engine, kind: str) -> Iterator[bool]:
    """Be the only one to work on `kind` until the end of the block; False if somebody else is at it.

    A session holds the lock, not a transaction: it lasts while Stripe is asked, and ends with a process that dies.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        names = {"kind": kind}
        is_ours = connection.execute(text(f"SELECT pg_try_advisory_lock({_LOCK})"), names).scalar_one()
        try:
            yield is_ours
        finally:
            if is_ours:
                with contextlib.suppress(DBAPIError):  # a lost session has let go already
                    connection.execute(text(f"SELECT pg_advisory_unlock({_LOCK})"), names)


_LOCK = "hashtext('dues.sync_runs'), hashtext(:kind)"


def running(connection: Connection, kind: str) -> Run | None:
    """The run of this kind that nobody has ended."""
    return _one(connection, "kind = :kind AND status = 'running'", kind=kind)


def latest(connection: Connection, kind: str, status: Ended | None = None) -> Run | None:
    """The run of this kind, of those that ended so, that was started last."""
    condition = "kind = :kind AND status = coalesce(CAST(:status AS text), status)"
    return _one(connection, condition, kind=kind, status=status)


def _one(connection: Connection, condition: str, **parameters: Any) -> Run | None:
    row = connection.execute(
        text(
            "SELECT id, started_at, cursor, counts, extract(epoch FROM clock_timestamp() - started_at)::float AS age"
            f" FROM sync_runs WHERE {condition}"
            " ORDER BY started_at DESC, id DESC LIMIT 1"
        ),
        parameters,
    ).one_or_none()
    return None if row is None else Run(*row)


def last_done(connection: Connection) -> dict[str, Run]:
    """The run of each kind that was done last."""
    rows = connection.execute(
        text(
            "SELECT DISTINCT ON (kind) kind, id, started_at, NULL, counts,"
            " extract(epoch FROM clock_timestamp() - started_at)::float AS age"
            " FROM sync_runs WHERE status = 'done' ORDER BY kind, started_at DESC, id DESC"
        )
    )
    return {row[0]: Run(*row[1:]) for row in rows}


def failed_lately(connection: Connection) -> dict[str, int]:
    """How many runs of each kind were begun within a day and failed; kinds of which none did are named too."""
    rows = connection.execute(
        text(
            "SELECT kind, count(*) FILTER (WHERE status = 'failed') AS n FROM sync_runs"
            " WHERE started_at > now() - interval '1 day' GROUP BY 1"
        )
    )
    return {row.kind: row.n for row in rows}


def begin(connection: Connection, kind: str, cursor: str | None = None, *, every: float = 0) -> Run | None:
    """Begin a run, unless one was begun less than `every` seconds ago. The caller has the turn and commits.

    One that is still running is given up: whoever has the turn could have continued it.
    """
    row = connection.execute(
        text(
            "INSERT INTO sync_runs (kind, cursor) SELECT :kind, :cursor WHERE NOT EXISTS (SELECT FROM sync_runs"
            " WHERE kind = :kind AND started_at > clock_timestamp() - make_interval(secs => :every))"
            " RETURNING id, started_at, cursor"
        ),
        {"kind": kind, "cursor": cursor, "every": every},
    ).one_or_none()
    if row is None:
        return None
    connection.execute(
        text(
            "UPDATE sync_runs SET status = 'failed', error = 'given up for a later run',"
            " finished_at = clock_timestamp() WHERE kind = :kind AND status = 'running' AND id <> :id"
        ),
        {"kind": kind, "id": row.id},
    )
    return Run(*row)


def save(connection: Connection, run: Run) -> None:
    """Write down how far a run has come."""
    _change(connection, run)


def finish(connection: Connection, run: Run, status: Ended, error: str | None = None) -> None:
    """End a run; `error` is a sentence without anybody's data."""
    _change(
        connection,
        run,
        "status = :status, error = :error, finished_at = clock_timestamp(),",
        status=status,
        error=error,
    )


def _change(connection: Connection, run: Run, changes: str = "", **parameters: Any) -> None:
    connection.execute(
        text(
            f"UPDATE sync_runs SET {changes} cursor = :cursor, counts = CAST(:counts AS jsonb)"
            " WHERE id = :id AND status = 'running'"
        ),
        {"id": run.id, "cursor": run.cursor, "counts": json.dumps(run.counts), **parameters},
    )
