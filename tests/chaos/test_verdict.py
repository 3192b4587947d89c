"""That a run under a fault would be found wanting, if it were."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest

from simulator.envelope import body_of
from simulator.histories import history
from simulator.people import people
from simulator.render import render_event
from simulator.state import Stripe
from tests.chaos.faults import poisonous
from tests.chaos.run import recovery
from tests.chaos.verdict import Verdict, feed, judge
from tests.conftest import new_database
from tests.workers.world import World, world

GRANT = (
    "INSERT INTO token_ledger (user_id, kind, amount, key, source) SELECT id, 'grant', 7, 'again', 'in_1' FROM users"
)


@pytest.fixture(scope="module")
def past() -> Stripe:
    return history(1, customers=1, months=2)


@pytest.fixture(scope="module")
def bodies(past: Stripe) -> Sequence[bytes]:
    return [*(body_of(render_event(event)) for event in past.events), *poisonous()]


@pytest.fixture
def worlds(postgres_url: str, template_database: str, bodies: Sequence[bytes]) -> Iterator[tuple[World, World]]:
    """Two that heard the same, in different order."""
    with ExitStack() as stack:
        urls = [stack.enter_context(new_database(postgres_url, template_database)) for _ in range(2)]
        here, calm = [stack.enter_context(world(url)) for url in urls]
        for one, heard in ((here, bodies[::-1]), (calm, bodies)):
            one.users(*(user.id for user in people(1, 1)))
            feed(one, heard)
        yield here, calm


def test_what_is_as_on_a_calm_day_is_fine(worlds: tuple[World, World], past: Stripe, bodies: Sequence[bytes]) -> None:
    assert judge(*worlds, past, bodies) == Verdict()
    assert worlds[0].statuses()["dead"] == len(poisonous())


@pytest.mark.parametrize(
    ("harm", "lost", "doubled", "found"),
    [
        ("DELETE FROM stripe_events WHERE type = 'charge.succeeded'", 1, 0, "ended as None"),
        ("UPDATE stripe_events SET status = 'dead' WHERE type = 'charge.succeeded'", 1, 0, "('dead', None)"),
        ("DELETE FROM stripe_charges", 0, 0, "stripe_charges ch_"),
        ("UPDATE user_subscriptions SET status = 'paused'", 0, 0, "is paused instead of"),
        ("UPDATE users SET membership_status = 'PAST_DUE'", 0, 0, "membership_status is 'PAST_DUE'"),
        (GRANT, 0, 1, "has 7 tokens instead of 0"),
    ],
)
def test_harm_is_found(
    worlds: tuple[World, World],
    past: Stripe,
    bodies: Sequence[bytes],
    harm: str,
    lost: int,
    doubled: int,
    found: str,
) -> None:
    worlds[0].execute(harm)
    verdict = judge(*worlds, past, bodies)
    assert (min(verdict.lost, 1), verdict.doubled) == (lost, doubled)
    assert found in "\n".join(verdict.findings)


def test_it_has_recovered_when_what_had_come_and_the_next_event_have_ended(worlds: tuple[World, World]) -> None:
    here, _ = worlds
    ended = here.one("SELECT clock_timestamp() AS now").now
    assert recovery(here, ended) == 0
    here.execute(
        "UPDATE stripe_events SET processed_at = :ended + interval '3 s' WHERE id LIKE 'evt_poison%'", ended=ended
    )
    assert recovery(here, ended) == pytest.approx(3, abs=0.01)
    for id, came, took in (("evt_first", 5, 2), ("evt_later", 8, 90)):
        here.execute(
            "INSERT INTO stripe_events (id, type, received_at, processed_at, status) VALUES (:id, 'x',"
            " :ended + make_interval(secs => :came), :ended + make_interval(secs => :came + :took), 'processed')",
            id=id, came=came, took=took, ended=ended,
        )  # fmt: skip
    assert recovery(here, ended) == pytest.approx(7, abs=0.01)
