"""Objects and events as Stripe's JSON, in the shape of one API version.

State knows no versions; everything that moved between them (FACTS: periods, invoice parents, line prices, payments)
is decided here.
"""

from collections.abc import Callable, Mapping
from typing import Any

from simulator import objects
from simulator.envelope import envelope
from simulator.render import catalog, checkout, dispute, endpoint, invoice, payment, refund, subscription
from simulator.versions import ENDIVE, VERSIONS

Json = dict[str, Any]

RENDERERS: Mapping[type[objects.Thing], Callable[[Any, str], Json]] = {
    objects.Product: catalog.product,
    objects.Price: catalog.price,
    objects.Plan: catalog.plan,
    objects.Customer: catalog.customer,
    objects.Subscription: subscription.subscription,
    objects.Invoice: invoice.invoice,
    objects.InvoiceItem: invoice.invoice_item,
    objects.InvoicePayment: invoice.invoice_payment,
    objects.PaymentIntent: payment.payment_intent,
    objects.Charge: payment.charge,
    objects.Refund: refund.refund,
    objects.Dispute: dispute.dispute,
    objects.Session: checkout.session,
    objects.WebhookEndpoint: endpoint.webhook_endpoint,
}


def render(thing: objects.Thing, api_version: str = ENDIVE) -> Json:
    """The object as Stripe would send it in this API version; the result belongs to the caller."""
    if api_version not in VERSIONS:
        raise ValueError(f"cannot render {api_version}; choose one of {', '.join(VERSIONS)}")
    return RENDERERS[type(thing)](thing, api_version)


def render_event(event: objects.Event, api_version: str | None = None) -> Json:
    """The whole event, rendered for an endpoint with this API version, or in the account's default at its time."""
    api_version = api_version or event.api_version
    shown = render(event.object, api_version)
    previous = None
    if event.previous is not None:
        previous = previous_attributes(render(event.previous, api_version), shown)
    return envelope(
        shown,
        event.type,
        event.created,
        id=event.id,
        api_version=api_version,
        previous_attributes=previous,
        request_id=event.request_id,
        livemode=event.livemode,
    )


def previous_attributes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Json:
    """The former values of what changed.

    Of a nested object only the changed keys, null for those that are new; arrays and lists whole.
    """
    changed = (key for key in {**before, **after} if before.get(key) != after.get(key))
    return {key: _former(before.get(key), after.get(key)) for key in changed}


def _former(before: object, after: object) -> object:
    if isinstance(before, dict) and isinstance(after, dict) and before.get("object") != "list":
        return previous_attributes(before, after)
    return before
