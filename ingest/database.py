"""PostgreSQL for requests that must be answered in time, whatever PostgreSQL does: refuse, hang, lock or freeze.

No time-out of libpq or of the server covers a server that is frozen in the middle of a statement. So statements run in
as many threads as there are connections, requests wait for them until their deadline, and what is then still under way
has its socket closed under it. Nothing piles up: while PostgreSQL is away one request at a time tries it, and after one
has waited in vain nobody does for a second, so that those who queued behind it wait no second time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from models.database import connect
from models.settings import Settings

T = TypeVar("T")

REST_SECONDS = 1.0


class UnavailableError(Exception):
    """PostgreSQL did not do it (in time); the message is a word or two, `sqlstate` its code if it has said one."""

    def __init__(self, why: str, sqlstate: str | None = None) -> None:
        self.sqlstate = sqlstate
        super().__init__(why)


class Database:
    """Runs statements within `settings.database_timeout` (seconds), each by itself and committed by itself."""

    def __init__(self, settings: Settings, *, application: str) -> None:
        seconds = settings.database_timeout
        bounded = dataclasses.replace(
            settings,
            database_url=settings.database_url or "postgresql+psycopg://",
            # Before we give up, so that it is PostgreSQL that says what was the matter.
            lock_timeout=seconds * 0.9,
            statement_timeout=seconds * 0.9,
        )
        # A statement that commits by itself takes one round trip instead of three.
        self._engine = connect(bounded, application=application).execution_options(isolation_level="AUTOCOMMIT")
        self._threads = ThreadPoolExecutor(settings.pool_size, thread_name_prefix="postgres")
        self._slots = threading.BoundedSemaphore(settings.pool_size)
        self._trying = threading.Lock()
        self._is_away = False
        self._rests_until = 0.0
        self.seconds = seconds

    def run(self, work: Callable[[Connection], T], *, patience: float = math.inf) -> T:
        """Return what `work` makes of a connection in autocommit mode. Raises UnavailableError.

        It may be run twice, and may have happened although the error was raised. Who has less `patience` (seconds)
        than PostgreSQL has time gives up alone: that says nothing about PostgreSQL.
        """
        deadline = time.monotonic() + min(self.seconds, patience)
        if not self._is_away:
            return self._run(work, deadline, is_patient=patience >= self.seconds)
        if time.monotonic() < self._rests_until or not self._trying.acquire(blocking=False):
            raise UnavailableError("PostgreSQL is away")
        try:
            return self._run(work, deadline, is_patient=patience >= self.seconds)
        finally:
            self._trying.release()

    def close(self) -> None:
        """End the threads and close the connections, waiting for what is under way."""
        self._threads.shutdown()
        self._engine.dispose()

    def _run(self, work: Callable[[Connection], T], deadline: float, *, is_patient: bool) -> T:
        if not self._slots.acquire(timeout=0 if self._is_away else max(0.0, deadline - time.monotonic())):
            raise UnavailableError("PostgreSQL is too busy")
        job = _Job(self._engine, work)
        future = self._threads.submit(job.run)
        future.add_done_callback(lambda _: self._slots.release())
        try:
            answer = future.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            job.abandon()
            if is_patient:
                self._is_away = True
                self._rests_until = time.monotonic() + REST_SECONDS
            raise UnavailableError("PostgreSQL does not answer") from None
        except (DBAPIError, PoolTimeoutError) as error:
            sqlstate = getattr(getattr(error, "orig", None), "sqlstate", None)
            self._is_away = sqlstate is None
            raise UnavailableError(sqlstate or "PostgreSQL is away", sqlstate) from None
        self._is_away = False
        return answer


class _Job(Generic[T]):
    """One statement on its way, which another thread may abandon."""

    def __init__(self, engine: Engine, work: Callable[[Connection], T]) -> None:
        self._engine = engine
        self._work = work
        self._lock = threading.Lock()
        self._socket: int | None = None
        self._is_abandoned = False

    def run(self) -> T:
        try:
            return self._try()
        except DBAPIError as error:
            # A connection of the pool that had died while it lay there, by a restart of PostgreSQL.
            if error.connection_invalidated and not self._is_abandoned:
                return self._try()
            raise

    def _try(self) -> T:
        with self._engine.connect() as connection:
            driver = connection.connection.driver_connection
            self._hold(driver.fileno() if driver is not None else None)
            try:
                return self._work(connection)
            finally:
                self._hold(None)

    def _hold(self, descriptor: int | None) -> None:
        with self._lock:
            if self._is_abandoned and descriptor is not None:
                raise UnavailableError("too late")
            self._socket = descriptor

    def abandon(self) -> None:
        """Give it up: its thread ends with an error at once, or within libpq's 2 s if it is connecting."""
        with self._lock:
            self._is_abandoned = True
            if self._socket is not None:
                with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._socket)) as ours:
                    ours.shutdown(socket.SHUT_RDWR)
