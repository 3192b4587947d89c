"""A real receiver for the tests: granian in a child, and requests signed as Stripe signs them."""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from simulator.signing import sign
from tests.support import Child, eventually, free_port, running

SECRET = "whsec_tests"
TOKEN = "token-of-the-tests"
URL = "/webhooks/stripe"
CREATED = int(time.time())


def event(event_id: str = "evt_1", **changes: Any) -> bytes:
    """The body of an event that Dues handles."""
    return json.dumps(
        {
            "id": event_id,
            "object": "event",
            "type": "customer.created",
            "created": CREATED,
            "livemode": False,
            "data": {"object": {"id": "cus_1", "object": "customer"}},
            **changes,
        }
    ).encode()


def signed(body: bytes, secret: str = SECRET) -> dict[str, str]:
    return {"Stripe-Signature": sign(body, [secret], int(time.time()))}


def settings_of(database_url: str, redis_url: str) -> dict[str, str]:
    """The environment of a receiver."""
    return {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "STRIPE_WEBHOOK_SECRET": f"whsec_other,{SECRET}",
        "DUES_API_TOKEN": TOKEN,
    }


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Receiver:
    """A receiver that listens on 127.0.0.1."""

    child: Child
    port: int

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """Send a request on a connection of its own; a body that is an iterator is sent in chunks."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            begin = time.monotonic()
            # Refused while still sending: the answer is on its way all the same.
            with contextlib.suppress(BrokenPipeError):
                connection.request(
                    method, path, body, dict(headers or {}), encode_chunked=not isinstance(body, bytes | None)
                )
            response = connection.getresponse()
            content = response.read()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, content, time.monotonic() - begin)

    def post(self, body: bytes, *, secret: str = SECRET) -> Answer:
        return self.ask("POST", URL, body, signed(body, secret))


@contextlib.contextmanager
def receiver(env: Mapping[str, str], *, workers: int = 1) -> Iterator[Receiver]:
    """A receiver that answers already."""
    port = free_port()
    program = f"from ops.serve import serve; serve('127.0.0.1:{port}', workers={workers})"
    with running([sys.executable, "-c", program], env=env) as child:
        served = Receiver(child, port)

        def answers() -> bool:
            assert child.process.poll() is None, child.output
            with contextlib.suppress(OSError):
                return served.ask("GET", "/healthz").status == 200
            return False

        eventually(answers, timeout=20)
        yield served
