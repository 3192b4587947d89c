"""The API, asked by Stripe's own client over HTTP."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest
import stripe as library

from simulator.api import KEY
from simulator.calendar import DAY
from simulator.histories import history
from simulator.render import render, render_event
from simulator.server import Server, serving
from simulator.state import Stripe
from simulator.versions import ACACIA

SAMPLES = Path(__file__).parents[1] / "fixtures" / "errors"
CLOCK = 1793520000

SERVICES = {
    "products": "products",
    "prices": "prices",
    "customers": "customers",
    "subscriptions": "subscriptions",
    "invoices": "invoices",
    "invoice_payments": "invoice_payments",
    "payment_intents": "payment_intents",
    "charges": "charges",
    "refunds": "refunds",
    "disputes": "disputes",
    "checkout.sessions": "sessions",
}


@pytest.fixture(scope="module")
def past() -> Stripe:
    stripe = history(5, customers=12, months=3)
    charge = next(c for c in stripe.charges.values() if c.status == "succeeded" and not c.amount_refunded)
    stripe.dispute(charge.id)
    return stripe


@pytest.fixture(scope="module")
def server(past: Stripe) -> Iterator[Server]:
    with serving(past) as server:
        yield server


def client_of(server: Server, key: str = KEY) -> library.StripeClient:
    return library.StripeClient(key, base_addresses={"api": server.url})


@pytest.fixture(scope="module")
def client(server: Server) -> library.StripeClient:
    return client_of(server)


def service(client: library.StripeClient, path: str) -> Any:
    found: Any = client.v1
    for name in path.split("."):
        found = getattr(found, name)
    return found


def plain(found: Any) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(str(found))
    return shown


def ids(found: Any) -> list[str]:
    return [one.id for one in found]


@pytest.mark.parametrize("path", SERVICES)
def test_every_object_is_listed_once_newest_first_and_can_be_retrieved(
    client: library.StripeClient, past: Stripe, path: str
) -> None:
    shelf = getattr(past, SERVICES[path])
    given = {"limit": 3} | ({"status": "all"} if path == "subscriptions" else {})
    there = [thing for thing in shelf.values() if not getattr(thing, "deleted", False)]
    listed = list(service(client, path).list(given).auto_paging_iter())
    assert sorted(ids(listed)) == sorted(thing.id for thing in there)
    assert [one.created for one in listed] == sorted((one.created for one in listed), reverse=True)
    assert [plain(one) for one in listed] == [render(shelf[one.id]) for one in listed]
    assert plain(service(client, path).retrieve(listed[-1].id)) == plain(listed[-1])


def test_pages_have_the_size_that_was_asked_for_and_know_whether_there_are_more(client: library.StripeClient) -> None:
    whole = ids(client.v1.charges.list({"limit": 100}))
    assert len(whole) > 20
    assert len(client.v1.charges.list().data) == 10
    first = client.v1.charges.list({"limit": 7})
    second = client.v1.charges.list({"limit": 7, "starting_after": whole[6]})
    assert (ids(first), ids(second)) == (whole[:7], whole[7:14])
    rest = client.v1.charges.list({"limit": 100, "starting_after": whole[13]})
    assert (first.has_more, rest.has_more, ids(rest)) == (True, False, whole[14:])
    assert (plain(first)["object"], first.url) == ("list", "/v1/charges")


def test_a_list_goes_backwards_from_its_cursor_and_each_page_is_newest_first(client: library.StripeClient) -> None:
    whole = ids(client.v1.charges.list({"limit": 100}))
    page = client.v1.charges.list({"limit": 2, "ending_before": whole[5]})
    assert (ids(page), page.has_more) == (whole[3:5], True)
    assert ids(page.auto_paging_iter()) == whole[4::-1]
    assert client.v1.charges.list({"ending_before": whole[0]}).data == []


def test_what_changes_between_two_pages_moves_no_other_object(past: Stripe) -> None:
    stripe = Stripe(1, CLOCK)
    products = [stripe.create_product(f"Product {number}").id for number in range(5)]
    with serving(stripe) as server:
        client = client_of(server)
        assert ids(client.v1.products.list({"limit": 2})) == [products[4], products[3]]
        stripe.delete_product(products[3])
        stripe.create_product("New")
        assert ids(client.v1.products.list({"starting_after": products[3]})) == products[2::-1]


def test_an_id_used_again_after_a_deletion_is_listed_once() -> None:
    stripe = Stripe(1, CLOCK)
    stripe.create_product("First", id="mine")
    stripe.delete_product("mine")
    stripe.advance(CLOCK + 1)
    stripe.create_product("Other")
    stripe.create_product("Second", id="mine")
    with serving(stripe) as server:
        assert [p.name for p in client_of(server).v1.products.list()] == ["Second", "Other"]


def test_subscriptions_are_listed_without_the_canceled_unless_asked_for(
    client: library.StripeClient, past: Stripe
) -> None:
    def listed(**given: Any) -> set[str]:
        params: Any = {"limit": 100, **given}
        return set(ids(client.v1.subscriptions.list(params).auto_paging_iter()))

    of = {status: {s.id for s in past.subscriptions.values() if s.status == status} for status in STATUSES}
    everything = set(past.subscriptions)
    assert of["canceled"]
    assert of["active"]
    assert listed() == everything - of["canceled"]
    assert listed(status="all") == everything
    assert listed(status="active") == of["active"]
    assert listed(status="canceled") == of["canceled"]
    assert listed(status="ended") == of["canceled"] | of["incomplete_expired"]


STATUSES = ("active", "canceled", "incomplete_expired")


def test_lists_are_filtered_by_what_their_objects_belong_to(client: library.StripeClient, past: Stripe) -> None:
    subscription = next(s for s in past.subscriptions.values() if s.status == "canceled")
    customer, price = subscription.customer, subscription.items[0].price
    v1 = client.v1
    assert subscription.id in ids(v1.subscriptions.list({"customer": customer, "status": "all"}))
    assert subscription.id in ids(v1.subscriptions.list({"price": price.id, "status": "all", "limit": 100}))
    assert {i.customer for i in v1.invoices.list({"customer": customer})} == {customer}
    invoices = [i.id for i in past.invoices.values() if i.subscription == subscription.id]
    assert sorted(ids(v1.invoices.list({"subscription": subscription.id, "limit": 100}))) == sorted(invoices)
    assert {p.product for p in v1.prices.list({"product": price.product})} == {price.product}
    assert ids(v1.prices.list({"type": "one_time"})) == [p.id for p in past.prices.values() if p.interval is None]
    refund = next(iter(past.refunds.values()))
    assert refund.id in ids(v1.refunds.list({"charge": refund.charge}))
    assert {r.payment_intent for r in v1.refunds.list({"payment_intent": refund.payment_intent})} == {
        refund.payment_intent
    }
    assert refund.charge in ids(v1.charges.list({"payment_intent": refund.payment_intent}))
    paid = next(iter(past.invoice_payments.values()))
    found = v1.invoice_payments.list({"payment": {"type": "payment_intent", "payment_intent": paid.payment_intent}})
    assert ids(found) == [paid.id]
    session = next(s for s in past.sessions.values() if s.subscription)
    assert ids(v1.checkout.sessions.list({"subscription": session.subscription or ""})) == [session.id]


def test_lists_are_filtered_by_time_and_by_yes_and_no(client: library.StripeClient, past: Stripe) -> None:
    created = sorted(charge.created for charge in past.charges.values())
    first, last = created[4], created[12]

    def listed(given: Any) -> list[int]:
        return sorted(c.created for c in client.v1.charges.list({"limit": 100, "created": given}))

    assert listed({"gte": first, "lt": last}) == [at for at in created if first <= at < last]
    assert listed({"gt": first, "lte": last}) == [at for at in created if first < at <= last]
    assert listed(first) == [at for at in created if at == first]
    active = {p.id for p in past.prices.values() if p.active}
    assert set(ids(client.v1.prices.list({"active": True, "limit": 100}))) == active
    assert set(ids(client.v1.prices.list({"active": False}))) == set(past.prices) - active


def test_ids_become_objects_where_that_is_asked_for(client: library.StripeClient, past: Stripe) -> None:
    paid = next(iter(past.invoice_payments.values()))
    id = past.invoices[paid.invoice].subscription
    subscription = plain(
        client.v1.subscriptions.retrieve(
            id, {"expand": ["customer", "latest_invoice.payments", "items.data.price.product"]}
        )
    )
    assert subscription["customer"]["object"] == "customer"
    assert subscription["items"]["data"][0]["price"]["product"]["object"] == "product"
    assert subscription["latest_invoice"]["payments"]["object"] == "list"
    invoice = plain(client.v1.invoices.retrieve(paid.invoice, {"expand": ["payments.data.payment.payment_intent"]}))
    (payment,) = invoice["payments"]["data"]
    assert payment["payment"]["payment_intent"] == render(past.payment_intents[paid.payment_intent])


def test_expansion_reaches_into_lists_and_adds_what_is_left_out_otherwise(
    client: library.StripeClient, past: Stripe
) -> None:
    page = client.v1.charges.list({"expand": ["data.refunds", "data.customer"], "limit": 100})
    refunded = {charge.id for charge in past.charges.values() if charge.amount_refunded}
    assert refunded <= {c["id"] for c in plain(page)["data"] if c["refunds"]["data"]}
    assert {c["customer"] is None or c["customer"]["object"] == "customer" for c in plain(page)["data"]} == {True}
    bought = next(s for s in past.sessions.values() if s.mode == "payment")
    session = client.v1.checkout.sessions.retrieve(bought.id, {"expand": ["line_items.data.price.product"]})
    items = client.v1.checkout.sessions.line_items.list(bought.id)
    (item,) = plain(session)["line_items"]["data"]
    assert item["price"]["product"]["name"] == item["description"] == "Token pack"
    assert plain(items)["data"] == [{**item, "price": {**item["price"], "product": item["price"]["product"]["id"]}}]


@pytest.mark.parametrize(
    ("expand", "told"),
    [
        (["data.items.data.price.product"], "more than 4 levels"),
        (["data.nonsense"], "cannot be expanded (nonsense)"),
        (["customer"], "cannot be expanded (customer)"),
        (["data.status"], "cannot be expanded (status)"),
    ],
)
def test_what_cannot_be_expanded_is_refused(client: library.StripeClient, expand: list[str], told: str) -> None:
    with pytest.raises(library.InvalidRequestError) as refused:
        client.v1.subscriptions.list({"expand": expand})
    assert told in (refused.value.user_message or "")


def test_the_lines_of_a_long_invoice_are_shown_in_part_and_listed_whole() -> None:
    stripe = Stripe(1, CLOCK)
    product = stripe.create_product("Seat")
    prices = [(stripe.create_price(product.id, 100 + number).id, 1) for number in range(13)]
    customer = stripe.create_customer("a@example.com", card="ok")
    invoice = stripe.subscribe(customer.id, prices).latest_invoice or ""
    with serving(stripe) as server:
        client = client_of(server)
        shown = client.v1.invoices.retrieve(invoice)
        assert (len(shown.lines.data), shown.lines.has_more) == (10, True)
        assert [one.amount for one in shown.lines.auto_paging_iter()] == [100 + number for number in range(13)]
        page = client.v1.invoices.line_items.list(invoice, {"limit": 2, "starting_after": shown.lines.data[4].id})
        assert ([one.amount for one in page], page.has_more) == ([105, 106], True)
        back = client.v1.invoices.line_items.list(invoice, {"limit": 2, "ending_before": shown.lines.data[4].id})
        assert ([one.amount for one in back], back.has_more) == ([102, 103], True)


def test_of_what_was_deleted_a_stub_remains_or_nothing() -> None:
    stripe = Stripe(1, CLOCK)
    product = stripe.create_product("Gold")
    price = stripe.create_price(product.id, 100)
    customer = stripe.create_customer("a@example.com", card="ok")
    subscription = stripe.subscribe(customer.id, price.id)
    stripe.delete_customer(customer.id)
    stripe.delete_price(price.id)
    stripe.delete_product(product.id)
    with serving(stripe) as server:
        v1 = client_of(server).v1
        assert plain(v1.customers.retrieve(customer.id)) == {
            "id": customer.id,
            "object": "customer",
            "deleted": True,
        }
        assert plain(v1.products.retrieve(product.id)) == {"id": product.id, "object": "product", "deleted": True}
        found = v1.subscriptions.retrieve(subscription.id, {"expand": ["customer", "items.data.price.product"]})
        assert plain(found)["customer"]["deleted"] is True
        assert plain(found)["items"]["data"][0]["price"]["product"]["deleted"] is True
        assert v1.customers.list().data == v1.products.list().data == []


def refusal(server: Server, path: str, **headers: str) -> tuple[int, dict[str, Any]]:
    import http.client
    from urllib.parse import urlsplit

    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {KEY}", **headers})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())["error"]
    finally:
        connection.close()


def test_what_is_not_there_is_refused_as_stripe_does(server: Server) -> None:
    status, error = refusal(server, "/v1/subscriptions/sub_none")
    assert status == 404
    assert error == {
        "code": "resource_missing",
        "doc_url": "https://stripe.com/docs/error-codes/resource-missing",
        "message": "No such subscription: 'sub_none'",
        "param": "id",
        "type": "invalid_request_error",
    }


@pytest.mark.parametrize(
    ("path", "status", "told"),
    [
        ("/v1/nonsense", 404, "Unrecognized request URL (GET: /v1/nonsense)."),
        ("/v1/products?limit=101", 400, "This value must be less than or equal to 100."),
        ("/v1/products?limit=0", 400, "This value must be greater than or equal to 1."),
        ("/v1/products?limit=many", 400, "Invalid integer: many"),
        ("/v1/products?starting_after=prod_none", 400, "No such product: 'prod_none'"),
        ("/v1/products?starting_after=a&ending_before=b", 400, "by both starting_after and ending_before"),
        ("/v1/products?color=red", 400, "Received unknown parameter: color"),
        ("/v1/products?active=perhaps", 400, "Invalid boolean: perhaps"),
        ("/v1/products?created[since]=1", 400, "Received unknown parameter: since"),
        ("/v1/invoices?customer=", 400, "You passed an empty string for 'customer'."),
        ("/v1/products/prod_none?limit=1", 400, "Received unknown parameter: limit"),
        ("/v1/invoices/in_none/lines", 404, "No such invoice: 'in_none'"),
        ("/v1/checkout/sessions/cs_none/line_items", 404, "No such checkout.session: 'cs_none'"),
        ("/v1/events/evt_none", 404, "No such event: 'evt_none'"),
    ],
)
def test_mistakes_are_refused_with_a_sentence(server: Server, path: str, status: int, told: str) -> None:
    got, error = refusal(server, path)
    assert (got, error["type"]) == (status, "invalid_request_error")
    assert told in error["message"]


def test_only_its_own_keys_are_let_in(server: Server) -> None:
    with pytest.raises(library.AuthenticationError, match=r"Invalid API Key provided: \*{8}1234"):
        client_of(server, "sk_test_1234").v1.products.list()
    assert refusal(server, "/v1/products", Authorization="")[0] == 401


def test_the_date_is_the_simulators_and_each_answer_has_an_id(server: Server, past: Stripe) -> None:
    first, second = (client_of(server).v1.products.list().last_response for _ in range(2))
    assert first
    assert second
    assert parsedate_to_datetime(first.headers["Date"]).timestamp() == past.now
    assert first.request_id != second.request_id


def test_objects_are_shown_in_the_version_that_the_request_names(server: Server, past: Stripe) -> None:
    id = next(iter(past.subscriptions))
    found = client_of(server).v1.subscriptions.retrieve(id, options={"stripe_version": ACACIA})
    assert plain(found) == render(past.subscriptions[id], ACACIA)
    assert found.last_response
    assert found.last_response.headers["Stripe-Version"] == ACACIA
    status, error = refusal(server, "/v1/products", **{"Stripe-Version": "1999-01-01"})
    assert (status, error["message"]) == (400, "Invalid Stripe API version: 1999-01-01")


def test_events_are_shown_as_the_account_was_set_when_they_happened() -> None:
    stripe = Stripe(1, CLOCK)
    stripe.api_version = ACACIA
    customer = stripe.create_customer("a@example.com")
    stripe.api_version = Stripe.api_version
    stripe.update_customer(customer.id, name="Ada")
    with serving(stripe) as server:
        new, old = client_of(server).v1.events.list(options={"stripe_version": ACACIA})
        assert (old.api_version, new.api_version) == (ACACIA, Stripe.api_version)
        assert [plain(old), plain(new)] == [{**render_event(e), "pending_webhooks": 0} for e in stripe.events]
        assert plain(client_of(server).v1.events.retrieve(new.id)) == plain(new)


def test_events_are_remembered_for_30_days() -> None:
    stripe = Stripe(1, CLOCK)
    stripe.create_customer("a@example.com")
    stripe.advance(CLOCK + 30 * DAY)
    with serving(stripe) as server:
        client = client_of(server)
        (event,) = client.v1.events.list()
        stripe.advance(CLOCK + 30 * DAY + 1)
        assert client.v1.events.list().data == []
        with pytest.raises(library.InvalidRequestError, match="No such event"):
            client.v1.events.retrieve(event.id)


def test_events_are_chosen_by_type_and_after_the_last_one_that_was_seen(
    client: library.StripeClient, past: Stripe
) -> None:
    recent = [event for event in past.events if event.created >= past.now - 30 * DAY]

    def listed(**given: Any) -> list[str]:
        params: Any = {"limit": 20, **given}
        return ids(client.v1.events.list(params).auto_paging_iter())

    assert listed() == [event.id for event in recent][::-1]
    chosen = [event.id for event in recent if event.type in {"invoice.paid", "charge.succeeded"}]
    assert chosen
    assert listed(types=["invoice.paid", "charge.succeeded"]) == chosen[::-1]
    assert listed(type="invoice.*") == [e.id for e in recent if e.type.startswith("invoice.")][::-1]
    assert listed(type="invoice.paid") == [e.id for e in recent if e.type == "invoice.paid"][::-1]
    # Paging backwards from an event that was seen gives what came after it, in the order in which it happened.
    assert listed(ending_before=recent[2].id) == [event.id for event in recent[3:]]


def test_requests_are_counted_and_logged_by_route(past: Stripe) -> None:
    with serving(past) as server:
        client = client_of(server)
        client.v1.products.list({"limit": 1})
        client.v1.products.retrieve(next(iter(past.products)))
        with pytest.raises(library.InvalidRequestError):
            client.v1.products.retrieve("prod/none")
        assert server.counts == {"GET /v1/products": 1, "GET /v1/products/:id": 2}
        assert [(asked.query, asked.status) for asked in server.log] == [("limit=1", 200), ("", 200), ("", 404)]


def test_a_server_that_was_stopped_answers_nobody_any_more(past: Stripe) -> None:
    with serving(past) as server:
        client = client_of(server)
        client.v1.products.list()
    with pytest.raises(library.APIConnectionError):
        client.v1.products.list()


def test_nobody_sees_the_account_in_the_middle_of_a_call() -> None:
    stripe = Stripe(1, CLOCK)
    product = stripe.create_product("Gold")
    price = stripe.create_price(product.id, 100)
    customer = stripe.create_customer("a@example.com", card="ok")
    over = threading.Event()

    def live() -> None:
        while not over.is_set():
            stripe.cancel(stripe.subscribe(customer.id, price.id).id)

    with serving(stripe) as server, ThreadPoolExecutor(1) as pool:
        client, life = client_of(server), pool.submit(live)
        try:
            for _ in range(30):
                (found,) = plain(client.v1.subscriptions.list(LATEST))["data"]
                # The subscription comes into being before its invoice is paid, all in one call.
                assert (found["status"], found["latest_invoice"]["status"]) in {
                    ("canceled", "paid"),
                    ("active", "paid"),
                }
        finally:
            over.set()
            life.result()


LATEST: Any = {"status": "all", "limit": 1, "expand": ["data.latest_invoice"]}
