"""Parameters as Stripe's clients write them: `limit=3&created[gte]=1&expand[0]=customer&types[]=price.created`."""

import re
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import parse_qsl

from simulator.api.errors import invalid

# Texts, lists of them, and mappings of either by name.
Parameters = dict[str, Any]

BOUNDS = ("gt", "gte", "lt", "lte")


def parse(query: str) -> Parameters:
    """Read a query string or a form; whatever its names make of it is taken."""
    found: Parameters = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        head, *rest = re.findall(r"[^\[\]]+|(?<=\[)(?=\])", name) or [name]
        node, key = found, head
        for part in rest:
            inner = node.setdefault(key, {})
            if not isinstance(inner, dict):
                raise invalid(f"Invalid {name}: it is given in two ways", head)
            node, key = inner, part or str(len(inner))
        node[key] = value
    return {name: _listed(value) for name, value in found.items()}


def _listed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if all(key.isdigit() for key in value):
        return [_listed(value[key]) for key in sorted(value, key=int)]
    return {key: _listed(inner) for key, inner in value.items()}


def known(parameters: Mapping[str, Any], names: Collection[str]) -> None:
    """Refuse a parameter that this request does not take, as Stripe does."""
    for name in parameters:
        if name not in names:
            raise invalid(f"Received unknown parameter: {name}", name, "parameter_unknown")


def text(value: Any, name: str) -> str:
    """Expect text, and not nothing."""
    if not isinstance(value, str):
        raise invalid(f"Invalid string: {value}", name)
    if not value:
        raise invalid(f"You passed an empty string for '{name}'.", name, "parameter_invalid_empty")
    return value


def texts(value: Any, name: str) -> list[str]:
    """Expect a list of texts."""
    if not isinstance(value, list):
        raise invalid("Invalid array", name)
    return [text(one, name) for one in value]


def integer(value: Any, name: str) -> int:
    """Expect a number."""
    if not isinstance(value, str) or not re.fullmatch(r"-?[0-9]{1,18}", value):
        raise invalid(f"Invalid integer: {value}", name, "parameter_invalid_integer")
    return int(value)


def boolean(value: Any, name: str) -> bool:
    """Expect `true` or `false`."""
    if value not in {"true", "false"}:
        raise invalid(f"Invalid boolean: {value}", name)
    return bool(value == "true")


def span(value: Any, name: str) -> tuple[int, int]:
    """Expect a moment in Unix seconds, or bounds of one (`gt`, `gte`, …): the first and the last that fit."""
    if isinstance(value, str):
        moment = integer(value, name)
        return moment, moment
    known(value, BOUNDS)
    bounds = {bound: integer(limit, f"{name}[{bound}]") for bound, limit in value.items()}
    first = max(bounds.get("gte", 0), bounds.get("gt", -1) + 1)
    last = min(bounds.get("lte", 2**62), bounds.get("lt", 2**62) - 1)
    return first, last
