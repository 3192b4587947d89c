"""Why a user has what they have: every input with its rule, what waits, and nothing that is not true."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from simulator.render import render_event
from simulator.state import Stripe
from tests.workers.test_asking import ANN, NOW, buy
from tests.workers.world import World, world
from workers.explain import explain

BOB = "user_bob"
DUE = "UPDATE users SET next_change_at = clock_timestamp()"


@pytest.fixture
def here(database_url: str) -> Iterator[World]:
    with world(database_url) as here:
        here.users(ANN, BOB)
        yield here


@pytest.fixture
def stripe(here: World) -> Stripe:
    """Ann is a member of Pro with 500 tokens; the road is done."""
    stripe = Stripe("explain", NOW)
    buy(stripe)
    here.feed_as_list(render_event(event) for event in stripe.events)
    return stripe


def explained(here: World, user: str = ANN) -> dict[str, Any]:
    with here.engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection, connection.begin():
        found = explain(connection, here.settings, user)
    assert found is not None
    assert json.loads(json.dumps(found)) == found, "it is plain JSON"
    return found


def whats(found: dict[str, Any]) -> set[str]:
    return {one["what"] for one in found["waiting"]}


def test_a_member_is_explained_by_subscription_customer_and_grant(here: World, stripe: Stripe) -> None:
    found = explained(here)
    (subscription,), (customer,), (line,) = stripe.subscriptions, stripe.customers, found["tokens"]["grants"]
    assert found["stored"] == found["decided"]
    assert (found["stored"]["role"], found["stored"]["tokens"]) == ("PREMIUM", 500)
    (told,) = found["subscriptions"]
    assert (told["id"], told["gives_access"], told["role"]) == (subscription, True, "PREMIUM")
    (owned,) = found["customers"]
    assert (owned["id"], owned["owner_id"], owned["decided_by"], owned["class"], owned["conflicts"]) == (
        customer, ANN, "customer_metadata", 2, [],
    )  # fmt: skip
    assert (line["amount"], line["booked"], line["share"], line["held"]) == (500, {"grant": 500}, 0.0, False)
    assert line["left"] == [{"tokens": 500, "expires_at": line["expires_at"]}]
    assert found["waiting"] == []
    assert found["changes"][0]["role_to"] == "PREMIUM"
    assert any(subscription in reason for reason in found["reasons"])


def test_nobody_is_not_explained(here: World) -> None:
    with here.engine.connect() as connection:
        assert explain(connection, here.settings, "nobody") is None


def test_a_user_without_anything_is_explained_so(here: World) -> None:
    assert whats(explained(here, BOB)) == {"decision", "membership_status"}
    here.execute("UPDATE users SET membership_status = 'INACTIVE', next_change_at = NULL")
    found = explained(here, BOB)
    assert (found["reasons"], found["customers"], found["tokens"]["grants"]) == (["There is no subscription."], [], [])
    assert found["waiting"] == []


def test_evidence_that_contradicts_is_shown_to_both(here: World, stripe: Stripe) -> None:
    here.execute("UPDATE user_subscriptions SET metadata = CAST(:m AS jsonb)", m=json.dumps({"user_id": BOB}))
    for user in (ANN, BOB):
        (customer,) = explained(here, user)["customers"]
        (conflict,) = customer["conflicts"]
        assert customer["owner_id"] == ANN
        assert (conflict["user_id"], conflict["linked_by"], conflict["class"]) == (BOB, "subscription_metadata", 3)


def test_a_persons_decisions_are_shown_with_who_made_them(here: World, stripe: Stripe) -> None:
    (customer,) = stripe.customers
    here.execute(
        "INSERT INTO customer_links (stripe_customer_id, user_id, author, reason) VALUES (:c, :u, 'eve', 'a call')",
        c=customer,
        u=ANN,
    )
    here.execute("INSERT INTO user_overrides (user_id, kind, author, reason) VALUES (:u, 'ban', 'eve', 'spam')", u=ANN)
    found = explained(here)
    (owned,), (override,) = found["customers"], found["overrides"]
    assert (owned["decided_by"], owned["class"], owned["by_hand"][0]["author"]) == ("hand", 1, "eve")
    assert (override["kind"], override["is_running"], override["author"], override["reason"]) == (
        "ban", True, "eve", "spam",
    )  # fmt: skip
    assert (found["stored"]["role"], found["decided"]["role"]) == ("PREMIUM", "BANNED")
    assert "role" in whats(found)


def test_what_waits_is_named_with_its_reason(here: World, database_url: str) -> None:
    stripe = Stripe("explain", NOW)
    buy(stripe)
    events = [render_event(event) for event in stripe.events]
    product = [one for one in events if one["type"] == "product.created"]
    here.feed_as_list(one for one in events if one not in product)
    (line,) = (line for invoice in stripe.invoices.values() for line in invoice.lines)
    (product_id,) = stripe.products
    late = {**next(one for one in events if one["type"] == "customer.created"), "id": "evt_late"}
    here.record({**late, "type": "customer.updated"})
    with world(database_url, DUES_PAUSE="grants") as paused:
        reasons = {one["what"]: one["why"] for one in explained(paused)["waiting"]}
    assert reasons[product_id] == "only its id is known"
    assert reasons[line.id] == f"product {product_id} is not known yet"
    assert reasons["grants"] == "DUES_PAUSE holds grants"
    assert reasons["evt_late"] == "it is received after 0 tries"


def test_a_refund_is_seen_in_the_share_and_in_what_was_booked(here: World, stripe: Stripe) -> None:
    seen = len(stripe.events)
    (payment,) = stripe.payment_intents
    stripe.refund(payment, 450)
    here.feed_as_list(render_event(event) for event in stripe.events[seen:])
    (grant,) = explained(here)["tokens"]["grants"]
    assert (grant["share"], grant["booked"], grant["left"][0]["tokens"]) == (0.5, {"grant": 500, "clawback": -250}, 250)


def test_what_people_wrote_directly_is_told_apart(here: World, stripe: Stripe, database_url: str) -> None:
    import psycopg

    with psycopg.connect(database_url) as site:
        site.execute("UPDATE users SET tokens = tokens + 7 WHERE id = %s", [ANN])
    (other,) = explained(here)["tokens"]["others"]
    assert (other["kind"], other["booked"]) == ("adjust", {"adjust": 7})
    expires_at = explained(here)["stored"]["tokens_expires_at"]
    assert other["left"] == [{"tokens": 7, "expires_at": expires_at}], "as if the site had said so"


def test_no_address_and_no_payload_is_told(here: World, stripe: Stripe) -> None:
    assert "@" not in json.dumps(explained(here))
