"""The one Celery app; its settings stand in `celeryconfig.py`, with Celery's own names."""

from __future__ import annotations

import logging
import os
from typing import Any

from celery import Celery
from celery.app.amqp import AMQP
from celery.signals import after_setup_logger, beat_init, worker_init
from kombu.connection import Connection

from models.settings import SettingsError, read_settings, require

settings = read_settings(os.environ)


class Broker(Connection):
    """A connection to Redis that is tried again every 3 seconds; Celery's own pauses grow to 30."""

    def ensure_connection(self, *args: Any, **keywords: Any) -> Any:
        """Connect, however often that takes."""
        pauses = {"interval_start": 1, "interval_max": 3}
        return super().ensure_connection(*args, **{**pauses, **keywords})  # type: ignore[no-untyped-call]


class Messages(AMQP):
    """Celery's messaging, with that connection."""

    Connection = Broker


app = Celery("dues", amqp=Messages, include=["workers.tasks"])
app.config_from_object("celeryconfig")


@after_setup_logger.connect
def quieten(**_: Any) -> None:
    """Leave out Celery's two lines per task: the tasks say themselves what they did."""
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)


@worker_init.connect
def check_worker(**_: Any) -> None:
    """End a worker that lacks a setting, before it takes anything."""
    _end_unless("DATABASE_URL", "REDIS_URL")


@beat_init.connect
def check_beat(**_: Any) -> None:
    """The same for beat, which touches no database."""
    _end_unless("REDIS_URL")


def _end_unless(*variables: str) -> None:
    try:
        require(settings, *variables)
    except SettingsError as error:
        raise SystemExit(f"dues: {error}") from None
