"""`dues serve`."""

from __future__ import annotations

import click

from ops import console


@click.command(epilog="Example: dues serve --bind 0.0.0.0:8000 --processes 2")
@click.option("--bind", default="127.0.0.1:8000", show_default=True, help="host:port, or unix:/path of a socket.")
@click.option("--only", metavar="PART", help="Serve one part by itself: webhook or api.")
@click.option("--processes", type=click.IntRange(1, 64), default=1, show_default=True, help="How many.")
@click.option("--threads", type=click.IntRange(1, 256), default=8, show_default=True, help="In each process.")
def command(*, bind: str, only: str | None, processes: int, threads: int) -> None:
    """Receive Stripe's webhooks, and answer over HTTP.

    Webhooks come to /webhooks/stripe, a front end asks /api; /healthz, /readyz and /metrics tell how it is.
    """
    from ops.serve import serve

    console.require_free(bind)
    serve(bind, only, processes, threads)
