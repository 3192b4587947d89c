"""Thin events over the API: /v2/core/events."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from simulator.api import parameters
from simulator.api.call import Call, Handler, Json
from simulator.api.errors import invalid, missing
from simulator.api.reading import is_remembered
from simulator.objects import Event
from simulator.render.thin import thin_event, thin_id, thin_type

PAGE = 20
COMPARE = {
    "gt": lambda at, bound: at > bound,
    "gte": lambda at, bound: at >= bound,
    "lt": lambda at, bound: at < bound,
    "lte": lambda at, bound: at <= bound,
}


def retrieve(call: Call, id: str) -> Json:
    """One thin event of the last 30 days, with what changed."""
    parameters.known(call.given, [])
    for event in reversed(call.stripe.events):
        if not is_remembered(call, event):
            break
        if thin_id(event) == id:
            return thin_event(event)
    raise missing("v2.core.event", id)


def list_all(call: Call) -> Json:
    """One page of thin events, the newest first; the address of the next page stands in the answer."""
    given = dict(call.given)
    parameters.known(given, ["created", "limit", "object_id", "page", "types"])
    limit = parameters.integer(given.get("limit", str(PAGE)), "limit")
    page = parameters.integer(given.pop("page", "0"), "page")
    found = [event for event in reversed(call.stripe.events) if is_remembered(call, event) and _fits(event, given)]
    # The page is the number of older events, so that new ones do not move it.
    found = found[-page:] if page else found
    rest = len(found) - limit
    return {
        "data": [thin_event(event) for event in found[:limit]],
        "next_page_url": f"/v2/core/events?{_query(given, rest)}" if rest > 0 else None,
        "previous_page_url": None,
    }


def _fits(event: Event, given: Mapping[str, Any]) -> bool:
    if "object_id" in given and event.object.id != given["object_id"]:
        return False
    if "types" in given and thin_type(event) not in parameters.texts(given["types"], "types"):
        return False
    bounds = given.get("created", {})
    parameters.known(bounds, COMPARE)
    return all(COMPARE[name](event.created, _moment(bound, f"created[{name}]")) for name, bound in bounds.items())


def _moment(text: str, name: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise invalid(f"Invalid timestamp: {text}", name) from None


def _query(given: Mapping[str, Any], page: int) -> str:
    flat = [(name, value) for name, value in given.items() if isinstance(value, str)]
    flat += [(f"types[{at}]", value) for at, value in enumerate(given.get("types", []))]
    flat += [(f"created[{name}]", value) for name, value in given.get("created", {}).items()]
    return urlencode([*flat, ("page", str(page))])


def routes() -> dict[str, Handler]:
    """Handlers by method and path."""
    return {"GET /v2/core/events": list_all, "GET /v2/core/events/:id": retrieve}
