"""Rows that say less than Stripe knows are asked about: each once, in the lane of the API."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from models import ledger
from simulator.render import render_event
from simulator.server import Server, serving
from simulator.state import Stripe
from tests.workers.test_asking import ANN, NOW, asking_world, buy, member, work_off
from tests.workers.world import World
from workers.asking import FETCH
from workers.hydrate import ask_for_all


@pytest.fixture
def stripe() -> Stripe:
    return Stripe("hydrate", NOW)


@pytest.fixture
def server(stripe: Stripe) -> Iterator[Server]:
    with serving(stripe) as server:
        yield server


@pytest.fixture
def here(database_url: str, server: Server) -> Iterator[World]:
    with asking_world(database_url, server) as here:
        yield here


def hydrate(here: World) -> int:
    found = ask_for_all(here.engine, patience=0)
    work_off(here)
    return found


def feed(here: World, stripe: Stripe, *types: str) -> None:
    """Only the events of these types arrive."""
    here.feed_as_list(render_event(one) for one in stripe.events if one.type in types)


def test_stubs_are_filled_and_their_children_decided(here: World, stripe: Stripe, server: Server) -> None:
    buy(stripe)
    feed(here, stripe, "customer.subscription.created", "customer.subscription.updated")
    stubs = "SELECT count(*) FROM {} WHERE source = 'stub'"
    assert here.one(stubs.format("stripe_customers")).count == 1
    assert server.log == [], "the live lane never calls Stripe"
    assert hydrate(here) > 0
    for table in ("stripe_products", "stripe_prices", "stripe_customers"):
        assert here.one(stubs.format(table)).count == 0
    assert member(here)[:2] == ("PREMIUM", "ACTIVE")


def test_each_is_asked_once_however_often_beat_looks(here: World, stripe: Stripe, server: Server) -> None:
    customer, _ = buy(stripe)
    feed(here, stripe, "customer.subscription.created")
    stripe.customers.pop(customer)
    for _ in range(3):
        hydrate(here)
    assert server.counts["GET /v1/customers/:id"] == 1


def test_what_somebody_waits_for_is_asked_before_stubs_that_were_found_earlier(here: World, stripe: Stripe) -> None:
    buy(stripe)
    feed(here, stripe, "customer.subscription.created")
    assert ask_for_all(here.engine, patience=0) > 1
    with here.engine.begin() as connection:
        ledger.ask(connection, ledger.fetch_id("evt_checkout"), FETCH, b"{}")
        (first,) = ledger.claim(connection, "api", size=1, lease=60).events
    assert first.id == ledger.fetch_id("evt_checkout")


def test_a_contested_row_is_settled_by_asking(here: World, stripe: Stripe) -> None:
    customer, _ = buy(stripe)
    feed(here, stripe, "customer.created")
    here.execute("UPDATE stripe_customers SET contested = true, name = 'as somebody said'")
    stripe.advance(NOW + 600)
    assert hydrate(here) == 1
    row = here.one("SELECT contested, name, source FROM stripe_customers WHERE id = :id", id=customer)
    assert (row.contested, row.name, row.source) == (False, stripe.customers[customer].name, "api")
    assert hydrate(here) == 0


def test_lines_that_were_cut_off_are_fetched(here: World, stripe: Stripe) -> None:
    buy(stripe)
    here.feed_as_list(render_event(one) for one in stripe.events)
    here.execute("UPDATE stripe_invoices SET lines = '[]', lines_complete = false")
    stripe.advance(NOW + 600)
    assert hydrate(here) == 1
    row = here.one("SELECT lines_complete, jsonb_array_length(lines) AS n FROM stripe_invoices")
    assert tuple(row) == (True, 1)
    assert member(here)[2] == 500


def test_a_pack_that_only_its_line_items_name_is_granted(here: World, stripe: Stripe) -> None:
    product = stripe.create_product("Pack", metadata={"tokens": "50"})
    price = stripe.create_price(product.id, 500, interval=None)
    customer = stripe.create_customer("ann@pays.example", metadata={"user_id": ANN})
    stripe.complete_checkout(stripe.open_checkout(price.id, customer=customer.id).id)
    here.feed_as_list(render_event(one) for one in stripe.events)
    work_off(here)
    assert member(here)[2] == 0
    stripe.advance(NOW + 600)
    assert hydrate(here) == 1
    assert member(here)[2] == 50
    assert hydrate(here) == 0


def test_what_has_just_been_written_is_given_a_moment(here: World, stripe: Stripe) -> None:
    buy(stripe)
    feed(here, stripe, "customer.subscription.created")
    assert ask_for_all(here.engine, patience=60) == 0
