"""`dues setup-admin`."""

from __future__ import annotations

import click

from ops import console


@click.command(epilog="Example: dues setup-admin ada@example.com")
@click.argument("email", metavar="EMAIL")
@console.as_json
def command(*, email: str, as_json: bool) -> None:
    """Make or promote an administrator.

    The user with this e-mail becomes ADMIN at once; if there is none, one is made. Doing it again changes nothing.
    Exit 1 if the user is not an ADMIN afterwards: a ban is stronger.
    """
    from ops import people

    with console.database("setup-admin") as database:
        admin = people.set_up_admin(database.engine, database.settings, email, author=console.operator())
        is_shadow = database.settings.shadow
    if as_json:
        console.print_json(
            {
                "id": admin.id,
                "email": admin.email,
                "role": admin.role,
                "created": admin.is_new,
                "promoted": admin.is_promoted,
            }
        )
    else:
        done = "a new user" if admin.is_new else "promoted" if admin.is_promoted else "nothing to do"
        click.echo(f"{admin.email} is {admin.role} ({done}; user {admin.id}).")
    if admin.role != "ADMIN":
        why = "DUES_SHADOW keeps Dues from writing roles" if is_shadow else "a ban is stronger: lift it first"
        click.echo(f"The decision is kept, but the role is {admin.role}: {why}.", err=True)
        raise click.exceptions.Exit(1)
