"""Everything from Stripe's lists: the same as from its events, whoever is killed and however Stripe behaves."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from models.settings import read_settings
from simulator.api import KEY, ApiError
from simulator.faults import Fault, Faults, Rule, rate_limited, server_error, slow
from simulator.histories import history
from simulator.people import people
from simulator.render import render_event
from simulator.server import Server, serving
from simulator.state import Stripe
from tests.ops.command_line import Dues
from tests.support import Child, eventually, running
from tests.workers.serving import send, worker
from tests.workers.test_money import sums
from tests.workers.world import World, world
from workers import backfill, stripe_api
from workers.recompute import decide_due
from workers.stripe_api import StripeApi, StripeAwayError

NEVER = threading.Event()
SEED, PEOPLE = 5, 12
# Not the tokens: what a product or price granted before it was changed only its events tell.
STANDING = "SELECT id, role::text, membership_status::text, stripe_product_id FROM users ORDER BY id"


@pytest.fixture
def here(database_url: str) -> Iterator[World]:
    with world(database_url) as one:
        yield one


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stripe_api, "PAGE", 10)


@pytest.fixture(scope="module")
def past() -> Stripe:
    """Some months of members, packs, refunds and disputes."""
    return history(SEED, customers=PEOPLE, months=3)


def sign_up(here: World) -> None:
    here.users(*(user.id for user in people(SEED, PEOPLE)))


def env(here: World, server: Server, redis_url: str = "redis://127.0.0.1:1/0") -> dict[str, str]:
    return {
        "DATABASE_URL": here.settings.database_url,
        "REDIS_URL": redis_url,
        "STRIPE_API_KEY": KEY,
        "STRIPE_API_BASE": server.url,
        "DUES_STRIPE_RATE": "1000",
    }


@contextlib.contextmanager
def door(here: World, stripe: Stripe, faults: Faults | None = None) -> Iterator[tuple[StripeApi, Server]]:
    with (
        serving(stripe, faults=faults) as server,
        contextlib.closing(StripeApi(read_settings(env(here, server)))) as api,
    ):
        yield api, server


def whole_run(here: World, stripe: Stripe) -> None:
    """A backfill from its beginning to its end, in one go."""
    with door(here, stripe) as (api, _):
        backfill.request(here.engine)
        run = backfill.go_on(here.road, api, NEVER, seconds=60)
    assert run is not None
    assert run.cursor is None
    decide_due(here.engine, here.settings)


def state(here: World) -> Any:
    """All that must come out the same."""
    return here.rows(), sums(here)


def last(here: World) -> tuple[str, str | None]:
    status, error = here.one("SELECT status, error FROM sync_runs ORDER BY id DESC LIMIT 1")
    return status, error


def test_the_lists_tell_the_same_as_the_events(here: World, past: Stripe) -> None:
    sign_up(here)
    here.feed_as_list(render_event(one) for one in past.events)
    decide_due(here.engine, here.settings)
    by_events = here.execute(STANDING)
    subscriptions = here.rows()["user_subscriptions"]
    here.empty()
    sign_up(here)
    whole_run(here, past)
    assert by_events == here.execute(STANDING)
    assert here.rows()["user_subscriptions"] == subscriptions
    assert {"PREMIUM", "USER"} == {row.role for row in by_events}
    assert last(here) == ("done", None)


def test_a_second_backfill_changes_nothing(here: World, past: Stripe) -> None:
    sign_up(here)
    whole_run(here, past)
    once = state(here)
    whole_run(here, past)
    assert state(here) == once


def test_slices_of_one_page_each_by_other_workers_equal_one_run(here: World, past: Stripe) -> None:
    sign_up(here)
    whole_run(here, past)
    expected = state(here)
    here.empty()
    sign_up(here)
    with door(here, past) as (api, server):
        backfill.request(here.engine)
        slices = 0
        while (run := backfill.go_on(here.another_road(), api, NEVER, seconds=0)) is not None:
            slices += 1
        # The last slice ended the run; no page was asked for twice.
        assert run is None
        assert slices >= len([one for one in server.log if "starting_after" in one.query]) > 0
        pages = [(one.path, one.query) for one in server.log]
        assert len(pages) == len(set(pages))
    decide_due(here.engine, here.settings)
    assert state(here) == expected


def reach(server: Server, requests: int, child: Child) -> None:
    """Wait until so many requests came, or the child has ended."""
    eventually(lambda: len(server.log) >= requests or child.process.poll() is not None, timeout=30)


def test_killed_at_random_and_resumed_equals_one_run(here: World, past: Stripe) -> None:
    sign_up(here)
    whole_run(here, past)
    expected = state(here)
    here.empty()
    here.execute("DELETE FROM sync_runs")
    sign_up(here)
    chance = random.Random(3)
    kills = 0
    with serving(past, faults=Faults([Rule(fault=slow(0.15))])) as server:
        backfill.request(here.engine)
        while last(here)[0] == "running":
            asked = len(server.log)
            with running([sys.executable, "-m", "ops.cli", "sync", "all", "--json"], env=env(here, server)) as child:
                reach(server, asked + chance.randrange(1, 5), child)
                time.sleep(chance.uniform(0, 0.15))
                kills += child.process.poll() is None
            assert kills < 40, "it does not get on"
        assert kills > 3
    here.execute("UPDATE stripe_events SET due_at = now() WHERE status = 'received'")
    eventually(lambda: not here.road.process("bulk"))
    decide_due(here.engine, here.settings)
    assert state(here) == expected
    assert here.one("SELECT count(*) FROM sync_runs").count == 1


def test_storms_of_too_many_requests_slow_it_and_never_fail_it(here: World, past: Stripe, redis_db_url: str) -> None:
    sign_up(here)
    whole_run(here, past)
    expected = state(here)
    here.empty()
    sign_up(here)
    storm = Faults([Rule(fault=rate_limited(), share=0.6), Rule(fault=server_error(), share=0.1)], seed=1)
    with serving(past, faults=storm) as server:
        dues = Dues(Path("/"), env(here, server, redis_db_url))
        answer = dues.fine("sync", "all", "--json")
        assert sum(one.status == 429 for one in server.log) > 5
    assert answer.json["ok"]
    decide_due(here.engine, here.settings)
    assert state(here) == expected


def test_while_stripe_is_away_a_run_waits_and_then_goes_on(here: World, past: Stripe) -> None:
    sign_up(here)
    faults = Faults([Rule(fault=server_error(should_retry=False), times=1, next_pages=True)])
    with door(here, past, faults) as (api, _):
        backfill.request(here.engine)
        with pytest.raises(StripeAwayError):
            backfill.go_on(here.road, api, NEVER, seconds=60)
        assert last(here) == ("running", None)
        backfill.go_on(here.road, api, NEVER, seconds=60)
    assert last(here) == ("done", None)


def test_what_the_key_may_not_list_is_left_out_and_named(here: World, past: Stripe) -> None:
    no_permission = Fault(error=ApiError(403, "The provided key does not have the required permissions."))
    with door(here, past, Faults([Rule(fault=no_permission, route="GET /v1/disputes")])) as (api, _):
        backfill.request(here.engine)
        backfill.go_on(here.road, api, NEVER, seconds=60)
    status, error = last(here)
    assert (status, error) == ("failed", "the API key may not list: dispute")
    assert here.one("SELECT count(*) FROM stripe_checkout_sessions").count > 0


def test_webhooks_that_arrive_meanwhile_are_neither_lost_nor_overwritten(here: World, past: Stripe) -> None:
    """Half of the history is known by events, all of it is listed, and the rest of the events come at the same time."""
    events = [render_event(one) for one in past.events]
    sign_up(here)
    here.feed_as_list(events)
    decide_due(here.engine, here.settings)
    expected = here.rows()["users"], sums(here)
    here.empty()
    sign_up(here)
    here.feed_as_list(events[: len(events) // 2])
    here.record(*events[len(events) // 2 :])
    other = here.another_road()
    webhooks = threading.Thread(target=lambda: other.process("live", seconds=60))
    webhooks.start()
    whole_run(here, past)
    webhooks.join()
    eventually(lambda: not here.road.process("live"))
    decide_due(here.engine, here.settings)
    assert here.one("SELECT count(*) FROM stripe_events WHERE status NOT IN ('processed', 'ignored')").count == 0
    assert (here.rows()["users"], sums(here)) == expected


def test_progress_grows_from_nothing_to_everything(here: World, past: Stripe) -> None:
    seen: list[float] = []
    with door(here, past) as (api, _):
        run = backfill.request(here.engine)
        assert backfill.progress(run) == 0
        backfill.go_on(here.road, api, NEVER, seconds=60, tell=lambda work: seen.append(backfill.progress(work.run)))
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_without_anybody_having_asked_a_worker_begins_nothing(here: World, past: Stripe) -> None:
    with door(here, past) as (api, server):
        assert backfill.go_on(here.road, api, NEVER) is None
        assert server.log == []


def test_a_worker_goes_on_with_what_a_command_began(here: World, past: Stripe, redis_db_url: str) -> None:
    sign_up(here)
    with serving(past) as server, worker(env(here, server, redis_db_url)) as child:
        backfill.request(here.engine)
        send(redis_db_url, "backfill", queue="api")
        child.says("backfill: ", timeout=60)
    assert last(here) == ("done", None)


def test_beats_during_a_long_backfill_leave_one_message_that_sends_itself_again(
    here: World, past: Stripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one more for each beat nothing else of the queue had its turn: looks and hydration expired in it."""
    from workers import tasks

    sent: list[tuple[str | None]] = []
    monkeypatch.setattr(tasks, "road", lambda: here.road)
    monkeypatch.setattr(tasks, "_has_key", lambda: True)
    monkeypatch.setattr(backfill, "go_on", partial(backfill.go_on, seconds=0))
    monkeypatch.setattr(tasks.go_on_with_backfill, "apply_async", lambda place, **_: sent.append(place))
    backfill.request(here.engine)
    with door(here, past) as (api, server):
        monkeypatch.setattr(tasks, "stripe", lambda: api)
        for _ in range(2):
            tasks.go_on_with_backfill()
        first, second = sent
        asked = len(server.log)
        tasks.go_on_with_backfill(*first)
        assert (len(server.log), len(sent)) == (asked, 2)
        tasks.go_on_with_backfill(*second)
        assert (len(server.log) > asked, len(sent)) == (True, 3)


# --- one customer -------------------------------------------------------------------------------------------------


def test_one_customer_is_fetched_with_all_that_is_theirs(here: World, past: Stripe) -> None:
    sign_up(here)
    whole_run(here, past)
    user = here.one("SELECT user_id FROM stripe_customers WHERE user_id IS NOT NULL ORDER BY id LIMIT 1").user_id
    expected = here.one("SELECT role, membership_status, tokens FROM users WHERE id = :id", id=user)
    customer = here.one("SELECT id FROM stripe_customers WHERE user_id = :id", id=user).id
    here.empty()
    sign_up(here)
    with serving(past) as server:
        dues = Dues(Path("/"), env(here, server))
        dues.fine("sync", "products")
        answer = dues.fine("sync", "customer", customer, "--json")
        assert answer.json["counts"]["customer"] == 1
        assert here.one("SELECT role, membership_status, tokens FROM users WHERE id = :id", id=user) == expected
        assert dues.fine("sync", "user", user, "--json").json["counts"]["customer"] == 1
        assert dues("sync", "customer", "cus_nobody").code == 2
        assert dues("sync", "user", "nobody").code == 2
