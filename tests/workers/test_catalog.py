"""The sync of products and prices, against a practice Stripe over HTTP."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis

from models import sync_runs
from simulator.server import Server
from simulator.state import Stripe
from tests.support import eventually
from tests.workers.practice import asking
from tests.workers.scripted import Said, page, refusal, scripted
from tests.workers.serving import send, worker
from tests.workers.test_process import NOON, USER, story
from tests.workers.world import World, event, thing, world
from workers import catalog
from workers.catalog_version import CatalogVersion
from workers.mirroring import OtherAccountError
from workers.stripe_api import StripeApi, StripeApiError, StripeAwayError

NEVER = threading.Event()


@pytest.fixture
def here(database_url: str) -> Iterator[World]:
    with world(database_url) as one:
        yield one


@pytest.fixture
def stripe() -> Stripe:
    return Stripe("catalog", NOON)


@contextlib.contextmanager
def syncing(here: World, stripe: Stripe) -> Iterator[tuple[Callable[[], sync_runs.Run | None], Server]]:
    """A sync by hand of the practice Stripe, and its server."""
    with asking(here, stripe) as (door, server):
        yield lambda: catalog.sync(here.road, door, NEVER, every=0), server


def rows(here: World, table: str) -> dict[str, tuple[bool, bool]]:
    """Id → active, deleted."""
    found = here.execute(f"SELECT id, active, deleted_at IS NOT NULL AS gone FROM {table} ORDER BY id")
    return {row.id: (row.active, row.gone) for row in found}


def runs(here: World) -> list[tuple[str, str]]:
    return [(row.kind, row.status) for row in here.execute("SELECT kind, status FROM sync_runs ORDER BY id")]


def shop(stripe: Stripe, prices: int = 3) -> list[str]:
    product = stripe.create_product("Pro", metadata={"role": "PREMIUM"})
    return [product.id, *(stripe.create_price(product.id, 900 + n).id for n in range(prices))]


def test_everything_active_and_archived_is_mirrored(here: World, stripe: Stripe) -> None:
    product, first, second, third = shop(stripe)
    stripe.update_price(second, active=False)
    with syncing(here, stripe) as (sync, _):
        sync()
    assert rows(here, "stripe_products") == {product: (True, False)}
    assert rows(here, "stripe_prices") == {first: (True, False), second: (False, False), third: (True, False)}
    assert runs(here) == [("catalog", "done")]
    assert here.one("SELECT counts FROM sync_runs").counts == {"product": 1, "price": 3}


def test_a_quiet_sync_of_a_hundred_prices_asks_twice_and_leaves_nothing_to_do(here: World, stripe: Stripe) -> None:
    shop(stripe, prices=100)
    news: list[str] = []
    here.road.renew_catalog = lambda: news.append("changed")
    with syncing(here, stripe) as (sync, server):
        sync()
        assert (len(news), here.one("SELECT count(*) FROM stripe_events").count) == (2, 2)
        server.log.clear()
        sync()
        assert server.counts == {"GET /v1/products": 1, "GET /v1/prices": 1}
    assert (len(news), here.one("SELECT count(*) FROM stripe_events").count) == (2, 2)


def test_a_change_that_no_event_told_is_found_and_reaches_the_subscribers(here: World, stripe: Stripe) -> None:
    here.users(USER)
    here.feed_as_list(story())
    sold = thing("product.created")
    with scripted(page([], has_more=False)) as server:
        changed = {**sold, "metadata": {"role": "USER"}}
        price = thing("price.created")
        server.answers[:] = [Said({"object": "list", "data": [one], "has_more": False}) for one in (changed, price)]
        with contextlib.closing(StripeApi(server.settings())) as door:
            catalog.sync(here.road, door, NEVER, every=0)
    assert here.one("SELECT role::text FROM users").role == "USER"


def test_only_what_a_complete_list_lacks_is_gone(here: World, stripe: Stripe) -> None:
    product, first, *_ = shop(stripe)
    with syncing(here, stripe) as (sync, _):
        sync()
        stripe.prices.pop(first)
        stripe.advance(NOON + 60)
        sync()
        assert {id: gone for id, (_, gone) in rows(here, "stripe_prices").items() if gone} == {first: True}
        assert rows(here, "stripe_products") == {product: (True, False)}
        assert [row.counts for row in here.execute("SELECT counts FROM sync_runs ORDER BY id")][-1]["gone"] == 1


def of_two_pages(*, second: Said) -> list[Said]:
    """A list of products that is cut in two."""
    return [page(["prod_3", "prod_2"], has_more=True), second]


@pytest.mark.parametrize(
    "second",
    [refusal(500), refusal(429), Said(b'{"object": "list", "data": [{"id": "prod_', cut=True), refusal(401)],
)
def test_a_list_that_was_cut_off_in_the_middle_deactivates_nothing(here: World, second: Said) -> None:
    known = {f"prod_{n}": (True, False) for n in (1, 2, 3)}
    for id in known:
        here.feed(event(thing("product.created", id=id), "product.created", NOON))
    with (
        scripted(*of_two_pages(second=second)) as server,
        contextlib.closing(StripeApi(server.settings(), attempts=2, seconds=1)) as door,
        contextlib.suppress(StripeApiError),
    ):
        catalog.sync(here.road, door, NEVER, every=0)
    assert len(server.asked) >= 2
    assert not any(gone for _, gone in rows(here, "stripe_products").values())
    assert rows(here, "stripe_products").keys() == known.keys()


def test_a_list_with_an_object_that_cannot_be_read_tells_nothing_of_what_is_gone(here: World) -> None:
    here.feed(event(thing("product.created", id="prod_1"), "product.created", NOON))
    here.feed(event(thing("product.created", id="prod_2"), "product.created", NOON))
    data = [thing("product.created", id="prod_2"), thing("product.created", id="prod_3", name="\x00")]
    answers = [Said({"object": "list", "data": data, "has_more": False}), page([], has_more=False)]
    with scripted(*answers) as server, contextlib.closing(StripeApi(server.settings())) as door:
        catalog.sync(here.road, door, NEVER, every=0)
    assert not any(gone for _, gone in rows(here, "stripe_products").values())
    assert here.one("SELECT counts FROM sync_runs").counts["unreadable"] == 1


def test_the_key_of_another_account_deletes_nothing(here: World, stripe: Stripe) -> None:
    here.feed(event(thing("product.created", id="prod_1"), "product.created", NOON - 60))
    with syncing(here, stripe) as (sync, _), pytest.raises(OtherAccountError):
        sync()
    assert rows(here, "stripe_products") == {"prod_1": (True, False)}
    assert runs(here) == [("catalog", "failed")]


def test_a_key_of_one_mode_tells_nothing_of_what_is_gone_in_the_other(here: World, stripe: Stripe) -> None:
    product, *_ = shop(stripe)
    with syncing(here, stripe) as (sync, _):
        sync()
        live = event(thing("product.created", id="prod_live", livemode=True), "product.created", NOON - 60)
        here.feed({**live, "livemode": True})
        sync()
    assert rows(here, "stripe_products") == {product: (True, False), "prod_live": (True, False)}


def test_what_stripe_tells_of_while_it_is_listed_is_not_gone(here: World, stripe: Stripe) -> None:
    """It was made after the page was written, and its event was quicker than we."""
    shop(stripe)
    here.feed(event(thing("product.created", id="prod_new", created=NOON + 1), "product.created", NOON + 1))
    with syncing(here, stripe) as (sync, _):
        sync()
        sync()
    assert rows(here, "stripe_products")["prod_new"] == (True, False)


def test_however_many_beats_ask_there_is_one_sync(here: World, stripe: Stripe) -> None:
    shop(stripe)
    with asking(here, stripe) as (door, server):
        beats = [threading.Thread(target=catalog.sync, args=(here.another_road(), door, NEVER)) for _ in range(4)]
        for one in beats:
            one.start()
        for one in beats:
            one.join()
        catalog.sync(here.road, door, NEVER)
        assert server.counts == {"GET /v1/products": 1, "GET /v1/prices": 1}
    assert runs(here) == [("catalog", "done")]


def test_a_run_whose_maker_died_is_continued_from_its_cursor(here: World, stripe: Stripe) -> None:
    product, *prices = shop(stripe, prices=250)
    with asking(here, stripe) as (door, server):
        catalog.sync(here.road, door, NEVER, every=0, seconds=0)
        assert runs(here) == [("catalog", "running")], "only the first page of prices was read"
        server.log.clear()
        while (run := catalog.sync(here.another_road(), door, NEVER, seconds=0)) and run.cursor is not None:
            pass
        assert server.counts["GET /v1/prices"] == 2
        assert all("starting_after" in one.query for one in server.log)
    assert rows(here, "stripe_products") == {product: (True, False)}
    assert rows(here, "stripe_prices") == dict.fromkeys(sorted(prices), (True, False))
    assert runs(here) == [("catalog", "done")]


def test_a_cursor_that_was_deleted_at_stripe_begins_its_list_anew(here: World) -> None:
    ids = ["prod_3", "prod_2", "prod_1"]
    answers = [
        page(ids[:2], has_more=True),
        refusal(400, "resource_missing"),
        page([ids[0], ids[2]], has_more=False),
        page([], has_more=False),
    ]
    with scripted(*answers) as server, contextlib.closing(StripeApi(server.settings())) as door:
        catalog.sync(here.road, door, NEVER, every=0)
    gone = {id: gone for id, (_, gone) in rows(here, "stripe_products").items()}
    assert gone == {"prod_1": False, "prod_2": True, "prod_3": False}
    assert [" starting_after=prod_2" in one.line.replace("&", " ") for one in server.asked] == [
        False,
        True,
        False,
        False,
    ]
    assert runs(here) == [("catalog", "done")]


def test_while_processing_is_paused_nothing_is_asked(here: World, stripe: Stripe) -> None:
    shop(stripe)
    here.road.settings = replace(here.settings, pause=frozenset({"processing"}))
    with syncing(here, stripe) as (sync, server):
        assert sync() is None
        assert server.log == []


def test_stripe_being_away_fails_the_run_and_the_next_one_begins_anew(here: World, stripe: Stripe) -> None:
    shop(stripe)
    with (
        scripted(refusal(503)) as server,
        contextlib.closing(StripeApi(server.settings(), attempts=1)) as door,
        pytest.raises(StripeAwayError),
    ):
        catalog.sync(here.road, door, NEVER, every=0)
    with syncing(here, stripe) as (sync, _):
        sync()
    assert runs(here) == [("catalog", "failed"), ("catalog", "done")]


# --- in its processes ---------------------------------------------------------------------------------------------


@pytest.fixture
def version(redis_db_url: str) -> Iterator[CatalogVersion]:
    with contextlib.closing(CatalogVersion(redis_db_url)) as one:
        yield one


def test_a_worker_syncs_when_beat_says_so_and_tells_the_web_processes(
    database_url: str, redis_db_url: str, stripe: Stripe, here: World, version: CatalogVersion
) -> None:
    shop(stripe)
    with asking(here, stripe) as (_, server):
        env = {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_db_url,
            "STRIPE_API_KEY": "sk_test_practice",
            "STRIPE_API_BASE": server.url,
        }
        assert version.heard() == b""
        with worker(env) as child:
            for _ in range(2):
                send(redis_db_url, "sync_catalog", queue="api")
            child.says("sync_catalog: ")
            eventually(lambda: redis.Redis.from_url(redis_db_url).llen("api") == 0)
        assert server.counts == {"GET /v1/products": 1, "GET /v1/prices": 1}
    assert version.heard()
    assert runs(here) == [("catalog", "done")]


def test_without_a_key_a_worker_says_so_once_and_asks_nothing(
    database_url: str, redis_db_url: str, here: World
) -> None:
    with worker({"DATABASE_URL": database_url, "REDIS_URL": redis_db_url, "STRIPE_API_KEY": ""}) as child:
        for _ in range(3):
            send(redis_db_url, "sync_catalog", queue="api")
        child.says("STRIPE_API_KEY is not set")
        send(redis_db_url, "process_events", "live")
        eventually(lambda: redis.Redis.from_url(redis_db_url).llen("api") == 0)
        assert child.output.count("STRIPE_API_KEY is not set") == 1
    assert runs(here) == []


def test_an_event_about_what_is_on_sale_tells_the_web_processes_and_others_do_not(here: World) -> None:
    news: list[Any] = []
    here.road.renew_catalog = lambda: news.append(here.one("SELECT count(*) FROM stripe_products").count)
    here.feed(event(thing("customer.created"), "customer.created", NOON))
    assert news == []
    here.feed(event(thing("product.created"), "product.created", NOON))
    assert news == [1], "after the commit"
