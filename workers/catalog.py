"""The catalogue's sync: all products and prices, active and archived, every five minutes (beat) or by hand.

What changed goes down the road of events; when nothing did, nobody is decided and nothing is read anew. One run at a
time, however many beats; one that was killed is continued from its cursor.
"""

from __future__ import annotations

import threading

from models import sync_runs
from workers.mirroring import Mirroring
from workers.process import Road
from workers.stripe_api import StripeApi, StripeApiError

KIND = "catalog"
LISTS = ("product", "price")
# Beats send one every 300 s; what comes sooner after the last was sent by another beat.
EVERY_SECONDS = 150.0


def sync(
    road: Road, stripe: StripeApi, stopping: threading.Event, *, every: float = EVERY_SECONDS, seconds: float = 10.0
) -> sync_runs.Run | None:
    """Make the next slice of a sync, begun unless there was one `every` seconds ago; None if there is nothing to do.

    A run that has not come to its end within `seconds` keeps its cursor and is to be continued. Raises StripeApiError,
    after the run has been ended as failed.
    """
    with sync_runs.turn(road.engine, KIND) as is_ours:
        if not is_ours or road.is_paused:
            return None
        with road.engine.begin() as connection:
            run = sync_runs.running(connection, KIND) or sync_runs.begin(connection, KIND, every=every)
        if run is None:
            return None
        work = Mirroring.of(road, stripe, run, LISTS)
        try:
            work.go_on(stopping, seconds=seconds)
        except StripeApiError as error:
            work.end(str(error))
            raise
        return run
