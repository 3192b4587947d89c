"""The bell: tells workers through Redis that a lane has something to do. It carries no data, and may be lost.

`dues:bell:<lane>` stands for a message that no worker has taken up yet, so that a thousand events need one message, not
a thousand. A worker deletes it *before* it claims: what was committed earlier is seen by that claim, what is committed
later rings again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable
from typing import Any

from kombu.messaging import Producer
from redis import Redis

from models.ledger import Lane
from workers.broker import AWAY, PATIENCE, Line

logger = logging.getLogger(__name__)

TASK = "process_events"
# Behind whatever else waits in the queue: of these there are many, and one does the work of all.
PRIORITY = 9
KEY_MILLISECONDS = 1000
REST_SECONDS = 5.0


class Bell:
    """Rings from a thread of its own, begun at the first ring, so that Redis delays nobody, refused or frozen."""

    def __init__(self, redis_url: str, *, rest: float = REST_SECONDS) -> None:
        self._url = redis_url
        self._rest = rest
        self._wanted: set[Lane] = set()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._line: _Line | None = None

    def ring(self, lane: Lane) -> None:
        """Ask for one message to `lane`, unless one is on its way; never waits and never raises."""
        self._wanted.add(lane)
        self._wake.set()
        # After a fork the thread is not alive either.
        if self._thread is None or not self._thread.is_alive():
            with self._starting, contextlib.suppress(RuntimeError):
                self._start()

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._listen, name="bell", daemon=True)
            self._thread.start()

    def _listen(self) -> None:
        line: _Line | None = None
        is_doubtful = False
        while not self._closing.is_set() or self._wanted:
            self._wake.wait()
            self._wake.clear()
            try:
                while self._wanted:
                    line = line or _Line(self._url)
                    self._ring_one(line, insist=is_doubtful)
                is_doubtful = False
            except AWAY as error:
                logger.warning("Redis is away (%s): the bell rests for %g s", type(error).__name__, self._rest)
                # What was sent may have been heard all the same, so that the key is there without a message.
                is_doubtful = True
                if line is not None:
                    line.close()
                    line = None
                if self._closing.wait(self._rest):
                    return
                self._wake.set()
        if line is not None:
            line.close()

    def _ring_one(self, line: _Line, *, insist: bool) -> None:
        lane = self._wanted.pop()
        try:
            line.ring(lane, insist=insist)
        except AWAY:
            self._wanted.add(lane)
            raise

    def answer(self, lane: Lane) -> None:
        """Say that a worker is about to claim from `lane`; takes a second at most, and whether it worked is no matter.

        At worst the key ends by itself, or the sweep comes by.
        """
        self._ask(lambda redis: redis.delete(_key(lane)))

    def is_heard(self) -> bool:
        """Whether Redis answers within a second or so."""
        return self._ask(lambda redis: redis.ping())

    def _ask(self, question: Callable[[Redis], Any]) -> bool:
        try:
            self._line = self._line or _Line(self._url)
            return bool(question(self._line.redis))
        except AWAY:
            return False

    def close(self, *, timeout: float = PATIENCE) -> None:
        """Ring what is still to be rung, if Redis is there, and end the thread; waits `timeout` seconds at most."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout)
        if self._line is not None:
            self._line.close()


class _Line(Line):
    """A connection that messages are sent by."""

    def __init__(self, redis_url: str) -> None:
        super().__init__(redis_url)
        # Nothing declared and nothing retried: 0.4 ms instead of 0.8 for Celery's own publishing.
        self._producer = Producer(self.channel, auto_declare=False, serializer="json")  # type: ignore[no-untyped-call]

    def ring(self, lane: Lane, *, insist: bool) -> None:
        if not self.redis.set(_key(lane), "1", nx=not insist, px=KEY_MILLISECONDS):
            return
        try:
            body, headers = message(lane)
            self._producer.publish(  # type: ignore[no-untyped-call]
                body, routing_key=lane, headers=headers, correlation_id=headers["id"], priority=PRIORITY, retry=False
            )
        except AWAY:
            with contextlib.suppress(*AWAY):
                self.redis.delete(_key(lane))
            raise


def message(lane: Lane) -> tuple[tuple[list[str], dict[str, Any], dict[str, None]], dict[str, Any]]:
    """Body and headers of the task `process_events(lane)`.

    Celery's protocol 2: https://docs.celeryq.dev/en/stable/internals/protocol.html
    """
    task_id = str(uuid.uuid4())
    headers = {
        "lang": "py",
        "task": TASK,
        "id": task_id,
        "root_id": task_id,
        "parent_id": None,
        "group": None,
        "retries": 0,
        "eta": None,
        "expires": None,
        "timelimit": [None, None],
        "argsrepr": f"({lane!r},)",
        "kwargsrepr": "{}",
        "origin": f"{os.getpid()}@{socket.gethostname()}",
        "ignore_result": True,
    }
    return ([lane], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}), headers


def _key(lane: Lane) -> str:
    return f"dues:bell:{lane}"
