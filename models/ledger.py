"""The ledger of events: what was received, who is trying it, when it is due again, and how it ended.

Only the database's clock counts, and every change after a claim says `WHERE claim = …`: an event whose lease ran out
belongs to whoever claimed it next, and the former holder changes nothing any more.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy import Connection

Lane = Literal["live", "bulk", "api"]
# What is in `api` must be asked of Stripe first; `live` and `bulk` never do that.
LANES: tuple[Lane, ...] = ("live", "bulk", "api")

# A payload that ends its worker takes a list along once, sixteen others once more, and then nobody.
SECOND_TRY_LIST = 16
# Tries that ended without a word, in a row, before the event is parked; the last of them was made alone.
SILENT_ENDS = 3
# What is asked of Stripe for somebody who waits is due so much sooner, though below what is told as waiting too long.
AHEAD_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Received:
    """What the receiver knows of an event; `created` in Unix seconds, `payload` the raw bytes."""

    id: str
    type: str
    payload: bytes
    created: int | None = None
    object_type: str | None = None
    object_id: str | None = None
    api_version: str | None = None
    livemode: bool | None = None
    account: str | None = None
    lane: Lane = "live"


@dataclass(frozen=True, slots=True)
class Kept:
    """What is needed of an event in the ledger to read it, and to tell whether it applies here."""

    id: str
    type: str
    payload: bytes | None
    livemode: bool | None
    account: str | None


@dataclass(frozen=True, slots=True)
class Claimed(Kept):
    """An event that this process may try until its lease ends.

    If it `is_repeated`, a former try may have written what it says, and ended before it told anybody.
    """

    attempts: int
    silent_ends: int
    is_repeated: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """A list of events under one lease."""

    token: str
    lane: Lane
    events: tuple[Claimed, ...]


_RECORD = text(
    """
    INSERT INTO stripe_events (id, type, object_type, object_id, created, api_version, livemode, account, payload, lane)
    VALUES (:id, :type, :object_type, :object_id, to_timestamp(:created), :api_version, :livemode, :account, :payload,
        :lane)
    ON CONFLICT (id) DO NOTHING
    """,
)


def record(connection: Connection, received: Received) -> bool:
    """Store one event; False if it was there already. The caller commits before it acknowledges."""
    return connection.execute(_RECORD, {name: getattr(received, name) for name in Received.__slots__}).rowcount == 1


def held(connection: Connection, ids: Collection[str]) -> set[str]:
    """Those of some ids that the ledger holds, however they ended."""
    return set(
        connection.execute(text("SELECT id FROM stripe_events WHERE id = ANY(:ids)"), {"ids": sorted(ids)}).scalars()
    )


def is_idle(connection: Connection) -> bool:
    """Whether nothing is left to do, now or later."""
    return connection.execute(text("SELECT FROM stripe_events WHERE status = 'received' LIMIT 1")).first() is None


# As a subquery it is asked once, so that the index is read no further than what is due; rounded as `due_at` is, or what
# has just been written would lie up to half a millisecond ahead.
_NOW = "(SELECT clock_timestamp()::timestamptz(3))"

_CLAIM = text(
    f"""
    WITH head AS (
        SELECT least(attempts, 2) AS class FROM stripe_events
        WHERE status = 'received' AND lane = :lane AND due_at <= {_NOW}
        ORDER BY due_at, id LIMIT 1
        FOR NO KEY UPDATE SKIP LOCKED
    ), waiting AS (
        SELECT id FROM stripe_events
        WHERE status = 'received' AND lane = :lane AND due_at <= {_NOW}
            AND least(attempts, 2) = (SELECT class FROM head)
        ORDER BY due_at, id
        LIMIT (SELECT CASE class WHEN 0 THEN :size WHEN 1 THEN least(:size, :second) ELSE 1 END FROM head)
        FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE stripe_events e
    SET attempts = e.attempts + 1, claim = :token, due_at = clock_timestamp() + make_interval(secs => :lease),
        error = CASE WHEN e.claim IS NULL THEN e.error
            ELSE 'silent end ' || 1 + coalesce(substring(e.error FROM '^silent end ([0-9]+)$')::integer, 0) END
    -- As an array, since a join could read the whole table where statistics are from when it was empty.
    WHERE e.id = ANY (ARRAY(SELECT id FROM waiting))
    RETURNING e.id, e.type, e.payload, e.livemode, e.account, e.attempts,
        coalesce(substring(e.error FROM '^silent end ([0-9]+)$')::integer, 0) AS silent_ends,
        e.attempts > 1 OR e.reason IS NOT NULL AS is_repeated
    """,
)


def claim(connection: Connection, lane: Lane, *, size: int, lease: float) -> Claim:
    """Take the events of `lane` that are due: up to `size` never tried, 16 tried once, or one tried more often.

    The list is of the kind of its oldest event. The try is counted and the lease (seconds) taken before the try is
    made; a former holder that neither finished, failed nor gave back has ended silently, and that is counted too.
    The caller commits.
    """
    token = str(uuid.uuid4())
    parameters = {"lane": lane, "size": size, "second": SECOND_TRY_LIST, "token": token, "lease": lease}
    rows = connection.execute(_CLAIM, parameters)
    return Claim(token, lane, tuple(sorted((Claimed(*row) for row in rows), key=lambda event: event.id)))


def _change(connection: Connection, token: str, ids: Collection[str], changes: str, **parameters: Any) -> set[str]:
    rows = connection.execute(
        text(f"UPDATE stripe_events SET {changes} WHERE id = ANY(:ids) AND claim = :token RETURNING id"),
        {"ids": sorted(ids), "token": token, **parameters},
    )
    return {row.id for row in rows}


@dataclass(frozen=True, slots=True)
class Ending:
    """How an event ended; `reason` is a word, `error` a sentence without anybody's data."""

    status: Literal["processed", "ignored", "dead"]
    reason: str | None = None
    error: str | None = None


def finish(connection: Connection, token: str, ids: Collection[str], ending: Ending, version: str) -> set[str]:
    """End events; returns those that were still ours."""
    return _change(
        connection,
        token,
        ids,
        "status = :status, reason = :reason, error = :error, code_version = :version, claim = NULL,"
        " processed_at = clock_timestamp()",
        status=ending.status,
        reason=ending.reason,
        error=ending.error,
        version=version,
    )


def postpone(
    connection: Connection,
    token: str,
    event_id: str,
    seconds: float,
    why: tuple[str, str],
    version: str,
) -> bool:
    """Write down a try that failed, why (reason, error), and in how many seconds to try again."""
    return bool(
        _change(
            connection,
            token,
            [event_id],
            "due_at = clock_timestamp() + make_interval(secs => :seconds), reason = :reason, error = :error,"
            " code_version = :version, claim = NULL",
            seconds=seconds,
            reason=why[0],
            error=why[1],
            version=version,
        ),
    )


def give_back(
    connection: Connection, token: str, ids: Collection[str], *, tried: bool, reason: str | None = None
) -> set[str]:
    """Return claimed events at once; if they were not `tried`, as if they had never been claimed.

    A `reason` says that a try was made all the same, although it does not count.
    """
    changes = "due_at = clock_timestamp(), claim = NULL, reason = coalesce(:reason, reason)"
    changes = changes if tried else f"{changes}, attempts = attempts - 1"
    return _change(connection, token, ids, changes, reason=reason)


def hand_over(connection: Connection, token: str, ids: Collection[str], lane: Lane) -> set[str]:
    """Leave claimed events to whoever serves another lane, untried; returns those that were still ours."""
    changes = (
        "lane = :lane, attempts = 0, due_at = clock_timestamp(), claim = NULL, error = NULL,"
        " reason = CASE WHEN reason = 'replayed' THEN reason END"
    )
    return _change(connection, token, ids, changes, lane=lane)


def enqueue(connection: Connection, type_: str, payload: bytes) -> str:
    """Put work of our own into the ledger, bulk lane, to be claimed and retried like any event; returns its id."""
    event_id = f"dues_{uuid.uuid4().hex}"
    record(connection, Received(id=event_id, type=type_, payload=payload, lane="bulk"))
    return event_id


_ASK = text(
    """
    INSERT INTO stripe_events AS e (id, type, payload, lane, due_at)
    VALUES (:id, :type, :payload, 'api', clock_timestamp() - make_interval(secs => :ahead))
    ON CONFLICT (id) DO UPDATE SET status = 'received', payload = excluded.payload, reason = NULL, error = NULL,
        attempts = 0, claim = NULL, processed_at = NULL, received_at = clock_timestamp(), due_at = excluded.due_at
    WHERE e.status <> 'received' AND e.processed_at <= clock_timestamp() - make_interval(secs => :rest)
    """,
)


def ask(
    connection: Connection, event_id: str, type_: str, payload: bytes, *, rest: float = 0.0, is_awaited: bool = True
) -> bool:
    """Have something asked of Stripe: work of our own in the lane `api`, of which there is one with this id.

    False if it is waiting or under way, or ended less than `rest` seconds ago: however many ask, it is done once. What
    a person may be waiting for (`is_awaited`) goes before what has not waited for AHEAD_SECONDS yet.
    """
    ahead = AHEAD_SECONDS if is_awaited else 0.0
    parameters = {"id": event_id, "type": type_, "payload": payload, "rest": rest, "ahead": ahead}
    return connection.execute(_ASK, parameters).rowcount == 1


def fetch_id(event_id: str) -> str:
    """The id of what is asked of Stripe because of an event."""
    return f"dues_fetch:{event_id}"


_UNSETTLED = text("SELECT count(*) FROM stripe_events WHERE id = ANY(:ids) AND status = 'received'")


def is_settled(connection: Connection, event_id: str) -> bool:
    """Whether an event, and what was asked of Stripe because of it, has ended in whatever way."""
    waiting: int = connection.execute(_UNSETTLED, {"ids": [event_id, fetch_id(event_id)]}).scalar_one()
    return waiting == 0


def undertake(connection: Connection, type_: str, payload: bytes, *, lease: float) -> Claim:
    """Put work of our own into the ledger as claimed by us: if we end before it is done, another worker does it."""
    event_id, token = enqueue(connection, type_, payload), str(uuid.uuid4())
    connection.execute(
        text(
            "UPDATE stripe_events SET attempts = 1, claim = :token,"
            " due_at = clock_timestamp() + make_interval(secs => :lease) WHERE id = :id"
        ),
        {"id": event_id, "token": token, "lease": lease},
    )
    return Claim(token, "bulk", (Claimed(event_id, type_, payload, None, None, attempts=1, silent_ends=0),))


def next_slice(connection: Connection, token: str, event_id: str, payload: bytes) -> bool:
    """Go on later with the rest of a long work of our own; a slice done is no failed try. False: no longer ours."""
    done = _change(
        connection,
        token,
        [event_id],
        "payload = :payload, attempts = 0, due_at = clock_timestamp(), claim = NULL, reason = NULL, error = NULL",
        payload=payload,
    )
    return bool(done)


def waiting_lanes(connection: Connection) -> list[Lane]:
    """The lanes that have something due."""
    rows = connection.execute(
        text(
            # ORDER BY and LIMIT instead of EXISTS, which may read the whole table to find nothing.
            "SELECT lane FROM unnest(CAST(:lanes AS text[])) AS lane WHERE (SELECT true FROM stripe_events e"
            f" WHERE e.status = 'received' AND e.lane = lane.lane AND e.due_at <= {_NOW} ORDER BY e.due_at LIMIT 1)",
        ),
        {"lanes": list(LANES)},
    )
    return [row.lane for row in rows]


def ending(connection: Connection, event_id: str) -> tuple[str, str | None]:
    """Status and reason of an event; one that is not there is waiting."""
    row = connection.execute(text("SELECT status, reason FROM stripe_events WHERE id = :id"), {"id": event_id})
    found = row.one_or_none()
    return ("received", None) if found is None else (found.status, found.reason)


# --- for people ---------------------------------------------------------------------------------------------------

_LISTED = (
    "id, type, object_type, object_id, created, api_version, livemode, account, status, reason, attempts, lane,"
    " due_at, received_at, processed_at, error, code_version, payload IS NOT NULL AS has_payload"
)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events a person means; everything given must hold."""

    ids: tuple[str, ...] = ()
    status: str | None = None
    type: str | None = None
    object_id: str | None = None
    since: datetime | None = None

    def where(self) -> tuple[str, dict[str, Any]]:
        """Return the condition and its parameters."""
        conditions = {
            "ids": "id = ANY(:ids)",
            "status": "status = :status",
            "type": "type LIKE :type",
            "object_id": "object_id = :object_id",
            "since": "received_at >= :since",
        }
        given = {name: getattr(self, name) for name in conditions if getattr(self, name)}
        sql = " AND ".join(conditions[name] for name in given) or "true"
        if self.type:
            given["type"] = self.type.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_").replace("*", "%")
        if self.ids:
            given["ids"] = list(self.ids)
        return sql, given


def listing(
    connection: Connection,
    which: Filter,
    *,
    limit: int,
    after: tuple[datetime, str] | None = None,
) -> Sequence[Any]:
    """Return events, newest received first, as rows without payload; `after` is the last row of the page before."""
    sql, parameters = which.where()
    if after:
        sql += " AND (received_at, id) < (:after_at, :after_id)"
        parameters |= {"after_at": after[0], "after_id": after[1]}
    return connection.execute(
        text(f"SELECT {_LISTED} FROM stripe_events WHERE {sql} ORDER BY received_at DESC, id DESC LIMIT :limit"),
        {**parameters, "limit": limit},
    ).all()


def counts(connection: Connection) -> Sequence[Any]:
    """Return (status, reason, type, n) of everything in the ledger."""
    return connection.execute(
        text("SELECT status, reason, type, count(*) AS n FROM stripe_events GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"),
    ).all()


def replayable(connection: Connection, which: Filter) -> tuple[list[str], list[str]]:
    """Return the ids that a replay would take, and those whose payload is gone (they must be fetched again)."""
    sql, parameters = which.where()
    rows = connection.execute(
        text(f"SELECT id, payload IS NOT NULL AS kept FROM stripe_events WHERE {sql} ORDER BY received_at, id"),
        parameters,
    ).all()
    return [row.id for row in rows if row.kept], [row.id for row in rows if not row.kept]


def replay(connection: Connection, ids: Collection[str], *, lane: Lane = "bulk") -> int:
    """Let events be tried again from the start, as if they had just arrived; returns how many."""
    return connection.execute(
        text(
            "UPDATE stripe_events SET status = 'received', reason = 'replayed', attempts = 0, claim = NULL,"
            " error = NULL, processed_at = NULL, due_at = clock_timestamp(), lane = :lane"
            " WHERE id = ANY(:ids) AND payload IS NOT NULL",
        ),
        {"ids": sorted(ids), "lane": lane},
    ).rowcount
