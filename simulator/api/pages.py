"""Lists, page by page: newest first, the cursor is an object's id (docs.stripe.com/api/pagination)."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

from simulator.api import parameters
from simulator.api.errors import invalid, missing
from simulator.api.parameters import Parameters
from simulator.api.resources import Predicate, Resource
from simulator.state import Stripe

T = TypeVar("T")

# The things of a page, newest first, and whether there are more behind it.
Page = tuple[list[T], bool]

NAMES = ("ending_before", "expand", "limit", "starting_after")


def page_of(stripe: Stripe, resource: Resource, given: Parameters, is_there: Predicate = lambda _: True) -> Page[Any]:
    """One page of the things that pass the request's filters and `is_there`."""
    parameters.known(given, {*NAMES, *resource.filters})
    predicates = [resource.is_listed, is_there]
    predicates += [resource.filters[name](value, name) for name, value in given.items() if name in resource.filters]
    if resource.unless_asked and resource.unless_asked[0] not in given:
        predicates.append(resource.unless_asked[1])
    things = _behind_cursor(stripe, resource, given)
    return _cut((thing for thing in things if all(predicate(thing) for predicate in predicates)), given)


def page_of_few(whole: Sequence[dict[str, Any]], given: Parameters) -> Page[dict[str, Any]]:
    """One page of what is short and in its order already, as the lines of an invoice."""
    parameters.known(given, NAMES)
    name, cursor = _cursor(given)
    if cursor is None:
        return _cut(whole, given)
    at = next((at for at, one in enumerate(whole) if one["id"] == cursor), None)
    if at is None:
        raise missing("object", cursor, status=400, param=name)
    return _cut(whole[at + 1 :] if name == "starting_after" else whole[:at][::-1], given)


def _cut(found: Iterable[T], given: Parameters) -> Page[T]:
    """Take a page of what was found; what was asked for backwards is turned around."""
    limit = parameters.integer(given.get("limit", "10"), "limit")
    if not 1 <= limit <= 100:
        bound = "less than or equal to 100" if limit > 100 else "greater than or equal to 1"
        raise invalid(f"This value must be {bound}.", "limit")
    some = list(islice(found, limit + 1))
    page = some[:limit]
    return (page[::-1] if "ending_before" in given else page), len(some) > limit


def _cursor(given: Parameters) -> tuple[str, str | None]:
    if "starting_after" in given and "ending_before" in given:
        raise invalid("You cannot parameterize by both starting_after and ending_before.", "starting_after")
    name = "ending_before" if "ending_before" in given else "starting_after"
    return name, parameters.text(given[name], name) if name in given else None


def _behind_cursor(stripe: Stripe, resource: Resource, given: Parameters) -> Iterator[Any]:
    """All things from the cursor on, in the order in which they are asked for."""
    order = stripe.order_of(resource.kind)
    name, cursor = _cursor(given)
    places: Iterable[int] = reversed(range(len(order)))
    if cursor is not None:
        place = stripe.place_of(resource.kind, cursor)
        if place is None:
            raise missing(resource.name, cursor, status=400, param=name)
        older, newer = reversed(range(bisect_left(order, place))), range(bisect_right(order, place), len(order))
        places = older if name == "starting_after" else newer
    for at in places:
        thing = stripe.find(resource.kind, order[at][2])
        # Of an id that was used again after a deletion only the present place counts.
        if thing is not None and stripe.place_of(resource.kind, thing.id) == order[at]:
            yield thing
