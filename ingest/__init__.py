"""HTTP in: takes events, answers questions, decides nothing."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from flask import Flask, Response, jsonify
from werkzeug.exceptions import HTTPException

from ingest import api, health, webhook
from ingest.database import Database
from ingest.freshness import Freshness
from ingest.waiting import WaitingRoom
from models.settings import Settings, SettingsError, read_settings, require
from workers.bell import Bell

logger = logging.getLogger(__name__)

SERVERS = ("DATABASE_URL", "REDIS_URL")
# What `dues serve --only` can name, and what each part cannot do without.
PARTS = {
    "webhook": (*SERVERS, "STRIPE_WEBHOOK_SECRET"),
    "api": (*SERVERS, "DUES_API_TOKEN"),
}
THREADS = 8


def create_app(settings: Settings | None = None, *, only: str | None = None, threads: int = THREADS) -> Flask:
    """The web process: the receiver, its health and, given a token, the read API; or `only` one part of it.

    Without `settings` they are read from the environment. `threads` is how many answer requests in this process. Raises
    SettingsError naming all that is missing.
    """
    if settings is None:
        settings = settings_for(only)
    app = Flask(__name__, static_folder=None)
    database = Database(settings, application="receiver")
    bell = Bell(settings.redis_url)
    room = WaitingRoom(database, threads)
    app.register_blueprint(health.blueprint(settings, database, bell))
    if only in {None, "webhook"}:
        app.register_blueprint(webhook.blueprint(settings, database, bell, room))
    if settings.api_tokens and only in {None, "api"}:
        app.register_blueprint(api.blueprint(settings, database, Freshness(settings, database, bell, room)))
    app.extensions |= {"database": database, "bell": bell}
    app.register_error_handler(HTTPException, _refuse)
    app.register_error_handler(Exception, _break)
    return app


def settings_for(only: str | None = None) -> Settings:
    """Read the environment and check that this process, or `only` that part of it, can do its work.

    Raises SettingsError.
    """
    if only == "ops":
        raise SettingsError(["--only ops: the ops pages do not exist yet"])
    if only is not None and only not in PARTS:
        raise SettingsError([f"--only {only} names nothing that can be served; there is {', '.join(PARTS)}"])
    return require(read_settings(os.environ), *PARTS[only or "webhook"])


def _refuse(error: HTTPException) -> Response:
    """Every refusal as JSON: the code is HTTP's own phrase, `not_found`, and so on."""
    response = jsonify(error=error.name.lower().replace(" ", "_"), detail=error.description)
    response.status_code = error.code or 500
    for name, value in error.get_headers():
        if name.lower() != "content-type":
            response.headers[name] = value
    return response


def _break(error: Exception) -> tuple[Response, int]:
    """A fault of ours. Its message may quote what was sent, so only its kind and place are logged."""
    places = []
    trace = error.__traceback__
    while trace is not None:
        places.append(f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    logger.critical("500: %s at %s", type(error).__name__, " > ".join(places[-8:]))
    return jsonify(error="internal_server_error", detail="This is our fault; it has been logged."), 500
