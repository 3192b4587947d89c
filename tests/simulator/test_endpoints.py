"""Webhook endpoints and thin events: in the state, and over the API by Stripe's own client."""

import json
import time
from collections.abc import Iterator

import pytest
import stripe as library

from simulator.api import KEY
from simulator.calendar import DAY
from simulator.envelope import body_of
from simulator.render import render
from simulator.render.thin import notification, thin_event
from simulator.server import Server, serving
from simulator.signing import sign
from simulator.state import Stripe
from simulator.versions import ACACIA
from simulator.world import InvalidRequestError

CLOCK = 1793520000
URL = "https://example.com/webhooks/stripe"


@pytest.fixture
def stripe() -> Stripe:
    return Stripe(1, CLOCK)


@pytest.fixture
def server(stripe: Stripe) -> Iterator[Server]:
    with serving(stripe) as server:
        yield server


@pytest.fixture
def client(server: Server) -> library.StripeClient:
    return library.StripeClient(KEY, base_addresses={"api": server.url})


def test_an_endpoint_is_owed_the_types_it_wants_from_its_creation_on_while_it_is_enabled(stripe: Stripe) -> None:
    customer = stripe.create_customer("a@example.com")
    all_of_them = stripe.create_webhook_endpoint(URL).id
    some = stripe.create_webhook_endpoint(URL, ["customer.updated", "customer.deleted"]).id
    stripe.create_customer("b@example.com")
    stripe.update_customer(customer.id, name="Ada")
    stripe.update_webhook_endpoint(all_of_them, disabled=True)
    stripe.delete_customer(customer.id)
    assert [stripe.owed(event.id) for event in stripe.events] == [
        set(),
        {all_of_them},
        {all_of_them, some},
        {some},
    ]
    stripe.accept(stripe.events[2].id, some)
    assert stripe.owed(stripe.events[2].id) == {all_of_them}


def test_the_old_secret_signs_beside_the_new_one_until_it_expires(stripe: Stripe) -> None:
    id = stripe.create_webhook_endpoint(URL, secret="whsec_old").id
    assert stripe.secrets_of(id) == ["whsec_old"]
    stripe.roll_secret(id, secret="whsec_new")
    assert stripe.secrets_of(id) == ["whsec_new", "whsec_old"]
    stripe.advance(CLOCK + DAY)
    assert stripe.secrets_of(id) == ["whsec_new"]
    assert stripe.secrets_of(id, CLOCK + DAY - 1) == ["whsec_new", "whsec_old"]
    stripe.roll_secret(id, secret="whsec_newest", expires_in=0)
    assert stripe.secrets_of(id) == ["whsec_newest"]


def test_secrets_are_made_up_and_differ(stripe: Stripe) -> None:
    secrets = {stripe.create_webhook_endpoint(URL).secrets[0][0] for _ in range(2)}
    assert len(secrets) == 2
    assert all(len(secret) == 38 and secret.startswith("whsec_") for secret in secrets)


def test_a_payload_is_a_snapshot_or_thin(stripe: Stripe) -> None:
    with pytest.raises(InvalidRequestError, match="snapshot or thin"):
        stripe.create_webhook_endpoint(URL, payload="fat")


def test_an_endpoint_is_made_disabled_enabled_changed_and_deleted_over_the_api(
    stripe: Stripe, client: library.StripeClient
) -> None:
    service = client.v1.webhook_endpoints
    made = service.create(
        {"url": URL, "enabled_events": ["invoice.paid"], "api_version": "2026-10-28.endive", "metadata": {"a": "1"}}
    )
    stored = stripe.webhook_endpoints[made.id]
    assert made.secret == stored.secrets[0][0]
    assert (made.url, made.enabled_events, made.status, dict(stored.metadata)) == (
        URL,
        ["invoice.paid"],
        "enabled",
        {"a": "1"},
    )
    assert service.update(made.id, {"disabled": True}).status == "disabled"
    changed = service.update(made.id, {"disabled": False, "enabled_events": ["*"], "url": f"{URL}/2"})
    assert (changed.status, changed.enabled_events, changed.url) == ("enabled", ["*"], f"{URL}/2")
    found = service.retrieve(made.id)
    assert json.loads(str(found)) == render(stripe.webhook_endpoints[made.id])
    assert "secret" not in found
    assert [endpoint.id for endpoint in service.list()] == [made.id]
    assert service.delete(made.id).deleted is True
    assert service.list().data == []
    with pytest.raises(library.InvalidRequestError, match="No such webhook endpoint"):
        service.update(made.id, {"disabled": True})


def test_an_endpoint_needs_a_version_that_there_is_and_a_url(client: library.StripeClient) -> None:
    with pytest.raises(library.InvalidRequestError, match="Missing required param"):
        client.v1.webhook_endpoints.create({"url": URL, "enabled_events": []})
    with pytest.raises(library.InvalidRequestError, match="Invalid API version"):
        client.v1.webhook_endpoints.create({"url": URL, "enabled_events": ["*"], "api_version": "2011-01-01"})


def test_thin_destinations_are_not_among_the_webhook_endpoints(stripe: Stripe, client: library.StripeClient) -> None:
    stripe.create_webhook_endpoint(URL, payload="thin")
    assert client.v1.webhook_endpoints.list().data == []


def test_events_are_found_by_whether_every_endpoint_has_accepted_them(
    stripe: Stripe, client: library.StripeClient
) -> None:
    first, second = (stripe.create_webhook_endpoint(URL).id for _ in range(2))
    for number in range(3):
        stripe.create_customer(f"{number}@example.com")
    events = [event.id for event in stripe.events]
    for endpoint in (first, second):
        stripe.accept(events[0], endpoint)
    stripe.accept(events[1], first)

    def listed(*, success: bool) -> list[tuple[str, int]]:
        found = client.v1.events.list({"delivery_success": success})
        return [(event.id, event.pending_webhooks) for event in found]

    assert listed(success=True) == [(events[0], 0)]
    assert listed(success=False) == [(events[2], 2), (events[1], 1)]


def test_type_and_types_are_not_given_together(client: library.StripeClient) -> None:
    with pytest.raises(library.InvalidRequestError, match="only specify one of these parameters"):
        client.v1.events.list({"type": "a", "types": ["b"]})
    assert client.v1.events.list({"types": [f"type.{number}" for number in range(20)]}).data == []
    with pytest.raises(library.InvalidRequestError, match="up to 20 types"):
        client.v1.events.list({"types": [f"type.{number}" for number in range(21)]})


def test_a_thin_event_leads_stripes_client_to_the_event_its_twin_and_the_object(
    stripe: Stripe, client: library.StripeClient
) -> None:
    customer = stripe.create_customer("a@example.com", name="Ada")
    stripe.update_customer(customer.id, name="Ada L.")
    body = body_of(notification(stripe.events[1])).decode()
    header = sign(body.encode(), ["whsec_practice"], int(time.time()))
    told = client.parse_event_notification(body, header, "whsec_practice")
    assert told.type == "v1.customer.updated"
    assert told.created == "2026-11-01T08:00:00.000Z"
    assert isinstance(told, library.events.V1CustomerUpdatedEventNotification)
    event = told.fetch_event()
    assert json.loads(str(event)) == thin_event(stripe.events[1])
    assert event.snapshot_event == stripe.events[1].id
    assert json.loads(str(event.changes)) == {"before": {"name": "Ada"}, "after": {"name": "Ada L."}}
    assert told.fetch_related_object().name == "Ada L."


def test_thin_events_are_listed_by_pages_types_objects_and_time(stripe: Stripe, client: library.StripeClient) -> None:
    customers = [stripe.create_customer(f"{number}@example.com").id for number in range(5)]
    stripe.advance(CLOCK + DAY)
    stripe.update_customer(customers[0], name="Ada")
    thin = [thin_event(event)["id"] for event in stripe.events]

    def listed(**given: object) -> list[str]:
        page = client.v2.core.events.list(given)  # type: ignore[arg-type]
        stripe.create_customer("meanwhile@example.com")
        return [event.id for event in page.auto_paging_iter() if event.id in thin]

    assert listed() == thin[::-1]
    assert listed(limit=2, types=["v1.customer.created"], object_id=customers[1]) == [thin[1]]
    assert listed(limit=1, object_id=customers[0]) == [thin[5], thin[0]]
    assert listed(limit=2, created={"lt": "2026-11-02T00:00:00Z"}) == thin[4::-1]
    assert listed(created={"gte": "2026-11-02T08:00:00Z"}, types=["v1.customer.updated"]) == [thin[5]]
    assert listed(created={"gt": "2026-11-02T08:00:00Z"}, types=["v1.customer.updated"]) == []
    assert listed(created={"lte": "2026-11-01T08:00:00Z"}) == thin[4::-1]
    with pytest.raises(library.StripeError, match="Invalid timestamp"):
        listed(created={"gt": "yesterday"})


def test_thin_events_are_forgotten_after_30_days(stripe: Stripe, client: library.StripeClient) -> None:
    stripe.create_customer("a@example.com")
    id = thin_event(stripe.events[0])["id"]
    assert client.v2.core.events.retrieve(id).id == id
    stripe.advance(CLOCK + 30 * DAY + 1)
    with pytest.raises(library.InvalidRequestError, match="No such"):
        client.v2.core.events.retrieve(id)


def test_the_preview_of_an_invoice_has_no_object_to_be_found(stripe: Stripe) -> None:
    product = stripe.create_product("Gold")
    price = stripe.create_price(product.id, 100)
    customer = stripe.create_customer("a@example.com", card="ok")
    stripe.subscribe(customer.id, price.id)
    stripe.advance(CLOCK + 28 * DAY)
    preview = next(event for event in stripe.events if event.type == "invoice.upcoming")
    assert notification(preview)["related_object"] is None


def test_webhook_endpoints_answer_in_the_accounts_version_too(stripe: Stripe, client: library.StripeClient) -> None:
    stripe.create_webhook_endpoint(URL, api_version=ACACIA)
    (found,) = client.v1.webhook_endpoints.list(options={"stripe_version": ACACIA})
    assert found.api_version == ACACIA
