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
from workers.handlers import BY_EVENT_TYPE, BY_OBJECT_TYPE
from workers.shapes import TARIFF_KEYS, Concern, Handler, Json, MalformedError, Snapshot, id_of, iso, seconds_of

# Anything of this in the raw bytes may decode to what PostgreSQL cannot hold; then every text is looked at.
SUSPICIOUS = re.compile(rb"\\u(0000|[dD][89a-fA-F])")
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
# The source of a snapshot that Stripe's API told, rather than an event.
API = "api"


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


def read(row: ledger.Kept) -> list[Snapshot]:
    """Read an event of the ledger: its object, and what that tells of others; nothing if Dues has no use for it.

    What Dues has no use for must be readable all the same. Raises MalformedError.
    """
    if row.payload is None:
        raise MalformedError("the payload is gone")
    event = decode(row.payload)
    handler = BY_EVENT_TYPE.get(row.type)
    if handler is None:
        return []
    data = event.get("data")
    obj = data.get("object") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(obj, dict):
        raise MalformedError("data.object is not an object")
    as_of = seconds_of(event, "created")
    if as_of is None:
        raise MalformedError("created is missing")
    if handler.is_preview(obj):
        return []
    return _with_others(
        snapshot(handler, obj, as_of=as_of, source=row.id, event_type=row.type, previous=_previous(data))
    )


def from_api(obj: Json, as_of: int) -> list[Snapshot]:
    """What an object that Stripe's API told as of a moment (Unix seconds) says, of itself and others.

    Raises MalformedError, also for a kind of object that Dues does not keep.
    """
    _refuse_unstorable(obj)
    handler = BY_OBJECT_TYPE.get(obj.get("object", ""))
    if handler is None:
        raise MalformedError("it is of a kind that is not kept")
    return _with_others(snapshot(handler, obj, as_of=as_of, source=API, event_type=""))


def gone(object_type: str, object_id: str, as_of: int) -> Snapshot:
    """What Stripe's API says by knowing no such object any more."""
    (one,) = from_api({"id": object_id, "object": object_type, "deleted": True}, as_of)
    return one


def _with_others(main: Snapshot) -> list[Snapshot]:
    told: dict[str, Any] = {
        "as_of": main.as_of,
        "source": main.source,
        "event_type": main.event_type,
        "told_with": main,
    }
    also = [] if main.row is None else main.handler.also(main.object)
    return [main, *(snapshot(BY_OBJECT_TYPE[one["object"]], one, **told) for one in also)]


def _previous(data: Json) -> Json | None:
    previous = data.get("previous_attributes")
    return previous if isinstance(previous, dict) else None


def snapshot(  # noqa: PLR0913 - one keyword for each thing that Stripe said
    handler: Handler,
    obj: Json,
    *,
    as_of: int,
    source: str,
    event_type: str,
    previous: Json | None = None,
    told_with: Snapshot | None = None,
) -> Snapshot:
    """Make the snapshot of `obj` as Stripe told it at `as_of` (Unix seconds), perhaps along with another object.

    Raises MalformedError.
    """
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
        progress=handler.progress(obj),
        told_with=told_with.told_with if told_with else (handler.object_type, object_id),
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
    last = [one for one in ordered if not any(_came_before(one, other) for other in ordered if other is not one)]
    for some in (ordered, last):
        if some and all((one.row, one.deleted) == (some[0].row, some[0].deleted) for one in some):
            return some[-1], False
    return ordered[-1], True


def _rank(one: Snapshot) -> tuple[int, ...]:
    return (one.rank,)


def _progress(one: Snapshot) -> tuple[int, ...]:
    return one.progress


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
    """Whom a list of snapshots concerns: customers, those of other objects, and products and prices that changed."""

    customers: set[str] = field(default_factory=set)
    evidence_changed: set[str] = field(default_factory=set)
    objects: dict[Concern, set[str]] = field(default_factory=lambda: defaultdict(set))
    guests: set[str] = field(default_factory=set)
    catalogue: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return any((self.customers, self.evidence_changed, *self.objects.values(), self.guests, self.catalogue))

    def to_json(self) -> bytes:
        """As work of our own in the ledger."""
        objects = {kind: sorted(ids) for kind, ids in self.objects.items()}
        sets = ("customers", "evidence_changed", "guests", "catalogue")
        return json.dumps({"objects": objects} | {name: sorted(getattr(self, name)) for name in sets}).encode()

    @classmethod
    def from_json(cls, payload: bytes) -> Effects:
        """What `to_json` wrote."""
        read = json.loads(payload)
        objects = defaultdict(set, {kind: set(ids) for kind, ids in read.pop("objects").items()})
        return cls(objects=objects, **{name: set(ids) for name, ids in read.items()})


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
    everything = list(snapshots)
    newest = _newest(everything)
    named = _named_parents(one for group in newest.values() for one in group)
    writing = _Writing(connection, applies, assume_changed)
    for table in upsert.LOCK_ORDER:
        groups = {row_id: group for (name, row_id), group in newest.items() if name == table}
        # The rows to be written along with the parents: two rounds of locks in one table could meet LINK crosswise.
        there = upsert.lock_parents(connection, table, named[table] | groups.keys()) if named[table] else set()
        missing = named[table] - there
        if groups or missing:
            writing.write_table(table, groups, missing)
    tariffs = [one for one in everything if one.handler.is_tariff and one.row is not None and one.source != "stub"]
    writing.remember_tariffs(tariffs)
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


def _named_parents(snapshots: Iterable[Snapshot]) -> dict[str, set[str]]:
    """The ids that rows name in foreign keys, and others they will be asked about, by table."""
    named: dict[str, set[str]] = defaultdict(set)
    for one in snapshots:
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
            winners = _decide_ties(self.connection, [groups[row_id] for row_id in sorted(tied)], self.applies)
            self._stub_parents([one for one, _ in winners if one not in groups[one.id]])
            decided = [as_row(one, contested=contested) for one, contested in winners]
            result.changed |= upsert.overwrite(self.connection, table, decided, watched=watched).changed
        if handler is not None:
            for row_id, group in groups.items():
                changed = row_id in result.changed or any(one.source in self.assume_changed for one in group)
                self._note(handler, group[0], changed=changed)

    def _stub_parents(self, strangers: Sequence[Snapshot]) -> None:
        """Give parents to winners of other lists, which may not have been there yet. Out of order, but only if new."""
        named = _named_parents(strangers)
        for table in upsert.LOCK_ORDER:
            if missing := named[table] and named[table] - upsert.lock_parents(self.connection, table, named[table]):
                upsert.write(self.connection, table, [], stubs=missing)

    def remember_tariffs(self, tariffs: Sequence[Snapshot]) -> None:
        """Keep what each snapshot of a product or price said about tokens, older ones too: payments lie in the past.

        The rows that they belong to are locked by now, so that two lists decide about one second in turns.
        """
        if not tariffs:
            return
        groups: dict[tuple[str, str, int], list[Snapshot]] = defaultdict(list)
        asked = [one for one in tariffs if one.source == API]
        for one in tariffs:
            if one.source != API:
                groups[_place(one)].append(one)
        told = [one for one, _ in _decide_ties(self.connection, list(groups.values()), self.applies)]
        # Stripe is asked every few minutes, and nearly always says what was known.
        rows = [*map(_tariff, told), *self._news(map(_tariff, asked))]
        if not rows:
            return
        parameters = {"rows": json.dumps(rows)}
        # Before they are written: two that say the same would hide from each other what the first of them changes.
        self.effects.catalogue |= {row.object_id for row in self.connection.execute(_MATTERS, parameters)}
        self.connection.execute(_REMEMBER, parameters)

    def _news(self, tariffs: Iterable[upsert.Row]) -> list[upsert.Row]:
        """Those that say something else than what was in force until then."""
        rows = {row["object_id"]: row for row in tariffs}
        news = self.connection.execute(_NEWS, {"rows": json.dumps(list(rows.values()))})
        return [rows[row.object_id] for row in news]

    def _note(self, handler: Handler, one: Snapshot, *, changed: bool) -> None:
        """Note whom the snapshot concerns: its customer in any case, others only if a watched value changed."""
        effects, row = self.effects, one.row or {}
        if handler.is_tariff and changed:
            effects.catalogue.add(one.id)
        if one.customer is not None:
            effects.customers.add(one.customer)
            if handler.is_evidence and changed:
                effects.evidence_changed.add(one.customer)
        elif handler.is_evidence:
            effects.guests.add(one.id)
        for column, kind in handler.concerns:
            named = one.id if column == "id" else row.get(column)
            if named is not None:
                effects.objects[kind].add(named)


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


def _tariff(one: Snapshot) -> upsert.Row:
    metadata = (one.row or {}).get("metadata", {})
    kept = {key: metadata[key] for key in TARIFF_KEYS if key in metadata}
    return {"object_id": one.id, "as_of": iso(one.as_of), "metadata": kept}


_TARIFFS = "jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(object_id text, as_of timestamptz, metadata jsonb)"

_REMEMBER = text(
    f"""
    INSERT INTO stripe_metadata_history (object_id, as_of, metadata)
    SELECT object_id, as_of, metadata FROM {_TARIFFS} ORDER BY object_id COLLATE "C", as_of
    ON CONFLICT (object_id, as_of) DO UPDATE SET metadata = excluded.metadata
    """,
)

_NEWS = text(
    f"""
    SELECT r.object_id FROM {_TARIFFS}
    LEFT JOIN LATERAL (
        SELECT h.metadata FROM stripe_metadata_history h WHERE h.object_id = r.object_id AND h.as_of <= r.as_of
        ORDER BY h.as_of DESC LIMIT 1
    ) AS before ON true
    WHERE before.metadata IS DISTINCT FROM r.metadata
    """,
)

# Which of them say something else than what was in force then (or, if nothing was, than what came next).
_MATTERS = text(
    f"""
    SELECT DISTINCT r.object_id FROM {_TARIFFS}
    LEFT JOIN LATERAL (
        SELECT h.metadata FROM stripe_metadata_history h WHERE h.object_id = r.object_id
        ORDER BY h.as_of <= r.as_of DESC, abs(extract(epoch FROM h.as_of - r.as_of)) LIMIT 1
    ) AS near ON true
    WHERE near.metadata IS DISTINCT FROM r.metadata
    """,
)

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
) -> list[tuple[Snapshot, bool]]:
    """The winner of each group, and whether it is contested, over all events that the ledger holds for its second.

    A group is of one object and second, whose row is locked by now.
    """
    tellers = {(one.told_with, one.as_of) for group in groups for one in group}
    objects = [
        {"object_type": object_type, "object_id": object_id, "second": iso(as_of)}
        for (object_type, object_id), as_of in sorted(tellers)
    ]
    candidates = {_place(group[0]): {one.source: one for one in group} for group in groups}
    for row in connection.execute(_SET, {"objects": json.dumps(objects)}):
        event = ledger.Kept(*row)
        for one in _readable(event) if applies(event) else ():
            if _place(one) in candidates:
                candidates[_place(one)].setdefault(one.source, one)
    return [winner(found.values()) for found in candidates.values()]


def _place(one: Snapshot) -> tuple[str, str, int]:
    return one.handler.table, one.id, one.as_of


def _readable(row: ledger.Kept) -> list[Snapshot]:
    try:
        return read(row)
    except MalformedError:  # it will be parked by its own try
        return []
