"""The read API does what its OpenAPI document says, whatever is asked of it, and the document says all that it does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from ingest.api import _cursor
from simulator.calendar import DAY
from tests.ingest.conftest import application
from tests.ingest.serving import TOKEN
from tests.ingest.test_api import ANN, give, member
from tests.workers.world import world

DOCUMENT: dict[str, Any] = json.loads(Path("ingest/openapi.json").read_text(encoding="utf-8"))
METHODS = {"get", "post"}
load_all_checks()
UNHEARD = CHECKS.get_one("negative_data_rejection")
PAYMENTS = "/api/users/{user_id}/payments"


@pytest.fixture(scope="module")
def app(shared_url: str, shared_redis: str) -> Iterator[Flask]:
    """The application over a member with everything: a subscription, a refunded payment, tokens, an override."""
    with world(shared_url) as here, application(shared_url, shared_redis, DUES_PAUSE="processing") as app:
        here.users(ANN)
        member(here, refund=200)
        give(here, 1_000_000, f"{30 * DAY} s")
        here.execute(
            "INSERT INTO user_overrides (user_id, kind, role, author) VALUES (:user, 'comp', 'PREMIUM', 'me')", user=ANN
        )
        yield app


@pytest.fixture
def described(app: Flask) -> Any:
    # A small search space: most of the paths that are tried should be somebody's.
    document = json.loads(json.dumps(DOCUMENT))
    document["components"]["parameters"]["user_id"]["schema"]["enum"] = [ANN, "nobody", "ü%20", "a\0b"]
    cursor = next(one for one in document["paths"][PAYMENTS]["get"]["parameters"] if one.get("name") == "cursor")
    cursor["schema"]["enum"] = [_cursor(datetime(2026, 11, 1, tzinfo=UTC), "pi_1"), ""]
    return schemathesis.openapi.from_wsgi("/openapi.json", _with_document(app, document))


def _with_document(app: Flask, document: dict[str, Any]) -> Any:
    """The application, with another document at /openapi.json, open to everybody."""

    def serve(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/openapi.json":
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(document).encode()]
        return app.wsgi_app(environ, start_response)

    return serve


OPERATIONS = [
    pytest.param(path, method, mode, id=f"{method} {path} {mode.value}")
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or "parameters" in operation
]


@pytest.mark.parametrize(("path", "method", "mode"), OPERATIONS)
def test_every_answer_is_as_documented_whatever_is_asked(
    described: Any, path: str, method: str, mode: GenerationMode
) -> None:
    operation = described[path][method]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=15, suppress_health_check=list(HealthCheck))
    def ask(case: Any) -> None:
        # Parameters and headers that nobody has heard of are no reason to refuse.
        case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"}, excluded_checks=[UNHEARD])

    ask()


def test_the_document_names_every_route_and_no_other(app: Flask) -> None:
    served = {
        (rule.rule.replace("<", "{").replace(">", "}"), method.lower())
        for rule in app.url_map.iter_rules()
        if rule.rule.startswith("/api/")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    described = {(path, method) for path, item in DOCUMENT["paths"].items() for method in item if method in METHODS}
    assert described == served


def test_the_document_is_served_to_who_may_ask(app: Flask) -> None:
    client = app.test_client()
    answer = client.get("/api/openapi.json", headers={"Authorization": f"Bearer {TOKEN}"})
    assert (answer.status_code, answer.get_json()) == (200, DOCUMENT)
    assert client.get("/api/openapi.json").status_code == 401
