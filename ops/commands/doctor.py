"""`dues doctor`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from ops import console

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from models.settings import Settings


@click.command(epilog="Example: dues doctor --json")
@click.option("--fix", is_flag=True, help="Let Stripe send events again to an endpoint that it has disabled.")
@console.as_json
def command(*, fix: bool, as_json: bool) -> None:
    """Look whether all is well; say what to do.

    Settings, database, schema, Redis, Stripe, clocks, beat and what waits for a person. Exit 1 if anything is not well.
    docs/operations.md explains every finding.
    """
    from ops import doctor

    findings = list(doctor.examine(os.environ, _connect, fix=fix))
    is_well = all(finding.level == "ok" for finding in findings)
    if as_json:
        shown = [{"check": one.check, "level": one.level, "found": one.found, "todo": one.todo} for one in findings]
        console.print_json({"ok": is_well, "findings": shown})
    else:
        for one in findings:
            click.echo(f"{one.level:8} {one.check:10} {console.printable(one.found)}")
            if one.todo and one.level != "ok":
                click.echo(f"{'':19} → {one.todo}")
    if not is_well:
        raise click.exceptions.Exit(1)


def _connect(settings: Settings) -> Engine:
    from models.database import connect

    return connect(settings, application="doctor")
