"""The API over HTTP, on loopback: `with serving(stripe) as server: … server.url …`."""

import contextlib
import json
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from simulator.api import KEY, Api, Request
from simulator.state import Stripe

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request that came, and the status that it was answered with; `at` is `time.monotonic()`."""

    at: float
    route: str
    path: str
    query: str
    status: int


class Server:
    """A running API. `log` has every request in the order of the answers, `counts` how many came by route.

    A route is written `GET /v1/products/:id`.
    """

    def __init__(self, api: Api, port: int) -> None:
        self.api = api
        self.log: list[Asked] = []
        self._http = _Http((HOST, port), _Handler)
        self._http.owner = self
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.url = f"http://{HOST}:{self._http.server_port}"

    @property
    def counts(self) -> Counter[str]:
        """How many requests came, by route."""
        return Counter(asked.route for asked in self.log)

    def start(self) -> None:
        """Serve in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Answer nobody any more, not even over connections that are open."""
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
        self._http.hang_up()


class _Http(ThreadingHTTPServer):
    """Knows its connections, so that it can end those that clients keep alive."""

    daemon_threads = True
    request_queue_size = 128
    owner: Server

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._connections: set[socket.socket] = set()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever went away before the answer will not miss it."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def hang_up(self) -> None:
        for connection in list(self._connections):
            with contextlib.suppress(OSError):  # the client was quicker
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Http

    def _answer(self) -> None:
        owner = self.server.owner
        length = int(self.headers.get("Content-Length") or 0)
        path, _, query = self.path.partition("?")
        request = Request(
            method=self.command,
            path=path,
            query=query,
            body=self.rfile.read(length).decode(),
            headers={name.lower(): value for name, value in self.headers.items()},
        )
        answer = owner.api.answer(request)
        owner.log.append(
            Asked(
                at=time.monotonic(),
                route=owner.api.route_of(request),
                path=path,
                query=query,
                status=answer.status,
            )
        )
        body = json.dumps(answer.body, indent=2, ensure_ascii=False).encode()
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - the names that http.server calls

    def log_message(self, *_: object) -> None:
        """Say nothing on stderr: `Server.log` has it."""


@contextlib.contextmanager
def serving(stripe: Stripe, *, keys: Collection[str] = (KEY,), port: int = 0) -> Iterator[Server]:
    """Serve the API of `stripe` on loopback, on a free port unless one is given, until the end of the block."""
    server = Server(Api(stripe, keys), port)
    server.start()
    try:
        yield server
    finally:
        server.stop()
