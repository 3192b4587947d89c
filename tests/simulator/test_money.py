from typing import Any

import pytest

from simulator.calendar import DAY
from simulator.objects import Event
from simulator.render import render, render_event
from simulator.state import Stripe
from simulator.versions import ACACIA, ENDIVE
from simulator.world import InvalidRequestError

CLOCK = 1793520000  # 2026-11-01
PAID = ["payment_intent.created", "charge.succeeded", "payment_intent.succeeded", "charge.updated"]
COMPLETED = "checkout.session.completed"


@pytest.fixture
def stripe() -> Stripe:
    stripe = Stripe(1, CLOCK)
    product = stripe.create_product("Gold")
    stripe.create_price(product.id, 2000, id="monthly")
    stripe.create_price(product.id, 1000, id="pack", interval=None)
    stripe.create_price(product.id, 0, id="gift", interval=None)
    stripe.checkout("monthly", email="alice@example.com")
    return stripe


def paid_charge(stripe: Stripe) -> str:
    return next(charge.id for charge in stripe.charges.values() if charge.status == "succeeded")


def told(stripe: Stripe, action: Any) -> list[Event]:
    before = len(stripe.events)
    action()
    return stripe.events[before:]


def types(events: list[Event]) -> list[str]:
    return [event.type for event in events]


def shown(events: list[Event], type: str) -> dict[str, Any]:
    data: dict[str, Any] = render_event(next(event for event in events if event.type == type))["data"]
    return data


def test_a_partial_refund_leaves_the_charge_not_refunded_and_everything_else_as_it_was(stripe: Stripe) -> None:
    intents, invoices, subscriptions = dict(stripe.payment_intents), dict(stripe.invoices), dict(stripe.subscriptions)
    events = told(stripe, lambda: stripe.refund(paid_charge(stripe), 500, metadata={"why": "late"}))
    assert types(events) == ["refund.created", "charge.refunded", "refund.updated"]
    charge = shown(events, "charge.refunded")["object"]
    assert (charge["amount"], charge["amount_refunded"], charge["refunded"]) == (2000, 500, False)
    refund = shown(events, "refund.created")["object"]
    assert (refund["amount"], refund["status"], refund["charge"]) == (500, "succeeded", charge["id"])
    assert (refund["payment_intent"], refund["customer"]) == (charge["payment_intent"], charge["customer"])
    assert refund["metadata"] == {"why": "late"}
    assert shown(events, "refund.updated")["previous_attributes"] == {
        "destination_details": {"card": {"reference_status": "pending", "reference": None}}
    }
    assert (stripe.payment_intents, stripe.invoices, stripe.subscriptions) == (intents, invoices, subscriptions)
    assert all(event.request_id == events[0].request_id is not None for event in events)


def test_what_is_left_is_refunded_by_the_payment_intent_and_then_there_is_nothing_left(stripe: Stripe) -> None:
    intent = next(iter(stripe.payment_intents))
    stripe.refund(intent, 500)
    refund = stripe.refund(intent)
    charge = stripe.charges[refund.charge]
    assert (refund.amount, charge.amount_refunded, render(charge)["refunded"]) == (1500, 2000, True)
    with pytest.raises(InvalidRequestError, match="already been refunded"):
        stripe.refund(intent)


@pytest.mark.parametrize("amount", [0, -1, 2001])
def test_more_than_was_paid_or_nothing_is_not_refunded(stripe: Stripe, amount: int) -> None:
    before = len(stripe.events)
    with pytest.raises(InvalidRequestError, match="not between"):
        stripe.refund(paid_charge(stripe), amount)
    assert len(stripe.events) == before


def test_only_a_charge_that_succeeded_is_taken_back(stripe: Stripe) -> None:
    session = stripe.open_checkout("pack", email="b@example.com")
    stripe.complete_checkout(session.id, card="declined")
    failed = next(charge for charge in stripe.charges.values() if charge.status == "failed")
    for payment in (failed.id, failed.payment_intent, "ch_nobody"):
        for take_back in (stripe.refund, stripe.dispute):
            with pytest.raises(InvalidRequestError, match=payment):
                take_back(payment)


def test_a_refund_that_fails_days_later_lowers_the_charge_again(stripe: Stripe) -> None:
    first, second = stripe.refund(paid_charge(stripe), 500), stripe.refund(paid_charge(stripe))
    stripe.advance(CLOCK + 4 * DAY)
    events = told(stripe, lambda: stripe.fail_refund(second.id))
    assert types(events) == ["refund.failed", "charge.updated"]
    failed = shown(events, "refund.failed")["object"]
    assert (failed["status"], failed["failure_reason"]) == ("failed", "expired_or_canceled_card")
    assert failed["failure_balance_transaction"] not in {None, failed["balance_transaction"]}
    charge = shown(events, "charge.updated")
    assert charge["previous_attributes"] == {"amount_refunded": 2000, "refunded": True}
    assert (charge["object"]["amount_refunded"], charge["object"]["refunded"]) == (500, False)
    assert {event.request_id for event in events} == {None}
    with pytest.raises(InvalidRequestError, match="failed"):
        stripe.fail_refund(second.id)
    assert stripe.refund(first.charge).amount == 1500


def test_a_dispute_withdraws_the_money_and_marks_the_charge_but_names_no_customer(stripe: Stripe) -> None:
    subscriptions = dict(stripe.subscriptions)
    events = told(stripe, lambda: stripe.dispute(next(iter(stripe.payment_intents))))
    assert types(events) == ["charge.dispute.created", "charge.dispute.funds_withdrawn", "charge.updated"]
    created = shown(events, "charge.dispute.created")["object"]
    assert (created["amount"], created["status"], created["charge"]) == (2000, "needs_response", paid_charge(stripe))
    assert "customer" not in created
    moved = shown(events, "charge.dispute.funds_withdrawn")["object"]["balance_transactions"]
    assert [(m["amount"], m["fee"], m["net"]) for m in moved] == [(-2000, 1500, -3500)]
    assert shown(events, "charge.updated")["previous_attributes"] == {"disputed": False}
    assert stripe.subscriptions == subscriptions
    with pytest.raises(InvalidRequestError, match="charged back"):
        stripe.refund(paid_charge(stripe))
    with pytest.raises(InvalidRequestError, match="disputed"):
        stripe.dispute(paid_charge(stripe))


@pytest.mark.parametrize(
    ("outcome", "expected", "net"),
    [
        ("won", ["charge.dispute.closed", "charge.dispute.funds_reinstated"], -1500),
        ("lost", ["charge.dispute.closed"], -3500),
    ],
)
def test_a_dispute_is_answered_and_closed_once(stripe: Stripe, outcome: str, expected: list[str], net: int) -> None:
    dispute = stripe.dispute(paid_charge(stripe))
    with pytest.raises(InvalidRequestError, match="maybe"):
        stripe.close_dispute(dispute.id, "maybe")
    stripe.advance(CLOCK + 5 * DAY)
    events = told(stripe, lambda: stripe.submit_evidence(dispute.id))
    assert types(events) == ["charge.dispute.updated"]
    assert shown(events, "charge.dispute.updated")["previous_attributes"]["status"] == "needs_response"
    stripe.advance(CLOCK + 60 * DAY)
    events = told(stripe, lambda: stripe.close_dispute(dispute.id, outcome))
    assert types(events) == expected
    final = render(stripe.disputes[dispute.id])
    assert (final["status"], sum(m["net"] for m in final["balance_transactions"])) == (outcome, net)
    assert stripe.charges[dispute.charge].disputed
    with pytest.raises(InvalidRequestError, match=outcome):
        stripe.close_dispute(dispute.id, "won")
    with pytest.raises(InvalidRequestError, match=outcome):
        stripe.submit_evidence(dispute.id)


def test_only_what_was_not_refunded_is_claimed_back(stripe: Stripe) -> None:
    stripe.refund(paid_charge(stripe), 500)
    assert stripe.dispute(paid_charge(stripe)).amount == 1500
    stripe.purchase("pack", email="b@example.com")
    whole = stripe.refund(list(stripe.payment_intents)[-1])
    with pytest.raises(InvalidRequestError, match="refunded already"):
        stripe.dispute(whole.charge)


@pytest.mark.parametrize("guest", [True, False])
def test_a_pack_is_paid_by_a_payment_intent_that_carries_its_own_metadata(stripe: Stripe, guest: bool) -> None:
    events = told(
        stripe,
        lambda: stripe.purchase(
            "pack",
            client_reference_id="42",
            email="b@example.com",
            name="B",
            guest=guest,
            metadata={"user_id": "42", "tokens": "100"},
            payment_metadata={"order": "7"},
        ),
    )
    assert types(events) == [*([] if guest else ["customer.created"]), *PAID, COMPLETED]
    session, intent = (shown(events, type)["object"] for type in (COMPLETED, "payment_intent.succeeded"))
    charge = shown(events, "charge.succeeded")["object"]
    assert (session["mode"], session["payment_status"], session["status"]) == ("payment", "paid", "complete")
    assert (session["payment_intent"], session["subscription"], session["invoice"]) == (intent["id"], None, None)
    assert (session["metadata"], intent["metadata"]) == ({"user_id": "42", "tokens": "100"}, {"order": "7"})
    assert charge["metadata"] == intent["metadata"]
    assert (charge["payment_intent"], intent["latest_charge"]) == (intent["id"], charge["id"])
    assert (intent["amount_received"], session["amount_total"], charge["amount_captured"]) == (1000, 1000, 1000)
    assert session["customer"] == intent["customer"] == charge["customer"]
    assert (session["customer"] is None) == guest
    assert session["customer_details"]["email"] == charge["billing_details"]["email"] == "b@example.com"
    assert (intent["description"], intent["setup_future_usage"]) == (None, None)
    assert "line_items" not in session
    for thing in (stripe.payment_intents[intent["id"]], stripe.charges[charge["id"]]):
        assert render(thing, ACACIA)["invoice"] is None
        assert "invoice" not in render(thing, ENDIVE)


def test_what_costs_nothing_has_no_payment(stripe: Stripe) -> None:
    events = told(stripe, lambda: stripe.purchase("gift", email="b@example.com", metadata={"tokens": "5"}))
    assert types(events) == ["customer.created", COMPLETED]
    session = shown(events, COMPLETED)["object"]
    assert (session["payment_status"], session["payment_intent"]) == ("no_payment_required", None)


def test_a_session_takes_the_metadata_of_what_it_makes_and_of_nothing_else(stripe: Stripe) -> None:
    with pytest.raises(InvalidRequestError, match="payment_intent_data"):
        stripe.open_checkout("monthly", payment_metadata={"tokens": "1"})
    with pytest.raises(InvalidRequestError, match="subscription_data"):
        stripe.open_checkout("pack", subscription_metadata={"tokens": "1"})
    with pytest.raises(InvalidRequestError, match="subscription_data"):
        stripe.open_checkout("pack", trial_days=7)


@pytest.mark.parametrize("version", [ACACIA, ENDIVE])
def test_a_trial_is_billed_with_a_line_of_0_for_its_own_period(stripe: Stripe, version: str) -> None:
    session = stripe.open_checkout("monthly", email="b@example.com", trial_days=14)
    events = told(stripe, lambda: stripe.complete_checkout(session.id))
    assert types(events) == [
        "customer.created",
        "customer.subscription.created",
        "invoice.created",
        "invoice.finalized",
        "invoice.updated",
        "invoice.paid",
        "invoice.payment_succeeded",
        COMPLETED,
    ]
    objects = {event.type: render_event(event, version)["data"]["object"] for event in events}
    subscription, invoice = objects["customer.subscription.created"], objects["invoice.paid"]
    assert (subscription["status"], subscription["latest_invoice"]) == ("trialing", invoice["id"])
    assert (subscription["trial_start"], subscription["trial_end"]) == (CLOCK, CLOCK + 14 * DAY)
    assert (invoice["billing_reason"], invoice["total"], invoice["amount_paid"]) == ("subscription_create", 0, 0)
    line = invoice["lines"]["data"][0]
    assert (line["amount"], line["description"]) == (0, "Trial period for Gold")
    assert line["period"] == {"start": CLOCK, "end": CLOCK + 14 * DAY}
    assert objects[COMPLETED]["payment_status"] == "no_payment_required"
