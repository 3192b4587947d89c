"""Celery's command as supervised processes run it, but it dies where there is a ticket for it.

Before each of its commits a worker looks into the folder `$CHAOS_TICKETS` for a file of the step's name ("book",
"write", "link", "decide"); whoever manages to delete it ends at once, as `kill -9` does.
"""

from __future__ import annotations

import os
import runpy
import signal
from pathlib import Path

from workers import tasks

if __name__ == "__main__":
    folder = Path(os.environ["CHAOS_TICKETS"])

    def die_if_there_is_a_ticket(step: str) -> None:
        try:
            (folder / step).unlink()
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    tasks.road().checkpoint = die_if_there_is_a_ticket
    runpy.run_module("ops.celery_command", run_name="__main__")
