"""How Celery reaches Redis: `REDIS_URL` in kombu's words, and options that fail fast instead of blocking for ever."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from kombu.connection import Connection
from kombu.exceptions import KombuError
from redis import Redis
from redis.exceptions import RedisError

# Seconds. A Redis that does not answer within one is as good as away: the ledger knows what is to be done.
PATIENCE = 1.0
# What a Redis that is away raises, and for how many seconds nobody waits for it again.
AWAY = (RedisError, KombuError, OSError)
REST_SECONDS = 5.0

T = TypeVar("T")


def broker(redis_url: str) -> tuple[str, dict[str, Any]]:
    """Return kombu's URL and transport options for a URL as redis-py takes it (`redis:`, `rediss:`, `unix:`).

    Sentinel URLs are Celery's own, `sentinel://host:26379/0;sentinel://…`, with `?master_name=` after one of them.
    """
    options: dict[str, Any] = {"socket_timeout": PATIENCE, "socket_connect_timeout": PATIENCE, "max_retries": 0}
    if redis_url.startswith("sentinel://"):
        return _sentinel(redis_url, options)
    if redis_url.startswith("unix://"):
        return _unix(redis_url), options
    if redis_url.startswith("rediss://") and "ssl_cert_reqs=" not in redis_url:
        # What redis-py does by default; kombu would check nothing.
        return f"{redis_url}{'&' if '?' in redis_url else '?'}ssl_cert_reqs=required", options
    return redis_url, options


def _unix(redis_url: str) -> str:
    parts = urlsplit(redis_url)
    query = dict(parse_qsl(parts.query))
    database = query.pop("db", "0")
    user = query.pop("username", unquote(parts.username or ""))
    password = query.pop("password", unquote(parts.password or ""))
    account = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""
    return f"redis+socket://{account}{parts.path}?{urlencode({'virtual_host': database, **query})}"


def _sentinel(redis_url: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    urls = []
    for url in redis_url.split(";"):
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        if "master_name" in query:
            options["master_name"] = query.pop("master_name")
        urls.append(urlunsplit(parts._replace(query=urlencode(query))))
    return ";".join(urls), options


class Line:
    """A connection to Redis through kombu, which knows every kind of URL that Celery takes. Raises what is in AWAY."""

    def __init__(self, redis_url: str) -> None:
        url, options = broker(redis_url)
        self._connection = Connection(url, transport_options=options, connect_timeout=PATIENCE)  # type: ignore[no-untyped-call]
        self._connection.ensure_connection(max_retries=0)  # type: ignore[no-untyped-call]
        self.channel = self._connection.channel()  # type: ignore[no-untyped-call]
        with self.channel.conn_or_acquire() as client:
            self.redis: Redis = client

    def close(self) -> None:
        """Let go of the connection."""
        with contextlib.suppress(*AWAY):
            self._connection.release()  # type: ignore[no-untyped-call]


class Asking:
    """Questions to Redis that may go unanswered: with it away, or frozen, they cost a second every five."""

    def __init__(self, redis_url: str) -> None:
        self._url = redis_url
        self._line: Line | None = None
        self._rests_until = 0.0

    def ask(self, question: Callable[[Redis], T]) -> T | None:
        """Return the answer, or None if Redis is away."""
        if not self._url or time.monotonic() < self._rests_until:
            return None
        try:
            # A name of its own: another thread may let go of ours between two lines.
            line = self._line = self._line or Line(self._url)
            return question(line.redis)
        except AWAY:
            self.close()
            self._rests_until = time.monotonic() + REST_SECONDS
            return None

    def close(self) -> None:
        """Let go of the connection, if there is one."""
        line, self._line = self._line, None
        if line is not None:
            line.close()
