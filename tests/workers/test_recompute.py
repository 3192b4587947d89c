from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from tests.support import eventually
from tests.workers.test_process import NOON, PRODUCT, USER, story
from tests.workers.world import World, event, fixture, thing, world
from workers.recompute import decide, decide_due


@pytest.fixture
def here(database_url: str) -> Iterator[World]:
    with world(database_url) as one:
        yield one


def decide_at(here: World, moment: datetime) -> None:
    with here.engine.begin() as connection:
        decide(connection, here.settings, [USER], now=moment)


def test_a_new_user_is_decided_without_any_event(here: World) -> None:
    here.users(USER)
    assert here.one("SELECT membership_status::text AS status FROM users").status == "ACTIVE"
    assert decide_due(here.engine, here.settings) == 1
    row = here.one("SELECT role::text, membership_status::text AS status, next_change_at FROM users")
    assert tuple(row) == ("USER", "INACTIVE", None)
    assert decide_due(here.engine, here.settings) == 0


def test_grace_ends_by_the_clock_alone(here: World) -> None:
    here.users(USER)
    here.feed(*story())
    start = datetime(2026, 11, 5, tzinfo=UTC)
    late = thing(
        "customer.subscription.created",
        status="past_due",
        metadata={},
        items={
            "data": [{
                **thing("customer.subscription.created")["items"]["data"][0],
                "current_period_start": int(start.timestamp()),
                "current_period_end": int((start + timedelta(days=30)).timestamp()),
            }],
        },
    )  # fmt: skip
    here.feed(event(late, "customer.subscription.updated", NOON + 50))
    columns = "role::text, membership_status::text AS status, grace_until, next_change_at, stripe_product_id"
    grace = start + timedelta(days=3)
    decide_at(here, grace - timedelta(milliseconds=1))
    assert tuple(here.one(f"SELECT {columns} FROM users")) == ("PREMIUM", "PAST_DUE", grace, grace, PRODUCT)
    decide_at(here, grace)
    assert tuple(here.one(f"SELECT {columns} FROM users"))[:3] == ("USER", "PAST_DUE", None)


def test_an_unpaid_invoice_dates_the_grace(here: World) -> None:
    here.users(USER)
    here.feed(*story())
    status = thing("customer.subscription.created", status="past_due", metadata={})
    here.feed(event(status, "customer.subscription.updated", NOON + 50))
    here.execute(
        "INSERT INTO stripe_invoices (id, stripe_subscription_id, status, created, finalized_at)"
        " SELECT 'in_1', id, 'open', '2026-11-02', '2026-11-02 01:00+00' FROM user_subscriptions",
    )
    decide_at(here, datetime(2026, 11, 3, tzinfo=UTC))
    assert here.one("SELECT grace_until FROM users").grace_until == datetime(2026, 11, 5, 1, tzinfo=UTC)


def test_an_override_starts_and_ends_by_itself(here: World) -> None:
    here.users(USER)
    here.execute(
        "INSERT INTO user_overrides (user_id, kind, author, starts_at, expires_at)"
        " VALUES (:u, 'admin', 'ops', clock_timestamp() + interval '0.3 s', clock_timestamp() + interval '0.9 s')",
        u=USER,
    )
    decide_due(here.engine, here.settings)
    seen: list[str] = []

    def role() -> str:
        decide_due(here.engine, here.settings)
        now: str = here.one("SELECT role::text FROM users").role
        if not seen or seen[-1] != now:
            seen.append(now)
        return now

    eventually(lambda: role() == "USER" and len(seen) > 1, timeout=10)
    assert seen == ["USER", "ADMIN", "USER"]
    assert here.one("SELECT next_change_at FROM users").next_change_at is None


def test_a_ban_holds_for_the_address_even_after_the_account_was_deleted(here: World) -> None:
    here.users(USER)
    here.execute("INSERT INTO user_overrides (user_id, kind, author) VALUES (:u, 'ban', 'ops')", u=USER)
    here.execute("DELETE FROM users")
    here.execute("INSERT INTO users (id, email) VALUES ('43', '42@EXAMPLE.com')")
    decide_due(here.engine, here.settings)
    assert here.one("SELECT role::text FROM users").role == "BANNED"


def test_only_what_differs_is_written_and_each_change_is_recorded_once(here: World) -> None:
    here.users(USER)
    here.feed(*story())
    before = here.one("SELECT xmin, updated_at FROM users")
    changes = here.one("SELECT count(*) FROM membership_changes").count
    here.feed(*story())
    assert here.one("SELECT xmin, updated_at FROM users") == before
    assert here.one("SELECT count(*) FROM membership_changes").count == changes


def test_the_stored_role_is_no_input(here: World) -> None:
    here.users(USER)
    here.execute("UPDATE users SET role = 'BANNED'")
    decide_due(here.engine, here.settings)
    assert here.one("SELECT role::text FROM users").role == "USER"


def test_deciding_takes_its_locks_in_the_one_order(here: World) -> None:
    """Subscriptions by id, then payments: who waits for the first holds none that come after it."""
    several = fixture("customer.subscription.created__several_items")["data"]["object"]
    changes = {"customer": "cus_1", "metadata": {"user_id": "42"}}
    first = {**several, **changes, "id": "sub_1"}
    second = thing("customer.subscription.created", **changes, id="sub_2")
    payment = thing("payment_intent.succeeded", customer="cus_1")
    here.users("42")
    here.feed(*(event(one, "customer.subscription.created", NOON) for one in (first, second)))
    here.feed(event(payment, "payment_intent.succeeded", NOON))
    here.execute("UPDATE user_subscriptions SET user_id = NULL WHERE id = 'sub_2'")
    here.execute("UPDATE payment_history SET user_id = NULL")

    def decide_it() -> None:
        with here.engine.begin() as connection:
            decide(connection, here.settings, ["42"])

    deciding = threading.Thread(target=decide_it)
    with here.engine.begin() as writer:
        writer.execute(text("SELECT FROM user_subscriptions WHERE id = 'sub_1' FOR NO KEY UPDATE"))
        deciding.start()
        eventually(lambda: here.one("SELECT count(*) AS n FROM pg_locks WHERE NOT granted").n > 0)
        writer.execute(text("SELECT FROM user_subscriptions WHERE id = 'sub_2' FOR NO KEY UPDATE NOWAIT"))
        writer.execute(text("SELECT FROM payment_history FOR NO KEY UPDATE NOWAIT"))
    deciding.join(10)
    assert not deciding.is_alive()
    owners = here.execute("SELECT user_id FROM user_subscriptions UNION ALL SELECT user_id FROM payment_history")
    assert [row.user_id for row in owners] == ["42"] * 3


def test_deciding_lets_sign_ins_pass(here: World) -> None:
    """FOR UPDATE would make the foreign-key check of a new session wait."""
    here.users(USER)
    with here.engine.begin() as deciding:
        decide(deciding, here.settings, [USER])
        done = threading.Event()

        def sign_in() -> None:
            with here.engine.begin() as connection:
                connection.execute(
                    text("INSERT INTO sessions (id, session_token, user_id, expires) VALUES ('s', 's', :u, now())"),
                    {"u": USER},
                )
            done.set()

        threading.Thread(target=sign_in, daemon=True).start()
        assert done.wait(timeout=3)
