from collections import Counter
from typing import Any

import pytest

from simulator.calendar import DAY, HOUR, add_months
from simulator.envelope import body_of
from simulator.histories import history
from simulator.objects import Event
from simulator.people import USERS, people
from simulator.render import render, render_event
from simulator.state import Stripe
from simulator.stories import STORIES, Step
from simulator.versions import ACACIA, ENDIVE

NOW = 1803816000
FIRST = 1798761600  # 2027-01-01
GRACE_S = 3 * DAY


def told(name: str, now: int) -> tuple[Stripe, list[Step]]:
    story = STORIES[name]
    stripe = Stripe(1, story.begin(now))
    return stripe, list(story.tell(stripe, USERS))


def restored(shown: Any, previous: Any) -> Any:
    """The object as it was: the event's object with its previous attributes put back."""
    if not isinstance(previous, dict) or not isinstance(shown, dict) or previous.get("object") == "list":
        return previous
    return {**shown, **{key: restored(shown.get(key), value) for key, value in previous.items()}}


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(v) for key, v in value.items() if v is not None}
    return value


def test_the_membership_story_ends_with_two_members_and_one_who_left() -> None:
    stripe, steps = told("membership", NOW)
    by_email = {
        stripe.customers[s.customer].email: (s.status, stripe.products[s.items[0].price.product].name)
        for s in stripe.subscriptions.values()
    }
    assert by_email == {
        "alice@example.com": ("canceled", "Pro"),
        "bob@example.com": ("active", "Pro"),
        "cara@example.com": ("active", "Studio"),
    }
    assert [step.title for step in steps][-6:] == [
        "A payment fails",
        "Recovery",
        "Cara upgrades",
        "Bob buys tokens",
        "A refund",
        "Alice's period ends",
    ]
    assert [event for step in steps for event in step.events] == stripe.events
    assert all(step.events and step.title and step.sentence.endswith(".") for step in steps)


def test_every_user_of_the_story_can_be_found_by_reference_or_metadata() -> None:
    stripe, _ = told("membership", NOW)
    assert {session.client_reference_id for session in stripe.sessions.values()} == {user.id for user in USERS}
    assert [c.metadata.get("user_id") for c in stripe.customers.values()] == ["user_bob", None, None]


def test_the_story_leaves_a_pack_paid_and_partly_refunded_an_upgrade_and_a_trial_that_cost_nothing() -> None:
    stripe, _ = told("membership", NOW)
    tokens = {product.name: product.metadata.get("tokens") for product in stripe.products.values()}
    assert tokens == {"Pro": "500", "Studio": "2000", "Token pack": None}
    bought = next(session for session in stripe.sessions.values() if session.mode == "payment")
    assert (bought.payment_status, bought.metadata) == ("paid", {"user_id": "user_bob", "tokens": "1000"})
    charge = next(c for c in stripe.charges.values() if c.payment_intent == bought.payment_intent)
    assert (charge.customer, charge.amount, charge.amount_refunded) == (bought.customer, 1000, 400)
    upgrade = next(i for i in stripe.invoices.values() if i.billing_reason == "subscription_update")
    credit, rest = upgrade.lines
    assert (upgrade.customer_email, upgrade.status, upgrade.amount_paid) == ("cara@example.com", "paid", upgrade.total)
    assert credit.amount < 0 < rest.amount
    assert [i.customer_email for i in stripe.invoices.values() if i.total == 0] == ["cara@example.com"]


def test_bob_is_past_due_for_one_step_only() -> None:
    stripe = Stripe(1, STORIES["membership"].begin(NOW))
    seen = {}
    for step in STORIES["membership"].tell(stripe, USERS):
        seen[step.title] = {stripe.customers[s.customer].name: s.status for s in stripe.subscriptions.values()}
    assert [title for title, statuses in seen.items() if "past_due" in statuses.values()] == ["A payment fails"]
    assert seen["A payment fails"]["Bob Brown"] == "past_due"
    assert seen["Cara tries"]["Cara Cruz"] == "trialing"


@pytest.mark.parametrize("month", range(24))
def test_whenever_it_is_told_the_story_is_over_and_its_failed_payment_within_grace(month: int) -> None:
    for day in (-3, -2, -1, 0, 1, 2, 14):  # months of unequal length are what could go wrong
        for hour in (0, 9, 10, 21, 22):
            now = add_months(FIRST, month) + day * DAY + hour * HOUR
            stripe, steps = told("membership", now)
            assert stripe.now <= now < stripe.now + GRACE_S
            assert [event.type for event in steps[-1].events] == ["customer.subscription.deleted"]
            failed = next(step for step in steps if step.title == "A payment fails")
            finalized = max(e.created for e in failed.events if e.type == "invoice.finalized")
            assert now < finalized + GRACE_S
            renewed = next(step for step in steps if step.title == "Cara renews")
            assert "invoice.paid" in [event.type for event in renewed.events]


def test_a_story_told_from_any_moment_begins_at_the_next_midnight_or_noon() -> None:
    stripe = Stripe(1, FIRST + 23 * HOUR)
    assert next(STORIES["membership"].tell(stripe, USERS)).at == FIRST + DAY


def test_equal_seeds_give_equal_histories_in_bytes_and_other_seeds_share_no_event() -> None:
    first, again, other = (history(seed, customers=4, months=2) for seed in (7, 7, 8))
    assert [body_of(render_event(e)) for e in first.events] == [body_of(render_event(e)) for e in again.events]
    assert not {e.id for e in first.events} & {e.id for e in other.events}
    assert not {u.id for u in people(7, 4)} & {u.id for u in people(8, 4)}


@pytest.mark.parametrize("seed", range(12))
def test_a_history_is_true_from_event_to_event(seed: int) -> None:
    stripe = history(seed, customers=3, months=4)
    assert [e.created for e in stripe.events] == sorted(e.created for e in stripe.events)
    assert max(Counter(e.id for e in stripe.events).values()) == 1
    for event in stripe.events:
        for version in (ACACIA, ENDIVE):
            data = render_event(event, version)["data"]
            assert ("previous_attributes" in data) == event.type.endswith(".updated")
            if event.previous is not None:
                assert data["previous_attributes"], event.type
                former = restored(data["object"], data["previous_attributes"])
                assert without_nulls(former) == without_nulls(render(event.previous, version))


@pytest.mark.parametrize("seed", range(12))
def test_the_last_event_of_each_object_shows_its_final_state(seed: int) -> None:
    stripe = history(seed, customers=3, months=4)
    last: dict[str, Event] = {}
    for event in stripe.events:
        last[event.object.id] = event
    for subscription in stripe.subscriptions.values():
        shown, final = render(last[subscription.id].object), render(subscription)
        for item in (*shown["items"]["data"], *final["items"]["data"]):
            del item["price"]  # shown as it is now, which is no event of the subscription's
            del item["plan"]
        assert shown == final
    for invoice in stripe.invoices.values():
        assert render(last[invoice.id].object) == render(invoice)
    for customer in stripe.customers.values():
        shown, final = render(last[customer.id].object), render(customer)
        assert (shown["email"], shown["metadata"], shown["delinquent"]) == (
            final["email"],
            final["metadata"],
            final["delinquent"],
        )
    for refund in stripe.refunds.values():
        assert render(last[refund.id].object) == render(refund)
    for dispute in stripe.disputes.values():
        assert render(last[dispute.id].object) == render(dispute)
    for charge in stripe.charges.values():
        assert render(last[charge.id].object) == render(charge)
        refunds = [r.amount for r in stripe.refunds.values() if r.charge == charge.id and r.status == "succeeded"]
        assert charge.amount_refunded == sum(refunds) <= charge.amount
        assert charge.disputed == any(d.charge == charge.id for d in stripe.disputes.values())
    assert all(last[id].type == "customer.deleted" for id, c in stripe.customers.items() if c.deleted)


def test_histories_visit_every_status_and_every_type_that_is_handled() -> None:
    statuses, types = set(), set()
    for seed in range(40):
        stripe = history(seed, customers=3, months=3)
        statuses |= {
            e.object.status for e in stripe.events if hasattr(e.object, "items") and hasattr(e.object, "status")
        }
        types |= {e.type for e in stripe.events}
    assert statuses == {
        "active",
        "canceled",
        "incomplete",
        "incomplete_expired",
        "past_due",
        "paused",
        "trialing",
        "unpaid",
    }
    missing = {
        "charge.dispute.closed",
        "charge.dispute.created",
        "charge.dispute.funds_reinstated",
        "charge.dispute.funds_withdrawn",
        "charge.dispute.updated",
        "charge.refunded",
        "checkout.session.async_payment_failed",
        "checkout.session.async_payment_succeeded",
        "checkout.session.completed",
        "checkout.session.expired",
        "customer.deleted",
        "customer.subscription.deleted",
        "customer.subscription.paused",
        "customer.subscription.resumed",
        "invoice.marked_uncollectible",
        "invoice.voided",
        "plan.updated",
        "price.updated",
        "product.updated",
        "refund.created",
        "refund.failed",
        "refund.updated",
    } - types
    assert missing == set()


def test_a_restless_merchant_archives_deletes_raises_and_gives_up() -> None:
    types: Counter[str] = Counter()
    reasons = set()
    prices_moved = archived = 0
    for seed in range(6):
        stripe = history(seed, customers=4, months=4, restless=True)
        again = history(seed, customers=4, months=4, restless=True)
        assert [body_of(render_event(e)) for e in stripe.events] == [body_of(render_event(e)) for e in again.events]
        types.update(event.type for event in stripe.events)
        reasons |= {subscription.cancellation_reason for subscription in stripe.subscriptions.values()}
        archived += sum(
            "active" in render_event(event)["data"]["previous_attributes"]
            for event in stripe.events
            if event.type == "product.updated"
        )
        prices_moved += sum(
            "items" in render_event(event)["data"]["previous_attributes"]
            for event in stripe.events
            if event.type == "customer.subscription.updated" and event.request_id
        )
    assert min(types[type] for type in ("product.deleted", "price.deleted", "plan.deleted", "invoice.voided")) > 0
    assert types["invoice.marked_uncollectible"] > 0
    assert "payment_disputed" in reasons
    assert prices_moved > 10
    assert archived > 5
