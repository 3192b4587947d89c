"""Real events with one field made wrong, for every field and every way to be wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any

Path = tuple[str | int, ...]


class Missing:
    """Stands for a field that is not there."""


# What Stripe would hardly send, as JSON; NaN is what Python writes and reads, though it is no JSON.
WRONGS: Mapping[str, Any] = {
    "missing": Missing,
    "null": None,
    "another type": {"a": 1},
    "a list": [None, 1, "a"],
    "an empty list": [],
    "true": True,
    "a text": "nonsense",
    "an empty text": "",
    "a number": 7,
    "a negative number": -7,
    "an enormous number": 10**30,
    "a fraction": 0.1,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "an id of 300 characters": "x" * 300,
    "U+0000": "a\x00b",
    "half a surrogate pair": "\ud800",
    "an expanded object": {"id": "x_expanded", "object": "x", "deleted": True},
    "an expanded object without id": {"object": "x"},
    "a deep nest": json.loads("[" * 150 + "]" * 150),
}


def paths(value: Any, above: Path = ()) -> Iterator[Path]:
    """Every place in a JSON value but the value itself; of a list only the first."""
    inside = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else ()
    for key, below in inside:
        yield (*above, key)
        yield from paths(below, (*above, key))


def with_wrong(event: Mapping[str, Any], path: Path, wrong: Any) -> dict[str, Any]:
    """A copy of the event with one field replaced, or taken out."""
    changed = copy.deepcopy(dict(event))
    place: Any = changed
    for key in path[:-1]:
        place = place[key]
    if wrong is Missing:
        del place[path[-1]]
    else:
        place[path[-1]] = copy.deepcopy(wrong)
    return changed


def renamed(event: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The same event about an object of its own, so that no other one's word decides about it."""
    obj = event["data"]["object"]
    text = json.dumps({**event, "id": f"evt_{number}"})
    return dict(json.loads(text.replace(json.dumps(obj["id"]), json.dumps(f"{obj['id']}_{number}"))))
