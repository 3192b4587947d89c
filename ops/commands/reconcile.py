"""`dues reconcile`."""

from __future__ import annotations

import contextlib
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from ops import console

if TYPE_CHECKING:
    from workers.process import Road
    from workers.stripe_api import StripeApi

# What is said of each thing that was counted.
SENTENCES = {
    "missed": "{n} events had not arrived; {then}",
    "unreadable": "{n} objects of Stripe's can't be read",
    "gap_days": "nothing had been heard for {n} days, longer than Stripe keeps events",
}
PEOPLE = {
    "orphans": "{n} customers have paid and are nobody's: `dues users link`",
    "conflicts": "the evidence about {n} customers names several users: `dues users link`",
    "overrides": "{n} users' roles were written directly and hold against Stripe",
}


@click.command(epilog="Example: dues reconcile --repair")
@click.option("--since", type=console.Moment(), help="Only what happened since then: 2026-01-31T12:00:00Z, 2h, 7d.")
@click.option("--repair", is_flag=True, help="Also mend rows that are not what Stripe says.")
@click.option("--dry-run", is_flag=True, help="Write nothing at all, missed events neither.")
@console.as_json
def command(*, since: datetime | None, repair: bool, dry_run: bool, as_json: bool) -> None:
    """Ask Stripe what was missed.

    Events that never arrived, or were lost, are recorded and worked off. Every row is compared with what Stripe says;
    with --repair what differs is mended. Exit 1 if anything was found. Beat does the same: docs/operations.md.
    """
    from workers.reconcile import findings

    if dry_run and repair:
        raise click.UsageError("--dry-run writes nothing, so it can't --repair.")
    counts = _run(since, repair=repair, dry_run=dry_run)
    is_fine = not findings(counts)
    if as_json:
        console.print_json({"ok": is_fine, **counts})
    else:
        _tell(counts, dry_run=dry_run)
    if not is_fine:
        raise click.exceptions.Exit(1)


def _run(since: datetime | None, *, repair: bool, dry_run: bool) -> dict[str, Any]:
    from workers.catalog_version import CatalogVersion
    from workers.process import Road
    from workers.reconcile import Tools, by_hand
    from workers.reconciler import Order
    from workers.stripe_api import StripeApi

    with (
        console.database("reconcile") as database,
        contextlib.closing(StripeApi(database.settings)) as stripe,
        contextlib.closing(CatalogVersion(database.settings.redis_url)) as version,
    ):
        road = Road(database.engine, database.settings, renew_catalog=version.renew)
        return by_hand(
            Tools(road, stripe, resync=lambda: _fetch_everything(road, stripe)),
            Order(repairs=repair, records=not dry_run),
            since=None if since is None else int(since.timestamp()),
        )


def _fetch_everything(road: Road, stripe: StripeApi) -> None:
    """Make a backfill from beginning to end, or leave that to whoever is at it."""
    from workers import backfill

    backfill.request(road.engine)
    while (run := backfill.go_on(road, stripe, road.stopping)) is not None and run.cursor is not None:
        pass


def _tell(counts: dict[str, Any], *, dry_run: bool) -> None:
    then = "they would be recorded" if dry_run else "they are recorded and worked off"
    for name, say in SENTENCES.items():
        if counts.get(name):
            click.echo(say.format(n=counts[name], then=then))
    if counts.get("refused"):
        click.echo(f"the key may not list: {', '.join(counts['refused'])}")
    for table, found in counts.get("drift", {}).items():
        click.echo(f"{table}: {', '.join(f'{n} {name}' for name, n in found.items())}")
    if counts.get("repaired"):
        click.echo(f"{counts['repaired']} of these are mended")
    for place, (here, there) in counts.get("money", {}).items():
        click.echo(f"{place}: {here} here, {there} at Stripe")
    for name, n in counts.get("people", {}).items():
        click.echo(PEOPLE[name].format(n=n))
    for name, ids in counts.get("examples", {}).items():
        click.echo(f"  {name}: {', '.join(console.printable(one) for one in ids)}")
    if not counts:
        click.echo("Nothing is missing, and every row is what Stripe says.")
