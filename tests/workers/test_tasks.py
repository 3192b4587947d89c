"""The tasks in a real worker: what they leave in the ledger when they are told to end, or PostgreSQL goes away."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import psycopg
import pytest
import redis

from ops.embedded import EmbeddedPostgres
from simulator.api import KEY
from simulator.histories import history
from simulator.server import serving
from tests.support import eventually
from tests.workers.serving import send, statuses, store, worker
from workers.bell import Bell


def environment(database_url: str, redis_url: str, **more: str) -> dict[str, str]:
    return {"DATABASE_URL": database_url, "REDIS_URL": redis_url, **more}


def ring(redis_url: str) -> None:
    bell = Bell(redis_url)
    bell.ring("live")
    bell.close(timeout=5)


def test_the_key_is_gone_once_a_worker_has_answered(database_url: str, redis_db_url: str) -> None:
    with (
        worker(environment(database_url, redis_db_url)),
        contextlib.closing(redis.Redis.from_url(redis_db_url)) as client,
    ):
        client.set("dues:bell:live", "1")
        client.delete("dues:bell:live")
        ring(redis_db_url)
        client.persist("dues:bell:live")
        eventually(lambda: client.exists("dues:bell:live") == 0)


def test_whatever_is_stored_after_a_worker_has_claimed_rings_for_the_next(
    redis_db_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key is deleted before the claim: were it there until later, this ring would be taken for the one before."""
    from workers import tasks

    bell = Bell(redis_db_url)
    stored_late = SimpleNamespace(process=lambda _: ring(redis_db_url), stopping=threading.Event())
    monkeypatch.setattr(tasks, "bell", lambda: bell)
    monkeypatch.setattr(tasks, "road", lambda: stored_late)
    ring(redis_db_url)
    tasks.process_events("live")
    bell.close()
    with contextlib.closing(redis.Redis.from_url(redis_db_url)) as client:
        assert client.llen("live\x06\x169") == 2


def test_the_sweep_sends_one_message_to_each_lane_with_something_due(database_url: str, redis_db_url: str) -> None:
    store(database_url, "evt_1", "evt_2", lane="bulk")
    with contextlib.closing(redis.Redis.from_url(redis_db_url)) as client:
        # A bell that has rung does not keep it from sending.
        client.set("dues:bell:bulk", "1")
        with worker(environment(database_url, redis_db_url), queues="api"):
            send(redis_db_url, "sweep", queue="api")
            eventually(lambda: client.llen("bulk\x06\x169") == 1)
        assert (client.llen("live\x06\x169"), client.llen("live"), client.llen("bulk")) == (0, 0, 0)


def test_a_worker_told_to_end_gives_back_what_it_has_not_done_and_rings_for_others(
    database_url: str, redis_db_url: str
) -> None:
    env = environment(database_url, redis_db_url, DUES_LIST_SIZE="5")
    store(database_url, *(f"evt_{number:04}" for number in range(3000)))
    with worker(env) as child:
        ring(redis_db_url)
        eventually(lambda: statuses(database_url).get("ignored", 0) > 50)
        begin = time.monotonic()
        child.send(signal.SIGTERM)
        assert child.ends(timeout=20) == 0, child.output
        assert time.monotonic() - begin < 5
    with psycopg.connect(database_url) as connection:
        left = "SELECT count(*), count(claim), max(attempts) FROM stripe_events WHERE status = 'received'"
        waiting, claimed, attempts = connection.execute(left).fetchone() or (0, 0, 0)
    assert waiting > 0
    assert (claimed, attempts) == (0, 0)
    with contextlib.closing(redis.Redis.from_url(redis_db_url)) as client:
        assert client.llen("live\x06\x169") >= 1


def test_with_postgres_away_a_task_says_so_in_a_line_and_the_worker_lives(
    own_postgres: Callable[..., EmbeddedPostgres], redis_db_url: str
) -> None:
    server = own_postgres(port=0)
    env = environment(server.url, redis_db_url)
    with worker(env) as child:
        store(server.url, "evt_1")
        ring(redis_db_url)
        eventually(lambda: statuses(server.url) == {"ignored": 1})
        server.kill()
        ring(redis_db_url)
        child.says("process_events: OperationalError")
        for task in ("sweep", "decide_due"):
            send(redis_db_url, task)
            child.says(f"{task}: OperationalError")
        assert "Traceback" not in child.output
        server.start()
        store(server.url, "evt_2")
        ring(redis_db_url)
        eventually(lambda: statuses(server.url) == {"ignored": 2})
        assert child.process.poll() is None


def test_whoever_is_due_is_decided(database_url: str, redis_db_url: str) -> None:
    env = environment(database_url, redis_db_url)
    with psycopg.connect(database_url, autocommit=True) as connection, worker(env):
        connection.execute("INSERT INTO users (id, email) VALUES ('u1', 'a@example.com')")
        send(redis_db_url, "decide_due")

        def decided() -> bool:
            row = connection.execute("SELECT membership_status::text, next_change_at FROM users").fetchone()
            return row == ("INACTIVE", None)

        eventually(decided)


def test_a_worker_of_lane_api_looks_and_reconciles_slice_by_slice(database_url: str, redis_db_url: str) -> None:
    stripe = history(3, customers=2, months=1)
    with serving(stripe) as server:
        env = environment(database_url, redis_db_url, STRIPE_API_KEY=KEY, STRIPE_API_BASE=server.url,
                          DUES_STRIPE_RATE="1000")  # fmt: skip
        with worker(env):
            for task in ("watchdog", "reconcile", "reconcile"):
                send(redis_db_url, task, queue="api")
            with psycopg.connect(database_url, autocommit=True) as connection:

                def runs() -> list[tuple[str, str]]:
                    return connection.execute("SELECT kind, status FROM sync_runs ORDER BY kind").fetchall()

                eventually(lambda: runs() == [("reconcile", "done"), ("watchdog", "done")], timeout=30)
                products = "SELECT count(*) FROM stripe_products"
                eventually(lambda: connection.execute(products).fetchone() == (len(stripe.products),), timeout=30)
