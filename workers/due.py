"""Deciding the users whose time has come, so that one who can't be decided holds up nobody else."""

from __future__ import annotations

import logging
import threading
import time

from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from models.settings import Settings
from workers.link import link
from workers.process import describe, is_connection_lost, is_passing
from workers.recompute import SLICE, decide, decide_due

logger = logging.getLogger(__name__)

AGAIN_MINUTES = 10
# After what passes by itself, such as a full disk.
SOON_MINUTES = 1


def decide_all_due(engine: Engine, settings: Settings, stopping: threading.Event, *, seconds: float = 10.0) -> int:
    """Decide who is due, a slice at a time, for about `seconds` at most; returns how many: nobody while that is paused.

    If a slice fails, its users are decided one by one; whom that fails too is logged and tried again ten minutes later,
    one if it was for something that passes by itself. Raises SQLAlchemy's error if PostgreSQL is away.
    """
    if "processing" in settings.pause:
        return 0
    end = time.monotonic() + seconds
    total = 0
    while not stopping.is_set() and time.monotonic() < end:
        try:
            done = decide_due(engine, settings)
        except Exception as error:  # as in process.py: what is wrong with one user is no matter of others
            if is_connection_lost(error):
                raise
            logger.warning("a slice of due users failed, deciding them alone: %s", describe(error))
            done = _one_by_one(engine, settings, stopping)
        total += done
        if done < SLICE:
            break
    return total


def _one_by_one(engine: Engine, settings: Settings, stopping: threading.Event) -> int:
    with engine.connect() as connection:
        due = connection.execute(
            text(
                "SELECT id FROM users WHERE next_change_at <= clock_timestamp()"
                " ORDER BY next_change_at, id LIMIT :limit",
            ),
            {"limit": SLICE},
        )
        users = [row.id for row in due]
    for user in users:
        if stopping.is_set():
            break
        try:
            _decide_one(engine, settings, user)
        except Exception as error:
            if is_connection_lost(error):
                raise
            minutes = SOON_MINUTES if is_passing(error) else AGAIN_MINUTES
            logger.warning("user %s can't be decided, again in %d min: %s", user, minutes, describe(error))
            _postpone(engine, user, minutes)
    return len(users)


def _decide_one(engine: Engine, settings: Settings, user: str) -> None:
    concerned = {user} | link(engine, settings, users={user})
    with engine.begin() as connection:
        decide(connection, settings, concerned)


def _postpone(engine: Engine, user: str, minutes: int) -> None:
    """Let those behind this user come first."""
    try:
        with engine.begin() as connection:
            connection.execute(
                text(
                    "UPDATE users SET next_change_at = clock_timestamp() + make_interval(mins => :minutes)"
                    " WHERE id = :id AND next_change_at <= clock_timestamp()",
                ),
                {"id": user, "minutes": minutes},
            )
    except SQLAlchemyError as error:
        if is_connection_lost(error):
            raise
        logger.warning("user %s can't be postponed either: %s", user, describe(error))
