"""`dues beat`."""

from __future__ import annotations

import click

from ops import console


@click.command(epilog="Example: dues beat")
def command() -> None:
    """Send what is due by the clock.

    That is Celery's beat, started again if it ends. One is enough; two do no harm, since every task looks first
    whether there is anything to do.
    """
    from ops import logs, supervise
    from ops.processes import beat

    console.settings("REDIS_URL")
    logs.to_stderr()
    supervise.Supervisor(beat()).run()
