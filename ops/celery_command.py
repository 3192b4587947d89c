"""Celery's own command with the app of Dues, as supervised processes run it: `… worker -P solo -Q live`, `… beat`."""

from __future__ import annotations

import sys
import warnings

from celery.platforms import SecurityWarning

import celeryconfig  # noqa: F401 - before Celery looks for one in the current folder
from ops import logs
from workers.celery import app

if __name__ == "__main__":
    logs.times_in_utc()
    # It warns root of pickle, which celeryconfig does not accept.
    warnings.simplefilter("ignore", SecurityWarning)
    # Given as an object, because `-A` would look for the app in the current folder first.
    app.start(sys.argv[1:])
