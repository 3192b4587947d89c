from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from tests.workers.test_process import CUSTOMER, NOON, USER, story, subscription_of
from tests.workers.world import World, event, thing, world
from workers.link import link
from workers.recompute import decide_due


@pytest.fixture
def here(database_url: str) -> Iterator[World]:
    with world(database_url) as one:
        yield one


def links(here: World) -> dict[str, tuple[str | None, str | None, str | None]]:
    rows = here.execute("SELECT id, user_id, alias_of, linked_by FROM stripe_customers")
    return {row.id: (row.user_id, row.alias_of, row.linked_by) for row in rows}


def customer(number: str, created: int = NOON, **metadata: str) -> dict[str, object]:
    return event(
        thing("customer.created", id=f"cus_{number}", created=created, email=None, metadata=metadata),
        "customer.created",
        NOON,
    )


def test_metadata_of_the_customer_beat_a_session_and_both_may_come_in_any_order(here: World) -> None:
    session = event(
        thing("checkout.session.completed", customer="cus_1", client_reference_id="43", metadata={}),
        "checkout.session.completed",
        NOON,
    )
    for order in ((customer("1", user_id=USER), session), (session, customer("1", user_id=USER))):
        here.empty()
        here.users(USER, "43")
        here.feed(*order)
        assert links(here) == {"cus_1": (USER, None, "customer_metadata")}


def test_further_customers_of_a_user_are_aliases_of_the_earliest(here: World) -> None:
    here.users(USER)
    here.feed(customer("b", NOON - 5, user_id=USER), customer("a", NOON - 1, user_id=USER))
    here.feed(customer("c", NOON - 9, userId=USER))
    by_metadata = "customer_metadata"
    assert links(here) == {
        "cus_a": (None, "cus_c", by_metadata),
        "cus_b": (None, "cus_c", by_metadata),
        "cus_c": (USER, None, by_metadata),
    }


def test_subscriptions_of_all_of_a_users_customers_count(here: World) -> None:
    here.users(USER)
    here.feed_as_list([customer("1", user_id=USER), customer("2", user_id=USER), subscription_of(USER, "2")])
    assert here.one("SELECT role::text FROM users").role == "PREMIUM"
    assert here.one("SELECT user_id FROM user_subscriptions").user_id == USER


def test_an_orphan_is_kept_and_linked_when_its_user_signs_up(here: World) -> None:
    here.feed(*story())
    assert links(here) == {CUSTOMER: (None, None, None)}
    here.users(USER)
    assert decide_due(here.engine, here.settings) == 1
    assert links(here) == {CUSTOMER: (USER, None, "session")}
    assert here.one("SELECT role::text FROM users").role == "PREMIUM"
    assert here.one("SELECT user_id FROM user_subscriptions").user_id == USER


def test_a_customer_that_moves_takes_its_subscription_along(here: World) -> None:
    here.users(USER, "43")
    here.feed(*story())
    here.feed(event(thing("customer.created", metadata={"user_id": "43"}), "customer.updated", NOON + 5))
    assert links(here) == {CUSTOMER: ("43", None, "customer_metadata")}
    roles = here.execute("SELECT id, role::text FROM users ORDER BY id")
    assert [tuple(row) for row in roles] == [(USER, "USER"), ("43", "PREMIUM")]
    assert here.one("SELECT user_id FROM user_subscriptions").user_id == "43"


def test_two_customers_that_swap_their_users_never_break_the_one_to_one(here: World) -> None:
    here.users(USER, "43")
    here.feed(customer("1", user_id=USER), customer("2", user_id="43"))
    swapped = [customer("1", user_id="43"), customer("2", user_id=USER)]
    here.feed_as_list({**one, "id": f"{one['id']}_later", "created": NOON + 9} for one in swapped)
    assert {one: found[0] for one, found in links(here).items()} == {"cus_1": "43", "cus_2": USER}


def test_a_person_decides_over_all_evidence(here: World) -> None:
    here.users(USER, "43")
    here.feed(*story())
    insert = "INSERT INTO customer_links (stripe_customer_id, user_id, author) VALUES (:c, :u, 'ops')"
    here.execute(insert, c=CUSTOMER, u="43")
    decide_due(here.engine, here.settings)
    assert links(here) == {CUSTOMER: ("43", None, "hand")}
    here.execute(insert, c=CUSTOMER, u=None)
    decide_due(here.engine, here.settings)
    assert links(here)[CUSTOMER][:2] == (None, None)
    assert {row.role for row in here.execute("SELECT role::text FROM users")} == {"USER"}


def test_linking_is_repeatable_and_says_whom_it_concerned(here: World) -> None:
    here.users(USER)
    here.feed_as_list(story()[:4])
    assert link(here.engine, here.settings, customers=[CUSTOMER]) == set()
    here.execute('UPDATE stripe_customers SET metadata = \'{"user_id": "42"}\'')
    assert link(here.engine, here.settings, customers=[CUSTOMER]) == {USER}
    assert link(here.engine, here.settings, customers=[CUSTOMER]) == set()


def test_links_wait_for_a_user_that_somebody_else_has_locked(here: World) -> None:
    """Whoever locks the user last sees the other's evidence: that is what the lock is for."""
    here.users(USER)
    here.feed_as_list(story()[:4])
    here.execute('UPDATE stripe_customers SET metadata = \'{"user_id": "42"}\'')
    answer: list[set[str]] = []
    thread = threading.Thread(
        target=lambda: answer.append(link(here.engine, here.settings, customers=[CUSTOMER])),
    )
    with here.engine.begin() as other:
        other.execute(text("SELECT FROM users FOR NO KEY UPDATE"))
        thread.start()
        thread.join(timeout=0.5)
        assert thread.is_alive()
        other.execute(text("UPDATE stripe_customers SET metadata = '{}'"))
    thread.join(timeout=10)
    assert answer == [set()], "the evidence was gone when the lock was free"


def test_a_deleted_account_leaves_what_stripe_said_and_its_customer_finds_the_next_owner(here: World) -> None:
    """The customer's metadata name who is deleted; the e-mail, verified, is somebody else's."""
    here.users(USER, "43")
    here.execute("UPDATE users SET email = 'Alice@example.com', email_verified = now() WHERE id = '43'")
    here.feed(*story())
    here.feed(event(thing("customer.created", metadata={"user_id": USER}), "customer.updated", NOON + 5))
    assert links(here) == {CUSTOMER: (USER, None, "customer_metadata")}
    here.execute("DELETE FROM users WHERE id = :u", u=USER)
    assert links(here) == {CUSTOMER: (None, None, "customer_metadata")}
    assert here.one("SELECT user_id FROM user_subscriptions").user_id is None
    assert here.road.process("live") == {"processed": 1}
    assert links(here) == {CUSTOMER: ("43", None, "email")}
    assert here.one("SELECT role::text FROM users").role == "PREMIUM"


def test_a_row_that_hangs_on_its_user_alone_goes_with_it(here: World) -> None:
    here.users(USER)
    here.execute("INSERT INTO user_subscriptions (id, user_id) VALUES ('sub_by_hand', :u)", u=USER)
    here.execute("DELETE FROM users")
    assert here.execute("SELECT FROM user_subscriptions") == []
    assert here.execute("SELECT FROM stripe_events") == []


def test_a_guest_who_has_just_signed_up_gets_the_customer_that_was_waiting_too(here: World) -> None:
    """Their purchase decides them, after which nothing is due: the customer must be theirs by then."""
    customer = event(thing("customer.created", id="cus_w", metadata={"user_id": "u1"}), "customer.created", 1793520000)
    session = thing("checkout.session.completed__guest", client_reference_id="u1", metadata={"tokens": "70"})
    here.feed(customer)
    here.users("u1")
    here.feed(event(session, "checkout.session.completed", 1793520001))
    assert here.one("SELECT user_id FROM stripe_customers").user_id == "u1"
