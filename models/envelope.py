"""What the ledger wants to know of an event: just enough to store it, from whatever JSON it may be.

Whoever records an event reads it here: the receiver, and what fetches events that never arrived. Only a body that is no
JSON object with an id and a type is refused. All else is stored, and what nobody can make sense of is found by the
worker, in the raw bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from models.ledger import Lane, Received

LONGEST = 255  # characters; also keeps three of them below what one entry of a B-tree can hold
LAST_SECOND = 253_402_300_799  # 9999-12-31T23:59:59Z
THIN = "v2.core.event"  # https://docs.stripe.com/event-destinations#thin-payload
UNREADABLE = "unreadable"
DEEP = 100

# What PostgreSQL's text can't hold.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
# A string, closed or not, or a bracket.
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)


class UnreadableError(ValueError):
    """The body is no event; the message says why, and nothing of what it holds."""


def read(body: bytes, *, lane: Lane = "live") -> Received:
    """Read what the ledger wants to know of an event that goes into `lane`. Raises UnreadableError.

    An id that PostgreSQL can't hold is replaced by one made of the body's hash; other values by null.
    """
    event = _decode(body)
    event_id, event_type = event.get("id"), event.get("type")
    if not isinstance(event_id, str) or not 0 < len(event_id) <= LONGEST:
        raise UnreadableError(f"The event has no id of 1 to {LONGEST} characters.")
    if not isinstance(event_type, str):
        raise UnreadableError("The event has no type.")
    is_thin = event.get("object") == THIN
    object_type, object_id = _related_object(event) if is_thin else _data_object(event)
    livemode = event.get("livemode")
    return Received(
        id=_plain(event_id) or f"malformed_{hashlib.sha256(body).hexdigest()}",
        type=_UNSTORABLE.sub("\ufffd", event_type)[:LONGEST],
        payload=body,
        created=_moment(event.get("created")) if is_thin else _second(event.get("created")),
        object_type=object_type,
        object_id=object_id,
        api_version=_plain(event.get("api_version")),
        livemode=livemode if isinstance(livemode, bool) else None,
        account=_account(event.get("context" if is_thin else "account")),
        lane=lane,
    )


def _decode(body: bytes) -> Mapping[str, Any]:
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise UnreadableError("The body is not UTF-8.") from None
    try:
        event = _load(text)
    except json.JSONDecodeError:
        raise UnreadableError("The body is not JSON.") from None
    if not isinstance(event, dict):
        raise UnreadableError("The body is not a JSON object.")
    return event


def _load(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except (RecursionError, ValueError):
        # It may well be JSON, but nested deeper or with longer numbers than Python cares to read.
        return json.loads(_shallow(text), parse_int=_short)


def _shallow(text: str) -> str:
    """`text` with null in the place of everything nested deeper than DEEP; what is never closed stays unclosed."""
    kept: list[str] = []
    start = depth = 0
    for token in _TOKEN.finditer(text):
        bracket = token.group()
        if bracket in {"{", "["}:
            depth += 1
            if depth == DEEP:
                kept.append(text[start : token.start()])
                start = len(text)
        elif bracket in {"}", "]"}:
            if depth == DEEP:
                kept.append("null")
                start = token.end()
            depth -= 1
    return "".join(kept) + text[start:]


def _short(digits: str) -> int | None:
    return int(digits) if len(digits) <= len(str(LAST_SECOND)) else None


def _plain(value: object) -> str | None:
    if isinstance(value, str) and 0 < len(value) <= LONGEST and not _UNSTORABLE.search(value):
        return value
    return None


def _account(value: object) -> str | None:
    """The connected account; what can't be read is not our own account either."""
    return None if value is None else _plain(value) or UNREADABLE


def _second(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LAST_SECOND:
        return value
    return None


def _moment(value: object) -> int | None:
    """Unix seconds of an ISO 8601 moment."""
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return _second(int(moment.timestamp())) if moment.tzinfo else None


def _data_object(event: Mapping[str, Any]) -> tuple[str | None, str | None]:
    data = event.get("data")
    obj = data.get("object") if isinstance(data, dict) else None
    return (_plain(obj.get("object")), _plain(obj.get("id"))) if isinstance(obj, dict) else (None, None)


def _related_object(event: Mapping[str, Any]) -> tuple[str | None, str | None]:
    obj = event.get("related_object")
    return (_plain(obj.get("type")), _plain(obj.get("id"))) if isinstance(obj, dict) else (None, None)
