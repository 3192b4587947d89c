"""The app with its configuration, as real processes run it."""

from __future__ import annotations

import contextlib
import signal
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

import celeryconfig
from ops.embedded import EmbeddedValkey
from tests.support import Child, eventually
from tests.workers.serving import QUIET, celery, send, statuses, store, worker
from workers.bell import Bell
from workers.celery import app


def environment(database_url: str, redis_url: str, **more: str) -> dict[str, str]:
    return {"DATABASE_URL": database_url, "REDIS_URL": redis_url, **more}


def ring(redis_url: str, lane: str = "live") -> None:
    bell = Bell(redis_url)
    bell.ring(lane)  # type: ignore[arg-type]
    bell.close(timeout=5)


def test_messages_are_json_and_nothing_is_kept_of_them() -> None:
    assert (app.conf.accept_content, app.conf.task_serializer) == (["json"], "json")
    assert (app.conf.result_backend, app.conf.task_ignore_result, app.conf.task_acks_late) == (None, True, False)
    assert app.conf.task_publish_retry is False


def test_beat_knows_only_tasks_that_exist() -> None:
    app.loader.import_default_modules()
    assert {entry["task"] for entry in celeryconfig.beat_schedule.values()} <= set(app.tasks)


def test_a_task_reaches_the_one_queue_that_is_named(redis_db_url: str) -> None:
    queues = ("live", "bulk", "api")
    for queue in queues:
        send(redis_db_url, "process_events", "live", queue=queue)
    with contextlib.closing(redis.Redis.from_url(redis_db_url)) as client:
        assert {queue: client.llen(queue) for queue in queues} == dict.fromkeys(queues, 1)


@pytest.mark.parametrize(("program", "named"), [("worker", "DATABASE_URL"), ("beat", "REDIS_URL")])
def test_it_does_not_start_without_its_settings(program: str, named: str) -> None:
    with celery(program, env={"DATABASE_URL": "", "REDIS_URL": ""}) as child:
        assert child.ends(timeout=30) != 0
        assert f"{named} is not set" in child.output
        assert "Traceback" not in child.output


def test_a_ring_brings_a_worker(database_url: str, redis_db_url: str) -> None:
    with worker(environment(database_url, redis_db_url)) as child:
        store(database_url, "evt_1", "evt_2")
        ring(redis_db_url)
        eventually(lambda: statuses(database_url) == {"ignored": 2})
        child.says("live: 2 ignored")


def works_off(child: Child, server: EmbeddedValkey, database_url: str, expected: int) -> None:
    """See the worker finish as many events; a message may be lost along with a connection, so it is rung for again."""

    def rung_and_processed() -> bool:
        ring(server.redis_url)
        return statuses(database_url) == {"ignored": expected}

    try:
        eventually(rung_and_processed, timeout=40, every=0.5)
    except AssertionError as error:
        raise AssertionError(f"{error}; the worker said:\n{child.output}") from None


def test_a_worker_outlives_redis_killed_and_frozen(
    own_valkey: Callable[..., EmbeddedValkey], database_url: str
) -> None:
    server = own_valkey()
    with worker(environment(database_url, server.redis_url)) as child:
        outages: list[tuple[Callable[[], Any], Callable[[], Any]]] = [
            (server.kill, server.start),
            (server.pause, server.resume),
        ]
        for number, (leave, come_back) in enumerate(outages, start=1):
            leave()
            time.sleep(2.0)  # longer than every time-out of the connection: the worker is to meet them
            come_back()
            store(database_url, f"evt_{number}")
            works_off(child, server, database_url, number)
            assert child.process.poll() is None, child.output


@contextlib.contextmanager
def in_front_of(server: EmbeddedValkey) -> Iterator[tuple[str, Callable[[], bool]]]:
    """The URL of a Redis that passes over the first acknowledgement sent to it, and whether it has done so."""
    swallowed = threading.Event()

    class Door(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((url.hostname, url.port)) as inner:
                back = threading.Thread(target=self.pass_on, args=(inner, self.request, b""), daemon=True)
                back.start()
                self.pass_on(self.request, inner, b"ZREM")
            back.join()

        def pass_on(self, source: socket.socket, target: socket.socket, unwanted: bytes) -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    if unwanted and unwanted in data and not swallowed.is_set():
                        swallowed.set()
                    else:
                        target.sendall(data)

    url = urlsplit(server.redis_url)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Door) as door:
        door.daemon_threads = True
        threading.Thread(target=door.serve_forever, daemon=True).start()
        port = door.server_address[1]
        yield url._replace(netloc=f"{url.netloc.rpartition(':')[0]}:{port}").geturl(), swallowed.is_set
        door.shutdown()


def test_a_worker_goes_on_after_an_acknowledgement_that_was_lost(
    own_valkey: Callable[..., EmbeddedValkey], database_url: str
) -> None:
    server = own_valkey()
    with in_front_of(server) as (redis_url, has_swallowed), worker(environment(database_url, redis_url)) as child:
        store(database_url, "evt_1")
        works_off(child, server, database_url, 1)
        eventually(has_swallowed)  # it may be sent after the work is done
        store(database_url, "evt_2")
        works_off(child, server, database_url, 2)


def test_a_worker_that_starts_while_redis_is_away_waits_for_it(
    own_valkey: Callable[..., EmbeddedValkey], database_url: str
) -> None:
    server = own_valkey()
    server.kill()
    with celery("worker", "-l", "INFO", *QUIET, env=environment(database_url, server.redis_url)) as child:
        child.says("Cannot connect", timeout=30)
        server.start()
        child.says("ready.", timeout=25)


def test_what_no_bell_announced_is_found_by_the_sweep(database_url: str, redis_db_url: str) -> None:
    env = environment(database_url, redis_db_url, DUES_SWEEP_SECONDS="1")
    store(database_url, "evt_1")
    store(database_url, "evt_2", lane="bulk")
    with worker(env), celery("beat", "--scheduler", "celery.beat:Scheduler", "--pidfile", "", env=env) as beat:
        eventually(lambda: statuses(database_url) == {"ignored": 2}, timeout=25)
        beat.send(signal.SIGTERM)
        assert beat.ends() == 0


def test_the_bells_messages_do_not_hold_up_what_beat_sends(redis_db_url: str, database_url: str) -> None:
    env = environment(database_url, redis_db_url)
    with contextlib.closing(redis.Redis.from_url(redis_db_url, decode_responses=True)) as client:
        ring(redis_db_url)
        message = eventually(lambda: client.lindex("live\x06\x169", 0))
        client.lpush("live\x06\x169", *[str(message)] * 50)
        send(redis_db_url, "sweep")
        with worker({**env, "DUES_PAUSE": "processing"}, queues="live") as child:
            child.send(signal.SIGTERM)
            child.ends(timeout=30)
        assert client.llen("live") == 0
