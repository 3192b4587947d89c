"""Events become snapshots, and snapshots become rows: newest per object, ties decided over the set of their second.

Reading is pure. Writing needs a connection, and the ledger for ties: the answer is taken from all events that the
ledger holds for that object and second, so that it can't depend on which of them came first or in whose list.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, text

from models import ledger, upsert
from workers.handlers import BY_EVENT_TYPE
from workers.shapes import Handler, Json, MalformedError, Snapshot, id_of, iso, seconds_of

# Anything of this in the raw bytes may decode to what PostgreSQL cannot hold; then every text is looked at.
SUSPICIOUS = re.compile(rb"\\u(0000|[dD][89a-fA-F])")
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


# --- reading ------------------------------------------------------------------------------------------------------


def decode(payload: bytes) -> Json:
    """Decode an event's raw bytes. Raises MalformedError for what is no JSON object or what jsonb could not hold."""
    try:
        event = json.loads(payload.decode("utf-8"), parse_constant=_no_constant)
    except MalformedError:
        raise
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"the payload is no JSON that can be read ({type(error).__name__})") from None
    if not isinstance(event, dict):
        raise MalformedError("the payload is not a JSON object")
    if SUSPICIOUS.search(payload):
        _refuse_unstorable(event)
    return event


def _no_constant(name: str) -> Any:
    raise MalformedError(f"the payload holds {name}, which is no JSON")


def _refuse_unstorable(value: Any) -> None:
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, str):
            if UNSTORABLE.search(item):
                raise MalformedError("the payload holds U+0000 or half a surrogate pair, which PostgreSQL cannot store")
        elif isinstance(item, dict):
            rest += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            rest += item


def read(row: ledger.Kept) -> Snapshot | None:
    """Read an event of the ledger; None if Dues has no use for its type, which must be readable all the same.

    Raises MalformedError.
    """
    handler = BY_EVENT_TYPE.get(row.type)
    if row.payload is None:
        raise MalformedError("the payload is gone")
    event = decode(row.payload)
    if handler is None:
        return None
    data = event.get("data")
    obj = data.get("object") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(obj, dict):
        raise MalformedError("data.object is not an object")
    as_of = seconds_of(event, "created")
    if as_of is None:
        raise MalformedError("created is missing")
    return snapshot(handler, obj, as_of=as_of, source=row.id, event_type=row.type, previous=_previous(data))


def _previous(data: Json) -> Json | None:
    previous = data.get("previous_attributes")
    return previous if isinstance(previous, dict) else None


def snapshot(
    handler: Handler,
    obj: Json,
    *,
    as_of: int,
    source: str,
    event_type: str,
    previous: Json | None = None,
) -> Snapshot:
    """Make the snapshot of `obj` as Stripe told it at `as_of` (Unix seconds). Raises MalformedError."""
    if obj.get("object", handler.object_type) != handler.object_type:
        raise MalformedError(f"data.object is not a {handler.object_type}")
    object_id = id_of(obj, "id")
    if object_id is None:
        raise MalformedError("data.object.id is missing")
    deleted = event_type in handler.deleted or obj.get("deleted") is True
    livemode = obj.get("livemode")
    # {"id", "object", "deleted": true} and nothing else: it has no columns to write.
    row = None if obj.get("deleted") is True else handler.read(obj)
    if row is not None and deleted:
        row |= dict(handler.when_deleted)
    return Snapshot(
        handler=handler,
        id=object_id,
        as_of=as_of,
        source=source,
        event_type=event_type,
        row=row,
        deleted=deleted,
        livemode=livemode if isinstance(livemode, bool) else None,
        object=obj,
        previous=previous,
    )


# --- ties ---------------------------------------------------------------------------------------------------------


def winner(candidates: Collection[Snapshot]) -> tuple[Snapshot, bool]:
    """Return the last of snapshots of one object and second, and whether that is contested (Stripe's data don't say).

    By the event's type, then the object's progress, then the one that no other names as what was before it.
    """
    ordered = sorted(candidates, key=lambda one: one.source)
    for measure in (_rank, _progress):
        best = max(measure(one) for one in ordered)
        ordered = [one for one in ordered if measure(one) == best]
    if all((one.row, one.deleted) == (ordered[0].row, ordered[0].deleted) for one in ordered):
        return ordered[-1], False
    last = [one for one in ordered if not any(_came_before(one, other) for other in ordered if other is not one)]
    return (last[0], False) if len(last) == 1 else (ordered[-1], True)


def _rank(one: Snapshot) -> tuple[int, ...]:
    return (one.rank,)


def _progress(one: Snapshot) -> tuple[int, ...]:
    return one.handler.progress(one.object)


def _came_before(one: Snapshot, other: Snapshot) -> bool:
    """Whether `other` names values of `one` as its previous attributes."""
    return bool(other.previous) and _holds(one.object, other.previous or {})


def _holds(value: Json, attributes: Json) -> bool:
    """Whether `value` holds all of `attributes`; of nested objects Stripe sends only the keys that changed."""
    for key, former in attributes.items():
        now = value.get(key)
        if isinstance(former, dict) and isinstance(now, dict):
            if not _holds(now, former):
                return False
        elif now != former:
            return False
    return True


# --- writing ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Effects:
    """Whom a list of snapshots concerns: customers, and products and prices whose watched values changed."""

    customers: set[str] = field(default_factory=set)
    evidence_changed: set[str] = field(default_factory=set)
    subscriptions: set[str] = field(default_factory=set)
    catalogue: set[str] = field(default_factory=set)


def write(
    connection: Connection,
    snapshots: Iterable[Snapshot],
    *,
    applies: Callable[[ledger.Kept], bool],
    assume_changed: Collection[str] = (),
) -> Effects:
    """Write the newest snapshot of each object, table by table in the one lock order, and say whom that concerns.

    `applies` says of an event of the ledger whether this installation would apply it (mode, account): only such events
    take part in a tie. `assume_changed` are sources (event ids) whose former try may have written without telling.
    The caller commits. Raises nothing of its own.
    """
    newest = _newest(snapshots)
    named = _named_parents(newest.values())
    writing = _Writing(connection, applies, assume_changed)
    for table in upsert.LOCK_ORDER:
        missing = named[table] - upsert.lock_parents(connection, table, named[table]) if named[table] else set()
        groups = {row_id: group for (name, row_id), group in newest.items() if name == table}
        if groups or missing:
            writing.write_table(table, groups, missing)
    return writing.effects


def _newest(snapshots: Iterable[Snapshot]) -> dict[tuple[str, str], list[Snapshot]]:
    """The newest snapshots of each object: more than one if they share their second."""
    newest: dict[tuple[str, str], list[Snapshot]] = {}
    for one in snapshots:
        key = (one.handler.table, one.id)
        held = newest.get(key)
        if held is None or one.as_of > held[0].as_of:
            newest[key] = [one]
        elif one.as_of == held[0].as_of:
            held.append(one)
    return newest


def _named_parents(groups: Iterable[list[Snapshot]]) -> dict[str, set[str]]:
    """The ids that rows of this list name in foreign keys, and others they will be asked about, by table."""
    named: dict[str, set[str]] = defaultdict(set)
    for group in groups:
        for one in group:
            if one.row is None:
                continue
            for column, parent in upsert.parents_of(one.handler.table):
                if one.row[column] is not None:
                    named[parent].add(one.row[column])
            for parent, row_id in one.handler.names(one.row):
                named[parent].add(row_id)
    return named


@dataclass(slots=True)
class _Writing:
    connection: Connection
    applies: Callable[[ledger.Kept], bool]
    assume_changed: Collection[str]
    effects: Effects = field(default_factory=Effects)

    def write_table(self, table: str, groups: Mapping[str, list[Snapshot]], stubs: set[str]) -> None:
        handler = next((group[0].handler for group in groups.values()), None)
        watched = handler.watched if handler else ()
        # Any of a tie will do here: the row is then ours until we commit, and the tie is decided over the ledger.
        rows = [as_row(group[0]) for group in groups.values()]
        result = upsert.write(self.connection, table, rows, stubs=stubs, watched=watched)
        tied = result.tied | {row_id for row_id in result.written if len(groups[row_id]) > 1}
        if tied:
            decided = _decide_ties(self.connection, [groups[row_id] for row_id in sorted(tied)], self.applies)
            result.changed |= upsert.overwrite(self.connection, table, decided, watched=watched).changed
        if handler is not None:
            for row_id, group in groups.items():
                changed = row_id in result.changed or any(one.source in self.assume_changed for one in group)
                self._note(handler, group[0], changed=changed)

    def _note(self, handler: Handler, one: Snapshot, *, changed: bool) -> None:
        """Note whom the snapshot concerns: its customer in any case, others only if a watched value changed."""
        if handler.customer_column is None:
            self.effects.catalogue |= {one.id} if changed else set()
            return
        if one.customer is not None:
            self.effects.customers.add(one.customer)
            if handler.is_evidence and changed:
                self.effects.evidence_changed.add(one.customer)
        if handler.table == "user_subscriptions":
            self.effects.subscriptions.add(one.id)


def as_row(one: Snapshot, *, contested: bool = False) -> upsert.Row:
    """The row that a snapshot writes: all columns, or only the bookkeeping if Stripe said no more than "deleted"."""
    as_of = iso(one.as_of)
    bookkeeping = {
        "id": one.id,
        "as_of": as_of,
        "source": one.source,
        "deleted_at": as_of if one.deleted else None,
        "contested": contested,
        "livemode": one.livemode,
    }
    return bookkeeping if one.row is None else {**one.row, **bookkeeping}


_SET = text(
    """
    SELECT e.id, e.type, e.payload, e.livemode, e.account
    FROM jsonb_to_recordset(CAST(:objects AS jsonb))
        AS o(object_type text, object_id text, second timestamptz)
    JOIN stripe_events e ON e.object_id = o.object_id AND e.object_type = o.object_type AND e.created = o.second
    WHERE e.status IN ('received', 'processed') AND e.payload IS NOT NULL
    """,
)


def _decide_ties(
    connection: Connection,
    groups: Sequence[list[Snapshot]],
    applies: Callable[[ledger.Kept], bool],
) -> list[upsert.Row]:
    """The winners over all events that the ledger holds for each object and second. The rows are locked already."""
    objects = [
        {
            "object_type": one.handler.object_type,
            "object_id": one.id,
            "second": iso(one.as_of),
        }
        for one in (group[0] for group in groups)
    ]
    candidates = {one.id: {member.source: member for member in group} for group in groups for one in group}
    for row in connection.execute(_SET, {"objects": json.dumps(objects)}):
        event = ledger.Kept(*row)
        if applies(event) and (one := _readable(event)) is not None:
            candidates[one.id].setdefault(one.source, one)
    decided = []
    for found in candidates.values():
        best, contested = winner(found.values())
        decided.append(as_row(best, contested=contested))
    return decided


def _readable(row: ledger.Kept) -> Snapshot | None:
    try:
        return read(row)
    except MalformedError:  # it will be parked by its own try
        return None
