"""Answers that may be out of date say so, have Stripe asked once, and wait for it no longer than they were told to."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask

from simulator.api import KEY
from simulator.faults import Faults, Rule, server_error, slow
from simulator.server import Server, serving
from tests.ingest.conftest import application
from tests.ingest.test_api import ANN, WITH_TOKEN, get, member, shown
from tests.support import eventually, free_port
from tests.workers.world import World, world

OUTDATED = "UPDATE user_subscriptions SET current_period_end = now() - interval '1 minute'"
ASKED = "SELECT count(*) FROM stripe_events WHERE type = 'dues.refresh'"


@pytest.fixture
def here(database_url: str) -> Iterator[World]:
    with world(database_url) as here:
        here.users(ANN)
        yield here


@pytest.fixture
def server(here: World) -> Iterator[Server]:
    """The Stripe where Ann is a member since three days."""
    stripe, _ = member(here)
    stripe.advance(int(time.time()))
    with serving(stripe) as server:
        yield server


@pytest.fixture
def worker(database_url: str, server: Server) -> Iterator[World]:
    """Somebody who works off what is to be asked of Stripe, at once."""
    with world(database_url, STRIPE_API_KEY=KEY, STRIPE_API_BASE=server.url) as one:
        done = threading.Event()

        def work() -> None:
            while not done.wait(0.02):
                one.road.process("api")

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield one
        finally:
            done.set()
            thread.join()


def sync(app: Flask, user: str = ANN) -> tuple[int, Any]:
    answer = app.test_client().post(f"/api/users/{user}/sync", headers=WITH_TOKEN)
    return answer.status_code, answer.get_json()


def test_an_answer_without_news_for_too_long_is_stale_unless_that_is_switched_off(
    here: World, database_url: str, redis_db_url: str
) -> None:
    member(here)
    for seconds, stale in (("60", True), ("86400", False), ("0", False)):
        with application(database_url, redis_db_url, DUES_STALE_SECONDS=seconds) as app:
            here.execute("ALTER TABLE stripe_customers DISABLE TRIGGER dues_touch")
            here.execute("ALTER TABLE user_subscriptions DISABLE TRIGGER dues_touch")
            for table in ("stripe_customers", "user_subscriptions"):
                here.execute(f"UPDATE {table} SET updated_at = now() - interval '2 minutes'")
            assert shown(app)["stale"] is stale


def test_what_is_not_stale_asks_nobody(app: Flask, here: World) -> None:
    member(here)
    shown(app)
    assert here.one(ASKED).count == 0


def test_a_thousand_accesses_at_once_cause_one_look_at_stripe(
    app: Flask, here: World, server: Server, worker: World
) -> None:
    server.faults = Faults([Rule(fault=slow(0.05))])
    here.execute(OUTDATED)
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: get(app, f"/api/users/{ANN}").status_code, range(1000)))
    assert set(answers) == {200}
    eventually(lambda: shown(app)["stale"] is False)
    assert here.one(ASKED).count == 1
    assert server.counts["GET /v1/customers/:id"] == 1


def test_fresh_waits_for_stripe_and_tells_what_it_said(app: Flask, server: Server, worker: World) -> None:
    stripe = server.api.stripe
    (subscription,) = stripe.subscriptions
    stripe.cancel(subscription)
    assert shown(app)["role"] == "PREMIUM"
    found = get(app, f"/api/users/{ANN}?fresh=1").get_json()
    assert (found["role"], found["membership_status"], found["stale"]) == ("USER", "CANCELED", False)
    asked = len(server.log)
    assert get(app, f"/api/users/{ANN}?fresh=1").get_json() == found
    assert len(server.log) == asked, "it was asked a moment ago"


def test_sync_asks_even_so(app: Flask, server: Server, worker: World) -> None:
    for _ in range(2):
        status, found = sync(app)
        assert (status, found["synced"], found["reason"], found["role"]) == (200, True, None, "PREMIUM")
    assert server.counts["GET /v1/customers/:id"] == 2
    assert sync(app, "nobody")[0] == 404


def test_stripe_being_down_fails_nobody(app: Flask, server: Server, worker: World) -> None:
    server.faults = Faults([Rule(fault=server_error(should_retry=False))])
    found = get(app, f"/api/users/{ANN}?fresh=1")
    assert (found.status_code, found.get_json()["role"]) == (200, "PREMIUM")
    status, told = sync(app)
    assert (status, told["synced"], told["reason"]) == (200, False, "unreachable")


def test_while_nobody_works_fresh_waits_two_seconds_and_no_longer(app: Flask, here: World) -> None:
    member(here)
    begin = time.monotonic()
    assert get(app, f"/api/users/{ANN}?fresh=1").status_code == 200
    assert 1.9 < time.monotonic() - begin < 3
    status, told = sync(app)
    assert (status, told["synced"], told["reason"]) == (202, False, "queued")


def test_with_redis_away_stripe_is_asked_all_the_same(database_url: str, here: World) -> None:
    member(here)
    here.execute(OUTDATED)
    with application(database_url, f"redis://127.0.0.1:{free_port()}/0") as app:
        assert shown(app)["stale"] is True
        assert here.one(ASKED).count == 1


def test_fresh_is_0_or_1(app: Flask, here: World) -> None:
    assert get(app, f"/api/users/{ANN}?fresh=yes").status_code == 400
    assert get(app, f"/api/users/{ANN}?fresh=0").status_code == 200
