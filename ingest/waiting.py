"""Waiting a moment for what workers do, so that an answer tells of it: by few requests, with cheap questions."""

from __future__ import annotations

import threading
import time
from typing import Final

from ingest.database import Database, UnavailableError
from models import ledger

# Seconds between two questions: the first, and the longest.
SOON: Final = 0.02
PAUSE: Final = 0.1
# Of the server's threads one in so many may wait; the others are there for who comes next.
SHARE: Final = 4


class WaitingRoom:
    """Room for a quarter of `threads`, those that answer requests in this process."""

    def __init__(self, database: Database, threads: int) -> None:
        self._database = database
        self._places = threading.BoundedSemaphore(threads // SHARE)

    def wait(self, event_id: str, seconds: float) -> bool:
        """Wait until an event of the ledger is settled, `seconds` at most; whether it is.

        Not at all if the room is full, and no longer if PostgreSQL does not answer.
        """
        deadline = time.monotonic() + seconds
        if not self._places.acquire(blocking=False):
            return False
        try:
            return self._ask_until(event_id, deadline)
        except UnavailableError:
            return False
        finally:
            self._places.release()

    def _ask_until(self, event_id: str, deadline: float) -> bool:
        pause = SOON
        while (left := deadline - time.monotonic()) > 0:
            if self._database.run(lambda connection: ledger.is_settled(connection, event_id), patience=left):
                return True
            time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
            pause = min(PAUSE, 2 * pause)
        return False
