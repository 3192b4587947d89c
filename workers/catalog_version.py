"""A word in Redis that changes when anything did that is on sale, so that every web process knows when to read anew.

With Redis away nobody hears, and every answer is read from PostgreSQL.
"""

from __future__ import annotations

import uuid

from workers.broker import Asking

KEY = "dues:catalog"


class CatalogVersion:
    """The version as this process says and hears it."""

    def __init__(self, redis_url: str) -> None:
        self._asking = Asking(redis_url)

    def renew(self) -> None:
        """Say that something has changed; to be called after the commit."""
        self._asking.ask(lambda redis: redis.set(KEY, uuid.uuid4().hex))

    def heard(self) -> bytes | None:
        """The present version, empty if there never was one; None if Redis is away."""
        answer = self._asking.ask(lambda redis: redis.get(KEY) or b"")
        return answer.encode() if isinstance(answer, str) else answer

    def close(self) -> None:
        """Let go of Redis."""
        self._asking.close()
