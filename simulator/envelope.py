"""Event envelopes as Stripe posts them, around any object."""

import json
from collections.abc import Mapping
from typing import Any

from simulator.ids import token
from simulator.versions import ENDIVE


def envelope(  # noqa: PLR0913 - one keyword per field of an event
    obj: Mapping[str, Any],
    type: str,
    created: int,
    *,
    id: str | None = None,
    api_version: str | None = ENDIVE,
    previous_attributes: Mapping[str, Any] | None = None,
    request_id: str | None = None,
    idempotency_key: str | None = None,
    livemode: bool | None = None,
) -> dict[str, Any]:
    """A whole event of `type` around `obj`, made at `created` (Unix seconds).

    Without an `id` it gets one that depends on everything else in it, so that equal calls give equal events.
    `previous_attributes` is left out when None: Stripe sends the key with `*.updated` only. A `request_id` of None
    means that Stripe's billing engine acted by itself. `livemode` is the object's, unless given.
    """
    data: dict[str, Any] = {"object": dict(obj)}
    if previous_attributes is not None:
        data["previous_attributes"] = dict(previous_attributes)
    contents = json.dumps([type, created, api_version, data, request_id], sort_keys=True)
    return {
        "id": id if id is not None else f"evt_1{token(contents)}",
        "object": "event",
        "api_version": api_version,
        "created": created,
        "data": data,
        "livemode": bool(obj.get("livemode", False)) if livemode is None else livemode,
        "pending_webhooks": 1,
        "request": {"id": request_id, "idempotency_key": idempotency_key},
        "type": type,
    }


def body_of(event: Mapping[str, Any]) -> bytes:
    """The bytes that Stripe would post for `event`: UTF-8 JSON, indented by two spaces."""
    return json.dumps(event, indent=2, ensure_ascii=False).encode()
