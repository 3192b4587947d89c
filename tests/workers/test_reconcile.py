"""Reconciling with a practice Stripe: what was missed comes back, what is wrong is found, and nothing is guessed."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from models import sync_runs
from models.upsert import LOCK_ORDER
from simulator.api import ApiError
from simulator.calendar import DAY
from simulator.faults import Fault, Faults, Rule, server_error
from simulator.histories import history
from simulator.people import people
from simulator.render import render_event
from simulator.state import Stripe
from tests.workers.practice import asking, tools
from tests.workers.test_money import sums
from tests.workers.world import World, world
from workers.handlers import BY_EVENT_TYPE
from workers.mirroring import OtherAccountError
from workers.recompute import decide_due
from workers.reconcile import BusyError, by_hand, of_beat
from workers.reconciler import LISTS, Counts, Order
from workers.stripe_api import StripeAwayError


@pytest.fixture
def here(database_url: str) -> Iterator[World]:
    with world(database_url) as one:
        yield one


def reconciled(here: World, stripe: Stripe, *, since: int | None = None, **order: bool) -> Counts:
    """What a run by hand counts."""
    with asking(here, stripe) as (door, _):
        counts = by_hand(tools(here, door), Order(**order), since=since)
    decide_due(here.engine, here.settings)
    return counts


def told(here: World, stripe: Stripe, *, dropped: float = 0.0) -> None:
    """Deliver what has happened, all but a part of it."""
    chance = random.Random(7)
    here.feed_as_list(render_event(one) for one in stripe.events if chance.random() >= dropped)
    decide_due(here.engine, here.settings)


@pytest.fixture
def past() -> Stripe:
    return history(3, customers=6, months=1)


def test_in_step_with_stripe_nothing_is_found(here: World, past: Stripe) -> None:
    here.users(*(user.id for user in people(3, 6)))
    told(here, past)
    counts = reconciled(here, past)
    assert counts.pop("examples", {}).keys() <= {"orphans"}
    assert counts.keys() <= {"people"}


def test_events_of_types_that_no_endpoint_is_sent_are_not_missed(here: World, past: Stripe) -> None:
    here.feed_as_list(render_event(one) for one in past.events if one.type in BY_EVENT_TYPE)
    assert any(one.type not in BY_EVENT_TYPE for one in past.events)
    assert "missed" not in reconciled(here, past)


def test_a_fifth_of_all_deliveries_lost_is_made_good_byte_by_byte(here: World, past: Stripe) -> None:
    here.users(*(user.id for user in people(3, 6)))
    told(here, past)
    whole = here.rows(), sums(here)
    here.empty()
    here.users(*(user.id for user in people(3, 6)))
    told(here, past, dropped=0.2)
    assert (here.rows(), sums(here)) != whole
    counts = reconciled(here, past)
    assert counts["missed"] > 10
    for table, rows in here.rows().items():
        assert rows == whole[0][table], table
    assert sums(here) == whole[1]


@pytest.mark.parametrize("days", [3, 40])
def test_what_was_lost_in_an_outage_comes_back(here: World, days: int) -> None:
    stripe = history(6, customers=4, months=3)
    here.users(*(user.id for user in people(6, 4)))
    told(here, stripe)
    whole = here.rows(), sums(here)
    here.empty()
    here.users(*(user.id for user in people(6, 4)))
    here.feed_as_list(render_event(one) for one in stripe.events if one.created < stripe.now - days * DAY)
    counts = reconciled(here, stripe)
    assert counts["missed"] > 0
    # What Stripe has forgotten by now comes from its lists.
    assert ("missing" in counts.get("drift", {}).get("payment_history", {})) is (days > 30)
    assert (counts.get("gap_days", 0) >= days) is (days > 30)
    for table, rows in here.rows().items():
        assert rows == whole[0][table], table
    assert sums(here) == whole[1]
    counts = reconciled(here, stripe)
    assert counts.keys() <= {"people", "examples"}


def planted(here: World) -> dict[str, tuple[str, str]]:
    """A wrong value in a column of every table that has rows: {table: (id, column)}."""
    wrong = {
        "stripe_products": "name", "stripe_prices": "unit_amount", "stripe_customers": "email",
        "user_subscriptions": "status", "stripe_invoices": "amount_paid", "payment_history": "amount_received",
        "stripe_charges": "amount_refunded", "stripe_invoice_payments": "amount_paid", "stripe_refunds": "status",
        "stripe_checkout_sessions": "payment_status",
    }  # fmt: skip
    places: dict[str, tuple[str, str]] = {}
    for table, column in wrong.items():
        value = "7" if column.startswith(("amount", "unit")) else "'wrong'"
        rows = here.execute(
            f"UPDATE {table} SET {column} = {value} WHERE id IN (SELECT min(id) FROM {table}) RETURNING id"
        )
        for row in rows:
            places[table] = (row.id, column)
    return places


def test_wrong_values_in_every_table_are_found_and_mended(here: World, past: Stripe) -> None:
    here.users(*(user.id for user in people(3, 6)))
    told(here, past)
    whole = here.rows(), sums(here)
    places = planted(here)
    assert len(places) > 7
    counts = reconciled(here, past)
    assert counts["drift"] == {table: {"wrong": 1, f"wrong.{column}": 1} for table, (_, column) in places.items()}
    assert set(counts["examples"]["drift"]) == {row_id for row_id, _ in places.values()}
    assert counts["repaired"] == len(places)
    assert "money" not in counts
    for table, rows in here.rows().items():
        assert rows == whole[0][table], table
    assert sums(here) == whole[1]


@pytest.mark.parametrize(("settings", "order"), [({"DUES_PAUSE": "repairs"}, {}), ({}, {"repairs": False})])
def test_without_repairs_what_is_wrong_is_found_and_left(
    database_url: str, past: Stripe, settings: dict[str, str], order: dict[str, Any]
) -> None:
    with world(database_url, **settings) as here:
        told(here, past)
        places = planted(here)
        wrong = here.rows()
        counts = reconciled(here, past, **order)
        assert counts["drift"].keys() == places.keys()
        assert "repaired" not in counts
        assert here.rows() == wrong
        (name, (ours, theirs)), *_ = [one for one in counts["money"].items() if "payment_history" in one[0]]
        assert name == "payment_history.amount_received usd"
        assert ours != theirs


def test_events_that_were_acknowledged_and_lost_are_found(here: World, past: Stripe) -> None:
    told(here, past)
    lost = [row.id for row in here.execute("DELETE FROM stripe_events WHERE type LIKE 'invoice.%' RETURNING id")]
    counts = reconciled(here, past)
    assert counts["missed"] == len(lost) > 5
    assert {row.id for row in here.execute("SELECT id FROM stripe_events WHERE type LIKE 'invoice.%'")} == set(lost)
    assert {row.lane for row in here.execute("SELECT lane FROM stripe_events WHERE id = ANY(:lost)", lost=lost)} == {
        "bulk"
    }


def test_a_product_deleted_unheard_of_is_deleted_here(here: World) -> None:
    stripe = history(3, customers=3, months=1)
    told(here, stripe)
    here.execute(
        "INSERT INTO stripe_products (id, name, created, as_of, source, livemode, metadata)"
        " SELECT 'prod_gone', 'Gone', created, as_of, 'evt_x', livemode, '{}' FROM stripe_products LIMIT 1"
    )
    counts = reconciled(here, stripe)
    assert counts["drift"] == {"stripe_products": {"deleted": 1}}
    assert here.one("SELECT deleted_at IS NOT NULL AS gone FROM stripe_products WHERE id = 'prod_gone'").gone


def test_a_list_cut_off_in_the_middle_deletes_nothing(
    here: World, past: Stripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(here, past)
    monkeypatch.setattr("workers.reconciler.PAGE", 3)
    here.execute(
        "INSERT INTO payment_history (id, created, as_of, source, livemode)"
        " SELECT 'pi_gone', max(created), max(created), 'evt_x', false FROM payment_history"
    )
    before = here.rows()
    with asking(here, past) as (door, server):
        server.faults = Faults([Rule(fault=server_error(), route="GET /v1/payment_intents", next_pages=True)])
        with pytest.raises(StripeAwayError):
            by_hand(tools(here, door), Order())
    assert here.rows() == before
    assert here.one("SELECT status, error FROM sync_runs").status == "failed"
    assert reconciled(here, past)["drift"] == {"payment_history": {"deleted": 1}}
    assert here.one("SELECT deleted_at IS NOT NULL AS gone FROM payment_history WHERE id = 'pi_gone'").gone


def test_with_the_key_of_another_account_nothing_is_done(here: World, past: Stripe) -> None:
    told(here, past)
    before = here.rows(), here.statuses()
    with pytest.raises(OtherAccountError, match="the key of another account"):
        reconciled(here, history(99, customers=2, months=1))
    assert (here.rows(), here.statuses()) == before


def test_a_dry_run_leaves_the_database_untouched(here: World, past: Stripe) -> None:
    told(here, past, dropped=0.5)
    planted(here)
    tables = ("stripe_events", "sync_runs", "token_ledger", "users", *LOCK_ORDER)
    before = {table: here.execute(f"SELECT *, xmin FROM {table} ORDER BY id") for table in tables}
    counts = reconciled(here, past, repairs=False, records=False)
    assert counts["missed"] > 10
    assert counts["drift"]
    assert {table: here.execute(f"SELECT *, xmin FROM {table} ORDER BY id") for table in tables} == before


def test_only_what_was_created_since_is_compared(here: World, past: Stripe) -> None:
    told(here, past)
    planted(here)
    middle = past.now - 10 * DAY
    counts = reconciled(here, past, since=middle, repairs=False)
    newer = here.one("SELECT id, created > to_timestamp(:at) AS newer FROM payment_history WHERE amount_received = 7",
                     at=middle)  # fmt: skip
    assert (newer.id in counts["examples"]["drift"]) is newer.newer
    assert "stripe_products" not in counts["drift"]
    assert "deleted" not in {name for table in counts["drift"].values() for name in table}
    assert here.one("SELECT cursor FROM sync_runs").cursor == "null"


# --- runs -------------------------------------------------------------------------------------------------------------


def runs(here: World) -> list[tuple[str, bool]]:
    return [(row.status, row.kept) for row in here.execute("SELECT status, cursor IS NOT NULL AS kept FROM sync_runs"
                                                           " ORDER BY id")]  # fmt: skip


def sliced(here: World, stripe: Stripe) -> int:
    """Let beat's run go to its end in slices of one step each; returns how many."""
    slices = 1
    with asking(here, stripe) as (door, _):
        while of_beat(tools(here, door), seconds=0):
            slices += 1
    return slices


def test_beats_run_goes_to_its_end_slice_by_slice(here: World, past: Stripe) -> None:
    told(here, past, dropped=0.2)
    planted(here)
    assert sliced(here, past) >= 2 + len(LISTS)
    assert runs(here) == [("done", True)]
    counts = here.one("SELECT counts FROM sync_runs").counts
    assert counts["missed"] > 10
    assert counts["repaired"] > 4
    left = json.loads(here.one("SELECT cursor FROM sync_runs").cursor)
    assert left == {"until": left["drift"] - 60, "drift": pytest.approx(past.now, abs=5)}


def test_two_beats_make_one_run(here: World, past: Stripe) -> None:
    told(here, past)
    with asking(here, past) as (door, _):

        def beat() -> None:
            while of_beat(tools(here, door), seconds=0):
                pass

        beats = [threading.Thread(target=beat) for _ in range(2)]
        for one in beats:
            one.start()
        for one in beats:
            one.join()
        beat()
    assert [status for status, _ in runs(here)] == ["done"]


def test_a_run_whose_maker_died_is_continued_where_it_stood(here: World, past: Stripe) -> None:
    told(here, past)
    with asking(here, past) as (door, server):
        for _ in range(3):
            assert of_beat(tools(here, door), seconds=0)
        asked = server.counts["GET /v1/products"]
        while of_beat(tools(here, door), seconds=0):
            pass
        assert server.counts["GET /v1/products"] == asked == 1
    assert runs(here) == [("done", True)]


def test_a_list_that_the_key_may_not_read_is_named_and_the_others_are_compared(here: World, past: Stripe) -> None:
    told(here, past)
    planted(here)
    with asking(here, past) as (door, server):
        server.faults = Faults([Rule(fault=Fault(error=ApiError(403, "no")), route="GET /v1/prices")])
        counts = by_hand(tools(here, door), Order())
    assert counts["refused"] == ["price"]
    assert {"stripe_products", "stripe_charges"} < counts["drift"].keys()
    assert "stripe_prices" not in counts["drift"]


def test_a_list_whose_place_was_deleted_meanwhile_is_read_anew(
    here: World, past: Stripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(here, past)
    planted(here)
    monkeypatch.setattr("workers.reconciler.PAGE", 1)
    no_such_cursor = Fault(error=ApiError(400, "No such product", code="resource_missing"))
    with asking(here, past) as (door, server):
        server.faults = Faults([Rule(fault=no_such_cursor, route="GET /v1/products", next_pages=True, times=1)])
        counts = by_hand(tools(here, door), Order(repairs=False))
        assert server.counts["GET /v1/products"] == len(past.products) + 2
    assert "stripe_charges" in counts["drift"]


def test_more_absent_rows_than_anybody_deletes_are_left_for_a_person(
    here: World, past: Stripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(here, past)
    here.execute(
        "INSERT INTO stripe_customers (id, created, as_of, source, livemode)"
        " SELECT 'cus_gone_' || n, created, created, 'evt_x', false FROM generate_series(1, 12) n,"
        " (SELECT min(created) AS created FROM stripe_customers) c"
    )
    before = here.rows()
    monkeypatch.setattr("workers.listing.MANY_ABSENT", 11)
    assert reconciled(here, past)["drift"] == {"stripe_customers": {"unlisted": 12}}
    assert here.rows() == before
    monkeypatch.setattr("workers.listing.MANY_ABSENT", 12)
    assert reconciled(here, past)["drift"] == {"stripe_customers": {"deleted": 12}}


def test_while_stripe_is_away_a_run_waits_and_a_refusal_ends_it(here: World, past: Stripe) -> None:
    told(here, past)
    with asking(here, past) as (door, server):
        server.faults = Faults([Rule(fault=server_error(), route="GET /v1/prices")])
        while of_beat(tools(here, door), seconds=0):
            pass
        assert [status for status, _ in runs(here)] == ["running"]
        server.faults = Faults([Rule(fault=Fault(error=ApiError(400, "no")), route="GET /v1/prices")])
        assert not of_beat(tools(here, door))
    assert [status for status, _ in runs(here)] == ["failed"]
    assert here.one("SELECT error FROM sync_runs").error.startswith("GET /v1/prices: InvalidRequestError 400")


def test_the_next_hour_looks_at_the_events_since_and_leaves_the_lists_for_a_day(here: World, past: Stripe) -> None:
    told(here, past)
    sliced(here, past)
    left = json.loads(here.one("SELECT cursor FROM sync_runs").cursor)
    here.execute("UPDATE sync_runs SET started_at = now() - interval '1 hour'")
    past.advance(past.now + 3600)
    with asking(here, past) as (door, server):
        assert not of_beat(tools(here, door))
        assert server.counts["GET /v1/products"] == 0
        since = next(asked.query for asked in server.log if "created" in asked.query)
    assert f"={left['until'] - 3600}" in since
    past.advance(past.now + DAY)
    here.execute("UPDATE sync_runs SET started_at = now() - interval '1 hour'")
    assert sliced(here, past) > len(LISTS)


def test_drift_that_a_person_only_looked_at_is_mended_by_beat(here: World, past: Stripe) -> None:
    told(here, past)
    planted(here)
    assert "repaired" not in reconciled(here, past, repairs=False)
    here.execute("UPDATE sync_runs SET started_at = now() - interval '2 hours'")
    sliced(here, past)
    assert here.one("SELECT counts FROM sync_runs ORDER BY id DESC LIMIT 1").counts["repaired"] > 7


def test_what_may_still_be_on_its_way_is_left_to_the_next_hour(here: World, past: Stripe) -> None:
    told(here, past)
    product = past.create_product("New")
    sliced(here, past)
    assert here.one("SELECT counts FROM sync_runs").counts.keys() <= {"people", "examples"}
    past.advance(past.now + 120)
    here.execute("UPDATE sync_runs SET started_at = now() - interval '1 hour'")
    sliced(here, past)
    assert here.one("SELECT object_id FROM stripe_events WHERE type LIKE 'product.%' AND lane = 'bulk'") == (
        product.id,
    )


def test_after_forty_days_without_news_everything_is_fetched_anew(here: World) -> None:
    stripe = history(4, customers=2, months=3)
    here.feed_as_list(render_event(one) for one in stripe.events if one.created < stripe.now - 40 * DAY)
    asked: list[str] = []
    with asking(here, stripe) as (door, _):
        with_resync = replace(tools(here, door), resync=lambda: asked.append("resync"))
        counts = by_hand(with_resync, Order())
    assert counts["gap_days"] >= 40
    assert asked == ["resync"]


def test_while_one_is_under_way_another_by_hand_is_refused(here: World, past: Stripe) -> None:
    with sync_runs.turn(here.engine, "reconcile"), pytest.raises(BusyError):
        reconciled(here, past)
