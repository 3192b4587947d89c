"""The receiver's answers, over its real code and a real PostgreSQL; what needs a real server is in test_serving.py."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from ingest import create_app
from models.settings import Settings, read_settings
from simulator.signing import sign
from tests.ingest.serving import SECRET, URL, event, signed
from workers.process import Road

NESTED = b"[" * 100_000 + b"]" * 100_000
MALFORMED = {
    "NaN": event().replace(b'"cus_1"', b"NaN"),
    "a nesting bomb": event().replace(b'"cus_1"', NESTED),
    "a number of 5000 digits": event().replace(b'"cus_1"', b"9" * 5000),
    "no created": event(created=None),
    "a created that is a text": event(created="1793520000"),
    "a created before 1970": event(created=-5),
    "a created beyond the year 9999": event(created=10**18),
    "a created that is true": event(created=True),
    "U+0000 in the object's id": event(data={"object": {"id": "cus\x00", "object": "customer"}}),
    "half a surrogate pair": event(data={"object": {"id": "cus_1", "object": "customer", "name": "\ud83d"}}),
    "U+0000 in a key": event().replace(b'"livemode"', b'"live\\u0000mode"'),
    "U+0000 in the event's id": event("evt_\x00"),
    "half a surrogate pair in the type": event(type="customer.created\udc00"),
    "an object's id of 300 characters": event(data={"object": {"id": "c" * 300, "object": "customer"}}),
    "no data": event(data=None),
    "data that is a list": event(data=[1]),
}
REFUSED = {
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "an empty object": b"{}",
    "a number": b"1",
    "not UTF-8": b'{"id":"evt_1","type":"\xff"}',
    "no id": event(None),  # type: ignore[arg-type]
    "an id of 256 characters": event("x" * 256),
    "an empty id": event(""),
    "an id that is a number": event(5),  # type: ignore[arg-type]
    "no type": event(type=None),
    "unclosed": event()[:-1],
    "unclosed nesting": b"[" * 100_000,
}


def error_of(answer: TestResponse) -> Any:
    return json.loads(answer.data)["error"]


def post(app: Flask, body: bytes, headers: dict[str, str] | None = None) -> TestResponse:
    return app.test_client().post(URL, data=body, headers=signed(body) if headers is None else headers)


def numbered(body: bytes, number: int) -> bytes:
    """The same event under an id of its own."""
    return body.replace(b'"id": "evt_1"', b'"id": "evt_%d"' % number)


def stored(ledger: psycopg.Connection) -> list[tuple[Any, ...]]:
    return ledger.execute("SELECT id, status, reason, payload FROM stripe_events").fetchall()


@pytest.fixture
def app(shared_app: Flask, ledger: psycopg.Connection) -> Flask:
    return shared_app


@pytest.fixture
def process(app: Flask, shared_url: str) -> Callable[[], None]:
    """Work off everything that is stored, the way a worker does."""
    from models.database import connect

    def work_off() -> None:
        options = read_settings({"DATABASE_URL": shared_url})
        engine = connect(options, application="test")
        try:
            Road(engine, options).process("live")
        finally:
            engine.dispose()

    return work_off


def test_an_event_is_stored_byte_for_byte_before_it_is_acknowledged(app: Flask, ledger: psycopg.Connection) -> None:
    body = b" " + event("evt_9", account="acct_1", api_version="2026-09-30.endive", created=1_793_520_000)
    answer = post(app, body)
    assert (answer.status_code, answer.json, answer.mimetype) == (200, {"received": True}, "application/json")
    row = ledger.execute(
        "SELECT id, type, object_type, object_id, extract(epoch FROM created)::int, api_version, livemode, account,"
        " payload, status, attempts, lane FROM stripe_events"
    ).fetchone()
    assert row == ("evt_9", "customer.created", "customer", "cus_1", 1_793_520_000, "2026-09-30.endive", False,
                   "acct_1", body, "received", 0, "live")  # fmt: skip


def test_a_duplicate_is_acknowledged_and_changes_nothing(app: Flask, ledger: psycopg.Connection) -> None:
    post(app, event("evt_1"))
    again = post(app, event("evt_1", created=1))
    assert again.status_code == 200
    assert [row[3] for row in stored(ledger)] == [event("evt_1")]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_the_content_type_does_not_matter(app: Flask, ledger: psycopg.Connection, content_type: str) -> None:
    body = event()
    assert post(app, body, signed(body) | {"Content-Type": content_type}).status_code == 200
    assert [row[3] for row in stored(ledger)] == [body]


def test_everything_that_is_signed_is_stored_and_what_nobody_can_read_ends_dead(
    app: Flask, ledger: psycopg.Connection, process: Callable[[], None]
) -> None:
    for number, (what, body) in enumerate(MALFORMED.items()):
        answer = post(app, numbered(body, number))
        assert (what, answer.status_code, answer.data) == (what, 200, b'{"received": true}')
    process()
    endings = {row[3]: row[1:3] for row in stored(ledger)}
    found = {what: endings[numbered(body, number)] for number, (what, body) in enumerate(MALFORMED.items())}
    assert found == dict.fromkeys(MALFORMED, ("dead", "malformed"))


def test_what_is_no_event_is_refused_and_not_stored(app: Flask, ledger: psycopg.Connection) -> None:
    for what, body in REFUSED.items():
        answer = post(app, body)
        assert (what, answer.status_code, error_of(answer)) == (what, 400, "bad_request")
    assert stored(ledger) == []


def test_nothing_that_is_not_signed_is_read_or_stored(app: Flask, ledger: psycopg.Connection) -> None:
    body = event()
    for headers in (
        {},
        signed(body, "whsec_wrong"),
        {"Stripe-Signature": sign(body, [SECRET], int(time.time()) - 400)},
    ):
        answer = post(app, body, headers)
        assert (answer.status_code, error_of(answer)) == (400, "bad_request")
    unsigned = json.loads(post(app, b"\xff", {}).data)
    assert unsigned["detail"] == json.loads(post(app, body, {}).data)["detail"]
    assert stored(ledger) == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE"])
def test_only_post_is_allowed(app: Flask, method: str) -> None:
    answer = app.test_client().open(URL, method=method)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
    assert method == "HEAD" or error_of(answer) == "method_not_allowed"


def test_answers_and_logs_hold_neither_payload_nor_secret(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    private = "alice@example.com"
    bodies = [event(name=private), event(name=private)[:-1], event(None, name=private), b"\xff" + private.encode()]  # type: ignore[arg-type]
    answers = [post(app, body, headers) for body in bodies for headers in (signed(body), signed(body, "whsec_no"), {})]
    said = b"".join(answer.data for answer in answers).decode() + caplog.text
    assert private not in said
    assert "whsec_" not in said


def test_an_unforeseen_error_is_a_500_that_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> str:
        raise RuntimeError("alice@example.com")

    fresh = create_app(Settings(stripe_webhook_secrets=(SECRET,)))
    fresh.add_url_rule("/broken", "broken", broken)
    answer = fresh.test_client().get("/broken")
    assert (answer.status_code, error_of(answer)) == (500, "internal_server_error")
    assert "RuntimeError at" in caplog.text
    assert "alice" not in caplog.text + answer.text


def test_other_paths_are_not_found_as_json(app: Flask) -> None:
    answer = app.test_client().get("/webhooks/stripe/")
    assert (answer.status_code, error_of(answer)) == (404, "not_found")


fuzz = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@fuzz
@given(st.binary(max_size=300), st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=200))
def test_no_bytes_and_no_header_make_it_fail(app: Flask, body: bytes, header: str) -> None:
    assert post(app, body, {"Stripe-Signature": header}).status_code == 400


@fuzz
@given(
    st.binary(max_size=300)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_no_signed_bytes_make_it_fail(app: Flask, body: bytes) -> None:
    assert post(app, body).status_code in {200, 400}


@fuzz
@given(st.text(min_size=1, max_size=300), st.text(max_size=300), st.text(max_size=300), st.integers() | st.text())
def test_no_texts_in_an_event_make_it_fail(app: Flask, event_id: str, kind: str, name: str, created: int | str) -> None:
    body = event(event_id, type=kind, created=created, account=name, data={"object": {"id": name, "object": kind}})
    assert post(app, body).status_code == (200 if len(event_id) <= 255 else 400)
