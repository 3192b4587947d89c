"""Is what the database says of a user the last word? If not, Stripe is asked: once, however many want to know.

The asking is done by workers, through the ledger; without Stripe or without workers the answer is what it is, and says
so. CONTRACT §6.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Row

from ingest.database import Database
from ingest.waiting import WaitingRoom
from models import ledger
from models.settings import Settings
from workers import entitlements
from workers.bell import Bell

# Seconds that somebody who wants a fresh answer waits for it.
PATIENCE: Final = 2.0
# What Stripe said so many seconds ago is fresh.
REST: Final = 10.0
REFRESH: Final = "dues.refresh"


class Freshness:
    """Tells whether answers may be out of date, and has workers look."""

    def __init__(self, settings: Settings, database: Database, bell: Bell, room: WaitingRoom) -> None:
        self._seconds = settings.stale_seconds
        self._is_paused = "processing" in settings.pause
        self._database = database
        self._bell = bell
        self._room = room

    def is_stale(self, news: Row[Any], subscriptions: Iterable[Row[Any]], now: datetime) -> bool:
        """Whether Stripe may have more to say about a user; of whom it knows nothing, it hasn't."""
        if news.as_of is None:
            return False
        # An event that came late is news all the same.
        is_old = 0 < self._seconds < (now - news.heard_at) / timedelta(seconds=1)
        return news.contested or is_old or any(_is_unheard_of(one, now) for one in subscriptions)

    def ask(self, user_id: str, *, rest: float = REST, is_awaited: bool = True) -> None:
        """Have a user looked up at Stripe, unless that waits, is under way or was done `rest` seconds ago.

        Raises UnavailableError.
        """
        payload = json.dumps({"user": user_id}).encode()

        def ask(connection: Connection) -> bool:
            return ledger.ask(connection, _refresh_id(user_id), REFRESH, payload, rest=rest, is_awaited=is_awaited)

        if self._database.run(ask):
            self._bell.ring("api")

    def wait(self, user_id: str) -> bool:
        """Wait for that, two seconds at most; whether it has ended."""
        return not self._is_paused and self._room.wait(_refresh_id(user_id), PATIENCE)

    def ending(self, user_id: str) -> tuple[str, str | None]:
        """How the last look ended, and why: status and reason of the ledger. Raises UnavailableError."""
        return self._database.run(lambda c: ledger.ending(c, _refresh_id(user_id)))


def _is_unheard_of(row: Row[Any], now: datetime) -> bool:
    """Whether a live subscription's period has ended, and Stripe has not been heard since."""
    ends = row.current_period_end
    return row.status in entitlements.LIVE and ends is not None and row.as_of <= ends < now


def _refresh_id(user_id: str) -> str:
    # Ids of users may be as long as they like; keys of an index may not.
    return f"dues_refresh:{hashlib.sha256(user_id.encode()).hexdigest()[:32]}"
