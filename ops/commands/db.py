"""`dues db`: migrations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ops import console
from ops.failures import Failed

if TYPE_CHECKING:
    from ops.migrating import Move

# Migrations may rewrite whole tables.
STATEMENT_SECONDS = 600.0


@click.group(epilog="Example: dues db upgrade")
def command() -> None:
    """Make, change and check the tables."""


def _waiting() -> None:
    click.echo("Another migration is running; waiting for its end.", err=True)


@command.command(epilog="Example: dues db upgrade --json")
@click.argument("revision", default="head")
@console.as_json
def upgrade(*, revision: str, as_json: bool) -> None:
    """Apply the migrations that are not there yet.

    Up to REVISION. All of them or none. Two upgrades at once take turns.
    """
    from ops import migrating

    with console.database("migrate", statement_timeout=STATEMENT_SECONDS) as database:
        _tell(migrating.upgrade(database.engine, revision, waiting=_waiting), as_json=as_json)


@command.command(
    epilog="Example: dues db downgrade -1 (one step back; `base` takes everything back)",
    context_settings={"ignore_unknown_options": True},  # -1 is a revision
)
@click.argument("revision", default="-1")
@console.yes
@console.as_json
def downgrade(*, revision: str, yes: bool, as_json: bool) -> None:
    """Take migrations back, with the data in them.

    Down to REVISION. What they made is dropped; `dues db sql downgrade` shows what that would run.
    """
    from ops import migrating

    console.confirm(f"Downgrade to {revision} and lose the data in what is dropped?", yes=yes)
    with console.database("migrate", statement_timeout=STATEMENT_SECONDS) as database:
        _tell(migrating.downgrade(database.engine, revision, waiting=_waiting), as_json=as_json)


def _tell(move: Move, *, as_json: bool) -> None:
    if as_json:
        console.print_json({"from": move.before, "to": move.after, "steps": move.steps})
        return
    for step in move.steps:
        click.echo(step)
    click.echo(f"The database is at revision {move.after or 'base'}{'' if move.steps else ' already'}.")


@command.command(epilog="Example: dues db check && echo fine")
@console.as_json
def check(*, as_json: bool) -> None:
    """Find drift; exit 1 if there is any.

    The database is compared with the migrations, and the migrations with the models: columns, constraints, indexes,
    triggers, functions and types. For that the migrations are run once more in a schema of its own, inside a
    transaction that is rolled back; nothing is changed.
    """
    from ops import migrating

    with console.database("check") as database:
        found = migrating.check(database.engine)
    if as_json:
        console.print_json(
            {
                "ok": not found.findings,
                "revision": found.revision,
                "head": found.head,
                "findings": found.findings,
                "complete": found.complete,
            },
        )
    else:
        for finding in found.findings:
            click.echo(finding)
        if not found.findings:
            click.echo(f"No drift: the database is what revision {found.revision} makes of it.")
    if not found.complete:
        click.echo(
            "Triggers, functions and CHECKs were not compared: that takes a role that may create schemas.", err=True
        )
    if found.findings:
        raise click.exceptions.Exit(1)


@command.command(epilog="Example: dues db sql upgrade > upgrade.sql")
@click.argument("direction", type=click.Choice(["upgrade", "downgrade"]), default="upgrade")
@click.argument("revision", required=False)
@click.option("--from", "start", help="Revision to start from; `current` asks the database. [base, or head]")
def sql(*, direction: str, revision: str | None, start: str | None) -> None:
    """Print what an upgrade or downgrade would run.

    For people who run it by hand. Needs no database: an upgrade starts from nothing and ends at the newest revision, a
    downgrade goes the other way, unless --from and REVISION say otherwise.
    """
    from ops import migrating

    if start == "current":
        with console.database("check") as database, database.engine.connect() as connection:
            start = migrating.current(connection) or "base"
    bottom, top = "base", migrating.head()
    first, last = (bottom, top) if direction == "upgrade" else (top, bottom)
    first, last = start or first, revision or last
    if first == last:
        click.echo(f"-- Nothing to run: {first} is where it would end.")
        return
    click.echo(migrating.sql(direction, first, last), nl=False)


@command.command(epilog='Example: dues db revision -m "Coupons of subscriptions"')
@click.option("-m", "--message", required=True, help="What it does; becomes its title and part of its file's name.")
@click.option("--autogenerate", is_flag=True, help="Fill in how the models differ from the database.")
def revision(*, message: str, autogenerate: bool) -> None:
    """Write a new migration, in a checkout of Dues."""
    from ops import migrating

    if not autogenerate:
        click.echo(migrating.new_revision(message, None))
        return
    with console.database("migrate") as database, database.engine.connect() as connection:
        click.echo(migrating.new_revision(message, connection))


@command.command(epilog="Example: dues db reset --yes")
@console.yes
@console.as_json
def reset(*, yes: bool, as_json: bool) -> None:
    """Delete everything and start anew.

    Every table of Dues is dropped, with all its data and what depends on it, and made anew. Never in production.
    """
    from ops import migrating

    if console.settings("DATABASE_URL").env == "production":
        raise Failed("`dues db reset` refuses in production (DUES_ENV): it would delete every member.")
    with console.database("migrate", statement_timeout=STATEMENT_SECONDS) as database:
        url = database.engine.url
        console.confirm(f"Delete everything in database {url.database} on {url.host or 'this machine'}?", yes=yes)
        _tell(migrating.reset(database.engine, waiting=_waiting), as_json=as_json)
