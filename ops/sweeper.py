"""Looks after a worker's lanes: rings for what is waiting unheard, and works it off itself if that does not help.

It does not while Redis is away, and may not if Celery's workers have gone deaf or have more to do than they can.

`python -m ops.sweeper LANE…`, a process of its own under the supervisor of `dues worker`: a payload that ends the
process that reads it ends this one and nothing else. It needs neither Celery nor Redis.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from models import ledger
from models.database import connect
from models.settings import Settings, read_settings
from ops import logs
from workers.bell import Bell
from workers.due import decide_all_due
from workers.process import ConnectionLostError, Road, describe

logger = logging.getLogger("ops.sweeper")

# Seconds between two looks while nobody else works.
ALONE_SECONDS = 2.0
# Seconds that Celery's workers may take to notice that Redis is back (workers/celery.py: 3 between tries).
RECONNECT_SECONDS = 10.0


@dataclass(slots=True)
class Sweeper:
    """Everything that looking after `lanes` needs."""

    lanes: Collection[str]
    settings: Settings
    engine: Engine
    bell: Bell
    stopping: threading.Event = field(default_factory=threading.Event)
    road: Road = field(init=False)
    _is_heard: bool = True
    _alone_until: float = 0.0
    # The lanes that were rung for at the last look.
    _rung: frozenset[ledger.Lane] = frozenset()

    def __post_init__(self) -> None:
        self.road = Road(self.engine, self.settings, stopping=self.stopping)

    def run(self) -> None:
        """Look again and again, until told to stop."""
        while not self.stopping.is_set():
            try:
                self.look()
            except (ConnectionLostError, SQLAlchemyError) as error:
                logger.warning("PostgreSQL: %s; looking again later", describe(error))
            usual = self.settings.sweep_seconds
            # Sweepers of other machines should not come at the same moment.
            self.stopping.wait((min(ALONE_SECONDS, usual) if self.is_alone else usual) * random.uniform(0.8, 1.2))

    @property
    def is_alone(self) -> bool:
        """Whether the workers can't be expected to hear the bell."""
        return time.monotonic() < self._alone_until

    def look(self) -> None:
        """See what is due, and have it done or do it."""
        with self.engine.connect() as connection:
            waiting = [lane for lane in ledger.waiting_lanes(connection) if lane in self.lanes]
        self._listen()
        unanswered = self._rung.intersection(waiting)
        self._rung = frozenset(waiting if self._is_heard else ())
        for lane in self._rung:
            self.bell.ring(lane)
        ours = waiting if self.is_alone else [lane for lane in waiting if lane in unanswered]
        for lane in ours:
            self._tell(lane, self.road.process(lane))
        if ours or self.is_alone:
            decide_all_due(self.engine, self.settings, self.stopping)

    def _listen(self) -> None:
        was_heard, self._is_heard = self._is_heard, self.bell.is_heard()
        if not self._is_heard:
            self._alone_until = time.monotonic() + RECONNECT_SECONDS
        if was_heard and not self._is_heard:
            logger.warning("Redis is away: events are worked off here, one lane after the other, until it is back")
        elif self._is_heard and not was_heard:
            logger.warning("Redis is back")

    def _tell(self, lane: str, counts: Counter[str]) -> None:
        if counts:
            told = ", ".join(f"{number} {how}" for how, number in counts.items())
            logger.info("worked off %s here: %s", lane, told)


def main(lanes: Collection[str]) -> None:
    """Sweep `lanes` until SIGTERM."""
    logs.to_stderr()
    settings = read_settings(os.environ)
    engine = connect(settings, application="sweeper", pool_size=2)
    sweeper = Sweeper(lanes, settings, engine, Bell(settings.redis_url))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sweeper.stopping.set())
    sweeper.run()
    sweeper.bell.close()
    engine.dispose()


if __name__ == "__main__":
    main(sys.argv[1:])
