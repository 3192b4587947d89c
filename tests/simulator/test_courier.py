"""What a simulated account owes to its endpoints, posted to real ones."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from simulator.calendar import DAY, HOUR, MINUTE
from simulator.courier import AS_STRIPE, Courier
from simulator.histories import history
from simulator.render import render_event
from simulator.render.thin import notification
from simulator.rounds import Plan
from simulator.seeds import repeatable
from simulator.state import Stripe
from simulator.versions import ACACIA
from tests.simulator.test_delivery import SECRET, Answer, Endpoint, always_200

CLOCK = 1793520000


@pytest.fixture
def stripe() -> Stripe:
    return Stripe(1, CLOCK)


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Endpoint]]:
    running: list[Endpoint] = []

    def start(answer: Answer) -> Endpoint:
        running.append(Endpoint(answer))
        return running[-1]

    yield start
    for endpoint in running:
        endpoint.stop()


Serve = Callable[[Answer], Endpoint]


def ids(found: list[dict[str, Any]]) -> list[str]:
    return [event["id"] for event in found]


def test_each_endpoint_gets_what_it_wants_in_its_own_shape(stripe: Stripe, serve: Serve) -> None:
    new, old, thin = serve(always_200), serve(always_200), serve(always_200)
    stripe.create_webhook_endpoint(new.url, secret=SECRET)
    stripe.create_webhook_endpoint(old.url, ["customer.updated"], secret=SECRET, api_version=ACACIA)
    stripe.create_webhook_endpoint(thin.url, secret=SECRET, payload="thin")
    customer = stripe.create_customer("a@example.com")
    stripe.update_customer(customer.id, name="Ada")
    report = Courier(stripe).deliver()
    created, updated = stripe.events
    assert new.accepted == [
        {**render_event(created), "pending_webhooks": 2},
        {**render_event(updated), "pending_webhooks": 3},
    ]
    assert old.accepted == [{**render_event(updated, ACACIA), "pending_webhooks": 2}]
    assert thin.accepted == [notification(created), notification(updated)]
    assert (report.ok, report.posted) == (True, 5)
    assert [stripe.owed(event.id) for event in stripe.events] == [set(), set()]


def test_a_refused_event_comes_again_on_the_accounts_clock(stripe: Stripe, serve: Serve) -> None:
    endpoint = serve(lambda _, attempt: 200 if attempt == 4 else 503)
    stripe.create_webhook_endpoint(endpoint.url, secret=SECRET)
    stripe.create_customer("a@example.com")
    courier = Courier(stripe)
    courier.deliver()
    assert (courier.report.posted, courier.waiting, len(stripe.owed(stripe.events[0].id))) == (1, 1, 1)
    courier.advance(CLOCK + 20 * MINUTE)
    assert courier.report.posted == 3
    courier.advance(CLOCK + HOUR)
    assert courier.report.answers == {"503": 3, "200": 1}
    assert (courier.waiting, stripe.owed(stripe.events[0].id)) == (0, set())
    assert courier.report.took_s < 5


def test_after_three_days_an_event_is_given_up_and_after_five_the_endpoint(stripe: Stripe, serve: Serve) -> None:
    endpoint = serve(lambda _id, _attempt: 500)
    id = stripe.create_webhook_endpoint(endpoint.url, secret=SECRET).id
    stripe.create_customer("first@example.com")
    courier = Courier(stripe)
    courier.advance(CLOCK + 2 * DAY)
    assert courier.report.undelivered == []
    courier.advance(CLOCK + 4 * DAY)
    assert courier.report.undelivered == [stripe.events[0].id]
    stripe.create_customer("second@example.com")
    courier.advance(CLOCK + 6 * DAY)
    assert courier.report.disabled == [id]
    assert stripe.webhook_endpoints[id].status == "disabled"
    posted = courier.report.posted
    stripe.create_customer("third@example.com")
    courier.advance(CLOCK + 9 * DAY)
    assert courier.report.posted == posted
    assert courier.report.undelivered == [event.id for event in stripe.events[:2]]
    assert [len(stripe.owed(event.id)) for event in stripe.events] == [1, 1, 0]


def test_an_endpoint_that_accepts_anything_in_between_is_not_given_up(stripe: Stripe, serve: Serve) -> None:
    endpoint = serve(lambda _, attempt: 200 if attempt > 3 else 500)
    stripe.create_webhook_endpoint(endpoint.url, secret=SECRET)
    courier = Courier(stripe, Plan(attempts=9, backoff_s=DAY, backoff_max_s=DAY, disable_after_s=5 * DAY))
    for day in range(20):
        stripe.create_customer(f"{day}@example.com")
        courier.advance(CLOCK + (day + 1) * DAY)
    assert (courier.report.disabled, courier.report.undelivered) == ([], [])


def test_retries_go_on_if_the_endpoint_is_enabled_again_before_they_are_due(stripe: Stripe, serve: Serve) -> None:
    endpoint = serve(lambda _, attempt: 200 if attempt > 1 else 500)
    id = stripe.create_webhook_endpoint(endpoint.url, secret=SECRET).id
    stripe.create_customer("a@example.com")
    courier = Courier(stripe)
    courier.deliver()
    stripe.update_webhook_endpoint(id, disabled=True)
    stripe.update_webhook_endpoint(id, disabled=False)
    courier.advance(CLOCK + HOUR)
    assert ids(endpoint.accepted) == [stripe.events[0].id]


def test_a_deleted_endpoint_gets_nothing_any_more(stripe: Stripe, serve: Serve) -> None:
    endpoint = serve(lambda _id, _attempt: 500)
    id = stripe.create_webhook_endpoint(endpoint.url, secret=SECRET).id
    stripe.create_customer("a@example.com")
    courier = Courier(stripe)
    courier.deliver()
    stripe.delete_webhook_endpoint(id)
    courier.advance(CLOCK + DAY)
    assert (courier.report.posted, courier.report.undelivered) == (1, [stripe.events[0].id])


def test_while_a_secret_is_rolled_either_one_opens_what_comes(stripe: Stripe, serve: Serve) -> None:
    endpoint = serve(always_200)
    id = stripe.create_webhook_endpoint(endpoint.url, secret=SECRET).id
    stripe.roll_secret(id, secret="whsec_next", expires_in=DAY)
    courier = Courier(stripe, Plan(attempts=1))
    for moment in (CLOCK + DAY - 1, CLOCK + DAY):
        stripe.advance(moment)
        stripe.create_customer("a@example.com")
        courier.deliver()
    assert [header.count("v1=") for header in endpoint.headers] == [2, 1]
    assert courier.report.answers == {"200": 1, "400": 1}
    endpoint.secret = "whsec_next"
    stripe.create_customer("a@example.com")
    assert courier.deliver().answers == {"200": 2, "400": 1}


def test_an_event_is_sent_again_by_hand_also_after_it_was_accepted(stripe: Stripe, serve: Serve) -> None:
    endpoint = serve(always_200)
    id = stripe.create_webhook_endpoint(endpoint.url, secret=SECRET).id
    stripe.create_customer("a@example.com")
    courier = Courier(stripe)
    courier.deliver()
    courier.resend(stripe.events[0].id, id)
    assert ids(endpoint.accepted) == [stripe.events[0].id] * 2
    with pytest.raises(ValueError, match="no event evt_none"):
        courier.resend("evt_none", id)


def journey(serve: Serve, plan: Plan) -> tuple[Courier, list[str]]:
    endpoint = serve(lambda id, attempt: 200 if attempt > 1 or id[-1] > "M" else 500)
    stripe = Stripe(4, CLOCK)
    stripe.create_webhook_endpoint(endpoint.url, secret=SECRET)
    for number in range(30):
        stripe.advance(CLOCK + number * 10)
        stripe.create_customer(f"{number}@example.com")
    courier = Courier(stripe, plan)
    courier.advance(CLOCK + DAY)
    return courier, ids(endpoint.accepted)


def test_a_misbehaving_journey_repeats_itself_by_seed(serve: Serve) -> None:
    plan = Plan(
        seed=7, drops=0.1, duplicates=0.2, delay_s=600, stale=0.1, unheard=0.1, attempts=9, backoff_s=60,
        backoff_max_s=HOUR,
    )  # fmt: skip
    courier, arrived = journey(serve, plan)
    again, arrived_again = journey(serve, plan)
    assert arrived == arrived_again
    assert courier.report.dropped == again.report.dropped != []
    assert courier.report.answers["400"] > 0
    assert courier.report.answers["500"] > 0
    assert max(Counter(arrived).values()) > 1
    assert len(set(arrived)) + len(courier.report.dropped) == 30
    assert courier.report.to_json()["seed"] == 7


def test_a_shuffled_batch_arrives_in_another_order(serve: Serve) -> None:
    in_order = [event.id for event in journey(serve, AS_STRIPE)[0]._stripe.events]
    _, arrived = journey(serve, Plan(seed=7, shuffle=True, attempts=9, backoff_s=60))
    assert sorted(arrived) == sorted(in_order)
    assert arrived != in_order


def test_one_change_may_be_told_by_two_events() -> None:
    plain, doubled = history(3, customers=2, months=1), history(3, customers=2, months=1, twins=0.3)
    told = Counter((e.created, e.type, json.dumps(render_event(e)["data"], sort_keys=True)) for e in doubled.events)
    assert 0.2 < list(told.values()).count(2) / len(told) < 0.4
    assert max(told.values()) == 2
    assert len({event.id for event in doubled.events}) == len(doubled.events)
    assert [e.type for e in plain.events] == [type for _, type, _ in told]


def test_what_repeats_a_failure_is_noted_on_it() -> None:
    with pytest.raises(AssertionError) as failed, repeatable(seed=7, customers=3):
        raise AssertionError("orders differ")
    assert failed.value.__notes__ == ["This repeats it: seed=7, customers=3"]
