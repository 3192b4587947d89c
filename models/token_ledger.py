"""The token ledger: entries as `workers.balance` reads them, and the one way in which Dues adds some.

The users concerned are locked by the caller, `ORDER BY id FOR NO KEY UPDATE`, before anything is read here. A trigger
adds each entry to `users.tokens`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any, Protocol

from sqlalchemy import Connection, text


class Booking(Protocol):
    """An entry to be added; `grant_key` is the key of an earlier one of the same list that it draws on."""

    @property
    def user_id(self) -> str:
        """Whose."""

    @property
    def kind(self) -> str:
        """One of grant, spend, expire, clawback, adjust."""

    @property
    def amount(self) -> int:
        """How many tokens, negative if they go."""

    @property
    def key(self) -> str:
        """The business fact, unique for ever."""

    @property
    def grant_id(self) -> int | None:
        """The entry that it draws on."""

    @property
    def grant_key(self) -> str | None:
        """The same, by key."""

    @property
    def source(self) -> str | None:
        """What granted the tokens."""

    @property
    def expires_at(self) -> datetime | None:
        """Until when they last."""

    @property
    def email_hash(self) -> str | None:
        """Whose address had this trial."""


_ENTRIES = text(
    """
    SELECT id, user_id, kind, amount, key, grant_id, source, expires_at, email_hash FROM token_ledger
    WHERE user_id = ANY(:users) OR source = ANY(:sources) OR email_hash = ANY(:hashes) ORDER BY id
    """,
)

_BOOK = text(
    """
    INSERT INTO token_ledger (user_id, kind, amount, key, grant_id, source, expires_at, email_hash)
    SELECT user_id, kind, amount, key, grant_id, source, expires_at, email_hash
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(n integer, user_id text, kind text, amount integer, key text,
        grant_id bigint, source text, expires_at timestamptz, email_hash text)
    ORDER BY n RETURNING id, key
    """,
)


def entries(
    connection: Connection,
    users: Collection[str],
    *,
    sources: Collection[str] = (),
    hashes: Collection[str] = (),
) -> list[tuple[Any, ...]]:
    """The entries of these users, of these sources (anybody's, or nobody's any more) and e-mail hashes, as booked."""
    parameters = {"users": sorted(users), "sources": sorted(sources), "hashes": sorted(hashes)}
    return [tuple(row) for row in connection.execute(_ENTRIES, parameters)]


def book(connection: Connection, bookings: Iterable[Booking]) -> None:
    """Add entries in their order; one that draws on another of the same list is told its id first."""
    ids: dict[str, int] = {}
    rows: list[dict[str, Any]] = []

    def flush() -> None:
        if rows:
            ids.update({row.key: row.id for row in connection.execute(_BOOK, {"rows": json.dumps(rows)})})
            rows.clear()

    for booking in bookings:
        if booking.grant_key is not None and booking.grant_key not in ids:
            flush()
        rows.append(
            {
                "n": len(rows),
                "user_id": booking.user_id,
                "kind": booking.kind,
                "amount": booking.amount,
                "key": booking.key,
                "grant_id": booking.grant_id if booking.grant_key is None else ids[booking.grant_key],
                "source": booking.source,
                "expires_at": None if booking.expires_at is None else booking.expires_at.isoformat(),
                "email_hash": booking.email_hash,
            },
        )
    flush()
