"""The API over HTTP, on loopback: `with serving(stripe) as server: … server.url …`."""

import contextlib
import json
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from simulator.api import KEY, Api, Request
from simulator.faults import Fault, Faults, is_next_page
from simulator.state import Stripe

HOST = "127.0.0.1"
WELL = Fault()

# With these, closing a connection resets it.
LINGER = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request that came, and the status of the answer (None: there was none, or not all of it).

    A route is written `GET /v1/products/:id`; `at` is `time.monotonic()`.
    """

    at: float
    route: str
    path: str
    query: str
    status: int | None


class Server:
    """A running API. `log` has every request that came, each entered before it is answered.

    `faults` says which of them go wrong. `on_next_page` is called before a further page of a list is answered, with
    the route: what it does to the state has happened between two pages. Both may be changed at any time.
    """

    def __init__(self, api: Api, port: int) -> None:
        self.api = api
        self.log: list[Asked] = []
        self.faults = Faults()
        self.on_next_page: Callable[[str], object] | None = None
        self.stopping = threading.Event()
        self._http = _Http((HOST, port), self)
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
        self.stopping.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
        self._http.hang_up()


class _Http(ThreadingHTTPServer):
    """Knows its connections, so that it can end those that clients keep alive."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], owner: Server) -> None:
        self.owner = owner
        self.to_reset: set[socket.socket] = set()
        self._connections: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        if request in self.to_reset:
            self.to_reset.discard(request)
            request.close()
        else:
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
        request = self._request()
        route = owner.api.route_of(request)
        fault = owner.faults.draw(route, request.query) or WELL
        if fault.latency_s:
            owner.stopping.wait(fault.latency_s)
        if fault.silent or fault.reset:
            self._log(request, route, None)
            self._break_off(wait=fault.silent)
            return
        if owner.on_next_page is not None and is_next_page(request.query):
            owner.on_next_page(route)
        status, headers, body = self._made(request, fault)
        self._log(request, route, None if fault.cut else status)
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault.cut else body)
        if fault.cut:
            self._break_off()

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - the names that http.server calls

    def _request(self) -> Request:
        path, _, query = self.path.partition("?")
        return Request(
            method=self.command,
            path=path,
            query=query,
            body=self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode(),
            headers={name.lower(): value for name, value in self.headers.items()},
        )

    def _made(self, request: Request, fault: Fault) -> tuple[int, Mapping[str, str], bytes]:
        api = self.server.owner.api
        if fault.page is not None:
            status, text = fault.page
            return status, {"Content-Type": "text/html"}, text.encode()
        answer = api.answer(request) if fault.error is None else api.refusal(fault.error, request)
        return answer.status, answer.headers, json.dumps(answer.body, ensure_ascii=False).encode()

    def _log(self, request: Request, route: str, status: int | None) -> None:
        asked = Asked(at=time.monotonic(), route=route, path=request.path, query=request.query, status=status)
        self.server.owner.log.append(asked)

    def _break_off(self, *, wait: bool = False) -> None:
        """Reset the connection, now or when the server stops or the client hangs up."""
        if wait:
            self._wait_for_nothing()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
        self.server.to_reset.add(self.connection)
        self.close_connection = True

    def _wait_for_nothing(self) -> None:
        self.connection.settimeout(0.05)
        while not self.server.owner.stopping.is_set():
            with contextlib.suppress(TimeoutError):
                if not self.connection.recv(1, socket.MSG_PEEK):
                    return

    def log_message(self, *_: object) -> None:
        """Say nothing on stderr: `Server.log` has it."""


@contextlib.contextmanager
def serving(
    stripe: Stripe, *, keys: Collection[str] = (KEY,), port: int = 0, faults: Faults | None = None
) -> Iterator[Server]:
    """Serve the API of `stripe` on loopback, on a free port unless one is given, until the end of the block."""
    server = Server(Api(stripe, keys), port)
    server.faults = faults or Faults()
    server.start()
    try:
        yield server
    finally:
        server.stop()
