"""How the processes log: one line each, times in UTC, to stderr."""

from __future__ import annotations

import logging
import time

FORMAT = "%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s"


def times_in_utc() -> None:
    """Let every logger of this process, Celery's too, write times as 2026-01-31T12:00:00.000Z."""
    logging.Formatter.converter = time.gmtime
    logging.Formatter.default_time_format = "%Y-%m-%dT%H:%M:%S"
    logging.Formatter.default_msec_format = "%s.%03dZ"


def to_stderr() -> None:
    """Log what is worth knowing to stderr."""
    times_in_utc()
    logging.basicConfig(level=logging.INFO, format=FORMAT)
