"""`dues worker`."""

from __future__ import annotations

import click

from ops import console
from ops.processes import LANES


@click.command(epilog="Example: dues worker -c 4")
@click.option("--lane", "lanes", multiple=True, type=click.Choice(LANES), help="Serve this one only; may be repeated.")
@click.option(
    "-c", "--processes", type=click.IntRange(1, 256), default=2, show_default=True, help="How many processes."
)
def command(*, lanes: tuple[str, ...], processes: int) -> None:
    """Process what was received.

    That is done by Celery workers, under a supervisor that starts again what ends. Without --lane all lanes are
    served, and of several processes one does nothing but `live`. While Redis is away, events are worked off slowly
    without it. SIGTERM lets what is under way end.
    """
    from ops import logs, supervise
    from ops.processes import worker

    console.settings("DATABASE_URL", "REDIS_URL")
    logs.to_stderr()
    supervise.Supervisor(worker(lanes, processes)).run()
