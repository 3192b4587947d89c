"""A Stripe that says exactly what a test tells it to, over real HTTP."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from models.settings import Settings, read_settings

KEY = "rk_test_very_secret"


@dataclass(frozen=True)
class Said:
    """An answer: `body` as JSON, or raw if bytes; with `cut` the connection ends in the middle of it; after `pause`."""

    body: Any = field(default_factory=lambda: {"id": "prod_1", "object": "product"})
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    pause: float = 0.0


def refusal(status: int, code: str | None = None, **headers: str) -> Said:
    """An error the way Stripe words it; in names of headers "_" stands for "-"."""
    error = {"type": "invalid_request_error", "code": code, "message": "about alice@example.com"}
    return Said({"error": error}, status, {name.replace("_", "-"): value for name, value in headers.items()})


@dataclass(frozen=True)
class Asked:
    """A request that came."""

    at: float
    line: str
    headers: Mapping[str, str]
    body: str


@dataclass
class Scripted:
    """A running server: `answers` are given one after the other, the last one again and again."""

    url: str
    answers: list[Said]
    asked: list[Asked] = field(default_factory=list)

    def settings(self, **more: str) -> Settings:
        """Settings that lead here."""
        return read_settings({"STRIPE_API_KEY": KEY, "STRIPE_API_BASE": self.url, **more})


@contextlib.contextmanager
def scripted(*answers: Said) -> Iterator[Scripted]:
    """Serve these answers on loopback until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            here.asked.append(Asked(time.monotonic(), self.requestline, dict(self.headers), body))
            said = here.answers.pop(0) if len(here.answers) > 1 else here.answers[0]
            time.sleep(said.pause)
            raw = said.body if isinstance(said.body, bytes) else json.dumps(said.body).encode()
            self.send_response_only(said.status)
            for name, value in {"Date": formatdate(usegmt=True), **said.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(raw) + (10 if said.cut else 0)))
            self.end_headers()
            self.wfile.write(raw)
            self.close_connection = self.close_connection or said.cut

        do_POST = do_GET  # noqa: N815 - the same

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        here = Scripted(f"http://127.0.0.1:{http.server_port}", list(answers))
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield here
        finally:
            http.shutdown()


def page(ids: Sequence[str], *, has_more: bool, object_type: str = "product") -> Said:
    """A page of a listing."""
    data = [{"id": id, "object": object_type, "created": 1_790_000_000, "livemode": False} for id in ids]
    return Said({"object": "list", "data": data, "has_more": has_more, "url": "/v1/products"})
