"""Events that Stripe has and the ledger has not, whether never delivered or acknowledged and lost.

They are recorded as the receiver records them, and go the ordinary road. Stripe lists its events for 30 days.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from models import envelope, ledger
from workers.handlers import BY_EVENT_TYPE

RETENTION_SECONDS = 30 * 86400

Event = dict[str, Any]


def missed(connection: Connection, events: Sequence[Event], *, until: int) -> list[Event]:
    """Those of some events of Stripe's, made not after `until` (Unix seconds), that ought to be in the ledger.

    Stripe lists every type; an endpoint is sent only what it is subscribed to, so only what Dues handles counts.
    """
    told = {one["id"]: one for one in events if one["type"] in BY_EVENT_TYPE and one["created"] <= until}
    held = ledger.held(connection, told.keys())
    return [one for event_id, one in told.items() if event_id not in held]


def record(connection: Connection, events: Sequence[Event]) -> int:
    """Put events into the ledger, lane bulk; returns how many of them had not come meanwhile."""
    # In the order of ids, as everything is locked: two that record the same events wait for each other's.
    received = sorted((envelope.read(_body(one), lane="bulk") for one in events), key=lambda one: one.id)
    return sum(ledger.record(connection, one) for one in received)


def _body(event: Event) -> bytes:
    return json.dumps(event).encode()
