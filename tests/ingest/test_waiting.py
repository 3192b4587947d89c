"""The end of a Checkout is answered when the buyer is a member, or when patience ends, and never instead of storing."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from ingest.database import Database, UnavailableError
from models.settings import read_settings
from ops.embedded import EmbeddedPostgres, EmbeddedValkey
from simulator.api import KEY
from simulator.envelope import body_of
from simulator.server import Server, serving
from simulator.state import Stripe
from tests.ingest.conftest import application
from tests.ingest.serving import TOKEN, URL, Answer, event, receiver, settings_of, signed
from tests.ingest.test_serving import frozen, ids_at
from tests.support import eventually, free_port
from tests.workers.serving import worker
from tests.workers.test_asking import ANN, buy, the_end
from tests.workers.world import World, world

END = "checkout.session.completed"
# Long beside what a loaded machine needs for a request, short beside a test's patience.
PATIENCE = 1.5
SLACK = 1.2


def end(event_id: str = "evt_end", type: str = END) -> bytes:
    """The body of an event that ends a Checkout."""
    session = {"id": "cs_1", "object": "checkout.session", "mode": "setup", "status": "complete"}
    return event(event_id, type=type, data={"object": session})


@contextlib.contextmanager
def working(here: World, *lanes: str) -> Iterator[None]:
    """A worker that is always at it."""
    done = threading.Event()

    def work() -> None:
        while not done.wait(0.02):
            for lane in lanes:
                here.road.process(lane)  # type: ignore[arg-type]

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def post(database_url: str, redis_url: str, body: bytes, **settings: str) -> tuple[int, float]:
    """Status of the answer, and the seconds it took."""
    with application(database_url, redis_url, DUES_CHECKOUT_WAIT=str(PATIENCE), **settings) as app:
        app.test_client().get("/healthz")
        begin = time.monotonic()
        answer = app.test_client().post(URL, data=body, headers=signed(body))
        return answer.status_code, time.monotonic() - begin


@pytest.fixture
def stripe() -> Stripe:
    return Stripe("waiting", int(time.time()) - 60)


@pytest.fixture
def server(stripe: Stripe) -> Iterator[Server]:
    with serving(stripe) as server:
        yield server


def test_the_buyer_comes_back_as_a_member_although_only_the_session_was_told_of(
    database_url: str, redis_db_url: str, stripe: Stripe, server: Server
) -> None:
    with world(database_url, STRIPE_API_KEY=KEY, STRIPE_API_BASE=server.url) as here:
        here.users(ANN)
        buy(stripe)
        with working(here, "live", "api"):
            status, _ = post(database_url, redis_db_url, body_of(the_end(stripe)), DUES_STALE_SECONDS="0")
        assert status == 200
        assert here.one("SELECT role::text FROM users").role == "PREMIUM"
        assert here.statuses() == {"processed": 2}


def test_with_real_processes_the_buyer_is_a_member_before_the_answer(
    database_url: str, redis_db_url: str, stripe: Stripe, server: Server
) -> None:
    keys = {"STRIPE_API_KEY": KEY, "STRIPE_API_BASE": server.url}
    env = {**settings_of(database_url, redis_db_url), "DUES_CHECKOUT_WAIT": "10"}
    with world(database_url) as here, receiver(env) as served, worker({**env, **keys}):
        here.users(ANN)
        buy(stripe)
        answer = served.post(body_of(the_end(stripe)))
        assert (answer.status, answer.seconds < 10) == (200, True)
        assert here.one("SELECT role::text FROM users").role == "PREMIUM"
        stripe.cancel(*stripe.subscriptions)
        found = served.ask("GET", f"/api/users/{ANN}?fresh=1", headers={"Authorization": f"Bearer {TOKEN}"})
        assert (found.status, found.json["role"], found.json["membership_status"]) == (200, "USER", "CANCELED")


def test_without_a_key_it_waits_until_the_event_is_processed_and_no_longer(
    database_url: str, redis_db_url: str, stripe: Stripe
) -> None:
    with world(database_url) as here, working(here, "live"):
        buy(stripe)
        status, seconds = post(database_url, redis_db_url, body_of(the_end(stripe)))
        assert (status, here.statuses()) == (200, {"processed": 1})
        assert seconds < PATIENCE


@pytest.mark.parametrize("type", [END, "checkout.session.async_payment_succeeded", f"v1.{END}"])
def test_with_the_worker_away_it_is_answered_when_patience_ends(
    database_url: str, redis_db_url: str, type: str
) -> None:
    status, seconds = post(database_url, redis_db_url, end(type=type))
    assert status == 200
    assert PATIENCE <= seconds < PATIENCE + SLACK
    assert ids_at(database_url) == {"evt_end"}


@pytest.mark.parametrize(
    ("body", "settings"),
    [
        (event("evt_1"), {}),
        (end(type="checkout.session.expired"), {}),
        (end(), {"DUES_PAUSE": "processing"}),
    ],
    ids=["another type", "a Checkout that came to nothing", "processing is paused"],
)
def test_what_nobody_waits_for_is_answered_at_once(
    database_url: str, redis_db_url: str, body: bytes, settings: dict[str, str]
) -> None:
    status, seconds = post(database_url, redis_db_url, body, **settings)
    assert (status, seconds < PATIENCE) == (200, True)
    assert len(ids_at(database_url)) == 1


def test_waiting_can_be_switched_off(database_url: str, redis_db_url: str) -> None:
    with application(database_url, redis_db_url, DUES_CHECKOUT_WAIT="0") as app:
        begin = time.monotonic()
        assert app.test_client().post(URL, data=end(), headers=signed(end())).status_code == 200
        assert time.monotonic() - begin < PATIENCE


def test_an_event_that_is_known_and_done_is_answered_at_once(database_url: str, redis_db_url: str) -> None:
    with world(database_url) as here:
        post(database_url, redis_db_url, end(), DUES_PAUSE="processing")
        here.road.process("live")
        status, seconds = post(database_url, redis_db_url, end())
        assert (status, seconds < PATIENCE) == (200, True)


# --- what is away -----------------------------------------------------------------------------------------------------


def patient(database_url: str, redis_url: str) -> dict[str, str]:
    return {**settings_of(database_url, redis_url), "DUES_CHECKOUT_WAIT": str(PATIENCE)}


def in_time(answer: Answer) -> bool:
    return answer.status == 200 and answer.seconds < PATIENCE + SLACK


def test_a_frozen_or_absent_redis_changes_nothing(database_url: str, own_valkey: Callable[..., EmbeddedValkey]) -> None:
    server = own_valkey()
    with receiver(patient(database_url, server.redis_url)) as served:
        server.pause()
        try:
            assert in_time(served.post(end("evt_frozen")))
        finally:
            server.resume()
    with receiver(patient(database_url, f"redis://127.0.0.1:{free_port()}/0")) as served:
        assert in_time(served.post(end("evt_away")))
    assert ids_at(database_url) == {"evt_frozen", "evt_away"}


@pytest.mark.parametrize("how", ["frozen", "killed"])
def test_when_postgres_goes_away_after_storing_it_is_answered_in_time(
    own_postgres: Callable[..., EmbeddedPostgres], redis_db_url: str, how: str
) -> None:
    server = own_postgres(port=0)
    url = server.url
    with (
        receiver(patient(url, redis_db_url)) as served,
        ThreadPoolExecutor(1) as pool,
        contextlib.ExitStack() as stack,
    ):
        served.post(event("evt_before"))
        answer = pool.submit(served.post, end("evt_end"))
        eventually(lambda: "evt_end" in ids_at(url), timeout=PATIENCE)
        if how == "frozen":
            stack.enter_context(frozen(server.pid))
        else:
            server.kill()
        assert in_time(answer.result())


def test_a_quarter_of_the_threads_may_wait_and_the_others_answer_at_once(database_url: str, redis_db_url: str) -> None:
    env = {**settings_of(database_url, redis_db_url), "DUES_CHECKOUT_WAIT": "3"}
    with receiver(env) as served, ThreadPoolExecutor(12) as pool:  # which has four threads
        answers = list(pool.map(served.post, [end(f"evt_{number}") for number in range(12)]))
    assert {answer.status for answer in answers} == {200}
    assert sorted(answer.seconds >= 3 for answer in answers) == [False] * 11 + [True]
    assert len(ids_at(database_url)) == 12


def test_who_is_impatient_gives_up_alone(database_url: str) -> None:
    database = Database(read_settings({"DATABASE_URL": database_url}), application="test")
    try:
        begin = time.monotonic()
        with pytest.raises(UnavailableError):
            database.run(lambda connection: connection.execute(text("SELECT pg_sleep(1)")), patience=0.1)
        # Others need not rest: PostgreSQL is there.
        assert database.run(lambda connection: connection.execute(text("SELECT 1")).scalar_one()) == 1
        assert time.monotonic() - begin < 1
    finally:
        database.close()
