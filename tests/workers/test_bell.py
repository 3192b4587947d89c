from __future__ import annotations

import base64
import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import redis

from ops.embedded import EmbeddedValkey
from tests.support import eventually, free_port, running
from workers.bell import Bell

LIVE, BULK = "live\x06\x169", "bulk\x06\x169"
KEY = "dues:bell:live"


@pytest.fixture
def client(redis_db_url: str) -> Iterator[redis.Redis]:
    with contextlib.closing(redis.Redis.from_url(redis_db_url, decode_responses=True)) as client:
        yield client


@contextlib.contextmanager
def bell_at(url: str, *, rest: float = 0.1) -> Iterator[Bell]:
    bell = Bell(url, rest=rest)
    try:
        yield bell
    finally:
        bell.close(timeout=3)


@pytest.fixture
def bell(redis_db_url: str) -> Iterator[Bell]:
    with bell_at(redis_db_url) as bell:
        yield bell


def slowest_ring(bell: Bell, times: int = 200) -> float:
    slowest = 0.0
    for _ in range(times):
        begin = time.monotonic()
        bell.ring("live")
        slowest = max(slowest, time.monotonic() - begin)
    return slowest


def test_a_thousand_rings_are_one_message_until_a_worker_answers(bell: Bell, client: redis.Redis) -> None:
    for _ in range(1000):
        bell.ring("live")
    eventually(lambda: client.llen(LIVE) == 1)
    assert 0 < int(client.pttl(KEY)) <= 1000
    bell.answer("live")
    assert client.exists(KEY) == 0
    bell.ring("live")
    eventually(lambda: client.llen(LIVE) == 2)


def test_a_ring_without_an_answer_rings_again_after_a_second(bell: Bell, client: redis.Redis) -> None:
    bell.ring("live")
    eventually(lambda: client.llen(LIVE) == 1)

    def again() -> bool:
        bell.ring("live")
        return client.llen(LIVE) == 2

    begin = time.monotonic()
    eventually(again, timeout=3)
    assert time.monotonic() - begin > 0.5


def test_while_another_process_has_rung_it_does_not(redis_db_url: str, client: redis.Redis) -> None:
    client.set(KEY, "1")
    bell = Bell(redis_db_url)
    bell.ring("live")
    bell.close(timeout=5)
    assert client.llen(LIVE) == 0


def test_each_lane_has_a_bell_of_its_own(bell: Bell, client: redis.Redis) -> None:
    bell.ring("live")
    bell.ring("bulk")
    eventually(lambda: (client.llen(LIVE), client.llen(BULK)) == (1, 1))


def test_the_message_names_the_task_and_the_lane_and_holds_no_event(bell: Bell, client: redis.Redis) -> None:
    bell.ring("bulk")
    message = json.loads(eventually(lambda: client.lindex(BULK, 0)) or "")
    assert message["headers"]["task"] == "process_events"
    assert json.loads(base64.b64decode(message["body"])) == [
        ["bulk"],
        {},
        {"callbacks": None, "errbacks": None, "chain": None, "chord": None},
    ]


def test_nothing_else_is_left_in_redis(bell: Bell, client: redis.Redis) -> None:
    bell.ring("live")
    eventually(lambda: client.llen(LIVE) == 1)
    assert set(client.keys()) == {LIVE, KEY}


def test_a_message_that_cannot_be_published_leaves_no_key_behind(
    bell: Bell, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    client.set(LIVE, "no list")
    bell.ring("live")
    eventually(lambda: "Redis is away" in caplog.text)
    assert client.exists(KEY) == 0
    client.delete(LIVE)
    # It was asked for, and so it is made up for.
    eventually(lambda: client.llen(LIVE) == 1)


@pytest.mark.parametrize("url", ["redis://127.0.0.1:{port}/0", "unix:///nowhere/valkey", "redis://nowhere.invalid/0"])
def test_ringing_waits_for_nobody_and_never_raises(url: str) -> None:
    with bell_at(url.format(port=free_port()), rest=5) as bell:
        assert slowest_ring(bell) < 0.2
        assert not bell.is_heard()
        bell.answer("live")


def test_a_frozen_redis_delays_neither_the_ringer_nor_for_long_the_worker(
    own_valkey: Callable[..., EmbeddedValkey],
) -> None:
    server = own_valkey()
    with bell_at(server.redis_url) as bell, contextlib.closing(redis.Redis.from_url(server.redis_url)) as client:
        bell.ring("live")
        eventually(lambda: client.llen(LIVE) == 1)
        assert bell.is_heard()
        client.delete(LIVE, KEY)
        server.pause()
        try:
            assert slowest_ring(bell) < 0.2
            begin = time.monotonic()
            bell.answer("live")
            assert not bell.is_heard()
            assert time.monotonic() - begin < 4
        finally:
            server.resume()
        eventually(lambda: client.llen(LIVE) >= 1)


@pytest.mark.parametrize("port", [None, 0], ids=["unix socket", "TCP"])
def test_what_was_rung_while_redis_was_away_is_rung_when_it_is_back(
    own_valkey: Callable[..., EmbeddedValkey], port: int | None
) -> None:
    server = own_valkey(port=port)
    with bell_at(server.redis_url) as bell, contextlib.closing(redis.Redis.from_url(server.redis_url)) as client:
        bell.ring("live")
        eventually(lambda: client.llen(LIVE) == 1)
        client.flushall()
        server.kill()
        bell.ring("live")
        server.start()
        eventually(lambda: client.llen(LIVE) == 1)


def test_it_rests_after_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with bell_at(f"redis://127.0.0.1:{free_port()}/0", rest=30) as bell:
        bell.ring("live")
        eventually(lambda: "the bell rests for 30 s" in caplog.text)
        slowest_ring(bell)
        assert caplog.text.count("rests") == 1


def test_closing_rings_what_is_still_to_be_rung(redis_db_url: str, client: redis.Redis) -> None:
    bell = Bell(redis_db_url)
    bell.ring("live")
    bell.close(timeout=5)
    assert client.llen(LIVE) == 1


FORKING = """
import os, sys, time
from workers.bell import Bell
bell = Bell(sys.argv[1])
bell.ring("live")
time.sleep(0.5)
if os.fork() == 0:
    bell.ring("bulk")
    bell.close(timeout=5)
    os._exit(0)
os.wait()
"""


def test_a_bell_rings_in_a_forked_process_too(redis_db_url: str, client: redis.Redis) -> None:
    with running([sys.executable, "-W", "ignore", "-c", FORKING, redis_db_url]) as child:
        assert child.ends() == 0, child.output
    assert (client.llen(LIVE), client.llen(BULK)) == (1, 1)
