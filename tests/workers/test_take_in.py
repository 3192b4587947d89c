"""What Stripe's API says goes down the same road as events, and is not lost half-way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from models import ledger
from tests.support import ROOT
from tests.workers.test_process import NOON, USER, due_now, story
from tests.workers.world import World, event, thing, world
from workers import snapshots
from workers.shapes import MalformedError

Told = list[tuple[dict[str, Any], int]]


@pytest.fixture
def here(database_url: str) -> Iterator[World]:
    with world(database_url, DUES_LEASE_SECONDS="30") as one:
        yield one


def told() -> Told:
    """The story's objects, as the API tells them a minute later."""
    return [(one["data"]["object"], NOON + 60) for one in story()]


def take_in(here: World, what: Told) -> dict[str, int]:
    return here.road.take_in(one for obj, as_of in what for one in snapshots.from_api(obj, as_of))


def crash(here: World, step: str, what: Told) -> int:
    return subprocess.run(
        [sys.executable, "-m", "tests.workers.crashing", "api", f"step={step}"],
        env={"DATABASE_URL": here.settings.database_url, "DUES_LEASE_SECONDS": "30", "PATH": ""},
        cwd=ROOT,
        timeout=30,
        input=json.dumps(what).encode(),
        capture_output=True,
        check=False,
    ).returncode


def test_what_the_api_tells_makes_the_same_rows_as_events(here: World) -> None:
    here.users(USER)
    here.feed_as_list(story())
    expected = here.rows()
    here.empty()
    here.users(USER)
    assert take_in(here, told()) == {"processed": 1}
    assert here.rows() == expected
    assert here.one("SELECT role::text FROM users").role == "PREMIUM"
    assert here.one("SELECT count(*) FROM membership_changes WHERE event_id LIKE 'dues_%'").count == 1


@pytest.mark.parametrize("step", ["write", "link", "decide"])
def test_killed_before_any_commit_nothing_that_the_api_told_is_half_done_for_good(here: World, step: str) -> None:
    here.users(USER)
    here.feed_as_list(story())
    expected = here.rows()
    here.empty()
    here.users(USER)
    assert crash(here, step, told()) == -signal.SIGKILL
    if step == "write":  # nothing was committed, and whoever asked has not moved on either
        assert here.statuses() == {}
        take_in(here, told())
    else:
        assert here.statuses() == {"received": 1}
        assert here.road.process("bulk") == {}, "the lease holds"
        due_now(here)
        assert here.road.process("bulk") == {"processed": 1}
    assert here.rows() == expected
    assert here.one("SELECT count(*) FROM membership_changes").count == 1


def test_a_change_that_was_written_but_not_told_is_told_though_an_event_repeats_it(here: World) -> None:
    """The event finds the row as it says, and so concerns nobody: what was left to do must stand in the ledger."""
    here.users(USER)
    here.feed_as_list(story())
    assert here.one("SELECT role::text FROM users").role == "PREMIUM"
    product = thing("product.created", metadata={"role": "USER"})
    assert crash(here, "decide", [(product, NOON + 60)]) == -signal.SIGKILL
    here.feed(event(product, "product.updated", NOON + 70))
    assert here.one("SELECT role::text FROM users").role == "PREMIUM"
    due_now(here)
    here.road.process("bulk")
    assert here.one("SELECT role::text FROM users").role == "USER"


def test_the_callers_cursor_is_written_with_the_rows_or_not_at_all(here: World) -> None:
    def also(connection: Any) -> None:
        ledger.enqueue(connection, "dues.test", b"")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        here.road.take_in(snapshots.from_api(thing("product.created"), NOON), also)
    assert here.statuses() == {}
    assert here.one("SELECT count(*) FROM stripe_products").count == 0


def test_asking_again_and_hearing_the_same_of_the_catalogue_leaves_nothing_to_do(here: World) -> None:
    catalogue = told()[:2]
    assert take_in(here, catalogue) == {"processed": 1}
    assert take_in(here, [(obj, NOON + 90) for obj, _ in catalogue]) == {}
    assert here.one("SELECT count(*) FROM stripe_metadata_history").count == 2
    assert {row.as_of.timestamp() for row in here.execute("SELECT as_of FROM stripe_products")} == {NOON + 90}


@pytest.mark.parametrize("order", [(False, True), (True, False)])
def test_what_the_api_tells_beats_events_of_its_second(here: World, order: tuple[bool, bool]) -> None:
    product = thing("product.created")
    for is_event in order:
        if is_event:
            here.feed(event({**product, "name": "of the event"}, "product.updated", NOON))
        else:
            take_in(here, [({**product, "name": "of the API"}, NOON)])
    assert here.one("SELECT name FROM stripe_products").name == "of the API"


def test_figures_that_changed_and_changed_back_are_remembered_each_time(here: World) -> None:
    for at, tokens in enumerate(["100", "200", "200", "100"]):
        take_in(here, [(thing("product.created", metadata={"tokens": tokens}), NOON + at)])
    rows = here.execute("SELECT metadata ->> 'tokens' AS tokens FROM stripe_metadata_history ORDER BY as_of")
    assert [row.tokens for row in rows] == ["100", "200", "100"]


def test_what_is_gone_becomes_a_tombstone_that_nothing_older_revives(here: World) -> None:
    here.users(USER)
    here.feed_as_list(story())
    customer = here.one("SELECT id FROM stripe_customers").id
    here.road.take_in([snapshots.gone("customer", customer, NOON + 60)])
    here.feed(event(thing("customer.created", metadata={}), "customer.updated", NOON + 30))
    assert here.one("SELECT deleted_at FROM stripe_customers").deleted_at is not None


@pytest.mark.parametrize(("mode", "kept"), [("live", 0), ("test", 1), ("any", 1)])
def test_what_is_of_the_other_mode_is_never_written(database_url: str, mode: str, kept: int) -> None:
    with world(database_url, STRIPE_LIVEMODE=mode) as here:
        take_in(here, [(thing("product.created", livemode=False), NOON)])
        assert here.one("SELECT count(*) FROM stripe_products").count == kept


@pytest.mark.parametrize("changes", [{"name": "a\x00b"}, {"description": "\ud800"}, {"object": "topup"}, {"id": None}])
def test_what_cannot_be_kept_is_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedError):
        snapshots.from_api(thing("product.created", **changes), NOON)


def test_line_items_and_lines_that_were_fetched_survive_events_that_carry_none(here: World) -> None:
    session = thing("checkout.session.completed", mode="payment")
    items = {"object": "list", "data": [{"id": "li_1", "price": {"id": "price_1"}, "quantity": 2}], "has_more": False}
    take_in(here, [({**session, "line_items": items}, NOON)])
    here.feed(event(session, "checkout.session.async_payment_succeeded", NOON + 5))
    assert here.one("SELECT line_items FROM stripe_checkout_sessions").line_items == [
        {"price": "price_1", "quantity": 2}
    ]

    invoice = thing("invoice.paid")
    some = invoice["lines"]["data"][:1]
    cut = {**invoice, "lines": {"object": "list", "data": [], "has_more": True}}
    take_in(here, [({**invoice, "lines": {"object": "list", "data": some, "has_more": False}}, NOON)])
    here.feed(event(cut, "invoice.updated", NOON + 5))
    row = here.one(
        "SELECT lines_complete, jsonb_array_length(lines) AS n, extract(epoch FROM as_of) AS at FROM stripe_invoices"
    )
    assert tuple(row) == (True, 1, NOON + 5)
    here.feed(event({**cut, "status": "draft"}, "invoice.updated", NOON + 6), event(cut, "invoice.paid", NOON + 7))
    assert here.one("SELECT lines_complete FROM stripe_invoices").lines_complete is False
