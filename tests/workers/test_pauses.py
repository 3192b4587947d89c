"""The kill switches of DUES_PAUSE: what stops, what goes on, and that nothing is lost once they are taken out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest

from models import ledger
from simulator.render import render_event
from simulator.state import Stripe
from tests.workers.test_asking import ANN, NOW, buy, member
from tests.workers.world import World, world
from workers.due import decide_all_due

DUE = "UPDATE users SET next_change_at = clock_timestamp()"


@pytest.fixture
def stripe() -> Stripe:
    stripe = Stripe("pauses", NOW)
    buy(stripe)
    return stripe


@pytest.fixture
def here(database_url: str) -> Iterator[World]:
    with world(database_url) as here:
        here.users(ANN)
        yield here


def decide_due(here: World) -> int:
    return decide_all_due(here.engine, here.settings, threading.Event())


def test_with_processing_paused_events_are_captured_and_nobody_is_decided(
    here: World, database_url: str, stripe: Stripe
) -> None:
    with world(database_url, DUES_PAUSE="processing") as paused:
        paused.record(*(render_event(event) for event in stripe.events))
        for lane in ledger.LANES:
            assert paused.road.process(lane) == {}
        assert decide_due(paused) == 0
        assert paused.statuses() == {"received": len(stripe.events)}
        assert member(paused) == ("USER", "ACTIVE", 0), "as the front end made her"
    here.road.process("live")
    assert member(here) == ("PREMIUM", "ACTIVE", 500)


def test_with_grants_paused_everything_but_tokens_is_decided_whoever_decides(
    here: World, database_url: str, stripe: Stripe
) -> None:
    with world(database_url, DUES_PAUSE="grants") as paused:
        paused.feed_as_list(render_event(event) for event in stripe.events)
        assert member(paused) == ("PREMIUM", "ACTIVE", 0)
        paused.execute(DUE)
        assert decide_due(paused) == 1
        assert member(paused) == ("PREMIUM", "ACTIVE", 0)
        soon = paused.one("SELECT next_change_at - clock_timestamp() AS wait FROM users").wait
        assert timedelta(minutes=4) < soon <= timedelta(minutes=5), "somebody looks again"
    here.execute(DUE)
    decide_due(here)
    assert member(here) == ("PREMIUM", "ACTIVE", 500)


def test_with_grants_paused_what_was_granted_stays_is_taken_back_and_expires(
    here: World, database_url: str, stripe: Stripe
) -> None:
    here.feed_as_list(render_event(event) for event in stripe.events)
    seen = len(stripe.events)
    (payment,) = stripe.payment_intents
    with world(database_url, DUES_PAUSE="grants") as paused:
        paused.execute(DUE)
        decide_due(paused)
        assert member(paused)[2] == 500
        stripe.refund(payment, 450)
        paused.feed_as_list(render_event(event) for event in stripe.events[seen:])
        assert member(paused)[2] == 250
