from datetime import UTC, datetime
from typing import Any

import pytest

from simulator.calendar import DAY, HOUR, add_months, period_end
from simulator.envelope import body_of
from simulator.objects import Event, Invoice, Subscription
from simulator.render import render_event
from simulator.state import Stripe
from simulator.world import InvalidRequestError

CLOCK = 1793520000  # 2026-11-01
MONTH = 30 * DAY  # November

PAID = ["payment_intent.created", "charge.succeeded", "payment_intent.succeeded", "charge.updated"]
SETTLED = ["invoice.updated", "invoice.paid", "invoice.payment_succeeded", "invoice_payment.paid"]
DECLINED = ["charge.failed", "payment_intent.payment_failed", "invoice.payment_failed", "invoice.updated"]
UPDATED = "customer.subscription.updated"


@pytest.fixture
def stripe() -> Stripe:
    stripe = Stripe(1, CLOCK)
    product = stripe.create_product("Gold", id="gold plan/1?")
    stripe.create_price(product.id, 2000, id="monthly")
    stripe.create_price(product.id, 5000, id="dear")
    stripe.create_price(product.id, 20000, id="yearly", interval="year")
    stripe.create_price(product.id, 300, id="once", interval=None)
    return stripe


def types(events: list[Event]) -> list[str]:
    return [event.type for event in events]


def during(stripe: Stripe, action: Any) -> list[str]:
    before = len(stripe.events)
    action()
    return types(stripe.events[before:])


def member(stripe: Stripe, price: str = "monthly", **options: Any) -> Subscription:
    customer = stripe.create_customer("alice@example.com", card="ok", metadata={"user_id": "42"})
    return stripe.subscribe(customer.id, price, **options)


def latest_invoice(stripe: Stripe, subscription: Subscription) -> Invoice:
    return stripe.invoices[stripe.subscriptions[subscription.id].latest_invoice or ""]


def last_event(stripe: Stripe, type: str) -> dict[str, Any]:
    return render_event(next(event for event in reversed(stripe.events) if event.type == type))


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("anchor", "start", "interval", "count", "end"),
    [
        ("2026-11-01", "2026-11-01", "month", 1, "2026-12-01"),
        ("2026-01-31", "2026-01-31", "month", 1, "2026-02-28"),
        ("2026-01-31", "2026-02-28", "month", 1, "2026-03-31"),
        ("2024-02-29", "2024-02-29", "year", 1, "2025-02-28"),
        ("2024-02-29", "2027-02-28", "year", 1, "2028-02-29"),
        ("2026-01-31", "2026-01-31", "month", 3, "2026-04-30"),
        ("2026-11-01", "2026-11-15", "week", 2, "2026-11-29"),
        ("2026-11-15", "2026-11-01", "month", 1, "2026-11-15"),
    ],
)
def test_periods_keep_to_the_anchors_day_of_the_month(
    anchor: str, start: str, interval: str, count: int, end: str
) -> None:
    assert period_end(at(anchor), at(start), interval, count) == at(end)


def test_equal_seeds_and_calls_give_equal_bytes_and_other_seeds_other_ids() -> None:
    def run(seed: int) -> list[bytes]:
        stripe = Stripe(seed, CLOCK)
        product = stripe.create_product("Gold")
        stripe.checkout(stripe.create_price(product.id, 2000).id, client_reference_id="42")
        stripe.advance(CLOCK + 40 * DAY)
        return [body_of(render_event(event)) for event in stripe.events]

    assert run(1) == run(1)
    assert len(run(1)) > 20
    assert not set(run(1)) & set(run(2))


def test_an_event_keeps_what_it_saw(stripe: Stripe) -> None:
    subscription = member(stripe)
    created = body_of(last_event(stripe, "customer.subscription.created"))
    metadata = {"tokens": "1"}
    stripe.update_price("monthly", metadata=metadata)
    stripe.create_price("gold plan/1?", 1, metadata=metadata)
    metadata["tokens"] = "2"
    stripe.cancel(subscription.id)
    assert body_of(last_event(stripe, "customer.subscription.created")) == created
    for type in ("price.created", "price.updated"):
        assert last_event(stripe, type)["data"]["object"]["metadata"] == {"tokens": "1"}


def test_events_of_one_call_share_a_second_unless_they_are_to_be_spread() -> None:
    def seconds(*, burst: bool) -> list[int]:
        stripe = Stripe(1, CLOCK, burst=burst)
        product = stripe.create_product("Gold")
        stripe.checkout(stripe.create_price(product.id, 2000).id)
        return [event.created for event in stripe.events]

    assert set(seconds(burst=True)) == {CLOCK}
    spread = seconds(burst=False)
    assert spread == list(range(CLOCK, CLOCK + len(spread)))


def test_calls_of_the_api_carry_a_request_id_and_the_billing_engine_none(stripe: Stripe) -> None:
    member(stripe)
    assert last_event(stripe, "customer.subscription.created")["request"]["id"].startswith("req_")
    stripe.advance(CLOCK + MONTH)
    assert last_event(stripe, UPDATED)["request"]["id"] is None


def test_live_mode_shows_in_every_object_and_event() -> None:
    stripe = Stripe(1, CLOCK, livemode=True)
    product = stripe.create_product("Gold")
    stripe.checkout(stripe.create_price(product.id, 2000).id)
    shown = [render_event(event) for event in stripe.events]
    assert all(event["livemode"] for event in shown)
    assert all(event["data"]["object"]["livemode"] for event in shown)


def test_products_and_prices_are_created_changed_archived_and_deleted(stripe: Stripe) -> None:
    assert during(stripe, lambda: stripe.update_product("gold plan/1?", metadata={"role": "PREMIUM"})) == [
        "product.updated"
    ]
    stripe.advance(CLOCK + 5)
    stripe.update_product("gold plan/1?", metadata={"role": "", "rank": "1"})
    data = last_event(stripe, "product.updated")["data"]
    assert data["object"]["metadata"] == {"rank": "1"}
    assert data["previous_attributes"] == {"metadata": {"role": "PREMIUM", "rank": None}, "updated": CLOCK}
    assert during(stripe, lambda: stripe.update_product("gold plan/1?", metadata={"rank": "1"})) == []
    assert during(stripe, lambda: stripe.archive_price("monthly")) == ["price.updated", "plan.updated"]
    with pytest.raises(InvalidRequestError, match="has one or more"):
        stripe.delete_product("gold plan/1?")
    for price in list(stripe.prices):
        stripe.delete_price(price)
    assert last_event(stripe, "price.deleted")["data"]["object"]["active"] is False
    assert during(stripe, lambda: stripe.delete_product("gold plan/1?")) == ["product.deleted"]
    assert "deleted" not in last_event(stripe, "product.deleted")["data"]["object"]


def test_a_new_price_shows_in_its_subscriptions_without_an_event_of_theirs(stripe: Stripe) -> None:
    subscription = member(stripe)
    assert during(stripe, lambda: stripe.update_price("monthly", nickname="n")) == ["price.updated", "plan.updated"]
    assert stripe.subscriptions[subscription.id].items[0].price.nickname == "n"
    with pytest.raises(InvalidRequestError):
        stripe.create_product("Gold again", id="gold plan/1?")


def test_checkout_pays_first_and_makes_the_subscription_after(stripe: Stripe) -> None:
    session = stripe.open_checkout(
        "monthly", client_reference_id="42", email="a@example.com", subscription_metadata={"user_id": "42"}
    )
    expected = ["customer.created", *PAID, "customer.subscription.created", "invoice.created", "invoice.finalized"]
    assert during(stripe, lambda: stripe.complete_checkout(session.id)) == [
        *expected,
        *SETTLED,
        "checkout.session.completed",
    ]
    shown = last_event(stripe, "checkout.session.completed")["data"]["object"]
    subscription = stripe.subscriptions[shown["subscription"]]
    assert (shown["client_reference_id"], shown["payment_status"], shown["payment_intent"]) == ("42", "paid", None)
    assert (shown["customer"], shown["invoice"]) == (subscription.customer, subscription.latest_invoice)
    assert (subscription.status, subscription.metadata) == ("active", {"user_id": "42"})
    with pytest.raises(InvalidRequestError, match="complete"):
        stripe.complete_checkout(session.id)


def test_the_session_may_complete_first_and_the_subscription_turn_active_last(stripe: Stripe) -> None:
    session = stripe.open_checkout("monthly", payment_link="plink_1")
    told = during(stripe, lambda: stripe.complete_checkout(session.id, completed_first=True, created_incomplete=True))
    assert told.index("checkout.session.completed") < told.index("customer.subscription.created")
    assert told[-1] == UPDATED
    assert last_event(stripe, UPDATED)["data"]["previous_attributes"] == {"status": "incomplete"}


def test_a_declined_card_leaves_the_session_open_until_it_expires(stripe: Stripe) -> None:
    session = stripe.open_checkout("monthly", email="a@example.com")
    assert stripe.complete_checkout(session.id, card="declined").status == "open"
    assert not stripe.subscriptions
    stripe.advance(CLOCK + DAY)
    assert last_event(stripe, "checkout.session.expired")["data"]["object"]["status"] == "expired"


def test_purchases_settle_at_once_or_later_or_not_at_all(stripe: Stripe) -> None:
    at_once = stripe.open_checkout("once")
    assert stripe.complete_checkout(at_once.id, guest=True).customer is None
    for ok, verb in ((True, "succeeded"), (False, "failed")):
        later = stripe.open_checkout("once", email="a@example.com")
        assert stripe.complete_checkout(later.id, delayed=True).payment_status == "unpaid"
        assert during(stripe, lambda id=later.id, ok=ok: stripe.settle_checkout(id, ok=ok))[-1] == (
            f"checkout.session.async_payment_{verb}"
        )
    assert [s.payment_status for s in stripe.sessions.values()] == ["paid", "paid", "unpaid"]
    assert [i.status for i in stripe.payment_intents.values()] == ["succeeded", "succeeded", "requires_payment_method"]


def test_a_renewal_rolls_the_period_drafts_the_invoice_and_collects_an_hour_later(stripe: Stripe) -> None:
    subscription = member(stripe)
    first = subscription.latest_invoice
    assert types(stripe.advance(CLOCK + MONTH - 1)) == ["invoice.upcoming"]
    assert types(stripe.advance(CLOCK + MONTH)) == [UPDATED, "invoice.created"]
    data = last_event(stripe, UPDATED)["data"]
    item = data["object"]["items"]["data"][0]
    assert (item["current_period_start"], item["current_period_end"]) == (CLOCK + MONTH, add_months(CLOCK, 2))
    assert set(data["previous_attributes"]) == {"items", "latest_invoice"}
    assert data["previous_attributes"]["latest_invoice"] == first
    assert data["previous_attributes"]["items"]["data"][0]["current_period_end"] == CLOCK + MONTH
    invoice = latest_invoice(stripe, subscription)
    assert (invoice.status, invoice.billing_reason, invoice.period_start) == ("draft", "subscription_cycle", CLOCK)
    assert types(stripe.advance(CLOCK + MONTH + HOUR)) == ["invoice.finalized", *PAID, *SETTLED]
    assert latest_invoice(stripe, subscription).status == "paid"


def test_a_failed_renewal_is_past_due_until_the_invoice_is_paid(stripe: Stripe) -> None:
    subscription = member(stripe)
    stripe.card_starts_failing(subscription.customer)
    told = types(stripe.advance(CLOCK + MONTH + HOUR))
    assert told[-6:] == [*DECLINED, "customer.updated", UPDATED]
    assert last_event(stripe, UPDATED)["data"]["previous_attributes"] == {"status": "active"}
    invoice = latest_invoice(stripe, subscription)
    assert (invoice.status, invoice.attempt_count, invoice.amount_paid) == ("open", 1, 0)
    intent = last_event(stripe, "payment_intent.payment_failed")["data"]["object"]
    charge = last_event(stripe, "charge.failed")["data"]["object"]["id"]
    assert (intent["status"], intent["latest_charge"]) == ("requires_payment_method", charge)
    assert intent["last_payment_error"]["charge"] == invoice.charge == charge
    stripe.set_card(subscription.customer, "ok")
    told = during(stripe, lambda: stripe.pay_invoice(invoice.id))
    assert told == [*PAID[1:], *SETTLED, "customer.updated", UPDATED]
    assert stripe.subscriptions[subscription.id].status == "active"
    assert last_event(stripe, UPDATED)["data"]["previous_attributes"] == {"status": "past_due"}
    assert [i.latest_charge for i in stripe.payment_intents.values()] == [
        charge.id for charge in stripe.charges.values() if charge.status == "succeeded"
    ]
    with pytest.raises(InvalidRequestError, match="paid"):
        stripe.pay_invoice(invoice.id)


@pytest.mark.parametrize(
    ("dunning", "status"), [("cancel", "canceled"), ("unpaid", "unpaid"), ("past_due", "past_due")]
)
def test_dunning_gives_up_after_three_retries(stripe: Stripe, dunning: str, status: str) -> None:
    stripe.dunning = dunning
    subscription = member(stripe)
    stripe.card_starts_failing(subscription.customer)
    told = types(stripe.advance(CLOCK + MONTH + 20 * DAY))
    assert told.count("invoice.payment_failed") == 4
    ended = stripe.subscriptions[subscription.id]
    assert ended.status == status
    assert latest_invoice(stripe, subscription).next_payment_attempt is None
    if dunning == "cancel":
        assert told[-1] == "customer.subscription.deleted"
        assert ended.cancellation_reason == "payment_failed"


def test_only_the_latest_invoice_brings_a_past_due_subscription_back(stripe: Stripe) -> None:
    stripe.dunning = "past_due"
    subscription = member(stripe)
    stripe.card_starts_failing(subscription.customer)
    stripe.advance(CLOCK + MONTH + HOUR)
    older = latest_invoice(stripe, subscription)
    stripe.advance(add_months(CLOCK, 2) + HOUR)
    stripe.set_card(subscription.customer, "ok")
    stripe.pay_invoice(older.id)
    assert stripe.subscriptions[subscription.id].status == "past_due"
    stripe.pay_invoice(latest_invoice(stripe, subscription).id)
    assert stripe.subscriptions[subscription.id].status == "active"


def test_a_retry_that_succeeds_recovers_by_itself(stripe: Stripe) -> None:
    subscription = member(stripe)
    stripe.card_starts_failing(subscription.customer)
    stripe.advance(CLOCK + MONTH + 2 * HOUR)
    stripe.set_card(subscription.customer, "ok")
    stripe.advance(CLOCK + MONTH + 4 * DAY)
    assert stripe.subscriptions[subscription.id].status == "active"


def test_a_first_payment_that_never_succeeds_expires_the_subscription(stripe: Stripe) -> None:
    customer = stripe.create_customer(card="declined")
    subscription = stripe.subscribe(customer.id, "monthly")
    assert subscription.status == "incomplete"
    assert latest_invoice(stripe, subscription).next_payment_attempt is None
    assert types(stripe.advance(CLOCK + 23 * HOUR))[-1] == UPDATED
    assert stripe.subscriptions[subscription.id].status == "incomplete_expired"
    assert latest_invoice(stripe, subscription).status == "void"


def test_an_upgrade_credits_the_rest_of_the_old_price_and_charges_the_rest_of_the_new(stripe: Stripe) -> None:
    subscription = member(stripe)
    first = latest_invoice(stripe, subscription)
    stripe.advance(CLOCK + MONTH // 2)
    told = during(stripe, lambda: stripe.change_item(subscription.id, price="dear"))
    assert told == [
        UPDATED,
        "invoiceitem.created",
        "invoiceitem.created",
        "invoice.created",
        "invoice.finalized",
        *PAID,
        *SETTLED,
    ]
    previous = last_event(stripe, UPDATED)["data"]["previous_attributes"]
    assert [item["price"]["id"] for item in previous["items"]["data"]] == ["monthly"]
    invoice = latest_invoice(stripe, subscription)
    assert invoice.billing_reason == "subscription_update"
    assert [line.amount for line in invoice.lines] == [-1000, 2500]
    assert [line.proration for line in invoice.lines] == [True, True]
    assert invoice.lines[0].credited == (first.id, first.lines[0].id)
    assert invoice.amount_paid == 1500
    stripe.advance(CLOCK + MONTH + HOUR)
    assert [line.amount for line in latest_invoice(stripe, subscription).lines] == [5000]


def test_a_downgrade_becomes_a_balance_that_pays_later_invoices(stripe: Stripe) -> None:
    subscription = member(stripe, "dear")
    stripe.advance(CLOCK + MONTH // 2)
    stripe.change_item(subscription.id, price="monthly")
    invoice = latest_invoice(stripe, subscription)
    assert (invoice.total, invoice.amount_due, invoice.status, invoice.ending_balance) == (-1500, 0, "paid", -1500)
    assert stripe.customers[subscription.customer].balance == -1500
    assert last_event(stripe, "customer.updated")["data"]["previous_attributes"]["balance"] == 0
    stripe.advance(CLOCK + MONTH + HOUR)
    renewal = latest_invoice(stripe, subscription)
    assert (renewal.total, renewal.amount_due, renewal.amount_paid, renewal.ending_balance) == (2000, 500, 500, 0)
    assert stripe.customers[subscription.customer].balance == 0


def test_prorations_may_wait_for_the_next_invoice_or_not_be_made(stripe: Stripe) -> None:
    subscription = member(stripe)
    stripe.advance(CLOCK + MONTH // 2)
    told = during(
        stripe, lambda: stripe.change_item(subscription.id, price="dear", proration_behavior="create_prorations")
    )
    assert told == [UPDATED, "invoiceitem.created", "invoiceitem.created"]
    told = during(stripe, lambda: stripe.change_item(subscription.id, quantity=2, proration_behavior="none"))
    assert told == [UPDATED]
    stripe.advance(CLOCK + MONTH + HOUR)
    assert [line.amount for line in latest_invoice(stripe, subscription).lines] == [-1000, 2500, 10000]
    stripe.advance(add_months(CLOCK, 2) + HOUR)
    assert [line.amount for line in latest_invoice(stripe, subscription).lines] == [10000]


def test_half_a_cent_of_a_proration_is_rounded_up(stripe: Stripe) -> None:
    odd, odder = (stripe.create_price("gold plan/1?", amount).id for amount in (901, 2903))
    subscription = member(stripe, odd)
    stripe.advance(CLOCK + MONTH // 2)
    stripe.change_item(subscription.id, price=odder)
    assert [line.amount for line in latest_invoice(stripe, subscription).lines] == [-451, 1452]


def test_another_interval_starts_a_new_period_at_once(stripe: Stripe) -> None:
    subscription = member(stripe)
    stripe.advance(CLOCK + MONTH // 2)
    changed = stripe.change_item(subscription.id, price="yearly")
    assert changed.items[0].current_period_start == changed.billing_cycle_anchor == CLOCK + MONTH // 2
    assert changed.items[0].current_period_end == add_months(CLOCK + MONTH // 2, 12)
    invoice = latest_invoice(stripe, subscription)
    assert [(line.amount, line.proration) for line in invoice.lines] == [(-1000, True), (20000, False)]


def test_items_of_different_intervals_renew_each_in_its_time(stripe: Stripe) -> None:
    customer = stripe.create_customer(card="ok")
    subscription = stripe.subscribe(customer.id, [("monthly", 1), ("yearly", 1)])
    stripe.advance(CLOCK + MONTH + HOUR)
    items = stripe.subscriptions[subscription.id].items
    assert [item.current_period_end for item in items] == [add_months(CLOCK, 2), add_months(CLOCK, 12)]
    assert [line.amount for line in latest_invoice(stripe, subscription).lines] == [2000]


@pytest.mark.parametrize(
    ("billing_mode", "portal", "flag"), [("classic", True, True), ("flexible", True, False), ("flexible", False, True)]
)
def test_a_scheduled_cancellation_ends_with_the_period(
    stripe: Stripe, billing_mode: str, portal: bool, flag: bool
) -> None:
    subscription = member(stripe, billing_mode=billing_mode)
    stripe.advance(CLOCK + DAY)
    scheduled = stripe.schedule_cancel(subscription.id, portal=portal)
    assert (scheduled.cancel_at, scheduled.cancel_at_period_end) == (CLOCK + MONTH, flag)
    previous = last_event(stripe, UPDATED)["data"]["previous_attributes"]
    assert ("cancel_at_period_end" in previous) == flag
    assert previous["cancellation_details"] == {"reason": None}
    assert stripe.uncancel(subscription.id).cancel_at is None
    stripe.schedule_cancel(subscription.id, portal=portal)
    assert types(stripe.advance(CLOCK + 2 * MONTH)) == ["customer.subscription.deleted"]
    ended = stripe.subscriptions[subscription.id]
    assert (ended.status, ended.canceled_at, ended.ended_at) == ("canceled", CLOCK + DAY, CLOCK + MONTH)


def test_an_immediate_cancellation_is_one_deleted_event_and_stops_collecting(stripe: Stripe) -> None:
    subscription = member(stripe)
    assert during(stripe, lambda: stripe.cancel(subscription.id)) == ["customer.subscription.deleted"]
    with pytest.raises(InvalidRequestError):
        stripe.cancel(subscription.id)
    other = member(stripe)
    stripe.card_starts_failing(other.customer)
    stripe.advance(CLOCK + MONTH + HOUR)
    assert during(stripe, lambda: stripe.cancel(other.id)) == ["customer.subscription.deleted", "invoice.updated"]
    assert types(stripe.advance(CLOCK + 3 * MONTH)) == []


def test_a_deleted_customer_takes_the_subscriptions_along(stripe: Stripe) -> None:
    subscription = member(stripe)
    told = during(stripe, lambda: stripe.delete_customer(subscription.customer))
    assert told == ["customer.subscription.deleted", "customer.deleted"]
    shown = last_event(stripe, "customer.deleted")["data"]["object"]
    assert (shown["email"], "deleted" in shown) == ("alice@example.com", False)


def test_a_trial_costs_nothing_is_announced_and_turns_active_before_it_is_paid(stripe: Stripe) -> None:
    subscription = member(stripe, trial_days=14)
    assert (subscription.status, subscription.trial_end) == ("trialing", CLOCK + 14 * DAY)
    assert latest_invoice(stripe, subscription).amount_paid == 0
    assert "invoice_payment.paid" not in types(stripe.events)
    told = types(stripe.advance(CLOCK + 14 * DAY))
    assert told == ["customer.subscription.trial_will_end", UPDATED, "invoice.created"]
    assert last_event(stripe, UPDATED)["data"]["previous_attributes"]["status"] == "trialing"
    assert last_event(stripe, "customer.subscription.trial_will_end")["created"] == CLOCK + 11 * DAY
    assert types(stripe.advance(CLOCK + 14 * DAY + HOUR)) == ["invoice.finalized", *PAID, *SETTLED]
    with pytest.raises(InvalidRequestError):
        stripe.resume(subscription.id)


@pytest.mark.parametrize(
    ("setting", "status", "told"),
    [
        ("pause", "paused", ["customer.subscription.paused", UPDATED]),
        ("cancel", "canceled", ["customer.subscription.deleted"]),
        ("create_invoice", "active", [UPDATED, "invoice.created"]),
    ],
)
def test_a_trial_without_a_card_ends_as_it_was_set(stripe: Stripe, setting: str, status: str, told: list[str]) -> None:
    customer = stripe.create_customer()
    subscription = stripe.subscribe(customer.id, "monthly", trial_days=2, missing_payment_method=setting)
    events = types(stripe.advance(CLOCK + 2 * DAY))
    assert events == ["customer.subscription.trial_will_end", *told]
    assert stripe.subscriptions[subscription.id].status == status


def test_a_paused_subscription_bills_nothing_and_begins_a_new_period_when_resumed(stripe: Stripe) -> None:
    subscription = member(stripe)
    assert during(stripe, lambda: stripe.pause(subscription.id)) == ["customer.subscription.paused", UPDATED]
    shown = last_event(stripe, "customer.subscription.paused")["data"]["object"]
    assert shown["status_details"]["paused"]["subscription"] == {"type": "pause_requested"}
    assert types(stripe.advance(CLOCK + 2 * MONTH)) == []
    resumed = stripe.resume(subscription.id)
    assert (resumed.status, resumed.items[0].current_period_start) == ("active", CLOCK + 2 * MONTH)
    assert latest_invoice(stripe, subscription).status == "paid"
    classic = member(stripe, billing_mode="classic")
    with pytest.raises(InvalidRequestError, match="flexible"):
        stripe.pause(classic.id)


@pytest.mark.parametrize(
    ("behavior", "status"), [("void", "void"), ("mark_uncollectible", "uncollectible"), ("keep_as_draft", "draft")]
)
def test_paused_collection_leaves_the_status_and_collects_nothing_until_it_resumes(
    stripe: Stripe, behavior: str, status: str
) -> None:
    subscription = member(stripe)
    told = during(stripe, lambda: stripe.pause_collection(subscription.id, behavior, CLOCK + MONTH + DAY))
    assert told == [UPDATED]
    assert last_event(stripe, UPDATED)["data"]["previous_attributes"] == {"pause_collection": None}
    stripe.advance(CLOCK + MONTH + HOUR)
    assert latest_invoice(stripe, subscription).status == status
    assert stripe.subscriptions[subscription.id].status == "active"
    stripe.advance(CLOCK + MONTH + DAY)
    assert stripe.subscriptions[subscription.id].pause_behavior is None
    stripe.advance(add_months(CLOCK, 2) + HOUR)
    assert latest_invoice(stripe, subscription).status == "paid"


def test_the_clock_does_not_go_back(stripe: Stripe) -> None:
    with pytest.raises(ValueError, match="cannot go back"):
        stripe.advance(CLOCK - 1)
