"""`dues users`: people."""

from __future__ import annotations

import dataclasses
import sys
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
    """Look at people, and decide for them."""


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


@command.command(epilog="Example: dues users explain ada@example.com")
@click.argument("id_or_email", metavar="ID|EMAIL")
@console.as_json
def explain(*, id_or_email: str, as_json: bool) -> None:
    """Explain a user's role, status and tokens.

    Every input and rule that had a say, and what waits. Exit 1 if something waits.
    """
    from ops import explaining

    with console.database("users") as database:
        told = explaining.explain(database.engine, database.settings, id_or_email)
    if as_json:
        console.print_json(told)
    else:
        for line in explaining.in_words(told):
            click.echo(console.printable(line))
    sys.exit(1 if told["waiting"] else 0)


REASON = click.option("--reason", help="Why, for the record.")


@command.command(epilog="Example: dues users link cus_123 ada@example.com --reason 'paid with another address'")
@click.argument("customer", metavar="CUSTOMER")
@click.argument("id_or_email", metavar="ID|EMAIL")
@REASON
@console.as_json
def link(*, customer: str, id_or_email: str, reason: str | None, as_json: bool) -> None:
    """Make a Stripe customer a user's.

    Whatever the evidence says, until somebody decides otherwise. What the customer has paid for counts for the user at
    once, and for nobody else any more. A customer that Stripe has not told of yet is linked when it does.
    """
    _link_by_hand(customer, id_or_email, reason, as_json=as_json)


@command.command(epilog="Example: dues users unlink cus_123 --reason 'a typing error in Checkout'")
@click.argument("customer", metavar="CUSTOMER")
@REASON
@console.as_json
def unlink(*, customer: str, reason: str | None, as_json: bool) -> None:
    """Make a Stripe customer nobody's.

    Whatever the evidence says, until somebody decides otherwise. What came of it for a user ends at once: access, and
    tokens as far as they are unspent.
    """
    _link_by_hand(customer, None, reason, as_json=as_json)


def _link_by_hand(customer: str, id_or_email: str | None, reason: str | None, *, as_json: bool) -> None:
    from ops import people

    with console.database("users") as database:
        owner = people.link_by_hand(
            database.engine, database.settings, customer, id_or_email, author=console.operator(), reason=reason
        )
    if as_json:
        console.print_json(dataclasses.asdict(owner))
        return
    alias = f" (an alias of {owner.alias_of})" if owner.alias_of else ""
    told = f"{owner.stripe_customer_id} is {f'user {owner.user_id}’s' if owner.user_id else 'nobody’s'}{alias}."
    unknown = f"Kept, and done as soon as Stripe tells of {owner.stripe_customer_id}."
    click.echo(console.printable(told if owner.is_known else unknown))
