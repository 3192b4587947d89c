import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import stripe as library

from simulator.delivery import Plan, arrange, deliver
from simulator.envelope import body_of, envelope
from simulator.histories import history
from simulator.objects import Event
from simulator.render import render_event
from simulator.versions import ACACIA, ENDIVE

SECRET = "whsec_practice"

Answer = Callable[[str, int], int]


class Endpoint:
    """A webhook endpoint that checks signatures with Stripe's own library and remembers what it accepted."""

    def __init__(self, answer: Answer, secret: str = SECRET) -> None:
        self.secret = secret
        self.accepted: list[dict[str, Any]] = []
        self.headers: list[str] = []
        self.ports: set[int] = set()
        tries: Counter[str] = Counter()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                header = self.headers["Stripe-Signature"]
                event = json.loads(body)
                tries[event["id"]] += 1
                try:
                    library.WebhookSignature.verify_header(body.decode(), header, endpoint.secret, 300)
                    status = answer(event["id"], tries[event["id"]])
                except library.SignatureVerificationError:
                    status = 400
                if status == 200:
                    endpoint.accepted.append(event)
                endpoint.headers.append(header)
                endpoint.ports.add(self.client_address[1])
                self.send_response(status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/webhooks/stripe"

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Endpoint]]:
    running: list[Endpoint] = []

    def start(answer: Answer) -> Endpoint:
        running.append(Endpoint(answer))
        return running[-1]

    yield start
    for endpoint in running:
        endpoint.stop()


@pytest.fixture(scope="module")
def events() -> list[Event]:
    return history(3, customers=2, months=1).events


def always_200(_id: str, _attempt: int) -> int:
    return 200


def ids(posts: list[tuple[str, bytes]]) -> list[str]:
    return [id for id, _ in posts]


def test_events_arrive_signed_in_order_over_one_connection(
    serve: Callable[[Answer], Endpoint], events: list[Event]
) -> None:
    endpoint = serve(always_200)
    report = deliver(events, endpoint.url, ["whsec_old", SECRET], Plan(v0=True))
    assert [event["id"] for event in endpoint.accepted] == [event.id for event in events]
    assert endpoint.accepted == [render_event(event) for event in events]
    assert len(endpoint.ports) == 1
    assert all(header.count("v1=") == 2 and header.count("v0=") == 1 for header in endpoint.headers)
    assert (report.ok, report.posted, report.accepted) == (True, len(events), len(events))
    assert report.to_json()["answers"] == {"200": len(events)}


def test_what_is_not_answered_2xx_comes_again_while_others_go_on(
    serve: Callable[[Answer], Endpoint], events: list[Event]
) -> None:
    first, unlucky = events[0].id, events[1].id

    def answer(id: str, attempt: int) -> int:
        if id == unlucky:
            return 500
        return 503 if id == first and attempt < 3 else 200

    endpoint = serve(answer)
    report = deliver(events[:6], endpoint.url, [SECRET], Plan(attempts=4, backoff_s=0.01))
    arrived = [event["id"] for event in endpoint.accepted]
    assert arrived == [*(event.id for event in events[2:6]), first]
    assert report.answers == {"200": 5, "500": 4, "503": 2}
    assert (report.ok, report.undelivered, report.posted, report.accepted) == (False, [unlucky], 11, 5)


def test_nobody_listening_is_reported_and_not_raised(events: list[Event]) -> None:
    report = deliver(events[:1], "http://127.0.0.1:9/", [SECRET], Plan(attempts=2, backoff_s=0.01))
    assert report.answers == {"ConnectionRefusedError": 2}
    assert report.undelivered == [events[0].id]


def test_a_url_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot post"):
        deliver([], "ftp://127.0.0.1/", [SECRET])


def test_a_shuffled_delivery_brings_every_event_and_repeats_itself_by_seed(events: list[Event]) -> None:
    plan = Plan(seed=5, shuffle=True, duplicates=0.5)
    posts = arrange(events, plan)
    assert posts == arrange(events, plan)
    assert ids(posts) != ids(arrange(events, Plan(seed=6, shuffle=True, duplicates=0.5)))
    assert set(ids(posts)) == {event.id for event in events}
    assert list(dict.fromkeys(ids(posts))) != [event.id for event in events]
    assert len(events) * 1.3 < len(posts) < len(events) * 1.7
    assert max(Counter(ids(posts)).values()) == 2


def test_duplicates_in_order_come_after_the_first(events: list[Event]) -> None:
    posts = ids(arrange(events, Plan(seed=5, duplicates=1.0)))
    assert len(posts) == 2 * len(events)
    assert list(dict.fromkeys(posts)) == [event.id for event in events]


def test_each_delivery_is_rendered_in_a_version_of_the_plan(events: list[Event]) -> None:
    old = [json.loads(body) for _, body in arrange(events, Plan(api_versions=[ACACIA]))]
    assert old == [render_event(event, ACACIA) for event in events]
    mixed = [json.loads(body)["api_version"] for _, body in arrange(events, Plan(api_versions=[ACACIA, ENDIVE]))]
    assert set(mixed) == {ACACIA, ENDIVE}


def test_dicts_and_bytes_are_sent_as_they_are() -> None:
    event = envelope({"id": "cus_1", "object": "customer"}, "customer.created", 1)
    assert arrange([event, b"\xff{"]) == [(event["id"], body_of(event)), ("\ufffd{", b"\xff{")]


def test_events_that_never_set_out_are_named(serve: Callable[[Answer], Endpoint], events: list[Event]) -> None:
    endpoint = serve(always_200)
    report = deliver(events, endpoint.url, [SECRET], Plan(seed=2, drops=0.3))
    assert 0 < len(report.dropped) < len(events)
    assert sorted([event["id"] for event in endpoint.accepted] + report.dropped) == sorted(e.id for e in events)
    assert deliver(events, endpoint.url, [SECRET], Plan(seed=2, drops=0.3)).dropped == report.dropped


def test_late_events_are_overtaken(serve: Callable[[Answer], Endpoint], events: list[Event]) -> None:
    endpoint = serve(always_200)
    assert deliver(events[:10], endpoint.url, [SECRET], Plan(seed=2, delay_s=0.2)).took_s < 2
    arrived = [event["id"] for event in endpoint.accepted]
    assert arrived != [event.id for event in events[:10]]
    assert sorted(arrived) == sorted(event.id for event in events[:10])


def test_stale_signatures_are_refused_and_lost_answers_bring_the_event_again(
    serve: Callable[[Answer], Endpoint], events: list[Event]
) -> None:
    endpoint = serve(always_200)
    plan = Plan(seed=2, stale=0.3, unheard=0.3, attempts=30, backoff_s=0.001)
    report = deliver(events[:20], endpoint.url, [SECRET], plan)
    assert report.ok
    assert report.answers["400"] > 2
    arrived = Counter(event["id"] for event in endpoint.accepted)
    assert set(arrived) == {event.id for event in events[:20]}
    assert max(arrived.values()) > 1


def test_a_signature_may_be_dated_back(serve: Callable[[Answer], Endpoint], events: list[Event]) -> None:
    endpoint = serve(always_200)
    began = int(time.time())
    assert deliver(events[:2], endpoint.url, [SECRET], Plan(age_s=200)).ok
    dates = [int(header.partition(",")[0].removeprefix("t=")) for header in endpoint.headers]
    assert all(began - 200 <= date <= int(time.time()) - 200 for date in dates)
