"""Connections to PostgreSQL: every session of Dues is made here and carries the same bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import create_engine, make_url

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from models.settings import Settings


def connect(settings: Settings, *, application: str, pool_size: int | None = None) -> Engine:
    """Return an engine whose sessions speak UTC, give up in time and say that they are Dues itself.

    `dues.session` is what the triggers on `users` look at: what others write there is booked as a person's decision.
    READ COMMITTED is what the locks of DESIGN §3 are made for. Error messages never contain parameters.
    """
    bounds = {
        "timezone": "UTC",
        "dues.session": "on",
        "default_transaction_isolation": r"read\ committed",
        "lock_timeout": _milliseconds(settings.lock_timeout),
        "statement_timeout": _milliseconds(settings.statement_timeout),
        "idle_in_transaction_session_timeout": _milliseconds(settings.idle_timeout),
    }
    # What is given here replaces what the URL says, and some servers are told there which database is meant.
    given = make_url(settings.database_url).query.get("options", "")
    options = [
        *([given] if isinstance(given, str) else given),
        *(f"-c {name}={value}" for name, value in bounds.items()),
    ]
    return create_engine(
        settings.database_url,
        pool_size=pool_size or settings.pool_size,
        max_overflow=0,
        pool_timeout=settings.database_timeout,
        pool_use_lifo=True,
        pool_recycle=1800,
        hide_parameters=True,
        connect_args={
            "application_name": f"dues {application}",
            "connect_timeout": max(2, round(settings.database_timeout)),
            "options": " ".join(options),
            # A server that vanished without a word must not hold a worker for the two hours that TCP would.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
        },
    )


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))
