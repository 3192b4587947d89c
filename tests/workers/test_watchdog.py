"""The watchdog: what keeps Stripe's events from arriving is found, once per look, and what is well is no alarm."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from models import envelope, ledger
from models.settings import Settings
from simulator.calendar import DAY
from simulator.faults import Faults, Rule, server_error
from simulator.histories import history
from simulator.render import render_event
from simulator.render.thin import notification
from simulator.state import Stripe
from simulator.versions import ENDIVE
from tests.workers.practice import asking, tools
from tests.workers.world import World, event, thing, world
from workers import receiver, watchdog
from workers.findings import Finding
from workers.handlers import BY_EVENT_TYPE
from workers.reconcile import RESOLVED, by_hand, findings, of_beat
from workers.reconciler import Order

URL = "https://example.com/webhooks/stripe"
HERE = Settings(webhook_url=URL)
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.fixture
def here(database_url: str) -> Iterator[World]:
    with world(database_url) as one:
        yield one


def an_endpoint(**changes: Any) -> dict[str, Any]:
    return {"id": "we_1", "url": URL, "status": "enabled", "api_version": ENDIVE, "enabled_events": ["*"], **changes}


def judged(*endpoints: dict[str, Any], settings: Settings = HERE) -> list[tuple[str, str]]:
    return [(one.level, one.found) for one in watchdog.endpoint(endpoints, settings)]


# --- the endpoint -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{}, {"url": f"{URL}/"}, {"api_version": None}, {"enabled_events": [*BY_EVENT_TYPE, "payout.paid"]}]
)
def test_an_endpoint_that_gets_everything_is_fine(changes: dict[str, Any]) -> None:
    assert judged(an_endpoint(**changes)) == [("ok", f"Stripe sends all events to {an_endpoint(**changes)['url']}")]


@pytest.mark.parametrize(
    ("endpoints", "found"),
    [
        ([], ("problem", f"none of Stripe's 0 webhook endpoints leads to {URL}")),
        (
            [an_endpoint(url="https://old.example.com/webhooks/stripe")],
            ("problem", f"none of Stripe's 1 webhook endpoints leads to {URL}"),
        ),
        ([an_endpoint(status="disabled")], ("problem", "Stripe has disabled we_1")),
        (
            [an_endpoint(enabled_events=sorted(BY_EVENT_TYPE)[1:])],
            ("warning", f"the endpoint is not sent {min(BY_EVENT_TYPE)}"),
        ),
        (
            [an_endpoint(api_version="2020-08-27")],
            ("warning", f"endpoint we_1 speaks 2020-08-27; Dues knows 2022-08-01 to {ENDIVE}"),
        ),
        (
            [an_endpoint(api_version="2027-01-01.next")],
            ("warning", f"endpoint we_1 speaks 2027-01-01.next; Dues knows 2022-08-01 to {ENDIVE}"),
        ),
    ],
)
def test_what_is_wrong_with_an_endpoint_is_found(endpoints: list[dict[str, Any]], found: tuple[str, str]) -> None:
    assert judged(*endpoints)[0] == found


def test_two_endpoints_for_one_address_add_up() -> None:
    types = sorted(BY_EVENT_TYPE)
    halves = (an_endpoint(id="we_1", enabled_events=types[:9]), an_endpoint(id="we_2", enabled_events=types[9:]))
    assert judged(*halves)[0][0] == "ok"
    assert [level for level, _ in judged(halves[0], {**halves[1], "status": "disabled"})] == ["problem", "warning"]


def test_without_an_address_any_endpoint_with_our_path_will_do() -> None:
    assert judged(an_endpoint(url="https://any.example.com/webhooks/stripe"), settings=Settings())[0][0] == "ok"
    assert judged(an_endpoint(url="https://any.example.com/other"), settings=Settings())[0][0] == "problem"


# --- looks ------------------------------------------------------------------------------------------------------------


def looked(here: World, stripe: Stripe) -> dict[str, str]:
    """What a look finds: {check: level}."""
    here.execute("UPDATE sync_runs SET started_at = started_at - interval '5 minutes'")
    with asking(here, stripe) as (door, _):
        return {one.check: one.level for one in watchdog.look(here.engine, here.settings, door)}


def test_events_that_do_not_come_are_told_as_silence(here: World) -> None:
    stripe = Stripe("silence", 1_793_520_000)
    stripe.create_webhook_endpoint(URL)
    assert looked(here, stripe) == {"endpoint": "ok", "silence": "ok"}
    product = stripe.create_product("Pro")
    stripe.update_product(product.id, name="Pro!")
    assert looked(here, stripe)["silence"] == "ok"
    stripe.advance(stripe.now + 600)
    assert looked(here, stripe)["silence"] == "problem"
    first = next(one for one in stripe.events if one.type == "product.created")
    here.feed(render_event(first))
    assert looked(here, stripe)["silence"] == "warning"
    here.feed(*(render_event(one) for one in stripe.events))
    assert looked(here, stripe)["silence"] == "ok"


def hear(here: World, *thin: dict[str, Any]) -> None:
    """Record events as the receiver does."""
    with here.engine.begin() as connection:
        for one in thin:
            ledger.record(connection, envelope.read(json.dumps(one).encode()))


def test_thin_events_that_come_are_no_silence_and_each_tells_of_one_change(here: World) -> None:
    stripe = Stripe("thin", 1_793_520_000)
    stripe.create_webhook_endpoint(URL, payload="thin")
    product = stripe.create_product("Pro")
    stripe.update_product(product.id, name="Pro!")
    stripe.update_product(product.id, name="Pro?")
    stripe.advance(stripe.now + 600)
    *told, untold = [one for one in stripe.events if one.object.id == product.id]
    hear(here, *map(notification, told))
    assert looked(here, stripe) == {"endpoint": "ok", "silence": "warning"}
    here.execute("UPDATE stripe_events SET status = 'ignored', reason = 'no_api_key', processed_at = now()")
    assert looked(here, stripe)["silence"] == "problem"
    here.execute("UPDATE stripe_events SET status = 'processed', reason = NULL")
    hear(here, notification(untold))
    assert looked(here, stripe)["silence"] == "ok"
    with asking(here, stripe) as (door, _):
        assert not findings(by_hand(tools(here, door), Order(repairs=True)))


def test_a_look_is_written_down_and_not_repeated_at_once(here: World) -> None:
    stripe = Stripe("look", 1_793_520_000)
    assert looked(here, stripe)["endpoint"] == "problem"
    with asking(here, stripe) as (door, server):
        assert watchdog.look(here.engine, here.settings, door) == []
        assert server.log == []
    row = here.one("SELECT kind, status, counts FROM sync_runs")
    assert (row.kind, row.status) == ("watchdog", "done")
    assert {one.check for one in watchdog.load(row.counts)} == {"endpoint", "silence"}


def test_old_looks_are_forgotten_and_other_runs_are_not(here: World) -> None:
    here.execute(
        "INSERT INTO sync_runs (kind, status, started_at) VALUES ('watchdog', 'done', now() - interval '8 days'),"
        " ('watchdog', 'done', now() - interval '6 days'), ('reconcile', 'done', now() - interval '8 days')"
    )
    looked(here, Stripe("old", 1_793_520_000))
    assert here.execute("SELECT kind, count(*) FROM sync_runs GROUP BY 1 ORDER BY 1") == [
        ("reconcile", 1),
        ("watchdog", 2),
    ]


def test_a_stripe_that_can_not_be_asked_is_a_finding_and_the_look_counts(here: World) -> None:
    with asking(here, Stripe("away", 1_793_520_000)) as (door, server):
        server.faults = Faults([Rule(fault=server_error())])
        (finding,) = watchdog.look(here.engine, here.settings, door)
    assert (finding.check, finding.level) == ("stripe", "warning")
    assert here.one("SELECT status FROM sync_runs").status == "done"


def test_without_a_key_a_look_still_shows_that_beat_is_there(here: World) -> None:
    assert (
        watchdog.look(here.engine, here.settings, None)
        == []
        == here.one("SELECT counts FROM sync_runs").counts["findings"]
    )


def test_events_that_stripe_failed_to_make_lead_to_reading_every_list(here: World) -> None:
    stripe = history(3, customers=2, months=1)
    here.feed_as_list(render_event(one) for one in stripe.events)

    def lists_read() -> int:
        here.execute("UPDATE sync_runs SET started_at = started_at - interval '2 hours'")
        with asking(here, stripe) as (door, server):
            assert not of_beat(tools(here, door))
            return server.counts["GET /v1/products"]

    assert lists_read() == 1
    stripe.advance(stripe.now + DAY // 2)
    assert lists_read() == 0
    here.record(event(thing("product.created"), RESOLVED, stripe.now - 60))
    assert lists_read() == 1
    assert lists_read() == 0


# --- the receiver -----------------------------------------------------------------------------------------------------


def figures(refused: int, *used: int) -> dict[str, Any]:
    secrets = {str(number): float(n) for number, n in enumerate(used, start=1)}
    return {"refused": refused, "taken": sum(used), "secrets": secrets}


def looks(*steps: tuple[timedelta, dict[str, Any]]) -> list[Finding]:
    """What the last of some looks at the receiver finds."""
    kept, found, now = None, [], NOW
    for later, seen in steps:
        now += later
        fresh = receiver.keep(seen, kept, now)
        found, kept = receiver.judge(seen, kept, fresh, now), fresh
    return found


FIVE_MINUTES = timedelta(minutes=5)


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        (figures(0, 100), figures(50, 100), ("signature", "problem")),
        (figures(0, 100), figures(50, 120), ("signature", "warning")),
        (figures(0, 100), figures(50, 180), ("signature", "ok")),
        (figures(50, 100), figures(55, 100), ("signature", "ok")),
        # Started anew: what was before counts no more.
        (figures(500, 100), figures(20, 1), ("signature", "warning")),
    ],
)
def test_a_spike_of_refused_signatures_is_found(
    before: dict[str, Any], after: dict[str, Any], found: tuple[str, str]
) -> None:
    (finding,) = looks((FIVE_MINUTES, before), (FIVE_MINUTES, after))
    assert (finding.check, finding.level) == found


def test_a_secret_that_verifies_nothing_any_more_is_found_after_days() -> None:
    days = timedelta(days=1)
    steps = [(days, figures(0, 10 * day, 5)) for day in range(4)]
    assert [one.level for one in looks(*steps)] == ["ok"]
    (finding,) = looks(*steps, (days, figures(0, 50, 5)))
    assert finding.found == "of STRIPE_WEBHOOK_SECRET number 2 has verified nothing for 3 days"
    assert [one.level for one in looks(*steps, (days, figures(0, 50, 6)))] == ["ok"]


def test_if_nothing_comes_at_all_no_secret_is_blamed() -> None:
    steps = [(timedelta(days=1), figures(0, 5, 5)) for _ in range(9)]
    assert [one.level for one in looks(*steps)] == ["ok"]


def test_a_receiver_that_does_not_answer_is_a_finding_and_what_was_known_is_kept() -> None:
    settings = replace(HERE, webhook_url="http://127.0.0.1:1/webhooks/stripe", api_tokens=("token",))
    before = {**figures(0, 5), "used": {}}
    (finding,), kept = receiver.look(settings, before, NOW)
    assert finding.found == "/metrics of the receiver can't be read (ConnectionRefusedError)"
    assert kept == before


def test_without_an_address_or_a_token_no_receiver_is_asked() -> None:
    assert receiver.look(HERE, None, NOW) == ([], None)
    assert receiver.look(replace(HERE, webhook_url="", api_tokens=("token",)), None, NOW) == ([], None)
