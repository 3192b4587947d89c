from __future__ import annotations

import contextlib
import itertools
import json
import logging
import random
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from models import ledger
from ops.embedded import EmbeddedPostgres
from simulator.histories import history
from simulator.people import people
from simulator.render import render_event
from simulator.versions import ACACIA, ENDIVE
from tests.workers.world import FIXTURES, Event, World, event, fixture, thing, world
from workers import process, snapshots
from workers.handlers import BY_EVENT_TYPE
from workers.link import UnsettledError
from workers.process import ConnectionLostError, describe
from workers.recompute import decide_due

NOON = 1793520000
USER, CUSTOMER, PRODUCT, PRICE, SUBSCRIPTION = (
    "42",
    "cus_T9aAlice0001",
    "prod_T9aGoldPlan001",
    "price_1SaGoldMonthly001",
    "sub_1SaAliceSub0001",
)


@pytest.fixture
def here(database_url: str) -> Iterator[World]:
    with world(database_url) as one:
        yield one


def story() -> list[Event]:
    """A member's first minute: product, price, customer, subscription, Checkout, all within two seconds."""
    return [
        event(thing("product.created"), "product.created", NOON - 100),
        event(thing("price.created"), "price.created", NOON - 99),
        event(thing("customer.created", metadata={}), "customer.created", NOON),
        event(thing("customer.subscription.created", metadata={}), "customer.subscription.created", NOON + 1),
        event(thing("checkout.session.completed", client_reference_id=USER), "checkout.session.completed", NOON + 1),
    ]


def subscription_of(user: str, number: str) -> Event:
    """A new subscription of a customer of its own, which says whose it is."""
    changes = {"id": f"sub_{number}", "customer": f"cus_{number}", "metadata": {"user_id": user}}
    return event(thing("customer.subscription.created", **changes), "customer.subscription.created", NOON)


# --- the main job -----------------------------------------------------------------------------------------------------


def test_five_events_make_a_premium_user(here: World) -> None:
    here.users(USER)
    here.feed_as_list(story())
    user = here.one("SELECT role::text, membership_status::text, stripe_product_id FROM users")
    assert tuple(user) == ("PREMIUM", "ACTIVE", PRODUCT)
    customer = here.one("SELECT user_id, linked_by FROM stripe_customers")
    assert tuple(customer) == (USER, "session")
    assert here.one("SELECT user_id FROM user_subscriptions").user_id == USER
    change = here.one("SELECT role_from::text, role_to::text, reasons, event_id FROM membership_changes")
    assert (change.role_from, change.role_to) == ("USER", "PREMIUM")
    assert change.reasons
    assert change.event_id in {one["id"] for one in story()}
    assert here.statuses() == {"processed": 5}


def test_each_event_type_that_is_handled_has_a_fixture() -> None:
    recorded = {path.stem.partition("__")[0] for path in FIXTURES.glob("*.json")}
    assert sorted(set(BY_EVENT_TYPE) - recorded) == []


def test_every_recorded_event_ends_with_a_reason(here: World) -> None:
    here.users(USER)
    names = sorted(path.stem for path in FIXTURES.glob("*.json"))
    here.feed_as_list(fixture(name) for name in names)
    rows = here.execute("SELECT type, status, reason, account FROM stripe_events")
    assert len(rows) == len({fixture(name)["id"] for name in names})
    for row in rows:
        if row.account is not None:
            assert (row.status, row.reason) == ("ignored", "account")
        elif row.type in BY_EVENT_TYPE:
            assert (row.status, row.reason) == ("processed", None)
        else:
            assert (row.status, row.reason) == ("ignored", "no_api_key" if row.type.startswith("v1.") else "type")


def test_any_order_and_repetition_of_a_story_ends_in_the_same_rows(here: World) -> None:
    """Every permutation, with random repeats, one by one or in random lists."""
    chance = random.Random(5)
    events = story()
    expected = None
    for order in itertools.permutations(events):
        here.empty()
        here.users(USER)
        delivery = [*order, *chance.choices(events, k=2)]
        if chance.random() < 0.5:
            here.feed(*delivery)
        else:
            cut = chance.randrange(1, 5)
            here.feed_as_list(order[:cut])
            here.feed_as_list(order[cut:])
        rows = here.rows()
        expected = expected or rows
        assert rows == expected, [one["type"] for one in delivery]
    assert expected is not None
    assert expected["users"][USER]["role"] == "PREMIUM"


# --- old and new shapes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_one_history_told_in_old_and_in_new_shapes_makes_the_same_rows(here: World, seed: int) -> None:
    told = []
    for version in (ACACIA, ENDIVE):
        here.empty()
        past = history(seed)
        here.users(*(user.id for user in people(seed, 3)))
        here.feed_as_list(render_event(one, version) for one in past.events)
        decide_due(here.engine, here.settings)
        rows = here.rows()
        assert len(rows["user_subscriptions"]) == len(past.subscriptions)
        # Stripe's own invoice payments on the one hand, what other objects said of them on the other.
        said = rows.pop("stripe_invoice_payments").values()
        payments = {(one["stripe_invoice_id"], one["payment_intent_id"]) for one in said if one["status"] == "paid"}
        told.append((rows, payments))
    assert told[0] == told[1]


# --- what is not applied ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "livemode", "status"),
    [
        ("any", True, "processed"),
        ("any", False, "processed"),
        ("live", True, "processed"),
        ("live", False, "ignored"),
        ("test", False, "processed"),
        ("test", True, "ignored"),
    ],
)
def test_events_of_the_other_mode_are_kept_and_not_applied(
    database_url: str, setting: str, livemode: bool, status: str
) -> None:
    with world(database_url, STRIPE_LIVEMODE=setting) as here:
        here.feed({**fixture("customer.created"), "livemode": livemode})
        row = here.one("SELECT status, reason FROM stripe_events")
        assert (row.status, row.reason) == (status, "livemode" if status == "ignored" else None)
        assert len(here.execute("SELECT FROM stripe_customers")) == (status == "processed")


def test_events_of_a_named_connected_account_are_applied(database_url: str) -> None:
    with world(database_url, STRIPE_ACCOUNT="acct_1SaConnected0001") as here:
        here.feed(fixture("customer.created__connected_account"))
        assert here.statuses() == {"processed": 1}


def malformed() -> Iterator[tuple[str, bytes]]:
    good = json.dumps(fixture("customer.created"))
    yield "NUL", good.replace("Alice", "Ali\\u0000ce").encode()
    yield "lone surrogate", good.replace("Alice", "Ali\\ud800ce").encode()
    yield "NaN", good.replace('"balance": 0', '"balance": NaN').encode()
    yield "no object", json.dumps({**fixture("customer.created"), "data": None}).encode()
    yield "no id", json.dumps(event(thing("customer.created", id=None), "customer.created", NOON)).encode()
    yield "empty id", json.dumps(event(thing("customer.created", id=""), "customer.created", NOON)).encode()
    yield "long id", json.dumps(event(thing("customer.created", id="x" * 256), "customer.created", NOON)).encode()
    yield "no created", json.dumps({**fixture("customer.created"), "created": None}).encode()
    yield "text created", json.dumps({**fixture("customer.created"), "created": "2026"}).encode()
    yield "wrong object", json.dumps(event(thing("product.created"), "customer.created", NOON)).encode()
    yield "number as name", json.dumps(event(thing("customer.created", name=7), "customer.created", NOON)).encode()
    yield "metadata list", json.dumps(event(thing("customer.created", metadata=[1]), "customer.created", NOON)).encode()
    yield "nesting bomb", (b'{"data":' + b"[" * 200_000 + b"]" * 200_000 + b"}")
    yield "not UTF-8", b'{"data": "\xff"}'


@pytest.mark.parametrize(("what", "payload"), list(malformed()), ids=[what for what, _ in malformed()])
def test_what_cannot_be_read_is_parked_with_its_bytes_and_stops_nothing(here: World, what: str, payload: bytes) -> None:
    with here.engine.begin() as connection:
        ledger.record(connection, ledger.Received("evt_bad", "customer.created", payload, created=NOON))
    here.record(fixture("product.created"))
    here.road.process("live")
    bad = here.one("SELECT status, reason, error, payload, attempts FROM stripe_events WHERE id = 'evt_bad'")
    assert (bad.status, bad.reason, bad.attempts) == ("dead", "malformed", 1)
    assert bytes(bad.payload) == payload
    assert "Alice" not in bad.error
    assert here.statuses() == {"dead": 1, "processed": 1}


# --- parents that come later ------------------------------------------------------------------------------------------


def test_a_price_before_its_product_leaves_a_stub_that_the_product_fills(here: World) -> None:
    here.feed(fixture("price.created"))
    stub = here.one("SELECT source, name, extract(epoch FROM as_of) AS as_of FROM stripe_products")
    assert tuple(stub) == ("stub", None, 0)
    here.feed(fixture("product.created"))
    assert here.one("SELECT name FROM stripe_products").name is not None


def test_a_subscription_before_everything_gives_access_when_the_rest_has_come(here: World) -> None:
    here.users(USER)
    here.feed(*reversed(story()))
    assert here.one("SELECT role::text FROM users").role == "PREMIUM"
    assert {row.source for row in here.execute("SELECT source FROM stripe_products")} != {"stub"}


def test_a_stub_never_overwrites_what_stripe_has_said(here: World) -> None:
    here.feed(fixture("product.created"), fixture("price.created"))
    assert here.one("SELECT name FROM stripe_products").name is not None


def test_nothing_older_revives_what_was_deleted(here: World) -> None:
    deleted = event(thing("product.created"), "product.deleted", NOON + 10)
    older = event(thing("product.created"), "product.updated", NOON + 5)
    here.feed(deleted, older)
    row = here.one("SELECT deleted_at, active FROM stripe_products")
    assert row.deleted_at is not None
    assert row.active is False
    here.feed(event(thing("product.created"), "product.created", NOON + 20))
    assert here.one("SELECT deleted_at FROM stripe_products").deleted_at is None


def test_a_subscription_that_ends_is_canceled_and_not_deleted(here: World) -> None:
    here.users(USER)
    here.feed(*story())
    ended = thing("customer.subscription.deleted", metadata={})
    here.feed(event(ended, "customer.subscription.deleted", NOON + 100))
    row = here.one("SELECT status, deleted_at FROM user_subscriptions")
    assert tuple(row) == ("canceled", None)
    user = here.one("SELECT role::text, membership_status::text FROM users")
    assert tuple(user) == ("USER", "CANCELED")


# --- the catalogue concerns many -------------------------------------------------------------------------------------


def test_a_changed_role_of_a_product_reaches_its_subscribers_and_nothing_else_does(here: World) -> None:
    here.users(USER)
    here.feed(*story())
    here.feed(event(thing("product.created", metadata={"role": "USER"}), "product.updated", NOON + 50))
    assert here.one("SELECT role::text FROM users").role == "USER"
    here.execute("UPDATE users SET role = 'PREMIUM'")  # as nobody should: a change that only a decision would undo
    renamed = thing("product.created", metadata={"role": "USER"}, name="Another name")
    here.feed(event(renamed, "product.updated", NOON + 60))
    assert here.one("SELECT role::text FROM users").role == "PREMIUM"


def test_a_product_with_very_many_subscribers_is_worked_off_in_slices(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "SLICE", 20)
    here.users(*(f"user{n:03}" for n in range(45)))
    here.feed_as_list([event(thing("product.created", metadata={"role": "PREMIUM"}), "product.created", NOON - 9)])
    here.feed_as_list(subscription_of(f"user{n:03}", f"{n:03}") for n in range(45))
    assert here.one("SELECT count(*) FROM users WHERE role = 'PREMIUM'").count == 45
    here.feed(event(thing("product.created", metadata={"role": "USER"}), "product.updated", NOON + 9))
    assert here.one("SELECT lane, status FROM stripe_events WHERE type = 'dues.recompute'") == ("bulk", "received")
    assert here.one("SELECT count(*) FROM users WHERE role = 'PREMIUM'").count == 45
    counts = here.road.process("bulk")
    assert counts == {"sliced": 2, "processed": 1}
    assert here.one("SELECT count(*) FROM users WHERE role = 'PREMIUM'").count == 0


def test_of_several_items_the_best_product_counts_whenever_its_metadata_arrive(here: World) -> None:
    """Item 1 ends latest, but item 2's product ranks higher, which only the product's own event tells."""
    items = [
        {**thing("customer.subscription.created")["items"]["data"][0], "id": "si_1", "current_period_end": NOON + 9000},
        {**thing("customer.subscription.created")["items"]["data"][0], "id": "si_2"},
    ]
    for item, number in zip(items, "12", strict=True):
        item["price"] = {**item["price"], "id": f"price_{number}", "product": f"prod_{number}"}
    subscription = event(
        thing("customer.subscription.created", items={"object": "list", "data": items}, metadata={"user_id": USER}),
        "customer.subscription.created",
        NOON,
    )
    product = event(thing("product.created", id="prod_2", metadata={"rank": "7"}), "product.created", NOON)
    answers = []
    for order in ((subscription, product), (product, subscription)):
        here.empty()
        here.users(USER)
        here.feed(*order)
        row = here.one("SELECT stripe_product_id, stripe_price_id FROM user_subscriptions")
        answers.append((tuple(row), here.one("SELECT stripe_product_id FROM users").stripe_product_id))
    assert answers == [(("prod_2", "price_2"), "prod_2")] * 2


def test_an_orphans_best_item_is_chosen_too(here: World) -> None:
    several = fixture("customer.subscription.created__several_items")
    products = [item["price"]["product"] for item in several["data"]["object"]["items"]["data"]]
    assert len(set(products)) > 1
    for best in set(products):
        here.empty()
        here.feed(several)
        here.feed(event(thing("product.created", id=best, metadata={"rank": "9"}), "product.created", NOON))
        assert here.one("SELECT stripe_product_id FROM user_subscriptions").stripe_product_id == best


# --- two at once ------------------------------------------------------------------------------------------------------


def both_before_they_commit(here: World, step: str, first: Sequence[Event], second: Sequence[Event]) -> None:
    """Let two workers try a list each, and commit `step` only when both have come that far (or cannot)."""
    meeting = threading.Barrier(2)

    def wait(reached: str) -> None:
        if reached == step:
            with contextlib.suppress(threading.BrokenBarrierError):  # the other one waits for our locks, as it should
                meeting.wait(timeout=0.7)

    threads = []
    for lane, events in zip(ledger.LANES, (first, second), strict=False):
        here.record(*events, lane=lane)
        road = here.another_road()
        road.checkpoint = wait
        threads.append(threading.Thread(target=road.process, args=(lane,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()


@pytest.mark.parametrize("step", ["book", "write", "link", "decide"])
@pytest.mark.parametrize("late", ["product", "session", "customer"])
def test_two_workers_side_by_side_never_strand_a_payer(here: World, step: str, late: str) -> None:
    """The lists are processed so that neither has committed when the other reads, at each step in turn."""
    here.users(USER)
    events = {one["data"]["object"]["object"].removeprefix("checkout."): one for one in story()}
    events["product"] = event(thing("product.created", metadata={"role": "PREMIUM"}), "product.created", NOON - 100)
    here.feed(event(thing("product.created", metadata={"role": "USER"}), "product.created", NOON - 200))
    second = [events.pop(late)]
    both_before_they_commit(here, step, list(events.values()), second)
    assert here.one("SELECT role::text FROM users").role == "PREMIUM"
    assert here.statuses() == {"processed": 6}


def test_two_workers_and_sign_ins_on_one_customer_never_deadlock(here: World) -> None:
    """200 events of one customer from two workers, while the front end writes sessions and names."""
    here.users(USER)
    here.feed(*story())
    before = here.one("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").deadlocks
    events = []
    for n in range(100):
        status = "past_due" if n % 2 else "active"
        subscription = thing("customer.subscription.created", status=status, metadata={"user_id": USER, "n": str(n)})
        events.append(event(subscription, "customer.subscription.updated", NOON + 100 + n))
        events.append(event(thing("customer.created", name=f"Alice {n}"), "customer.updated", NOON + 100 + n))
    random.Random(3).shuffle(events)
    here.record(*events[::2], lane="live")
    here.record(*events[1::2], lane="bulk")
    problems: list[BaseException] = []
    done = threading.Event()

    def work(lane: ledger.Lane) -> None:
        road = here.another_road()
        try:
            while road.process(lane):
                pass
        except BaseException as error:  # noqa: BLE001 - reported by the test's own thread
            problems.append(error)

    def sign_in() -> None:
        try:
            while not done.is_set():
                token = str(uuid.uuid4())
                here.execute(
                    "INSERT INTO sessions (id, session_token, user_id, expires) VALUES (:t, :t, :u, now())",
                    t=token, u=USER,
                )  # fmt: skip
                here.execute("UPDATE users SET name = :t WHERE id = :u", t=token, u=USER)
        except BaseException as error:  # noqa: BLE001 - the same
            problems.append(error)

    workers = [threading.Thread(target=work, args=(lane,)) for lane in ledger.LANES]
    front = threading.Thread(target=sign_in)
    for thread in (*workers, front):
        thread.start()
    for thread in workers:
        thread.join(timeout=60)
    done.set()
    front.join(timeout=10)
    assert problems == []
    assert here.statuses() == {"processed": 205}
    after = here.one("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").deadlocks
    assert after == before
    row = here.one("SELECT status, metadata ->> 'n' AS n FROM user_subscriptions")
    assert tuple(row) == ("past_due", "99")
    user = here.one("SELECT membership_status::text, grace_until FROM users")
    assert user.membership_status == "PAST_DUE"
    assert here.one("SELECT name FROM stripe_customers").name == "Alice 99"


# --- tries that fail --------------------------------------------------------------------------------------------------


class Fault:
    """Makes the reading of some events fail, as a mistake of ours would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *ids: str) -> None:
        self.ids, self.error, self.seen = set(ids), RuntimeError("secret@example.com"), 0
        real = snapshots.read

        def read(row: ledger.Kept) -> Any:
            if row.id in self.ids:
                self.seen += 1
                raise self.error
            return real(row)

        monkeypatch.setattr(snapshots, "read", read)


def due_now(here: World) -> None:
    here.execute("UPDATE stripe_events SET due_at = clock_timestamp() WHERE status = 'received'")


def test_an_event_that_fails_unexpectedly_harms_only_itself_and_dies_after_three_tries(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [event(thing("customer.created", id=f"cus_{n}"), "customer.created", NOON) for n in range(20)]
    bad = events[7]["id"]
    Fault(monkeypatch, bad)
    here.feed_as_list(events)
    assert here.statuses() == {"processed": 19, "received": 1}
    query = "SELECT *, extract(epoch FROM due_at - clock_timestamp()) AS wait FROM stripe_events WHERE id = :id"
    for attempt, (low, high) in enumerate(((600, 720), (3000, 3600)), start=1):
        row = here.one(query, id=bad)
        assert (row.attempts, row.status, row.reason) == (attempt, "received", "unexpected")
        assert low - 5 < row.wait < high
        due_now(here)
        here.road.process("live")
    row = here.one(query, id=bad)
    assert (row.attempts, row.status, row.reason) == (3, "dead", "unexpected")
    assert row.error.startswith("RuntimeError at ")
    assert "test_process.py" in row.error
    assert "secret" not in row.error
    assert row.code_version == here.road.version


def failing_once(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Let LINK or DECIDE fail once, for a reason that passes, after WRITE has committed."""
    real, calls = getattr(process, step), itertools.count()

    def flaky(*given: Any, **keywords: Any) -> Any:
        if next(calls) == 0:
            raise UnsettledError("evidence kept changing")
        return real(*given, **keywords)

    monkeypatch.setattr(process, step, flaky)


def test_a_list_that_failed_after_it_had_written_still_links_its_customers(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.users(USER)
    failing_once(monkeypatch, "link")
    here.feed_as_list(story())
    assert here.statuses() == {"processed": 5}
    assert here.one("SELECT user_id FROM stripe_customers").user_id == USER
    assert here.one("SELECT role::text FROM users").role == "PREMIUM"


def test_a_list_that_failed_after_it_had_written_still_reaches_the_subscribers(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.users(USER)
    here.feed(*story())
    failing_once(monkeypatch, "decide")
    metadata = {**thing("product.created")["metadata"], "role": "USER"}
    changed = event(thing("product.created", metadata=metadata), "product.updated", NOON + 5)
    other = event(thing("product.created", id="prod_other"), "product.created", NOON + 5)
    here.feed_as_list([changed, other])
    assert here.one("SELECT role::text FROM users").role == "USER"


def test_a_replay_of_what_died_after_it_had_written_links_its_customer(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.users(USER)
    with monkeypatch.context() as broken:
        broken.setattr(process, "link", lambda *_, **__: next(iter(())))
        here.feed(subscription_of(USER, "1"))
        for _ in range(2):
            here.execute("UPDATE stripe_events SET due_at = now()")
            here.road.process("live")
    assert here.statuses() == {"dead": 1}
    with here.engine.begin() as connection:
        ledger.replay(connection, [row.id for row in here.execute("SELECT id FROM stripe_events")])
    here.road.process("bulk")
    assert here.statuses() == {"processed": 1}
    assert here.one("SELECT role::text FROM users").role == "PREMIUM"


def test_a_mended_handler_and_a_replay_bring_a_dead_event_back(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        Fault(broken, fixture("customer.created")["id"])
        here.feed(fixture("customer.created"))
        for _ in range(2):
            due_now(here)
            here.road.process("live")
    assert here.statuses() == {"dead": 1}
    here.feed(fixture("customer.created"))
    assert here.statuses() == {"processed": 1}
    assert here.one("SELECT email FROM stripe_customers").email is not None


def test_an_error_of_the_database_that_passes_follows_the_schedule(here: World) -> None:
    """A row that somebody else has locked for too long."""
    here.feed(fixture("customer.created"))
    impatient = World(str(here.engine.url.render_as_string(hide_password=False)), DUES_LOCK_TIMEOUT="0.2")
    with here.engine.begin() as other:
        other.execute(text("SELECT FROM stripe_customers FOR UPDATE"))
        impatient.record(event(thing("customer.created", name="New"), "customer.updated", NOON + 5))
        impatient.road.process("live")
    row = here.one("SELECT * FROM stripe_events WHERE status = 'received'")
    assert (row.attempts, row.reason, row.claim) == (1, "transient", None)
    assert "LockNotAvailable 55P03" in row.error
    due_now(here)
    impatient.road.process("live")
    impatient.engine.dispose()
    assert here.one("SELECT name FROM stripe_customers").name == "New"


def test_when_everything_dies_it_is_our_code_and_claiming_pauses(
    here: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    events = [event(thing("customer.created", id=f"cus_{n}"), "customer.created", NOON) for n in range(60)]
    fault = Fault(monkeypatch, *(one["id"] for one in events))
    with caplog.at_level(logging.CRITICAL):
        here.feed_as_list(events)
    assert "the fault is in this code" in caplog.text
    assert fault.seen == process.TOO_MANY + 1  # the list as such, then twenty of its events alone
    untried = here.one("SELECT count(*) FROM stripe_events WHERE reason IS NULL AND claim IS NULL").count
    assert untried == 40
    assert here.road.process("live") == {}, "it pauses"
    here.road._paused_until = 0.001
    fault.ids.clear()
    due_now(here)
    assert here.road.process("live") == {"processed": 60}


def test_processing_can_be_paused_while_capturing_goes_on(database_url: str) -> None:
    with world(database_url, DUES_PAUSE="processing") as here:
        here.feed(fixture("customer.created"))
        assert here.statuses() == {"received": 1}


def test_a_worker_told_to_stop_gives_its_events_back_untried(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    events = [event(thing("customer.created", id=f"cus_{n}"), "customer.created", NOON) for n in range(5)]
    Fault(monkeypatch, min(one["id"] for one in events))
    here.record(*events)
    here.road.checkpoint = lambda step: here.road.stopping.set() if step == "decide" else None
    here.road.process("live")
    rows = here.execute("SELECT status, claim, due_at <= clock_timestamp() AS due FROM stripe_events")
    waiting = [row for row in rows if row.status == "received" and row.due]
    assert len(waiting) == 3
    assert all(row.claim is None for row in waiting)


def test_shadow_mode_decides_and_records_but_leaves_users_alone(database_url: str) -> None:
    with world(database_url, DUES_SHADOW="1") as here:
        here.users(USER)
        here.feed(*story(), *story())
        assert here.one("SELECT role::text FROM users").role == "USER"
        assert [row.role_to for row in here.execute("SELECT role_to::text FROM membership_changes")][-1] == "PREMIUM"
        assert here.one("SELECT count(*) FROM membership_changes WHERE role_to = 'PREMIUM'").count == 1


class Cut:
    """Has PostgreSQL end the road's sessions before the first `times` commits of WRITE."""

    def __init__(self, here: World, times: int) -> None:
        self.here = here
        self.times = times
        here.road.checkpoint = self.cut

    def cut(self, step: str) -> None:
        if step == "write" and self.times:
            self.times -= 1
            self.here.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()",
            )


def test_an_event_whose_connection_was_cut_is_tried_again_at_once(here: World) -> None:
    here.record(fixture("customer.created"))
    Cut(here, 1)
    assert here.road.process("live") == {"postponed": 1, "processed": 1}
    assert here.one("SELECT attempts FROM stripe_events").attempts == 2


def test_a_list_whose_connection_was_cut_is_tried_again_at_once(here: World) -> None:
    events = [event(thing("customer.created", id=f"cus_{n}"), "customer.created", NOON) for n in range(40)]
    here.record(*events)
    Cut(here, 3)
    assert here.road.process("live") == {"processed": 40}


def test_connections_cut_again_and_again_park_no_event(here: World) -> None:
    """Three tries that end without a word do: then it looks as if the event had ended its worker."""
    here.record(fixture("customer.created"))
    cut = Cut(here, 5)
    while cut.times:
        here.road.process("live")
        due_now(here)
    assert here.road.process("live") == {"processed": 1}


def test_while_postgresql_is_away_a_try_waits_with_its_lease_and_says_later_how_it_ended(
    own_postgres: Callable[..., EmbeddedPostgres], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = own_postgres()
    with world(server.url) as here:
        here.record(fixture("customer.created"), fixture("product.created"))
        monkeypatch.setattr(process, "AGAIN", (0, 0.01))
        here.road.checkpoint = lambda step: server.kill() if step == "write" else None
        with pytest.raises(ConnectionLostError):
            here.road.process("live")
        here.road.checkpoint = lambda _: None
        server.start()
        here.engine.dispose()
        assert here.another_road().process("live") == {}, "the lease holds"
        assert here.road.process("live") == {"processed": 2}


@contextlib.contextmanager
def full_disk(here: World, *tables: str) -> Iterator[None]:
    """What is written to these tables fails as it does when the disk is full."""
    here.execute(
        "CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'disk_full'; END $$"
    )
    for table in tables:
        here.execute(f"CREATE TRIGGER no_room BEFORE INSERT OR UPDATE ON {table} EXECUTE FUNCTION no_room()")
    yield
    here.execute("DROP FUNCTION no_room CASCADE")


@pytest.mark.parametrize(("events", "attempts", "reason"), [(1, 1, "transient"), (5, 0, "transient")])
def test_a_failure_that_the_disk_has_no_room_for_is_written_down_later(
    here: World, monkeypatch: pytest.MonkeyPatch, events: int, attempts: int, reason: str
) -> None:
    here.record(*(event(thing("customer.created", id=f"cus_{n}"), "customer.created", NOON) for n in range(events)))
    with here.engine.begin() as connection:
        claim = ledger.claim(connection, "live", size=events, lease=60)
    monkeypatch.setattr(process, "AGAIN", (0,))
    monkeypatch.setattr(process.Road, "_book", lambda *_: claim)
    with full_disk(here, "stripe_customers", "stripe_events"), pytest.raises(DBAPIError):
        here.road.process("live")
    assert {row.claim for row in here.execute("SELECT claim::text FROM stripe_events")} == {claim.token}
    monkeypatch.setattr(process.Road, "_book", lambda *_: ledger.Claim("", "live", ()))
    here.road.process("live")
    rows = here.execute("SELECT attempts, reason, claim FROM stripe_events")
    assert {tuple(row) for row in rows} == {(attempts, reason, None)}


def test_what_was_written_before_the_disk_was_full_is_linked_afterwards(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.users(USER)
    here.record(*story())
    with here.engine.begin() as connection:
        claim = ledger.claim(connection, "live", size=5, lease=60)
    with monkeypatch.context() as before, full_disk(here, "users", "stripe_events"):
        before.setattr(process, "AGAIN", (0,))
        before.setattr(process.Road, "_book", lambda *_: claim)
        with pytest.raises(DBAPIError):
            here.road.process("live")
    assert here.one("SELECT count(*) FROM user_subscriptions").count == 1
    assert here.road.process("live") == {"processed": 5}
    assert here.one("SELECT role::text FROM users").role == "PREMIUM"


def test_that_a_failure_could_not_be_written_down_counts_as_no_try_of_the_events_behind_it(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a disk that is full for seconds puts them off for a quarter of an hour."""
    here.record(*(event(thing("customer.created", id=f"cus_{n}"), "customer.created", NOON) for n in range(5)))
    real, failures = process.Road._fail, iter([DBAPIError("", {}, Exception())])

    def fail(*arguments: Any) -> None:
        for error in failures:
            raise error
        real(*arguments)

    monkeypatch.setattr(process.Road, "_fail", fail)
    with full_disk(here, "stripe_customers"), pytest.raises(DBAPIError):
        here.road.process("live")
    rows = here.execute("SELECT attempts, claim FROM stripe_events")
    assert [tuple(row) for row in rows] == [(0, None)] * 5


def test_what_went_wrong_is_told_without_anybodys_data(here: World) -> None:
    try:
        here.execute("INSERT INTO users (id, email) VALUES ('u', 'a@example.com'), ('v', 'A@example.com')")
    except Exception as error:  # noqa: BLE001
        told = describe(error)
    assert "users_lower_email_key" in told
    assert "example.com" not in told


# --- the shape of the work --------------------------------------------------------------------------------------------


def test_a_list_of_two_hundred_takes_as_many_statements_as_a_list_of_two(here: World) -> None:
    def count(events: Sequence[Mapping[str, Any]]) -> int:
        here.record(*events)
        statements: list[str] = []

        def note(*args: Any) -> None:
            statements.append(args[2])

        sqlalchemy_event.listen(here.engine, "before_cursor_execute", note)
        try:
            here.road.process("live")
        finally:
            sqlalchemy_event.remove(here.engine, "before_cursor_execute", note)
        return len(statements)

    def subscriptions(numbers: range) -> list[Event]:
        return [subscription_of(f"u{n}", str(n)) for n in numbers]

    here.users(*(f"u{n}" for n in range(202)))
    few, many = count(subscriptions(range(2))), count(subscriptions(range(2, 202)))
    assert here.statuses() == {"processed": 202}
    # A full list is followed by a second look; the work itself does not grow.
    assert many <= few + 2
