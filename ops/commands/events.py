"""`dues events`: the ledger of events."""

from __future__ import annotations

import base64
import sys
from datetime import datetime
from typing import Any

import click

from ops import console
from ops.failures import Failed

STATUSES = ("received", "processed", "ignored", "dead")
COLUMNS = (
    "id",
    "type",
    "object_id",
    "created",
    "status",
    "reason",
    "attempts",
    "lane",
    "received_at",
    "processed_at",
)
DETAILS = (
    "id",
    "type",
    "object_type",
    "object_id",
    "created",
    "api_version",
    "livemode",
    "account",
    "status",
    "reason",
    "error",
    "attempts",
    "lane",
    "due_at",
    "received_at",
    "processed_at",
    "code_version",
    "has_payload",
)
REASONS = {
    "account": "it is of a connected account that STRIPE_ACCOUNT does not name",
    "livemode": "it is of the other mode than STRIPE_LIVEMODE wants",
    "malformed": "its payload can't be read; see the error",
    "no_api_key": "it carries no object, and without STRIPE_API_KEY Dues can't fetch one",
    "replayed": "somebody asked for it to be tried again",
    "transient": "it failed for a reason that passes, such as a lock; see the error",
    "type": "Dues has nothing to do for events of this type",
    "unexpected": "it failed unexpectedly; see the error",
    "worker_died": "its process ended without a word each time it was tried",
}
# So many at once need a second thought.
MANY = 1000
BATCH = 500


@click.group(epilog="Example: dues events list --status dead")
def command() -> None:
    """Look at the events that Stripe sent, and try them again."""


# --- list ---------------------------------------------------------------------------------------------------------


@command.command("list", epilog="Example: dues events list --status dead --since 7d --json")
@click.option("--status", type=click.Choice(STATUSES), help="Only those that stand so.")
@click.option("--type", "type_", metavar="TYPE", help="Only this type; customer.* means the whole family.")
@click.option("--object", "object_id", metavar="ID", help="Only those about this object of Stripe's.")
@click.option("--since", type=console.Moment(), help="Received since then: 2026-01-31T12:00:00Z, or 2h, or 7d.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many at most.")
@click.option("--cursor", help="Where the page before ended: its next_cursor.")
@click.option("--count", is_flag=True, help="How many of each status, reason and type there are in the whole ledger.")
@console.as_json
def list_(
    *,
    status: str | None,
    type_: str | None,
    object_id: str | None,
    since: datetime | None,
    limit: int,
    cursor: str | None,
    count: bool,
    as_json: bool,
) -> None:
    """List events, newest received first."""
    from models import ledger

    if count:
        _count(as_json=as_json)
        return
    which = ledger.Filter(status=status, type=type_, object_id=object_id, since=since)
    after = _read_cursor(cursor) if cursor else None
    with console.database("events") as database, database.engine.connect() as connection:
        rows = ledger.listing(connection, which, limit=limit + 1, after=after)
    page, next_cursor = rows[:limit], _cursor(rows[limit - 1]) if len(rows) > limit else None
    if as_json:
        events = [{name: getattr(row, name) for name in COLUMNS} for row in page]
        console.print_json({"events": events, "next_cursor": next_cursor})
        return
    shown = ("received_at", "status", "reason", "attempts", "type", "object_id", "id")
    console.print_table([[getattr(row, name) for name in shown] for row in page], shown)
    if next_cursor:
        click.echo(f"\nMore: --cursor {next_cursor}")


def _count(*, as_json: bool) -> None:
    from models import ledger

    with console.database("events") as database, database.engine.connect() as connection:
        rows = ledger.counts(connection)
    heads = ("status", "reason", "type", "n")
    if as_json:
        console.print_json({"counts": [dict(zip(heads, row, strict=True)) for row in rows]})
    else:
        console.print_table(rows, heads)


def _cursor(row: Any) -> str:
    return base64.urlsafe_b64encode(f"{console.iso(row.received_at)} {row.id}".encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> tuple[datetime, str]:
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        moment, _, event_id = text.partition(" ")
        return datetime.fromisoformat(moment), event_id
    except ValueError:
        raise Failed("--cursor is not a next_cursor of `dues events list`.") from None


# --- show ---------------------------------------------------------------------------------------------------------


@command.command(epilog="Example: dues events show evt_1MqqbKLt4dXK03v5qaIbiNCC")
@click.argument("event_id", metavar="ID")
@click.option("--payload", is_flag=True, help="Also what Stripe sent, byte for byte. It holds people's data.")
@console.as_json
def show(*, event_id: str, payload: bool, as_json: bool) -> None:
    """Show one event, and why it stands as it does."""
    from models import ledger

    with console.database("events") as database, database.engine.connect() as connection:
        rows = ledger.listing(connection, ledger.Filter(ids=(event_id,)), limit=1)
        if not rows:
            raise Failed(f"There is no event {console.printable(event_id)} in the ledger.")
        body = _payload(connection, event_id) if payload else None
    told = {name: getattr(rows[0], name) for name in DETAILS}
    told["explanation"] = _explanation(rows[0])
    if as_json:
        console.print_json({**told, **({"payload": body} if payload else {})})
        return
    for name, value in told.items():
        if value is not None:
            click.echo(f"{name:12}  {console.cell(value)}")
    if payload:
        click.echo(f"\n{'The payload is gone: DUES_RETENTION_DAYS have passed.' if body is None else body}")


def _explanation(row: Any) -> str | None:
    return REASONS.get(row.reason or "")


def _payload(connection: Any, event_id: str) -> str | None:
    from sqlalchemy import text

    query = text("SELECT payload FROM stripe_events WHERE id = :id")
    payload = connection.execute(query, {"id": event_id}).scalar_one()
    return None if payload is None else bytes(payload).decode(errors="backslashreplace")


# --- replay -------------------------------------------------------------------------------------------------------


@command.command(epilog="Example: dues events replay --dead --since 7d --dry-run")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--dead", is_flag=True, help="Those that were given up.")
@click.option("--type", "type_", metavar="TYPE", help="Those of this type; customer.* means the whole family.")
@click.option("--since", type=console.Moment(), help="Those received since then: 2026-01-31T12:00:00Z, or 2h, or 7d.")
@click.option("--dry-run", is_flag=True, help="Only say how many it would be.")
@console.yes
@console.as_json
def replay(
    *,
    ids: tuple[str, ...],
    dead: bool,
    type_: str | None,
    since: datetime | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Let events be processed again.

    From the start, as if they had just arrived, which is always safe: nothing is booked twice. Say which: IDs, --dead,
    --type, --since; if several are given, all must hold. More than 1000 need --yes. Exit 1 if the payload of some is
    gone: those have to be fetched from Stripe again.
    """
    from models import ledger

    if not (ids or dead or type_ or since):
        raise click.UsageError("Which events? Give IDs, --dead, --type or --since.")
    which = ledger.Filter(ids=ids, status="dead" if dead else None, type=type_, since=since)
    with console.database("events") as database:
        with database.engine.connect() as connection:
            kept, gone = ledger.replayable(connection, which)
        _refuse_unknown(ids, {*kept, *gone}, narrowed=bool(dead or type_ or since))
        if len(kept) > MANY and not dry_run:
            console.confirm(f"Replay {len(kept)} events?", yes=yes)
        replayed = 0 if dry_run else _replay(database, kept)
    if as_json:
        console.print_json(
            {"dry_run": dry_run, "replayable": len(kept), "replayed": replayed, "without_payload": gone},
        )
    else:
        _tell(len(kept) if dry_run else replayed, gone, dry_run=dry_run)
    if gone:
        raise click.exceptions.Exit(1)


def _refuse_unknown(ids: tuple[str, ...], found: set[str], *, narrowed: bool) -> None:
    missing = sorted(set(ids) - found)
    if missing:
        where = "among those that the other options mean" if narrowed else "in the ledger"
        raise Failed(f"Not {where}, so nothing was replayed: {console.printable(', '.join(missing))}.")


def _replay(database: console.Database, ids: list[str]) -> int:
    from models import ledger

    batches = [ids[start : start + BATCH] for start in range(0, len(ids), BATCH)]
    replayed = 0
    is_long = len(batches) > 1 and sys.stderr.isatty()
    with click.progressbar(batches, label="Replaying", file=sys.stderr, hidden=not is_long) as progress:
        for batch in progress:
            with database.engine.begin() as connection:
                replayed += ledger.replay(connection, batch)
    if replayed and database.settings.redis_url:
        _ring(database.settings.redis_url)
    return replayed


def _ring(redis_url: str) -> None:
    from workers.bell import Bell

    bell = Bell(redis_url)
    bell.ring("bulk")
    bell.close()


def _tell(number: int, gone: list[str], *, dry_run: bool) -> None:
    events = "1 event" if number == 1 else f"{number} events"
    click.echo(f"{events} {'would' if dry_run else 'will now'} be processed again.")
    if gone:
        some = ", ".join(gone[:5]) + (f" and {len(gone) - 5} more" if len(gone) > 5 else "")
        reason = "payload gone (DUES_RETENTION_DAYS), to be fetched from Stripe again"
        click.echo(f"{some}: {reason}", err=True)
