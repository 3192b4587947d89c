from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from models import ledger
from models.upsert import LOCK_ORDER
from simulator.envelope import body_of
from tests.workers.world import Event, World, event, fixture, thing, world
from workers import snapshots
from workers.handlers import BY_EVENT_TYPE, HANDLERS
from workers.handlers.customer import HANDLER as CUSTOMER
from workers.shapes import Handler, MalformedError, Snapshot

NOON = 1793520000


@pytest.fixture
def here(database_url: str) -> Iterator[World]:
    with world(database_url) as one:
        yield one


def subscription(status: str, **more: object) -> dict[str, object]:
    return thing("customer.subscription.created", **{"status": status, **more})


def updated(obj: dict[str, object], previous: dict[str, object] | None, kind: str = "customer.subscription") -> Event:
    return event(obj, f"{kind}.updated", NOON, previous_attributes=previous)


# Pairs of one second: (what it shows, the one that must win, the others).
TIES: list[tuple[str, Event, list[Event]]] = [
    (
        "created comes first",
        event(thing("customer.created", name="New"), "customer.updated", NOON),
        [event(thing("customer.created", name="Old"), "customer.created", NOON)],
    ),
    (
        "the last words come last",
        event(subscription("canceled"), "customer.subscription.deleted", NOON),
        [
            updated(subscription("active"), {"status": "past_due"}),
            updated(subscription("past_due"), {"status": "active"}),
        ],
    ),
    (
        "a deletion comes last",
        event(thing("product.created"), "product.deleted", NOON),
        [event(thing("product.created", updated=NOON + 9), "product.updated", NOON)],
    ),
    (
        "progress: a subscription leaves incomplete once",
        updated(subscription("active"), None),
        [updated(subscription("incomplete"), None)],
    ),
    (
        "progress: and never comes back from its end",
        updated(subscription("incomplete_expired"), None),
        [updated(subscription("active"), {"status": "incomplete"}), updated(subscription("incomplete"), None)],
    ),
    (
        "progress: a product says when it was updated",
        event(thing("product.created", name="B", updated=NOON), "product.updated", NOON),
        [event(thing("product.created", name="A", updated=NOON - 1), "product.updated", NOON)],
    ),
    (
        "progress: a session is paid once",
        event(
            thing("checkout.session.completed", payment_status="paid"), "checkout.session.async_payment_succeeded", NOON
        ),
        [event(thing("checkout.session.completed", payment_status="unpaid"), "checkout.session.completed", NOON)],
    ),
    (
        "the one that no other names as what was before",
        updated(subscription("active", quantity=3, metadata={"n": "3"}), {"metadata": {"n": "2"}}),
        [
            updated(subscription("active", metadata={"n": "1"}), {"metadata": {"n": None}}),
            updated(subscription("active", metadata={"n": "2"}), {"metadata": {"n": "1"}}),
        ],
    ),
]


def deliveries(events: list[Event]) -> Iterator[list[list[Event]]]:
    """Every order, as one list, one by one, and split in two."""
    for order in itertools.permutations(events):
        yield [list(order)]
        yield [[one] for one in order]
        yield [list(order[:1]), list(order[1:])]


@pytest.mark.parametrize(("what", "winner", "others"), TIES, ids=[what for what, _, _ in TIES])
def test_of_events_of_one_second_the_same_wins_in_every_order(
    here: World, what: str, winner: Event, others: list[Event]
) -> None:
    table = BY_EVENT_TYPE[winner["type"]].table
    for lists in deliveries([winner, *others]):
        here.empty()
        for events in lists:
            here.feed_as_list(events)
        row = here.one(f"SELECT source, contested FROM {table} WHERE id = :id", id=winner["data"]["object"]["id"])
        assert tuple(row) == (winner["id"], False)


def test_a_tie_that_stripes_data_do_not_decide_is_contested_and_still_ends_alike(here: World) -> None:
    rivals = [event(thing("customer.created", name=name), "customer.updated", NOON) for name in ("A", "B", "C")]
    answers = set()
    for lists in deliveries(rivals):
        here.empty()
        for events in lists:
            here.feed_as_list(events)
        answers.add(tuple(here.one("SELECT name, contested, source FROM stripe_customers")))
    greatest = max(rivals, key=lambda one: one["id"])
    assert answers == {(greatest["data"]["object"]["name"], True, greatest["id"])}
    here.feed(event(thing("customer.created", name="D"), "customer.updated", NOON + 1))
    assert tuple(here.one("SELECT name, contested FROM stripe_customers")) == ("D", False)


def test_equal_snapshots_of_one_second_are_no_tie(here: World) -> None:
    """Two Event objects may describe one change; and what Dues does not store makes no difference."""
    twins = [event(thing("customer.created", balance=n), "customer.updated", NOON) for n in range(2)]
    for lists in deliveries(twins):
        here.empty()
        for events in lists:
            here.feed_as_list(events)
        assert here.one("SELECT contested FROM stripe_customers").contested is False


def test_a_change_that_is_told_twice_comes_after_what_both_name_as_former(here: World) -> None:
    former = event(thing("customer.created", name="A"), "customer.updated", NOON, id="evt_z")
    told_twice = [
        event(thing("customer.created", name="B"), "customer.updated", NOON, id=id, previous_attributes={"name": "A"})
        for id in ("evt_x", "evt_y")
    ]
    for lists in deliveries([former, *told_twice]):
        here.empty()
        for events in lists:
            here.feed_as_list(events)
        assert tuple(here.one("SELECT name, contested FROM stripe_customers")) == ("B", False)


def test_two_that_name_each_other_as_former_are_contested(here: World) -> None:
    there = updated(subscription("active", metadata={"n": "1"}), {"metadata": {"n": "2"}})
    back = updated(subscription("active", metadata={"n": "2"}), {"metadata": {"n": "1"}})
    here.feed(there, back)
    assert here.one("SELECT contested FROM user_subscriptions").contested is True


@pytest.mark.parametrize("together", [True, False])
def test_an_event_that_can_not_be_ordered_dies_alone_and_takes_no_part_in_a_tie(here: World, together: bool) -> None:
    bad = event(thing("product.created", updated="yesterday", name="Bad"), "product.updated", NOON)
    good = event(thing("product.created", name="Good"), "product.updated", NOON)
    if together:
        here.feed_as_list([bad, good])
    else:
        here.feed(bad, good)
    ended = {row.id: (row.status, row.reason) for row in here.execute("SELECT id, status, reason FROM stripe_events")}
    assert ended == {bad["id"]: ("dead", "malformed"), good["id"]: ("processed", None)}
    assert here.one("SELECT name FROM stripe_products").name == "Good"


def test_events_that_do_not_apply_here_take_no_part_in_a_tie(database_url: str) -> None:
    with world(database_url, STRIPE_LIVEMODE="test") as here:
        ours = event(thing("product.created", name="Ours", updated=NOON), "product.updated", NOON)
        other_mode = event(
            thing("product.created", name="Theirs", updated=NOON + 1), "product.updated", NOON, livemode=True
        )
        other_account = {
            **event(thing("product.created", name="Another's", updated=NOON + 2), "product.updated", NOON),
            "account": "acct_x",
        }
        here.feed_as_list([ours, other_mode, other_account])
        here.feed(ours)
        assert here.one("SELECT name FROM stripe_products").name == "Ours"


def test_a_rival_that_cannot_be_read_takes_no_part_either(here: World) -> None:
    good = event(thing("customer.created", name="Good"), "customer.updated", NOON)
    here.record(good)
    bad = event(thing("customer.created", name=5), "customer.updated", NOON)
    here.feed(bad)
    here.feed(good)
    assert here.one("SELECT name, contested FROM stripe_customers") == ("Good", False)
    assert here.statuses() == {"processed": 1, "dead": 1}


def test_a_newer_snapshot_advances_the_row_even_if_nothing_else_differs(here: World) -> None:
    """Or an event in between, arriving late, would win."""
    here.feed(event(thing("customer.created", name="A"), "customer.updated", NOON))
    here.feed(event(thing("customer.created", name="A"), "customer.updated", NOON + 10))
    here.feed(event(thing("customer.created", name="B"), "customer.updated", NOON + 5))
    row = here.one("SELECT name, extract(epoch FROM as_of)::bigint AS as_of FROM stripe_customers")
    assert tuple(row) == ("A", NOON + 10)


def test_what_the_api_said_beats_the_events_of_its_second(here: World) -> None:
    rival = event(thing("customer.created", name="Event"), "customer.updated", NOON)
    asked = snapshots.snapshot(
        CUSTOMER, thing("customer.created", name="Asked"), as_of=NOON, source="api", event_type=""
    )
    for order in ("event first", "api first"):
        here.empty()
        if order == "event first":
            here.feed(rival)
        with here.engine.begin() as connection:
            snapshots.write(connection, [asked], applies=lambda _: True)
        here.feed(rival)
        assert tuple(here.one("SELECT name, source FROM stripe_customers")) == ("Asked", "api")
    here.feed(event(thing("customer.created", name="Later"), "customer.updated", NOON + 1))
    assert here.one("SELECT name FROM stripe_customers").name == "Later"


def test_the_same_event_again_is_applied_again(here: World) -> None:
    """So that a replay repairs what a mended handler reads differently."""
    one = event(thing("customer.created"), "customer.updated", NOON)
    here.feed(one)
    here.execute("UPDATE stripe_customers SET name = 'as a broken handler left it'")
    here.feed(one)
    assert here.one("SELECT name FROM stripe_customers").name == one["data"]["object"]["name"]


def test_a_bare_deletion_keeps_what_was_known(here: World) -> None:
    here.feed(event(thing("customer.created"), "customer.created", NOON))
    bare = {"id": thing("customer.created")["id"], "object": "customer", "deleted": True}
    here.feed(event(bare, "customer.deleted", NOON + 1))
    row = here.one("SELECT email, deleted_at FROM stripe_customers")
    assert row.email is not None
    assert row.deleted_at is not None


# --- reading ----------------------------------------------------------------------------------------------------------


def read(one: Event) -> Snapshot:
    return snapshots.read(ledger.Kept(one["id"], one["type"], body_of(one), None, None))[0]


def test_ids_may_be_anything_and_objects_may_be_expanded() -> None:
    odd = event(thing("product.created", id="gold plan/1?"), "product.created", NOON)
    assert read(odd).id == "gold plan/1?"
    expanded = thing("customer.subscription.created", customer={"id": "cus_x", "object": "customer", "deleted": True})
    row = read(event(expanded, "customer.subscription.created", NOON)).row
    assert row is not None
    assert row["stripe_customer_id"] == "cus_x"


@pytest.mark.parametrize("name", ["invoice.paid__old_api_version", "charge.succeeded"])
def test_an_object_that_names_itself_expanded_still_tells_of_its_payment(name: str) -> None:
    obj = thing(name, invoice="in_1")
    plain = event(obj, fixture(name)["type"], NOON)
    expanded = event({**obj, "id": {"id": obj["id"], "object": "x"}}, fixture(name)["type"], NOON)
    told = [snapshots.read(ledger.Kept(one["id"], one["type"], body_of(one), None, None)) for one in (plain, expanded)]
    assert len(told[0]) == 2
    assert [one.id for one in told[1]] == [one.id for one in told[0]]


@pytest.mark.parametrize("handler", HANDLERS, ids=lambda handler: handler.object_type)
def test_an_object_of_nulls_and_of_unknown_fields_is_read(handler: Handler) -> None:
    type_ = min(handler.events)
    bare = {"id": "x", "object": handler.object_type}
    nulls = {**thing("customer.subscription.created"), **bare, "from_the_future": {"a": [1]}}
    for obj in (bare, {**dict.fromkeys(nulls), **bare}):
        assert read(event(obj, type_, NOON)).row is not None


def test_every_table_that_a_handler_writes_has_its_place_in_the_lock_order() -> None:
    assert {handler.table for handler in HANDLERS} <= set(LOCK_ORDER)


@pytest.mark.parametrize("key", ["created", "quantity", "status", "customer", "items", "metadata", "cancel_at"])
@pytest.mark.parametrize("value", [True, 1.5, -1, "x", [], [1], {}, {"id": 7}, 10**30])
def test_a_value_of_the_wrong_kind_is_malformed_or_survives_but_never_anything_else(key: str, value: object) -> None:
    try:
        read(event(thing("customer.subscription.created", **{key: value}), "customer.subscription.updated", NOON))
    except MalformedError as error:
        told = str(error)
    else:
        told = key
    assert key in told or "id" in told
