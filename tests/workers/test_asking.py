"""What is asked of Stripe because the ledger wants it: thin events, ends of Checkouts, looks at a user."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pytest

from models import envelope, ledger
from simulator.api import KEY
from simulator.api.errors import missing
from simulator.envelope import body_of
from simulator.faults import Fault, Faults, Rule, server_error
from simulator.histories import history
from simulator.objects import Event
from simulator.people import people as people_of
from simulator.render import render_event
from simulator.render.thin import notification
from simulator.server import Server, serving
from simulator.state import Stripe
from tests.workers.test_process import due_now
from tests.workers.world import Rows, World, world
from workers import asking

NOW = 1_793_520_000
ANN = "user_ann"


@pytest.fixture
def stripe() -> Stripe:
    return Stripe("asking", NOW)


@pytest.fixture
def server(stripe: Stripe) -> Iterator[Server]:
    with serving(stripe) as server:
        yield server


@contextlib.contextmanager
def asking_world(database_url: str, server: Server, **settings: str) -> Iterator[World]:
    keys = {"STRIPE_API_KEY": KEY, "STRIPE_API_BASE": server.url}
    with world(database_url, **keys, **settings) as here:
        here.users(ANN)
        yield here


@pytest.fixture
def here(database_url: str, server: Server) -> Iterator[World]:
    with asking_world(database_url, server) as here:
        yield here


def receive(here: World, bodies: Iterable[Mapping[str, Any]]) -> None:
    """Record bodies the way the receiver does."""
    for body in bodies:
        with here.engine.begin() as connection:
            ledger.record(connection, envelope.read(body_of(body)))


def thin(events: Iterable[Event]) -> list[dict[str, Any]]:
    return [notification(event) for event in events]


def work_off(here: World) -> None:
    for lane in ledger.LANES:
        here.road.process(lane, seconds=60)


def rows_of(here: World) -> Rows:
    """The rows, but for what webhooks never carry."""
    found = here.rows()
    for session in found["stripe_checkout_sessions"].values():
        del session["line_items"]
    return found


def endings(here: World) -> dict[tuple[str, str | None], int]:
    rows = here.execute("SELECT status, reason, count(*) AS n FROM stripe_events GROUP BY 1, 2")
    return {(row.status, row.reason): row.n for row in rows}


def buy(stripe: Stripe) -> tuple[str, str]:
    """Ann buys Pro; her customer and subscription."""
    product = stripe.create_product("Pro", metadata={"tokens": "500"})
    price = stripe.create_price(product.id, 900)
    customer = stripe.create_customer("ann@pays.example", metadata={"user_id": ANN})
    return customer.id, stripe.checkout(price.id, customer=customer.id).id


def member(here: World) -> tuple[str, str, int]:
    return tuple(here.one("SELECT role::text, membership_status::text, tokens FROM users WHERE id = :id", id=ANN))


# --- thin events ------------------------------------------------------------------------------------------------------


def test_a_thin_only_endpoint_ends_in_the_same_state_as_snapshots(
    database_url: str, postgres_url: str, template_database: str
) -> None:
    from tests.conftest import new_database

    past = history("thin", customers=4, months=2)
    people = [user.id for user in people_of("thin", 4)]
    with new_database(postgres_url, template_database) as other, world(other) as snapshots, serving(past) as server:
        snapshots.users(*people)
        snapshots.feed_as_list(render_event(event) for event in past.events)
        with asking_world(database_url, server) as here:
            here.execute("DELETE FROM users")
            here.users(*people)
            receive(here, thin(past.events))
            work_off(here)
            assert {status for status, _ in endings(here)} <= {"processed", "ignored"}
            found = rows_of(here)
            for table, rows in rows_of(snapshots).items():
                assert found[table] == rows, table


def test_each_thin_event_is_fetched_as_things_happen_and_the_live_lane_asks_nothing(
    here: World, stripe: Stripe, server: Server
) -> None:
    _, subscription = buy(stripe)
    receive(here, thin(stripe.events))
    here.road.process("live")
    assert server.log == []
    # One is about a plan, which Dues does not know.
    assert endings(here) == {("received", None): len(stripe.events) - 1, ("ignored", "type"): 1}
    work_off(here)
    assert member(here) == ("PREMIUM", "ACTIVE", 500)
    seen = len(stripe.events)
    stripe.cancel(subscription)
    receive(here, thin(stripe.events[seen:]))
    work_off(here)
    assert member(here)[:2] == ("USER", "CANCELED")


def test_an_answer_is_true_at_least_as_of_the_event_that_it_was_asked_for(here: World, stripe: Stripe) -> None:
    """The API's clock and a slow answer make its `as_of` older than the event; what was there before must not win."""
    _, subscription = buy(stripe)
    here.feed_as_list(render_event(event) for event in stripe.events)
    seen = len(stripe.events)
    stripe.cancel(subscription)
    assert stripe.events[seen].created == NOW, "in the same second as all before"
    receive(here, thin(stripe.events[seen:]))
    work_off(here)
    assert member(here)[:2] == ("USER", "CANCELED")


def test_a_snapshot_twin_of_the_same_change_does_no_harm(here: World, stripe: Stripe) -> None:
    buy(stripe)
    snapshots = [render_event(event) for event in stripe.events]
    receive(here, snapshots)
    work_off(here)
    expected = rows_of(here)
    receive(here, thin(stripe.events))
    work_off(here)
    assert rows_of(here) == expected
    here.empty()
    here.users(ANN)
    receive(here, [*thin(stripe.events), *snapshots])
    work_off(here)
    assert rows_of(here) == expected


def test_without_a_key_thin_events_are_ignored_and_say_why(database_url: str, stripe: Stripe) -> None:
    buy(stripe)
    with world(database_url) as here:
        receive(here, thin(stripe.events[:3]))
        here.road.process("live")
        assert endings(here) == {("ignored", "no_api_key"): 3}


def test_what_thin_events_tell_of_other_kinds_of_objects_is_ignored(here: World, stripe: Stripe) -> None:
    buy(stripe)
    body = thin(stripe.events[:1])[0]
    receive(here, [
        {**body, "id": "evt_1", "type": "v1.billing.meter.error_report_triggered",
         "related_object": {"id": "mtr_1", "type": "billing.meter", "url": "/v1/billing/meters/mtr_1"}},
        {**body, "id": "evt_2", "type": "v2.core.account.created", "related_object": None},
    ])  # fmt: skip
    here.road.process("live")
    assert endings(here) == {("ignored", "type"): 2}


@pytest.mark.parametrize("id", ["..", "a\0b", "x" * 300])
def test_a_thin_event_that_names_what_is_no_id_harms_only_itself(here: World, stripe: Stripe, id: str) -> None:
    buy(stripe)
    odd, fine = thin(stripe.events[:2])
    receive(here, [{**odd, "related_object": {**odd["related_object"], "id": id}}, fine])
    work_off(here)
    assert sum(endings(here).values()) == 2
    assert endings(here)["processed", None] == 1
    assert here.statuses().get("received", 0) == 0


def test_what_stripe_no_longer_has_becomes_a_tombstone(here: World, stripe: Stripe, server: Server) -> None:
    customer, _ = buy(stripe)
    product = stripe.create_product("Sticker")
    receive(here, thin(stripe.events))
    work_off(here)
    seen = len(stripe.events)
    stripe.delete_product(product.id)
    stripe.delete_customer(customer)
    receive(here, thin(stripe.events[seen:]))
    work_off(here)
    gone = here.one("SELECT name, deleted_at, source FROM stripe_products WHERE id = :id", id=product.id)
    assert (gone.name, gone.deleted_at is None, gone.source) == ("Sticker", False, "api")
    deleted = here.one("SELECT email, deleted_at FROM stripe_customers WHERE id = :id", id=customer)
    assert (deleted.email, deleted.deleted_at is None) == ("ann@pays.example", False)
    assert member(here)[:2] == ("USER", "CANCELED")


class End(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("step", ["book", "hand over", "ask", "write", "link", "decide"])
def test_killed_anywhere_a_thin_event_is_neither_lost_nor_doubled(here: World, stripe: Stripe, step: str) -> None:
    buy(stripe)
    receive(here, thin(stripe.events))
    work_off(here)
    expected = here.rows()
    here.empty()
    here.users(ANN)
    receive(here, thin(stripe.events))
    killed: set[str] = set()

    def kill(reached: str) -> None:
        if reached == step and not killed:
            killed.add(reached)
            raise End

    here.road.checkpoint = kill
    with pytest.raises(End):
        work_off(here)
    for _ in range(2):
        due_now(here)
        work_off(here)
    assert here.rows() == expected
    assert set(here.statuses()) == {"processed", "ignored"}


def test_while_stripe_is_away_thin_events_wait_with_a_reason_and_nothing_is_lost(
    here: World, stripe: Stripe, server: Server
) -> None:
    buy(stripe)
    receive(here, thin(stripe.events[:2]))
    server.faults = Faults([Rule(fault=server_error())])
    work_off(here)
    rows = here.execute("SELECT status, reason, lane, attempts, due_at > clock_timestamp() AS later FROM stripe_events")
    assert {tuple(row) for row in rows} == {("received", "transient", "api", 1, True)}
    server.faults = Faults()
    here.road.stripe._breaker.note(is_fine=True)
    due_now(here)
    work_off(here)
    assert here.statuses() == {"processed": 2}


# --- the end of a Checkout --------------------------------------------------------------------------------------------


def the_end(stripe: Stripe) -> dict[str, Any]:
    return next(render_event(one) for one in stripe.events if one.type == "checkout.session.completed")


def test_of_a_checkout_whose_subscription_nobody_told_of_it_is_fetched_at_once(
    here: World, stripe: Stripe, server: Server
) -> None:
    buy(stripe)
    end = the_end(stripe)
    receive(here, [end])
    here.road.process("live")
    assert server.log == []
    assert member(here)[0] == "USER"
    with here.engine.connect() as connection:
        assert not ledger.is_settled(connection, end["id"])
    here.road.process("api")
    with here.engine.connect() as connection:
        assert ledger.is_settled(connection, end["id"])
    assert member(here) == ("PREMIUM", "ACTIVE", 0)
    known = here.one("SELECT name FROM stripe_products").name, here.one("SELECT email FROM stripe_customers").email
    assert known == ("Pro", "ann@pays.example")
    assert (
        here.one("SELECT event_id FROM membership_changes ORDER BY id DESC LIMIT 1").event_id
        == f"dues_fetch:{end['id']}"
    )


def test_of_a_checkout_of_which_all_is_known_nothing_is_asked(here: World, stripe: Stripe, server: Server) -> None:
    buy(stripe)
    here.feed_as_list(render_event(one) for one in stripe.events)
    assert here.execute("SELECT FROM stripe_events WHERE lane = 'api'") == []


def test_without_a_key_the_end_of_a_checkout_asks_nobody(database_url: str, stripe: Stripe) -> None:
    buy(stripe)
    with world(database_url) as here:
        here.feed(the_end(stripe))
        assert endings(here) == {("processed", None): 1}


def test_of_a_purchase_the_payment_is_fetched(here: World, stripe: Stripe) -> None:
    product = stripe.create_product("Pack", metadata={"tokens": "50"})
    price = stripe.create_price(product.id, 500, interval=None)
    stripe.purchase(price.id, client_reference_id=ANN)
    receive(here, [the_end(stripe)])
    here.road.process("live")
    here.road.process("api")
    (payment,) = here.execute("SELECT status, amount FROM payment_history WHERE source = 'api'")
    assert tuple(payment) == ("succeeded", 500)


# --- a look at a user -------------------------------------------------------------------------------------------------


def ask_about(here: World, user: str = ANN) -> None:
    payload = json.dumps({"user": user}).encode()
    with here.engine.begin() as connection:
        ledger.ask(connection, f"dues_refresh:{user}", asking.REFRESH, payload)


def test_a_look_at_a_user_finds_what_nobody_told_of(here: World, stripe: Stripe, server: Server) -> None:
    buy(stripe)
    here.feed_as_list(render_event(one) for one in stripe.events)
    stripe.advance(NOW + 40 * 86_400)  # renewed unheard of
    other = stripe.create_price(stripe.create_product("Max", metadata={"tokens": "900"}).id, 1900)
    (customer,) = stripe.customers
    stripe.checkout(other.id, customer=customer)
    ask_about(here)
    here.road.process("api")
    assert endings(here)["processed", None] >= 1
    assert member(here) == ("PREMIUM", "ACTIVE", 1400)
    assert here.one("SELECT count(*) FROM user_subscriptions WHERE source = 'api'").count == 2
    unpaid = "SELECT count(*) FROM payment_history p WHERE NOT EXISTS ({})".format(
        "SELECT FROM stripe_invoice_payments i WHERE i.payment_intent_id = p.id AND i.status = 'paid'"
    )
    assert here.one(unpaid).count == 0
    assert here.one("SELECT count(*) FROM stripe_products WHERE source = 'stub'").count == 0
    asked = len(server.log)
    ask_about(here)
    here.road.process("api")
    # The customer, and a page each of subscriptions, invoices, payments and charges.
    assert len(server.log) - asked == 5


def test_a_look_while_stripe_is_away_ends_so_and_the_next_access_asks_again(
    here: World, stripe: Stripe, server: Server
) -> None:
    buy(stripe)
    here.feed_as_list(render_event(one) for one in stripe.events)
    before = here.rows()
    server.faults = Faults([Rule(fault=server_error())])
    ask_about(here)
    here.road.process("api")
    assert endings(here)["ignored", "unreachable"] == 1
    assert here.rows() == before
    ask_about(here)
    assert endings(here)["received", None] == 1


def test_a_customer_that_stripe_does_not_know_fails_no_look(here: World, stripe: Stripe, server: Server) -> None:
    buy(stripe)
    here.feed_as_list(render_event(one) for one in stripe.events)
    before = here.rows()
    # A filter that names nothing is refused with 400: https://docs.stripe.com/error-codes#resource-missing
    server.faults = Faults([Rule(fault=Fault(error=missing("customer", "cus_gone", status=400, param="customer")))])
    ask_about(here)
    here.road.process("api")
    assert here.one("SELECT status FROM stripe_events WHERE id LIKE 'dues_refresh:%'").status == "processed"
    assert here.rows() == before


def test_a_look_at_a_user_without_customers_asks_nothing(here: World, server: Server) -> None:
    ask_about(here)
    ask_about(here, "nobody")
    here.road.process("api")
    assert (here.statuses(), server.log) == ({"processed": 2}, [])


def test_without_a_key_a_look_says_why_it_is_none(database_url: str) -> None:
    with world(database_url, STRIPE_LIVEMODE="live") as here:
        ask_about(here)
        here.road.process("api")
        assert endings(here) == {("ignored", "no_api_key"): 1}


# --- one after the other ----------------------------------------------------------------------------------------------


def test_who_asks_about_the_same_waits_until_the_answer_was_written(here: World, stripe: Stripe) -> None:
    buy(stripe)
    receive(here, thin(stripe.events[:1]))
    with here.engine.begin() as connection:
        (event,) = ledger.claim(connection, "live", size=1, lease=60).events
    order: list[str] = []

    def second() -> None:
        with asking.alone_with(here.engine, event):
            order.append("second")

    thread = threading.Thread(target=second)
    with asking.alone_with(here.engine, event):
        thread.start()
        thread.join(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
