"""`dues dev`."""

from __future__ import annotations

import click


@click.command(epilog="Example: dues dev --bind 127.0.0.1:9000")
@click.option("--bind", default="127.0.0.1:8000", show_default=True, help="Where the receiver listens: host:port.")
@click.option("-c", "--processes", type=click.IntRange(1, 64), default=2, show_default=True, help="Of the worker.")
def command(*, bind: str, processes: int) -> None:
    """Run everything in this terminal.

    PostgreSQL, Valkey, the receiver, workers and beat. The servers are embedded ones and keep their data in .dues/ of
    this folder, unless DATABASE_URL or REDIS_URL name others. Migrations are applied first. While it runs, the other
    commands find its database from this folder. Ctrl-C ends all of it.
    """
    from ops import development

    development.run(bind, processes)
