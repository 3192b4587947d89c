"""Retrieve and list, the same for every kind of object; and the lists that belong to one object."""

from functools import partial
from typing import Any

from simulator import objects
from simulator.api import pages, parameters
from simulator.api.call import Call, Handler, Json
from simulator.api.errors import invalid, missing
from simulator.api.expand import Expander, line_items, paths_of, shown
from simulator.api.resources import BY_PATH, RESOURCES, Predicate, Resource
from simulator.calendar import DAY
from simulator.objects import Event, Invoice
from simulator.render import render, render_event
from simulator.render.invoice import line

# So long the API remembers events.
RETENTION_S = 30 * DAY


def retrieve(resource: Resource, call: Call, id: str) -> Json:
    """One object, or what is said of it since it was deleted."""
    parameters.known(call.given, ["expand"])
    found = shown(call.stripe, resource.kind, id, call.api_version)
    if found is None:
        raise missing(resource.name, id)
    return _expanded(call, found)


def list_all(resource: Resource, call: Call) -> Json:
    """One page of objects."""
    found, has_more = pages.page_of(call.stripe, resource, call.given)
    return _listed(call, [render(thing, call.api_version) for thing in found], f"/v1/{resource.path}", has_more)


def retrieve_event(call: Call, id: str) -> Json:
    """One event of the last 30 days."""
    event = call.stripe.find(Event, id)
    if event is None or not is_remembered(call, event):
        raise missing("event", id)
    return _show_event(call, event)


def list_events(call: Call) -> Json:
    """One page of the events of the last 30 days.

    With `delivery_success` only those that all endpoints have accepted (true), or that some have not (false).
    """
    given = dict(call.given)
    if "type" in given and "types" in given:
        raise invalid("You may only specify one of these parameters: type, types.", "types")
    is_wanted = _delivery(call, given.pop("delivery_success", None))
    found, has_more = pages.page_of(
        call.stripe, BY_PATH["events"], given, lambda event: is_remembered(call, event) and is_wanted(event)
    )
    return _listed(call, [_show_event(call, event) for event in found], "/v1/events", has_more)


def _show_event(call: Call, event: Event) -> Json:
    """An event as the API shows it: in the account's version at its time, whatever the request's."""
    return {**render_event(event), "pending_webhooks": len(call.stripe.owed(event.id))}


def list_lines(call: Call, id: str) -> Json:
    """One page of an invoice's lines."""
    invoice = call.stripe.find(Invoice, id)
    if invoice is None:
        raise missing("invoice", id)
    return _page_of_few(call, [line(one, id, call.api_version) for one in invoice.lines], f"/v1/invoices/{id}/lines")


def list_line_items(call: Call, id: str) -> Json:
    """One page of what is bought in a session."""
    if call.stripe.find(objects.Session, id) is None:
        raise missing("checkout.session", id)
    items = line_items(call.stripe, id, call.api_version)
    return _page_of_few(call, items, f"/v1/checkout/sessions/{id}/line_items")


def _delivery(call: Call, value: Any) -> Predicate:
    if value is None:
        return lambda _: True
    wanted = parameters.boolean(value, "delivery_success")
    return lambda event: (not call.stripe.owed(event.id)) is wanted


def is_remembered(call: Call, event: Event) -> bool:
    """Whether the API still has the event."""
    return event.created >= call.stripe.now - RETENTION_S


def _page_of_few(call: Call, whole: list[Json], url: str) -> Json:
    found, has_more = pages.page_of_few(whole, call.given)
    return _listed(call, found, url, has_more)


def _listed(call: Call, data: list[Json], url: str, has_more: bool) -> Json:  # noqa: FBT001 - a field of the answer
    return _expanded(call, {"object": "list", "data": data, "has_more": has_more, "url": url})


def _expanded(call: Call, found: Any) -> Json:
    expander = Expander(call.stripe, call.api_version)
    for path in paths_of(call.given):
        expander.expand(found, path)
    whole: Json = found
    return whole


def routes() -> dict[str, Handler]:
    """Handlers by method and path."""
    found: dict[str, Handler] = {}
    for resource in RESOURCES:
        found[f"GET /v1/{resource.path}"] = partial(list_all, resource)
        found[f"GET /v1/{resource.path}/:id"] = partial(retrieve, resource)
    return found | {
        "GET /v1/checkout/sessions/:id/line_items": list_line_items,
        "GET /v1/events": list_events,
        "GET /v1/events/:id": retrieve_event,
        "GET /v1/invoices/:id/lines": list_lines,
    }
