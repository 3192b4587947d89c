"""Real Celery processes for the tests, and events for them."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping

import psycopg
from celery import Celery

import celeryconfig
from tests.support import Child, running

QUIET = ("--without-gossip", "--without-mingle", "--without-heartbeat")


@contextlib.contextmanager
def celery(*arguments: str, env: Mapping[str, str]) -> Iterator[Child]:
    """`celery -A workers.celery …` in a child."""
    with running(
        [sys.executable, "-W", "ignore", "-m", "celery", "-A", "workers.celery", *arguments], env=env
    ) as child:
        yield child


@contextlib.contextmanager
def worker(env: Mapping[str, str], queues: str = "live,bulk,api") -> Iterator[Child]:
    """A worker that has begun to listen."""
    with celery("worker", "-P", "solo", "-Q", queues, "-l", "INFO", *QUIET, env=env) as child:
        child.says(" ready.", timeout=30)
        yield child


def send(redis_url: str, task: str, *arguments: str, queue: str = "live") -> None:
    """Send a task the way beat does, with our queues."""
    with Celery(broker=redis_url, set_as_current=False) as sender:
        sender.conf.task_queues = celeryconfig.task_queues
        sender.send_task(task, arguments, queue=queue)


def store(url: str, *ids: str, lane: str = "live") -> None:
    """Put events into the ledger, without ringing; of a type that Dues ignores, since here it is no matter."""
    payload = json.dumps({"id": "evt", "type": "topup.created", "data": {"object": {}}}).encode()
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO stripe_events (id, type, payload, lane, created) VALUES (%s, 'topup.created', %s, %s, now())",
            [(event_id, payload, lane) for event_id in ids],
        )


def statuses(url: str) -> dict[str, int]:
    with psycopg.connect(url) as connection:
        return dict(connection.execute("SELECT status, count(*) FROM stripe_events GROUP BY 1").fetchall())
