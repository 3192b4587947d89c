"""`dues users explain` for people: the explanation as lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Engine

from models.settings import Settings
from ops import people
from workers import explain as explaining

Json = dict[str, Any]


def explain(engine: Engine, settings: Settings, id_or_email: str) -> Json:
    """The explanation of a user in one moment. Raises Failed: there is none."""
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection, connection.begin():
        told = explaining.explain(connection, settings, people.find(connection, id_or_email))
    return told or {}


def in_words(told: Json) -> Iterator[str]:
    """The explanation, a line for each thing that had a say."""
    stored = told["stored"]
    until = f" until {stored['grace_until']}" if stored["grace_until"] else ""
    yield f"{told['id']} is {stored['role']}, {stored['membership_status']}{until}, with {stored['tokens']} tokens"
    yield from (f"  {reason}" for reason in told["reasons"])
    yield from _titled("customers", map(_customer, told["customers"]))
    yield from _titled("people's decisions", map(_override, told["overrides"]))
    yield from _titled("tokens", [*map(_grant, told["tokens"]["grants"]), *map(_other, told["tokens"]["others"])])
    yield from _titled("malformed", (f"{one['id']}: {one['reason']}" for one in told["tokens"]["reports"]))
    yield from _titled("waiting", (f"{one['what']}: {one['why']}" for one in told["waiting"]))


def _titled(title: str, lines: Any) -> Iterator[str]:
    found = list(lines)
    yield f"{title}:" if found else f"{title}: none"
    yield from (f"  {line}" for line in found)


def _customer(one: Json) -> str:
    whose = f"of {one['owner_id']} by {one['decided_by']}" if one["owner_id"] else "nobody's"
    against = [f"{claim['linked_by']} of {claim['source_id']} says {claim['user_id']}" for claim in one["conflicts"]]
    return f"{one['id']} is {whose}" + (f"; but {', '.join(against)}" if against else "")


def _override(one: Json) -> str:
    running = "" if one["is_running"] else " (not running)"
    why = f": {one['reason']}" if one["reason"] else ""
    return f"{one['kind']} by {one['author']}{running}{why}"


def _grant(one: Json) -> str:
    held = ", held by a dispute" if one["held"] else ""
    taken = f", {one['share']:.0%} taken back" if one["share"] else ""
    return f"{one['source']} grants {one['amount']}{taken}{held}; {_left(one)}"


def _other(one: Json) -> str:
    return f"{one['source']} ({one['kind']}); {_left(one)}"


def _left(one: Json) -> str:
    left = [f"{part['tokens']} left until {part['expires_at'] or 'for ever'}" for part in one["left"]]
    return ", ".join(left) or "nothing left"
