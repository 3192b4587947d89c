"""The vocabulary of snapshots, and how Stripe's JSON is read: tolerant of what moved, strict about what is stored.

Readers take a decoded JSON object and a key. An absent key and null are None; a value of the wrong kind raises
MalformedError, whose message names the place and never the value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

Json = Mapping[str, Any]
Concern = Literal["invoice", "payment_intent", "charge"]

LONGEST_ID = 255
LAST_SECOND = 253_402_300_799  # 9999-12-31T23:59:59Z: what both datetime and PostgreSQL can hold
BIGINT = 2**63
DECIMAL = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?")


class MalformedError(ValueError):
    """The payload can't be read; trying again won't help. The message says where, never what."""


@dataclass(frozen=True, slots=True)
class Handler:
    """What Dues knows about one kind of Stripe object.

    `read` turns the JSON into the columns of `table`, all but the bookkeeping. `progress` is a tuple that never
    falls in the life of the object: it decides between snapshots of one second. `watched` are SQL expressions over the
    row (alias `t`): if one comes out different, others than the row's own user are concerned.
    """

    object_type: str
    table: str
    events: frozenset[str]
    read: Callable[[Json], dict[str, Any]]
    progress: Callable[[Json], tuple[int, ...]] = lambda _: ()
    watched: tuple[str, ...] = ()
    # The last words about an object: nothing of the same second comes after them.
    terminal: frozenset[str] = frozenset()
    # Terminal events after which the object is gone, and the columns that then say so.
    deleted: frozenset[str] = frozenset()
    when_deleted: tuple[tuple[str, Any], ...] = ()
    # Where the row names its customer: `id` for the customer itself, None if it has none.
    customer_column: str | None = None
    # (column, kind) of further objects whose customers are concerned.
    concerns: tuple[tuple[str, Concern], ...] = ()
    # (table, id) of what the row names outside its foreign keys and will be asked about.
    names: Callable[[Mapping[str, Any]], Iterable[tuple[str, str]]] = lambda _: ()
    # Further objects that this one tells of, each with its `object` and an `id` that no other object gives it.
    also: Callable[[Json], Iterable[Json]] = lambda _: ()
    # Whether it only announces something that has no id yet.
    is_preview: Callable[[Json], bool] = lambda _: False
    # Does the row say whose customer it is?
    is_evidence: bool = False
    # Do its metadata say how many tokens something is worth, so that each version of them must be remembered?
    is_tariff: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What Stripe said an object was, and when (`as_of`, Unix seconds). `row` is None if it only said "deleted"."""

    handler: Handler
    id: str
    as_of: int
    source: str
    event_type: str
    row: dict[str, Any] | None
    deleted: bool
    livemode: bool | None
    object: Json
    previous: Json | None
    # Asked for at once, so that what can't be read is found by its own try, not by another's tie.
    progress: tuple[int, ...]
    # The object (type, id) of the events that tell of it: another one if it was told along with that.
    told_with: tuple[str, str]

    @property
    def customer(self) -> str | None:
        """The customer that it concerns."""
        column = self.handler.customer_column
        return self.id if column == "id" else (self.row or {}).get(column or "")

    @property
    def rank(self) -> int:
        """Where the event's type stands in the object's life: created, anything else, the last words.

        Stripe's API was asked after whatever the events of its second tell.
        """
        if self.source == "api":
            return 3
        if self.event_type in self.handler.terminal:
            return 2
        return 0 if self.event_type.endswith(".created") else 1


def iso(seconds: int) -> str:
    """Unix seconds as ISO 8601 in UTC, the way rows travel to PostgreSQL."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _of_kind(obj: Json, key: str, kind: type, what: str) -> Any:
    value = obj.get(key)
    if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise MalformedError(f"{obj.get('object', 'object')!s:.40}.{key} is not {what}")
    return value


def text_of(obj: Json, key: str) -> str | None:
    """A text."""
    value: str | None = _of_kind(obj, key, str, "a text")
    return value


def flag_of(obj: Json, key: str) -> bool | None:
    """True or false."""
    value: bool | None = _of_kind(obj, key, bool, "true or false")
    return value


def int_of(obj: Json, key: str) -> int | None:
    """A whole number that a bigint can hold."""
    value: int | None = _of_kind(obj, key, int, "a whole number")
    if value is not None and not -BIGINT <= value < BIGINT:
        raise MalformedError(f"{key} is out of range")
    return value


def decimal_of(obj: Json, key: str) -> str | None:
    """A decimal number, which Stripe sends as a text; returned as one, so that no digit is lost."""
    value = obj.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not DECIMAL.fullmatch(str(value)):
        raise MalformedError(f"{key} is not a decimal number")
    return str(value)


def seconds_of(obj: Json, key: str) -> int | None:
    """A moment in Unix seconds, between 1970 and 9999."""
    value = int_of(obj, key)
    if value is not None and not 0 <= value <= LAST_SECOND:
        raise MalformedError(f"{key} is no moment between 1970 and 9999")
    return value


def time_of(obj: Json, key: str) -> str | None:
    """A moment as ISO 8601, from Unix seconds."""
    value = seconds_of(obj, key)
    return None if value is None else iso(value)


def id_of(obj: Json, key: str) -> str | None:
    """The id of another object, given as an id or expanded. Ids are opaque: products may be called anything."""
    value = obj.get(key)
    if isinstance(value, Mapping):
        value = value.get("id")
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_ID:
        raise MalformedError(f"{key} is not an id")
    return value


def object_of(obj: Json, key: str) -> Json:
    """An object; empty if absent."""
    value: Json | None = _of_kind(obj, key, dict, "an object")
    return value or {}


def list_of(obj: Json, key: str) -> list[Json]:
    """The objects of a list, whether plain or in Stripe's envelope (`{"object": "list", "data": […]}`)."""
    value = obj.get(key)
    if isinstance(value, Mapping):
        value = value.get("data")
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise MalformedError(f"{key} is not a list of objects")
    return value


def metadata_of(obj: Json) -> dict[str, Any]:
    """Stripe's `metadata`, as it came."""
    return dict(object_of(obj, "metadata"))


def metadata_keys(*keys: str) -> tuple[str, ...]:
    """SQL expressions that watch these keys of a row's metadata."""
    return tuple(f"t.metadata ->> '{key}'" for key in keys)


def invoice_payment_of(
    said_by: Json,
    *,
    invoice: str | None,
    payment_intent: str | None,
    charge: str | None,
    is_paid: bool,
    amount: int | None,
) -> Iterator[Json]:
    """What an object of an old API version says of an invoice and its payment, as an invoice payment of its own.

    Its id is made of the speaker's and the other's: each speaker has its own word, and none overwrites another's.
    """
    speaker = id_of(said_by, "id")
    if speaker is None or invoice is None or (payment_intent is None and charge is None):
        return
    others = [one for one in (invoice, payment_intent or charge) if one is not None and one != speaker]
    yield {
        "id": ":".join([speaker, *others]),
        "object": "invoice_payment",
        "created": said_by.get("created"),
        "livemode": said_by.get("livemode"),
        "invoice": invoice,
        "payment": {"payment_intent": payment_intent, "charge": charge},
        "status": "paid" if is_paid else "open",
        "amount_paid": amount,
        "currency": said_by.get("currency"),
    }


# What waited for a stub goes on when something is said of it, be it nothing about tokens.
IS_STUB = "t.source = 'stub'"

# What metadata of products and prices say about tokens (CONTRACT §5, "Tokens").
TARIFF_KEYS = ("tokens", "trial_tokens", "tokens_policy", "tokens_days")

# Both spellings in which metadata name the user (CONTRACT §5, "Whose customer is it?").
USER_KEYS = metadata_keys("user_id", "userId")


def types(prefix: str, *endings: str) -> frozenset[str]:
    """Event types: `types("price", "created")` is {"price.created"}."""
    return frozenset(f"{prefix}.{ending}" for ending in endings)
