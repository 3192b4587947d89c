"""The web process: granian with as many processes and threads as are asked for."""

from __future__ import annotations

import functools
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from granian.constants import HTTPModes, Interfaces
from granian.server import Server

BACKLOG = 1024
# Connections that one process holds open at once; the others wait in the backlog.
CONNECTIONS = 256
SHUTDOWN_SECONDS = 10


def serve(bind: str = "127.0.0.1:8000", only: str | None = None, workers: int = 1, threads: int = 4) -> None:
    """Answer HTTP on `bind` (host:port, or unix:/path) until SIGTERM or SIGINT, with `workers` processes of `threads`.

    `only`: one part, see `ingest.PARTS`. Settings come from the environment. Requests under way are answered first.
    Raises SettingsError before anything is started.
    """
    with tempfile.TemporaryDirectory(prefix="dues-metrics-") as shared:
        # Read when prometheus_client is imported, so before the app is.
        os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", shared)
        from ingest import settings_for

        settings_for(only)
        Server(
            "ingest:create_app",
            **_address(bind),
            interface=Interfaces.WSGI,
            http=HTTPModes.http1,
            websockets=False,
            workers=workers,
            blocking_threads=threads,
            backlog=BACKLOG,
            backpressure=CONNECTIONS,
            respawn_failed_workers=True,
            workers_kill_timeout=SHUTDOWN_SECONDS,
        ).serve(target_loader=functools.partial(_load, only, threads, os.getpid()), wrap_loader=False)


def _address(bind: str) -> dict[str, Any]:
    if bind.startswith("unix:"):
        return {"uds": Path(bind.removeprefix("unix:"))}
    parts = urlsplit(f"//{bind}")
    return {"address": parts.hostname or "127.0.0.1", "port": parts.port or 8000}


def _load(only: str | None, threads: int, parent: int) -> Any:
    """Make the app; runs in each process that answers requests."""
    from ingest import create_app

    threading.Thread(target=_end_with, args=(parent,), name="parent", daemon=True).start()
    return create_app(only=only, threads=threads)


def _end_with(parent: int) -> None:
    """End this process if the one that started it is killed: it would keep the port, and get requests, for ever."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
