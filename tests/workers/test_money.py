from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pytest

from models import ledger
from simulator.histories import history
from simulator.people import people
from simulator.render import render_event
from simulator.versions import ACACIA, ENDIVE
from tests.workers.test_process import NOON, USER, story
from tests.workers.world import Event, World, event, fixture, thing, world
from workers.recompute import decide_due


@pytest.fixture
def here(database_url: str) -> Iterator[World]:
    with world(database_url) as one:
        yield one


def sums(here: World) -> list[tuple[Any, ...]]:
    """The ledger's sum per user, source and expiry, as far as it is not 0."""
    rows = here.execute(
        "SELECT user_id, source, expires_at, sum(amount)::integer FROM token_ledger GROUP BY 1, 2, 3"
        " HAVING sum(amount) <> 0 ORDER BY 1, 2, 3",
    )
    return [tuple(row) for row in rows]


def deliver(here: World, events: Sequence[Event], chance: random.Random) -> None:
    """Deliver events shuffled, some twice, in lists of any size and in both lanes."""
    posts = [*events, *chance.choices(events, k=len(events) // 5)]
    chance.shuffle(posts)
    while posts:
        size = chance.choice([1, 3, 20, 200])
        here.record(*posts[:size], lane=chance.choice(ledger.LANES))
        posts = posts[size:]
        for lane in chance.sample(ledger.LANES, len(ledger.LANES)):
            here.road.process(lane)
    decide_due(here.engine, here.settings)


# --- convergence ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_history_in_any_order_ends_as_in_the_true_one(here: World, seed: int) -> None:
    past = history(seed, customers=3, months=3)
    chance = random.Random(seed)
    version = ACACIA if seed % 2 else ENDIVE
    events = [render_event(one, version) for one in past.events]
    answers = []
    for shuffled in (False, True, True):
        here.empty()
        here.users(*(user.id for user in people(seed, 3)))
        if shuffled:
            deliver(here, events, chance)
        else:
            here.feed_as_list(events)
            decide_due(here.engine, here.settings)
        assert set(here.statuses()) <= {"processed", "ignored"}
        answers.append((here.rows(), sums(here)))
    assert answers[0][1] == answers[1][1] == answers[2][1]
    for table, rows in answers[0][0].items():
        assert rows == answers[1][0][table], table
        assert rows == answers[2][0][table], table


def test_replaying_everything_twice_books_nothing(here: World) -> None:
    here.users(*(user.id for user in people(1, 3)))
    events = [render_event(one) for one in history(1).events]
    here.feed_as_list(events)
    before = here.one("SELECT count(*), max(id) FROM token_ledger")
    assert before.count > 0
    for _ in range(2):
        with here.engine.begin() as connection:
            ledger.replay(connection, [one["id"] for one in events], lane="live")
        here.road.process("live")
    assert here.one("SELECT count(*), max(id) FROM token_ledger") == before


def test_the_balance_is_the_sum_of_the_entries(here: World) -> None:
    here.users(*(user.id for user in people(2, 3)))
    here.feed_as_list(render_event(one) for one in history(2).events)
    rows = here.execute(
        "SELECT u.tokens, coalesce(sum(e.amount), 0)::integer AS total FROM users u"
        " LEFT JOIN token_ledger e ON e.user_id = u.id GROUP BY u.id, u.tokens",
    )
    assert any(row.tokens for row in rows)
    assert all(row.tokens == row.total for row in rows)


# --- payments ---------------------------------------------------------------------------------------------------------


def member(here: World, tokens: str = "500") -> None:
    """A member whose invoice is paid: 500 tokens, in a period that has not ended."""
    here.users(USER)
    here.feed(event(thing("product.created", metadata={"tokens": tokens}), "product.updated", NOON - 50))
    here.feed(*story()[1:], fixture("invoice.paid"), fixture("invoice_payment.paid"))
    here.feed(fixture("payment_intent.succeeded"), fixture("charge.succeeded"))


def tokens_of(here: World) -> int:
    return int(here.one("SELECT tokens FROM users").tokens)


def test_a_paid_invoice_grants_and_its_twins_grant_nothing_more(here: World) -> None:
    member(here)
    twin = fixture("invoice.paid")["data"]["object"]
    here.feed(event(twin, "invoice.payment_succeeded", NOON), event(twin, "invoice.updated", NOON + 1))
    entries = here.execute("SELECT kind, amount, source FROM token_ledger")
    assert [(row.kind, row.amount) for row in entries] == [("grant", 500)]
    assert here.one("SELECT user_id FROM payment_history").user_id == USER


def test_an_active_subscription_without_a_paid_invoice_grants_nothing(here: World) -> None:
    here.users(USER)
    here.feed(event(thing("product.created", metadata={"tokens": "500"}), "product.updated", NOON - 50), *story()[1:])
    assert here.one("SELECT role::text, tokens FROM users") == ("PREMIUM", 0)


@pytest.mark.parametrize("order", [1, -1], ids=["in order", "backwards"])
def test_a_refund_takes_its_share_whichever_word_of_it_comes_first(here: World, order: int) -> None:
    member(here)
    charge = thing("charge.succeeded", amount=2000, amount_captured=2000, amount_refunded=500)
    words = [event(charge, "charge.refunded", NOON + 100), fixture("refund.created")]
    here.feed(*words[::order])
    assert tokens_of(here) == 375
    assert here.one("SELECT count(*) FROM stripe_refunds").count == 1


def test_a_refund_counts_although_an_earlier_attempt_to_pay_had_failed(here: World) -> None:
    """Before 2025-03-31 each charge names the invoice, the one that failed too."""
    here.users(USER)
    here.feed(event(thing("product.created", metadata={"tokens": "500"}), "product.updated", NOON - 50), *story()[1:])
    here.feed(fixture("invoice.paid__old_api_version"))
    paid = thing("charge.succeeded", invoice="in_1SaAliceInv0001")
    failed = {**paid, "id": "ch_3SaAlice0Failed", "status": "failed", "amount_captured": 0}
    here.feed(event(failed, "charge.failed", NOON - 1), event(paid, "charge.succeeded", NOON + 1))
    assert tokens_of(here) == 500
    here.feed(event({**paid, "amount_refunded": 2000, "refunded": True}, "charge.refunded", NOON + 60))
    assert tokens_of(here) == 0


def test_a_dispute_that_names_no_customer_finds_its_user(here: World) -> None:
    member(here)
    here.feed(fixture("charge.dispute.created"))
    held = tokens_of(here)
    assert held == 0
    won = thing("charge.dispute.created", status="won")
    here.feed(event(won, "charge.dispute.closed", fixture("charge.dispute.created")["created"] + 100))
    assert tokens_of(here) == 500


def test_the_figure_in_force_at_the_payment_counts_even_if_it_is_heard_of_later(here: World) -> None:
    """The product's price in tokens was raised after the payment; the older word arrives last."""
    here.users(USER)
    younger = event(thing("product.created", metadata={"tokens": "900"}), "product.updated", NOON + 1000)
    older = event(thing("product.created", metadata={"tokens": "500"}), "product.updated", NOON - 1000)
    here.feed(younger, *story()[1:], fixture("invoice.paid"))
    assert tokens_of(here) == 900
    here.feed(older)
    assert tokens_of(here) == 500
    assert here.one("SELECT metadata FROM stripe_products").metadata == {"tokens": "900"}


def test_two_older_words_of_one_list_that_say_the_same_do_not_hide_each_other(here: World) -> None:
    here.users(USER)
    younger = event(thing("product.created", metadata={"tokens": "900"}), "product.updated", NOON + 1000)
    here.feed(younger, *story()[1:], fixture("invoice.paid"))
    old = thing("product.created", metadata={"tokens": "500"})
    here.feed_as_list([event(old, "product.updated", NOON - 2000), event(old, "product.updated", NOON - 1000)])
    assert tokens_of(here) == 500


def test_a_cut_off_invoice_waits(here: World) -> None:
    here.users(USER)
    here.feed(event(thing("product.created", metadata={"tokens": "500"}), "product.updated", NOON - 50), *story()[1:])
    cut = fixture("invoice.paid")
    cut["data"]["object"]["lines"]["has_more"] = True
    here.feed(cut)
    assert here.one("SELECT lines_complete FROM stripe_invoices").lines_complete is False
    assert tokens_of(here) == 0


def test_previews_of_invoices_are_ignored(here: World) -> None:
    upcoming = thing("invoice.paid", id="upcoming_in_1")
    here.feed(event(upcoming, "invoice.updated", NOON), event(upcoming, "invoice.upcoming", NOON))
    rows = here.execute("SELECT type, status, reason FROM stripe_events ORDER BY type")
    assert [tuple(row) for row in rows] == [
        ("invoice.upcoming", "ignored", "type"),
        ("invoice.updated", "ignored", "preview"),
    ]
    assert here.execute("SELECT FROM stripe_invoices") == []


def test_a_guests_pack_goes_to_the_user_whom_the_session_names(here: World) -> None:
    session = thing("checkout.session.completed__guest", client_reference_id=USER, metadata={"tokens": "70"})
    intent = thing("payment_intent.succeeded", id=session["payment_intent"], customer=None)
    events = [
        event(session, "checkout.session.completed", NOON),
        event(intent, "payment_intent.succeeded", NOON + 1),
    ]
    for order in (events, events[::-1]):
        here.empty()
        here.users(USER)
        here.feed(*order)
        assert tokens_of(here) == 70
        assert here.one("SELECT user_id FROM payment_history").user_id == USER


def test_a_guests_payment_follows_the_user_whom_the_session_names(here: World) -> None:
    session = thing("checkout.session.completed__guest", client_reference_id=USER, metadata={"tokens": "70"})
    intent = thing("payment_intent.succeeded", id=session["payment_intent"], customer=None)
    here.feed(event(session, "checkout.session.completed", NOON), event(intent, "payment_intent.succeeded", NOON + 1))

    def owner() -> str | None:
        decide_due(here.engine, here.settings)
        found: str | None = here.one("SELECT user_id FROM payment_history").user_id
        return found

    assert owner() is None
    here.users(USER, "43")
    assert owner() == USER
    renamed = event({**session, "client_reference_id": "43"}, "checkout.session.async_payment_succeeded", NOON + 2)
    here.feed(renamed)
    assert owner() == "43"
    assert here.execute("SELECT id, tokens FROM users ORDER BY id") == [(USER, 0), ("43", 70)]
    here.execute("DELETE FROM users WHERE id = '43'")
    assert owner() is None


def test_what_people_write_into_tokens_is_booked_and_survives(here: World) -> None:
    member(here)
    with_psql = str(here.engine.url.set(drivername="postgresql").render_as_string(hide_password=False))
    with psycopg.connect(with_psql) as site:
        site.execute("UPDATE users SET tokens = tokens - 20")
    here.feed(*story())
    assert tokens_of(here) == 480
    kinds = {row.kind: row.amount for row in here.execute("SELECT kind, amount FROM token_ledger")}
    assert kinds == {"grant": 500, "adjust": -20}


def test_grants_can_be_paused_and_come_later(database_url: str) -> None:
    with world(database_url, DUES_PAUSE="grants") as here:
        member(here)
        assert tokens_of(here) == 0
        assert here.one("SELECT role::text FROM users").role == "PREMIUM"
    with world(database_url) as here:
        here.feed(fixture("invoice.paid"))
        assert tokens_of(here) == 500
