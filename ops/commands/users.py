"""`dues users`: people."""

from __future__ import annotations

from typing import Any

import click

from ops import console

# What is shown of a user, and of each of their things; the JSON has it all.
PERSON = ("id", "email", "name", "role", "membership_status", "stripe_product_id", "grace_until", "tokens",
          "tokens_expires_at", "next_change_at", "created_at")  # fmt: skip
THINGS = {
    "customers": ("id", "is_primary", "linked_by", "email", "created", "deleted_at"),
    "subscriptions": ("id", "status", "product_name", "stripe_price_id", "current_period_end", "cancel_at_period_end"),
    "overrides": ("kind", "is_running", "author", "reason", "created_at", "expires_at", "ended_at"),
    "links_by_hand": ("stripe_customer_id", "user_id", "author", "reason", "at"),
}


@click.group(epilog="Example: dues users show ada@example.com")
def command() -> None:
    """Look at people: what they may do, and why."""


@command.command(epilog="Example: dues users show ada@example.com --json")
@click.argument("id_or_email", metavar="ID|EMAIL")
@console.as_json
def show(*, id_or_email: str, as_json: bool) -> None:
    """Show everything that Dues knows of a user."""
    from ops import people

    with console.database("users") as database, database.engine.connect() as connection:
        user = people.show(connection, id_or_email)
    if as_json:
        console.print_json(user)
        return
    for name in PERSON:
        click.echo(f"{name:18}  {console.cell(user[name])}")
    for title, heads in THINGS.items():
        _print_things(title, heads, user[title])
    click.echo("\nlast changes" if user["changes"] else "\nlast changes: none")
    for change in user["changes"]:
        click.echo(f"  {console.iso(change['at'])}  {change['event_id'] or ''}".rstrip())
        for line in people.reasons_in_words(change):
            click.echo(f"    {console.printable(line)}")


def _print_things(title: str, heads: tuple[str, ...], things: list[dict[str, Any]]) -> None:
    name = title.replace("_", " ")
    click.echo(f"\n{name}" if things else f"\n{name}: none")
    if things:
        console.print_table([[thing[head] for head in heads] for thing in things], heads, indent="  ")
