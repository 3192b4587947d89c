"""`dues demo`."""

from __future__ import annotations

import click

from ops import console


@click.command(epilog="Example: dues demo --once")
@click.option("--once", is_flag=True, help="End after the story instead of waiting for Ctrl-C.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=1, show_default=True, help="Other ids, another journey.")
@console.as_json
def command(*, once: bool, seed: int, as_json: bool) -> None:
    """Watch it work: a simulated Stripe plays two months of a membership site, and each step is told.

    PostgreSQL, Valkey, receiver, workers and beat are real, started for this alone in a scratch folder that is deleted
    at the end. Nothing of yours is touched or read: not DATABASE_URL, REDIS_URL or .env, not the .dues/ of `dues dev`.
    Exit 2 if the database does not get where Stripe's own state says that it should.
    """
    from ops import demo

    demo.run(demo.Wish(once=once, seed=seed, as_json=as_json))
