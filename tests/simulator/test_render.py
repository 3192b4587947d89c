import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simulator.calendar import DAY
from simulator.objects import Thing
from simulator.render import previous_attributes, render
from simulator.state import Stripe
from simulator.versions import ACACIA, ENDIVE

EVENTS = Path(__file__).parents[1] / "fixtures" / "events"
FREE_FORM = {"metadata"}


def sample(name: str) -> dict[str, Any]:
    event = json.loads((EVENTS / f"{name}.json").read_text(encoding="utf-8"))
    shown: dict[str, Any] = event["data"]["object"]
    return shown


def differences(made: Any, expected: Any, path: str = "") -> list[str]:
    """Where the keys of two JSON values differ; null agrees with anything, lists are compared by their first item."""
    if isinstance(made, list) and isinstance(expected, list):
        return differences(made[0], expected[0], f"{path}[]") if made and expected else []
    if not (isinstance(made, dict) and isinstance(expected, dict)):
        return []
    found = [f"{path}.{key}" for key in made.keys() ^ expected.keys()]
    for key in (made.keys() & expected.keys()) - FREE_FORM:
        found += differences(made[key], expected[key], f"{path}.{key}")
    return found


def shop() -> tuple[Stripe, str, str]:
    """A Stripe with a product, its monthly price and a subscriber; the ids of price and subscription."""
    stripe = Stripe(1, 1793520000)
    product = stripe.create_product("Gold", metadata={"tier": "gold"})
    price = stripe.create_price(product.id, 2000)
    subscription = stripe.checkout(price.id, client_reference_id="42", email="alice@example.com")
    return stripe, price.id, subscription.id


def last(stripe: Stripe, type: str) -> Thing:
    return next(event.object for event in reversed(stripe.events) if event.type == type)


def declined() -> Stripe:
    stripe, _, subscription = shop()
    stripe.card_starts_failing(stripe.subscriptions[subscription].customer)
    stripe.advance(stripe.now + 32 * DAY)
    return stripe


def paused() -> Stripe:
    stripe, _, subscription = shop()
    stripe.pause(subscription)
    return stripe


def pausing_collection() -> Stripe:
    stripe, _, subscription = shop()
    stripe.pause_collection(subscription, "void", stripe.now + 40 * DAY)
    return stripe


def one_time() -> Stripe:
    stripe, _, _ = shop()
    price = stripe.create_price(next(iter(stripe.products)), 500, currency="jpy", interval=None)
    session = stripe.open_checkout(price.id, email="guest@example.com")
    stripe.complete_checkout(session.id, guest=True)
    return stripe


def refunded() -> Stripe:
    stripe, _, _ = shop()
    stripe.refund(next(iter(stripe.charges)), 500)
    return stripe


def disputed() -> Stripe:
    stripe, _, _ = shop()
    stripe.dispute(next(iter(stripe.charges)))
    return stripe


def pack() -> Stripe:
    stripe, _, _ = shop()
    price = stripe.create_price(next(iter(stripe.products)), 500, currency="jpy", interval=None)
    stripe.purchase(price.id, client_reference_id="42", email="a@example.com", name="A", metadata={"user_id": "42"})
    return stripe


SHAPES: list[tuple[str, str, str, Callable[[], Stripe]]] = [
    ("product.created", "product.created", ENDIVE, lambda: shop()[0]),
    ("price.created", "price.created", ENDIVE, lambda: shop()[0]),
    ("price.created", "price.created__old_api_version", ACACIA, lambda: shop()[0]),
    ("price.created", "price.created__zero_decimal", ENDIVE, one_time),
    ("plan.created", "plan.created", ENDIVE, lambda: shop()[0]),
    ("customer.created", "customer.created", ENDIVE, lambda: shop()[0]),
    ("customer.created", "customer.created__old_api_version", ACACIA, lambda: shop()[0]),
    ("customer.subscription.created", "customer.subscription.created", ENDIVE, lambda: shop()[0]),
    ("customer.subscription.created", "customer.subscription.created__old_api_version", ACACIA, lambda: shop()[0]),
    ("customer.subscription.paused", "customer.subscription.paused", ENDIVE, paused),
    ("customer.subscription.updated", "customer.subscription.updated__pause_collection", ENDIVE, pausing_collection),
    ("invoice.paid", "invoice.paid", ENDIVE, lambda: shop()[0]),
    ("invoice.paid", "invoice.paid__old_api_version", ACACIA, lambda: shop()[0]),
    ("invoice_payment.paid", "invoice_payment.paid", ENDIVE, lambda: shop()[0]),
    ("payment_intent.succeeded", "payment_intent.succeeded", ENDIVE, lambda: shop()[0]),
    ("payment_intent.payment_failed", "payment_intent.payment_failed", ENDIVE, declined),
    ("charge.succeeded", "charge.succeeded", ENDIVE, lambda: shop()[0]),
    ("checkout.session.completed", "checkout.session.completed", ENDIVE, lambda: shop()[0]),
    ("checkout.session.completed", "checkout.session.completed__old_api_version", ACACIA, lambda: shop()[0]),
    ("checkout.session.completed", "checkout.session.completed__guest", ENDIVE, one_time),
    ("checkout.session.completed", "checkout.session.completed__payment_mode", ENDIVE, pack),
    ("refund.created", "refund.created", ENDIVE, refunded),
    ("charge.refunded", "charge.refunded__partial", ENDIVE, refunded),
    ("charge.dispute.created", "charge.dispute.created", ENDIVE, disputed),
]


@pytest.mark.parametrize(("type", "name", "version", "happen"), SHAPES, ids=[f"{s[1]}" for s in SHAPES])
def test_a_rendered_object_has_the_keys_of_the_sample(
    type: str, name: str, version: str, happen: Callable[[], Stripe]
) -> None:
    made, expected = render(last(happen(), type), version), sample(name)
    assert differences(made, expected) == []
    scalars = {k for k, v in expected.items() if isinstance(v, (bool, int, str, list)) and made[k] is not None}
    assert {k for k in scalars if made[k].__class__ is not expected[k].__class__} == set()


def test_periods_stand_on_the_items_now_and_stood_on_the_subscription_before_basil() -> None:
    stripe, _, id = shop()
    subscription = stripe.subscriptions[id]
    new, old = render(subscription, ENDIVE), render(subscription, ACACIA)
    item = new["items"]["data"][0]
    assert (item["current_period_start"], item["current_period_end"]) == (1793520000, 1796112000)
    assert "current_period_end" not in new
    assert (old["current_period_start"], old["current_period_end"]) == (1793520000, 1796112000)
    assert "current_period_end" not in old["items"]["data"][0]
    assert (old["plan"]["id"], old["quantity"]) == (item["price"]["id"], 1)


def test_an_invoice_names_its_subscription_price_and_payment_in_the_place_of_its_version() -> None:
    stripe, price, id = shop()
    invoice = stripe.invoices[stripe.subscriptions[id].latest_invoice or ""]
    new, old = render(invoice, ENDIVE), render(invoice, ACACIA)
    assert new["parent"]["subscription_details"]["subscription"] == old["subscription"] == id
    new_line, old_line = new["lines"]["data"][0], old["lines"]["data"][0]
    assert new_line["pricing"]["price_details"]["price"] == old_line["price"]["id"] == price
    assert (
        new_line["parent"]["subscription_item_details"]["subscription_item"]
        == old_line["subscription_item"]
        == stripe.subscriptions[id].items[0].id
    )
    assert old["payment_intent"] == next(iter(stripe.payment_intents))
    assert old["charge"] == next(iter(stripe.charges))
    assert old["paid"] is True
    payment = next(iter(stripe.invoice_payments.values()))
    assert (payment.invoice, payment.payment_intent) == (invoice.id, old["payment_intent"])


def test_payments_named_their_invoice_only_before_basil() -> None:
    stripe, _, id = shop()
    stripe.advance(stripe.now + 31 * DAY)
    for thing in (*stripe.payment_intents.values(), *stripe.charges.values()):
        new, old = render(thing, ENDIVE), render(thing, ACACIA)
        assert old.keys() - new.keys() == {"invoice"}
        assert {"customer_account", "presentment_details"} & old.keys() == set()
    assert [render(i, ACACIA)["invoice"] for i in stripe.payment_intents.values()] == list(stripe.invoices)
    assert [i.subscription for i in stripe.invoices.values()] == [id, id]


def test_an_invoice_repeats_the_metadata_of_its_subscription() -> None:
    stripe, price, _ = shop()
    customer = stripe.create_customer(card="ok")
    subscription = stripe.subscribe(customer.id, price, metadata={"user_id": "42"})
    invoice = stripe.invoices[subscription.latest_invoice or ""]
    assert render(invoice, ENDIVE)["parent"]["subscription_details"]["metadata"] == {"user_id": "42"}
    assert render(invoice, ACACIA)["subscription_details"]["metadata"] == {"user_id": "42"}


def test_a_subscription_with_several_items_has_no_plan_of_its_own_in_the_old_shape() -> None:
    stripe, price, _ = shop()
    other = stripe.create_price(stripe.prices[price].product, 0, unit_amount_decimal="0.35", usage_type="metered")
    customer = stripe.create_customer(card="ok")
    subscription = stripe.subscribe(customer.id, [(price, 2), (other.id, None)])
    old = render(subscription, ACACIA)
    assert (old["plan"], old["quantity"]) == (None, None)
    assert "quantity" not in old["items"]["data"][1]
    assert [item["price"]["id"] for item in old["items"]["data"]] == [price, other.id]


def test_refunds_and_disputes_of_old_versions_lack_what_came_later() -> None:
    stripe = refunded()
    refund = next(iter(stripe.refunds.values()))
    new, old = render(refund, ENDIVE), render(refund, ACACIA)
    assert new.keys() - old.keys() == {"customer", "customer_account", "payment_method"}
    assert new == {**new, **old}
    dispute = next(iter(disputed().disputes.values()))
    new, old = render(dispute, ENDIVE), render(dispute, ACACIA)
    assert new.keys() - old.keys() == {"intended_submission_method"}
    assert new["evidence_details"].keys() - old["evidence_details"].keys() == {"submission_method"}
    assert old["balance_transactions"] == new["balance_transactions"]


def test_an_upcoming_invoice_has_no_id() -> None:
    stripe, _, _ = shop()
    stripe.advance(stripe.now + 28 * DAY)
    upcoming = render(last(stripe, "invoice.upcoming"))
    assert "id" not in upcoming
    assert (upcoming["status"], upcoming["amount_due"]) == ("draft", 2000)


def test_a_version_nobody_taught_us_is_refused() -> None:
    stripe, _, id = shop()
    with pytest.raises(ValueError, match="2020-08-27"):
        render(stripe.subscriptions[id], "2020-08-27")


def test_previous_attributes_name_only_what_changed_nested_keys_alone_and_lists_whole() -> None:
    before = {"a": 1, "b": 2, "metadata": {"x": "1", "gone": "2"}, "items": {"object": "list", "data": [1]}, "n": None}
    after = {
        "a": 1,
        "b": 3,
        "metadata": {"x": "1", "new": "3"},
        "items": {"object": "list", "data": [2]},
        "n": {"k": 1},
    }
    assert previous_attributes(before, after) == {
        "b": 2,
        "metadata": {"gone": "2", "new": None},
        "items": {"object": "list", "data": [1]},
        "n": None,
    }


def test_what_is_rendered_belongs_to_the_caller() -> None:
    stripe, _, id = shop()
    render(stripe.subscriptions[id])["items"]["data"][0]["price"]["metadata"]["mine"] = "1"
    assert render(stripe.subscriptions[id])["items"]["data"][0]["price"]["metadata"] == {}
