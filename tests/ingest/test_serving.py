"""The receiver as it is run: granian in a process of its own, real servers that vanish, freeze and come back."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
import redis

from models.settings import Settings
from ops.embedded import EmbeddedPostgres, EmbeddedValkey
from tests.ingest.serving import TOKEN, URL, Answer, Receiver, event, receiver, settings_of, signed
from tests.support import eventually
from workers.receiver import look

LARGEST = 1024 * 1024


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """A server and its children that have stopped in the middle of whatever they did."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    try:
        for process in (pid, *children):
            os.kill(process, signal.SIGSTOP)
        yield
    finally:
        for process in (pid, *children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


def ids(connection: psycopg.Connection) -> set[str]:
    return {row[0] for row in connection.execute("SELECT id FROM stripe_events")}


def ids_at(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        return ids(connection)


def test_fifty_duplicates_at_once_are_acknowledged_and_stored_once(
    shared_receiver: Receiver, ledger: psycopg.Connection
) -> None:
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: shared_receiver.post(event("evt_1")), range(50)))
    assert {answer.status for answer in answers} == {200}
    assert ids(ledger) == {"evt_1"}


def test_bodies_up_to_a_mebibyte_are_taken_and_larger_ones_refused(
    shared_receiver: Receiver, ledger: psycopg.Connection
) -> None:
    body = event("evt_large", pad="")
    fitting = body.replace(b'"pad": "', b'"pad": "' + b"x" * (LARGEST - len(body)))
    too_large = fitting + b" "
    assert shared_receiver.post(fitting).status == 200
    refused = shared_receiver.post(too_large)
    assert (refused.status, refused.json["error"]) == (413, "request_entity_too_large")
    assert ids(ledger) == {"evt_large"}


def test_a_body_in_chunks_is_taken_and_a_too_large_one_refused(
    shared_receiver: Receiver, ledger: psycopg.Connection
) -> None:
    body = event("evt_chunks")
    answer = shared_receiver.ask("POST", URL, iter([body[:7], body[7:100], body[100:]]), signed(body))
    assert answer.status == 200
    large = event("evt_large") + b" " * LARGEST
    refused = shared_receiver.ask("POST", URL, iter([large[:600_000], large[600_000:]]), signed(large))
    assert refused.status == 413
    assert ids(ledger) == {"evt_chunks"}


def test_a_body_that_ends_early_is_not_stored(shared_receiver: Receiver, ledger: psycopg.Connection) -> None:
    body = event("evt_half")
    with socket.create_connection(("127.0.0.1", shared_receiver.port), timeout=10) as connection:
        header = signed(body)["Stripe-Signature"]
        head = f"POST {URL} HTTP/1.1\r\nHost: x\r\nStripe-Signature: {header}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body[:-10])
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1000)
    assert shared_receiver.post(event("evt_whole")).status == 200
    assert ids(ledger) == {"evt_whole"}


def test_a_huge_header_is_refused(shared_receiver: Receiver) -> None:
    answer = shared_receiver.ask("POST", URL, event(), {"Stripe-Signature": "t=1," + "v1=0," * 40_000})
    assert answer.status in {400, 431}
    assert shared_receiver.post(event()).status == 200


def test_what_was_acknowledged_outlives_a_receiver_that_is_killed(served: Receiver, database_url: str) -> None:
    acknowledged = {f"evt_{number}" for number in range(20) if served.post(event(f"evt_{number}")).status == 200}
    os.killpg(served.child.pid, signal.SIGKILL)
    assert len(acknowledged) == 20
    assert ids_at(database_url) == acknowledged


def test_processes_end_with_the_one_that_started_them(served: Receiver) -> None:
    served.child.send(signal.SIGKILL)
    served.child.ends()

    def nobody_listens() -> bool:
        try:
            socket.create_connection(("127.0.0.1", served.port), timeout=1).close()
        except ConnectionRefusedError:
            return True
        return False

    eventually(nobody_listens)


def test_sigterm_ends_it_after_the_requests_under_way(served: Receiver) -> None:
    body = event("evt_under_way")
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        header = signed(body)["Stripe-Signature"]
        head = f"POST {URL} HTTP/1.1\r\nHost: x\r\nStripe-Signature: {header}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body[:-1])
        served.child.send(signal.SIGTERM)
        served.child.says("Shutting down")
        connection.sendall(body[-1:])
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    assert served.child.ends() == 0


# --- PostgreSQL away ------------------------------------------------------------------------------------------------


def assert_is_503(answer: Answer) -> None:
    assert (answer.status, answer.json["error"], answer.headers["retry-after"]) == (503, "service_unavailable", "5")
    assert answer.seconds < 2.0


def test_while_postgres_is_away_it_answers_503_in_time_and_recovers_at_once(
    own_postgres: Callable[..., EmbeddedPostgres], redis_db_url: str
) -> None:
    server = own_postgres(port=0)
    with receiver(settings_of(server.url, redis_db_url)) as served:
        assert served.post(event("evt_before")).status == 200
        server.kill()
        for number in range(3):
            assert_is_503(served.post(event(f"evt_{number}")))
        not_ready = served.ask("GET", "/readyz")
        assert (not_ready.status, not_ready.json["postgres"]) == (503, False)
        server.start()
        assert served.post(event("evt_after")).status == 200
        assert served.ask("GET", "/readyz").json == {"ready": True, "postgres": True, "schema": True, "redis": True}
        server.stop()
        server.start()
        # The pool holds nothing but connections that have died meanwhile.
        assert served.post(event("evt_restarted")).status == 200
        assert {"evt_before", "evt_after", "evt_restarted"} <= ids_at(server.url)


@pytest.mark.parametrize("port", [None, 0], ids=["unix socket", "TCP"])
def test_while_postgres_is_frozen_everybody_is_answered_503_in_time(
    own_postgres: Callable[..., EmbeddedPostgres], redis_db_url: str, port: int | None
) -> None:
    server = own_postgres(port=port)
    url = server.url
    with receiver(settings_of(url, redis_db_url)) as served, ThreadPoolExecutor(60) as pool:
        assert {answer.status for answer in pool.map(served.post, map(event, "abcdefgh"))} == {200}
        with frozen(server.pid):
            for _ in range(2):
                answers = list(pool.map(served.post, [event(f"evt_{number}") for number in range(60)]))
                for answer in answers:
                    assert_is_503(answer)
                assert served.ask("GET", "/healthz").seconds < 2.0
            ready = served.ask("GET", "/readyz")
            assert (ready.status, ready.json["ready"]) == (503, False)
            assert ready.seconds < 2.0
            metrics = served.ask("GET", "/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
            assert "dues_postgres_up 0.0" in metrics.body.decode()
        eventually(lambda: served.post(event("evt_after")).status == 200, timeout=5)
        assert "evt_after" in ids_at(url)


def test_a_receiver_that_starts_while_postgres_is_away_or_frozen_takes_events_once_it_is_back(
    own_postgres: Callable[..., EmbeddedPostgres], redis_db_url: str
) -> None:
    server = own_postgres(port=0)
    with receiver(settings_of(server.url, redis_db_url)) as served:
        with frozen(server.pid):
            assert_is_503(served.post(event("evt_1")))
            assert_is_503(served.post(event("evt_1")))
        eventually(lambda: served.post(event("evt_1")).status == 200, timeout=5)


def test_a_connection_that_hangs_for_ever_is_replaced(
    database: psycopg.Connection, database_url: str, redis_db_url: str
) -> None:
    with receiver({**settings_of(database_url, redis_db_url), "DUES_POOL_SIZE": "1"}) as served:
        assert served.post(event("evt_1")).status == 200
        ours = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'dues %'"
        ((backend,),) = database.execute(ours).fetchall()
        os.kill(backend, signal.SIGSTOP)
        try:
            assert_is_503(served.post(event("evt_2")))
            eventually(lambda: served.post(event("evt_3")).status == 200, timeout=5)
        finally:
            os.kill(backend, signal.SIGCONT)


def test_a_locked_table_is_a_503_in_time(served: Receiver, database: psycopg.Connection) -> None:
    with database.transaction():
        database.execute("LOCK TABLE stripe_events IN ACCESS EXCLUSIVE MODE")
        assert_is_503(served.post(event("evt_1")))
    assert served.post(event("evt_1")).status == 200


def test_a_database_that_takes_no_writes_is_a_503(served: Receiver, database: psycopg.Connection) -> None:
    name = database.info.dbname
    database.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    assert_is_503(served.post(event("evt_1")))
    assert served.ask("GET", "/readyz").status == 503


# --- Redis away -----------------------------------------------------------------------------------------------------


def test_redis_refused_or_frozen_delays_no_answer_and_is_rung_when_it_is_back(
    own_valkey: Callable[..., EmbeddedValkey], database_url: str
) -> None:
    server = own_valkey()
    with receiver(settings_of(database_url, server.redis_url)) as served:
        assert served.post(event("evt_before")).status == 200
        with frozen(server.pid):
            answers = [served.post(event(f"evt_frozen_{number}")) for number in range(20)]
            assert {answer.status for answer in answers} == {200}
            assert max(answer.seconds for answer in answers) < 0.5
            ready = served.ask("GET", "/readyz")
            assert (ready.status, ready.json["redis"], ready.seconds < 2.0) == (200, False, True)
        server.kill()
        answers = [served.post(event(f"evt_refused_{number}")) for number in range(20)]
        assert {answer.status for answer in answers} == {200}
        assert max(answer.seconds for answer in answers) < 0.5
        server.start()
        with contextlib.closing(redis.Redis.from_url(server.redis_url)) as client:
            client.flushall()
            eventually(lambda: client.llen("live\x06\x169") == 1, timeout=12)


# --- several processes ----------------------------------------------------------------------------------------------


def test_several_processes_count_together(database_url: str, redis_db_url: str) -> None:
    with receiver(settings_of(database_url, redis_db_url), workers=2) as served:
        for number in range(30):
            served.post(event(f"evt_{number}"))
        served.post(event("evt_0"))
        served.post(event("evt_0"), secret="whsec_wrong")
        served.post(event("evt_0"), secret="whsec_other")

        def counted() -> bool:
            text = served.ask("GET", "/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).body.decode()
            for line in (
                'dues_events_received_total{type="customer.created"} 30.0',
                "dues_events_duplicate_total 2.0",
                'dues_signature_failures_total{reason="wrong"} 1.0',
                'dues_secret_used_total{secret="1"} 1.0',
                'dues_secret_used_total{secret="2"} 31.0',
                'dues_webhook_answers_total{code="200"} 32.0',
                "dues_event_lag_seconds_count 30.0",
            ):
                assert line in text, text
            return True

        eventually(counted)


def test_the_watchdog_reads_what_a_receiver_counts_secrets_that_are_not_used_too(served: Receiver) -> None:
    assert served.ask("POST", URL, event(), signed(event())).status == 200
    assert served.ask("POST", URL, event(), {"Stripe-Signature": "t=1,v1=0"}).status == 400
    settings = Settings(webhook_url=f"http://127.0.0.1:{served.port}{URL}", api_tokens=(TOKEN,))
    (finding,), kept = look(settings, None, datetime.now(UTC))
    assert finding.level == "ok"
    assert kept is not None
    assert {name: kept[name] for name in ("refused", "taken", "secrets")} == {
        "refused": 1,
        "taken": 1,
        "secrets": {"1": 0.0, "2": 1.0},
    }
    (finding,), _ = look(replace(settings, api_tokens=("wrong",)), None, datetime.now(UTC))
    assert finding.found == "/metrics of the receiver can't be read (ValueError)"
