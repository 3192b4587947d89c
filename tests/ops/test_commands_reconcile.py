"""`dues reconcile`: what it says, what it ends with, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from simulator.api import KEY
from simulator.faults import Faults, Rule, server_error
from simulator.server import Server, serving
from simulator.state import Stripe
from tests.ops.command_line import Dues

CLOCK = 1793520000


@pytest.fixture
def stripe() -> Stripe:
    """A shop with one product."""
    one = Stripe("shop", CLOCK)
    one.create_product("Pro", metadata={"tokens": "500"})
    one.advance(CLOCK + 60)
    return one


@pytest.fixture
def server(stripe: Stripe) -> Iterator[Server]:
    with serving(stripe) as server:
        yield server


@pytest.fixture
def asking(dues: Dues, server: Server, redis_db_url: str) -> Dues:
    """`dues` with a key for that Stripe."""
    dues.environment |= {"STRIPE_API_KEY": KEY, "STRIPE_API_BASE": server.url, "REDIS_URL": redis_db_url}
    return dues


def test_missed_events_are_recorded_and_worked_off_and_then_all_is_fine(
    asking: Dues, plain: psycopg.Connection
) -> None:
    answer = asking("reconcile")
    assert (answer.code, answer.stdout.splitlines()[0]) == (
        1,
        "1 events had not arrived; they are recorded and worked off",
    )
    assert plain.execute("SELECT name FROM stripe_products").fetchall() == [("Pro",)]
    answer = asking("reconcile")
    assert (answer.code, answer.stdout) == (0, "Nothing is missing, and every row is what Stripe says.\n")


def test_a_wrong_value_is_told_and_mended_only_with_repair(asking: Dues, plain: psycopg.Connection) -> None:
    asking("reconcile")
    plain.execute("UPDATE stripe_products SET name = 'Con'")
    answer = asking("reconcile", "--json")
    assert (answer.code, answer.json["ok"]) == (1, False)
    assert answer.json["drift"] == {"stripe_products": {"wrong": 1, "wrong.name": 1}}
    assert plain.execute("SELECT name FROM stripe_products").fetchall() == [("Con",)]
    answer = asking("reconcile", "--repair")
    assert (answer.code, answer.stdout.splitlines()[:2]) == (
        1,
        ["stripe_products: 1 wrong, 1 wrong.name", "1 of these are mended"],
    )
    assert plain.execute("SELECT name FROM stripe_products").fetchall() == [("Pro",)]
    assert asking.fine("reconcile", "--json").json == {"ok": True}


def test_a_dry_run_says_what_would_be_done(asking: Dues, plain: psycopg.Connection) -> None:
    answer = asking("reconcile", "--dry-run")
    assert (answer.code, answer.stdout.splitlines()[0]) == (1, "1 events had not arrived; they would be recorded")
    rows = "SELECT count(*) FROM stripe_events UNION ALL SELECT count(*) FROM sync_runs"
    assert plain.execute(rows).fetchall() == [(0,), (0,)]


@pytest.mark.parametrize(
    ("arguments", "settings", "sentence"),
    [
        ([], {"STRIPE_API_KEY": ""}, "Stripe: STRIPE_API_KEY is not set."),
        ([], {"STRIPE_API_KEY": "sk_test_another"}, "Stripe: GET /v1/events: AuthenticationError 401"),
        ([], {"STRIPE_LIVEMODE": "live"}, "STRIPE_API_KEY is a key of the other mode"),
        (["--dry-run", "--repair"], {}, "--dry-run writes nothing"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_ends_with_2(
    asking: Dues, arguments: list[str], settings: dict[str, str], sentence: str
) -> None:
    answer = asking("reconcile", *arguments, **settings)
    assert answer.code == 2
    assert sentence in answer.stderr
    assert "sk_test_another" not in answer.stderr


def test_a_stripe_that_breaks_down_ends_it_with_2_and_the_run_is_told_failed(
    asking: Dues, server: Server, plain: psycopg.Connection
) -> None:
    server.faults = Faults([Rule(fault=server_error(), route="GET /v1/refunds")])
    answer = asking("reconcile")
    assert answer.code == 2
    assert "GET /v1/refunds" in answer.stderr
    assert plain.execute("SELECT kind, status FROM sync_runs").fetchall() == [("reconcile", "failed")]


def test_after_forty_days_without_news_everything_is_fetched_first_and_that_is_said(
    asking: Dues, stripe: Stripe, plain: psycopg.Connection
) -> None:
    asking("reconcile")
    stripe.create_product("Late")
    stripe.advance(CLOCK + 40 * 86400)
    answer = asking("reconcile", "--repair")
    assert answer.code == 1
    assert answer.stdout.splitlines()[0] == "nothing had been heard for 39 days, longer than Stripe keeps events"
    assert plain.execute("SELECT name FROM stripe_products ORDER BY 1").fetchall() == [("Late",), ("Pro",)]
    runs = "SELECT kind, status FROM sync_runs ORDER BY id"
    assert plain.execute(runs).fetchall() == [("reconcile", "done"), ("reconcile", "done"), ("backfill", "done")]
