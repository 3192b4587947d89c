from __future__ import annotations

import json

import psycopg
import pytest
from flask import Flask
from werkzeug.test import TestResponse

from ingest import create_app
from ingest.metrics import MANY_TYPES, OTHER, type_label
from models.settings import Settings, SettingsError
from tests.ingest.conftest import application
from tests.ingest.serving import TOKEN, URL, event, signed
from tests.support import free_port


def get(app: Flask, path: str, token: str | None = None) -> TestResponse:
    return app.test_client().get(path, headers={"Authorization": f"Bearer {token}"} if token else {})


def metrics_of(app: Flask) -> list[str]:
    answer = get(app, "/metrics", TOKEN)
    assert (answer.status_code, answer.mimetype) == (200, "text/plain")
    # Not `splitlines`: the types that other tests invent hold other ends of lines, which are none to Prometheus.
    return [line for line in answer.text.split("\n") if line and not line.startswith("#")]


def test_it_lives_without_anything() -> None:
    app = create_app(Settings(stripe_webhook_secrets=("whsec_x",)))
    assert get(app, "/healthz").status_code == 200


def test_it_is_ready_when_an_event_could_be_stored(app: Flask) -> None:
    answer = get(app, "/readyz")
    assert answer.status_code == 200
    assert answer.get_json() == {"ready": True, "postgres": True, "schema": True, "redis": True}


@pytest.mark.parametrize("version", ["0000", "9999"])
def test_it_is_not_ready_for_a_schema_of_another_version(
    app: Flask, database: psycopg.Connection, version: str
) -> None:
    database.execute("UPDATE alembic_version SET version_num = %s", (version,))
    answer = get(app, "/readyz")
    assert answer.status_code == 503
    assert answer.get_json() == {"ready": False, "postgres": True, "schema": False, "redis": True}


def test_it_is_not_ready_for_a_database_without_a_schema(empty_database_url: str, redis_db_url: str) -> None:
    with application(empty_database_url, redis_db_url) as app:
        answer = get(app, "/readyz")
        assert answer.status_code == 503
        assert answer.get_json() == {"ready": False, "postgres": True, "schema": False, "redis": True}


def test_it_is_ready_without_redis_and_says_so(database_url: str) -> None:
    with application(database_url, f"redis://127.0.0.1:{free_port()}/0") as app:
        answer = get(app, "/readyz")
        assert answer.status_code == 200
        assert answer.get_json() == {"ready": True, "postgres": True, "schema": True, "redis": False}


@pytest.mark.parametrize("token", [None, "", "wrong", f"{TOKEN}x", TOKEN[:-1], "töken"])
def test_metrics_are_for_those_with_a_token(app: Flask, token: str | None) -> None:
    answer = get(app, "/metrics", token)
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert answer.get_json()["error"] == "unauthorized"


def test_another_scheme_is_no_bearer_token(app: Flask) -> None:
    answer = app.test_client().get("/metrics", headers={"Authorization": f"Basic {TOKEN}"})
    assert answer.status_code == 401


def test_without_a_token_set_there_are_no_metrics() -> None:
    app = create_app(Settings(stripe_webhook_secrets=("whsec_x",)))
    assert get(app, "/metrics", "").status_code == 404


def test_metrics_show_what_the_ledger_holds(app: Flask, database: psycopg.Connection) -> None:
    database.execute(
        """
        INSERT INTO stripe_events (id, type, status, reason, lane, received_at) VALUES
            ('evt_1', 'customer.created', 'received', NULL, 'live', now() - interval '90 seconds'),
            ('evt_2', 'customer.created', 'received', NULL, 'live', now()),
            ('evt_3', 'invoice.paid', 'ignored', 'type', 'live', now()),
            ('evt_4', 'price.created', 'dead', 'malformed', 'live', now() - interval '2 days'),
            ('evt_5', 'price.created', 'processed', NULL, 'bulk', now() - interval '2 days')
        """
    )
    lines = metrics_of(app)
    assert 'dues_events_waiting{lane="live"} 2.0' in lines
    assert 'dues_events_waiting{lane="bulk"} 0.0' in lines
    assert "dues_events_dead 1.0" in lines
    assert 'dues_events_last_hour{reason="type",status="ignored",type="invoice.paid"} 1.0' in lines
    assert 'dues_events_last_hour{reason="",status="received",type="customer.created"} 2.0' in lines
    assert not [line for line in lines if "price.created" in line and "last_hour" in line]
    assert "dues_postgres_up 1.0" in lines
    assert "dues_redis_up 1.0" in lines
    (oldest,) = (line for line in lines if line.startswith('dues_events_waiting_oldest_seconds{lane="live"}'))
    assert 90 <= float(oldest.split()[-1]) < 100


def test_metrics_show_what_the_last_runs_found(app: Flask, database: psycopg.Connection) -> None:
    found = {"missed": 3, "drift": {"stripe_products": {"wrong": 2, "wrong.name": 2}}, "money": {"x": [1, 2]}}
    look = {"findings": [{"check": "endpoint", "level": "problem", "found": "", "todo": ""}]}
    for kind, status, counts in (
        ("reconcile", "done", {"missed": 9}),
        ("reconcile", "done", found),
        ("reconcile", "failed", {"missed": 7}),
        ("watchdog", "done", look),
    ):
        database.execute(
            "INSERT INTO sync_runs (kind, status, counts) VALUES (%s, %s, %s)", (kind, status, json.dumps(counts))
        )
    lines = metrics_of(app)
    assert 'dues_sync_failed_last_day{kind="reconcile"} 1.0' in lines
    assert 'dues_reconcile_found{table="",what="missed"} 3.0' in lines
    assert 'dues_reconcile_found{table="stripe_products",what="wrong"} 2.0' in lines
    assert 'dues_reconcile_found{table="",what="money"} 1.0' in lines
    assert 'dues_watchdog_findings{check="endpoint",level="problem"} 1.0' in lines
    ages = [line for line in lines if line.startswith("dues_sync_last_done_seconds{")]
    assert {line.split('"')[1] for line in ages} == {"reconcile", "watchdog"}
    assert all(float(line.split()[-1]) < 60 for line in ages)
    assert not any("wrong.name" in line for line in lines)


def test_every_metric_is_ours_by_name(app: Flask) -> None:
    body = event("evt_1")
    app.test_client().post(URL, data=body, headers=signed(body))
    assert {line for line in metrics_of(app) if not line.startswith("dues_")} == set()


def test_types_without_end_are_counted_together() -> None:
    labels = {type_label(f"invented.type_{number}") for number in range(MANY_TYPES * 2)}
    assert OTHER in labels
    assert len(labels) <= MANY_TYPES + 1
    assert type_label("invented.type_0") == "invented.type_0"


def test_metrics_read_no_more_of_the_ledger_than_is_waiting_dead_or_recent(database: psycopg.Connection) -> None:
    from ingest import health

    database.execute(
        "INSERT INTO stripe_events (id, type, status, received_at) SELECT 'evt_' || n, 'customer.created', 'processed',"
        " now() - interval '1 day' * n / 100 - interval '1 day' FROM generate_series(1, 20000) AS n"
    )
    database.execute("ANALYZE stripe_events")
    for query in (health._WAITING, health._DEAD, health._RECENT):
        sql = str(query).replace(":lanes", "'{live,bulk}'")
        plan = "\n".join(row[0] for row in database.execute(f"EXPLAIN {sql}"))
        assert "Seq Scan on stripe_events" not in plan, plan


def test_it_does_not_start_without_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "REDIS_URL", "STRIPE_WEBHOOK_SECRET"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SettingsError) as caught:
        create_app()
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("part", "why"), [("docs", "there is webhook, api"), ("ops", "--only ops: the ops pages do not exist yet")]
)
def test_a_part_that_does_not_exist_is_named(part: str, why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        create_app(only=part)


@pytest.mark.parametrize(
    ("part", "needs", "serves"),
    [("webhook", "STRIPE_WEBHOOK_SECRET", "/webhooks/stripe"), ("api", "DUES_API_TOKEN", "/api/products")],
)
def test_a_part_by_itself_needs_and_serves_nothing_of_the_others(
    monkeypatch: pytest.MonkeyPatch, part: str, needs: str, serves: str
) -> None:
    for name in ("STRIPE_WEBHOOK_SECRET", "DUES_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    with pytest.raises(SettingsError) as caught:
        create_app(only=part)
    assert [problem.partition(" ")[0] for problem in caught.value.problems] == [needs]
    monkeypatch.setenv(needs, "secret")
    routes = {rule.rule for rule in create_app(only=part).url_map.iter_rules()}
    assert {serves, "/healthz", "/readyz"} <= routes
    assert routes & {"/webhooks/stripe", "/api/products"} == {serves}
