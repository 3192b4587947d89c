"""Events that Stripe has and the ledger has not, whether never delivered or acknowledged and lost.

They are recorded as the receiver records them, and go the ordinary road. Stripe lists its events for 30 days. It lists
no thin ones; who is sent only those is told of a change by an event of another id.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, text

from models import envelope, ledger
from workers.handlers import BY_EVENT_TYPE

THIN = "v1."
RETENTION_SECONDS = 30 * 86400

Event = dict[str, Any]


def missed(connection: Connection, events: Sequence[Event], *, until: int) -> list[Event]:
    """Those of some events of Stripe's, made not after `until` (Unix seconds), that ought to be in the ledger.

    Stripe lists every type; an endpoint is sent only what it is subscribed to, so only what Dues handles counts.
    """
    told = {one["id"]: one for one in events if one["type"] in BY_EVENT_TYPE and one["created"] <= until}
    held = ledger.held(connection, told.keys())
    lacking = [one for event_id, one in told.items() if event_id not in held]
    return _untold(connection, lacking) if lacking else []


def _untold(connection: Connection, events: Iterable[Event]) -> list[Event]:
    """Those of some events of whose change no thin event told either; each of those tells of one change."""
    received = [(one, envelope.read(_body(one))) for one in events]
    ids = sorted({event.object_id for _, event in received if event.object_id is not None})
    rows = connection.execute(_TWINS, {"ids": ids, "types": sorted({THIN + event.type for _, event in received})})
    twins = Counter({tuple(row)[:3]: row.n for row in rows})
    untold = []
    for one, event in received:
        change = (THIN + event.type, event.object_id, event.created)
        if twins[change] > 0:
            twins[change] -= 1
        else:
            untold.append(one)
    return untold


# What was ignored (no key, another account) had no effect.
_TWINS = text(
    """
    SELECT type, object_id, extract(epoch FROM date_trunc('second', created))::bigint AS second, count(*) AS n
    FROM stripe_events WHERE object_id = ANY(:ids) AND type = ANY(:types) AND status IN ('received', 'processed')
    GROUP BY 1, 2, 3
    """
)


def record(connection: Connection, events: Sequence[Event]) -> int:
    """Put events into the ledger, lane bulk; returns how many of them had not come meanwhile."""
    # In the order of ids, as everything is locked: two that record the same events wait for each other's.
    received = sorted((envelope.read(_body(one), lane="bulk") for one in events), key=lambda one: one.id)
    return sum(ledger.record(connection, one) for one in received)


def _body(event: Event) -> bytes:
    return json.dumps(event).encode()
