"""One lock order: what stands in each other's way waits, and never for each other."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, text

from tests.support import eventually
from tests.workers.world import World, event, thing, world
from workers.recompute import decide

NOON = 1793520000


@pytest.fixture
def here(database_url: str) -> Iterator[World]:
    with world(database_url) as one:
        yield one


def is_waiting(here: World) -> bool:
    """Whether somebody waits for a row of somebody else."""
    return bool(here.execute("SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))


def lock(connection: Connection, table: str, row_id: str, strength: str = "UPDATE") -> None:
    connection.execute(text(f"SELECT id FROM {table} WHERE id = :id FOR {strength}"), {"id": row_id})


def customer(row_id: str, created: int) -> dict[str, object]:
    return event(thing("customer.created", id=row_id, metadata={}), "customer.updated", created)


def subscription(customer_id: str, created: int) -> dict[str, object]:
    obj = thing("customer.subscription.created", id=f"sub_of_{customer_id}", customer=customer_id, metadata={})
    return event(obj, "customer.subscription.updated", created)


def test_write_takes_no_parent_before_a_row_of_the_same_table_that_it_is_about_to_write(here: World) -> None:
    """LINK holds cus_1 and wants cus_2; WRITE is about to write cus_1 and a child of cus_2."""
    here.feed_as_list([customer("cus_1", NOON), customer("cus_2", NOON)])
    here.record(customer("cus_1", NOON + 1), subscription("cus_2", NOON + 1))
    with here.engine.begin() as linking:
        lock(linking, "stripe_customers", "cus_1")
        writing = threading.Thread(target=here.another_road().process, args=("live",))
        writing.start()
        eventually(lambda: is_waiting(here))
        linking.execute(text("SET LOCAL lock_timeout = '500ms'"))
        lock(linking, "stripe_customers", "cus_2")
    writing.join()
    assert here.statuses() == {"processed": 4}
    assert here.execute("SELECT FROM stripe_events WHERE attempts > 1") == []


def test_decide_locks_all_subscriptions_before_any_payment(here: World) -> None:
    """WRITE holds a subscription of two items and wants a payment; DECIDE is about to own the payment."""
    here.users("u1")
    two = thing("customer.subscription.created__several_items", customer="cus_1", metadata={"user_id": "u1"})
    here.feed(event(two, "customer.subscription.created", NOON))
    here.feed(event(thing("payment_intent.succeeded", id="pi_1", customer="cus_1"), "payment_intent.succeeded", NOON))
    here.execute("UPDATE payment_history SET user_id = NULL")

    def deciding() -> None:
        with here.engine.begin() as connection:
            decide(connection, here.settings, ["u1"])

    with here.engine.begin() as writing:
        lock(writing, "user_subscriptions", two["id"], "NO KEY UPDATE")
        thread = threading.Thread(target=deciding)
        thread.start()
        eventually(lambda: is_waiting(here))
        writing.execute(text("SET LOCAL lock_timeout = '500ms'"))
        lock(writing, "payment_history", "pi_1", "NO KEY UPDATE")
    thread.join()
    assert here.one("SELECT user_id FROM payment_history").user_id == "u1"


def test_decide_locks_payments_of_customers_and_of_guests_in_one_round(here: World) -> None:
    """WRITE holds a guest's payment and wants a customer's, whose id is greater; DECIDE is about to own both."""
    here.users("u1")
    here.feed(event(thing("customer.created", id="cus_1", metadata={"user_id": "u1"}), "customer.created", NOON))
    session = {"mode": "payment", "customer": None, "subscription": None, "invoice": None, "payment_link": None}
    bought = thing("checkout.session.completed", **session, payment_intent="pi_1", client_reference_id="u1")
    here.feed(event(bought, "checkout.session.completed", NOON))
    for row_id, payer in (("pi_1", None), ("pi_2", "cus_1")):
        paid = thing("payment_intent.succeeded", id=row_id, customer=payer)
        here.feed(event(paid, "payment_intent.succeeded", NOON))
    owned = [("pi_1", "u1"), ("pi_2", "u1")]
    payments = "SELECT id, user_id FROM payment_history ORDER BY id"
    assert here.execute(payments) == owned
    here.execute("UPDATE payment_history SET user_id = NULL")

    def deciding() -> None:
        with here.engine.begin() as connection:
            decide(connection, here.settings, ["u1"])

    with here.engine.begin() as writing:
        lock(writing, "payment_history", "pi_1", "NO KEY UPDATE")
        thread = threading.Thread(target=deciding)
        thread.start()
        eventually(lambda: is_waiting(here))
        writing.execute(text("SET LOCAL lock_timeout = '500ms'"))
        lock(writing, "payment_history", "pi_2", "NO KEY UPDATE")
    thread.join()
    assert here.execute(payments) == owned


def test_no_user_is_locked_between_link_and_decide(here: World) -> None:
    """DECIDE locks more users than LINK did: waiting with LINK's in hand, two lists could meet crosswise."""
    here.users("u1")
    reached = []

    def look(step: str) -> None:
        if step == "link":
            reached.append(here.execute("SELECT id FROM users FOR UPDATE NOWAIT"))

    here.road.checkpoint = look
    here.feed(event(thing("customer.created", id="cus_1", metadata={"user_id": "u1"}), "customer.created", NOON))
    assert reached == [[("u1",)]]
    assert here.statuses() == {"processed": 1}


def test_a_decision_waits_for_the_one_before_it_and_sees_what_that_one_did(here: World) -> None:
    """The later one's answer is what the user's row says before the earlier one commits: nothing seems to differ."""
    here.users("u1")
    begun = thing("customer.subscription.created", id="sub_1", customer="cus_1", metadata={"user_id": "u1"})
    paused = {**begun, "status": "paused"}
    here.feed(event(paused, "customer.subscription.created", NOON))
    decided, go_on = threading.Event(), threading.Event()

    def stop_before_the_commit(step: str) -> None:
        if step == "decide":
            decided.set()
            go_on.wait(10)

    earlier, later = here.another_road(), here.another_road()
    earlier.checkpoint = stop_before_the_commit
    threads = [threading.Thread(target=road.process, args=("live",)) for road in (earlier, later)]
    here.record(event(begun, "customer.subscription.resumed", NOON + 1))
    threads[0].start()
    assert decided.wait(10)
    here.record(event(paused, "customer.subscription.paused", NOON + 2))
    threads[1].start()
    eventually(lambda: is_waiting(here) or not threads[1].is_alive())
    go_on.set()
    for thread in threads:
        thread.join()
    assert here.one("SELECT role::text, membership_status::text FROM users") == ("USER", "INACTIVE")
