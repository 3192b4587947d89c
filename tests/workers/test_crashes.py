from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support import ROOT, eventually
from tests.workers.test_process import NOON, USER, due_now, story
from tests.workers.world import Event, World, event, thing, world
from workers.recompute import decide_due


@pytest.fixture
def here(database_url: str) -> Iterator[World]:
    with world(database_url, DUES_LEASE_SECONDS="30") as one:
        yield one


def crash(here: World, where: str) -> int:
    """Run a worker that ends at `where`; its exit code."""
    return subprocess.run(
        [sys.executable, "-m", "tests.workers.crashing", "live", where],
        env={"DATABASE_URL": here.settings.database_url, "PATH": ""},
        cwd=ROOT,
        timeout=30,
        capture_output=True,
        check=False,
    ).returncode


@pytest.mark.parametrize("step", ["book", "write", "link", "decide"])
def test_a_worker_killed_before_any_commit_loses_nothing_and_doubles_nothing(here: World, step: str) -> None:
    here.users(USER)
    here.feed_as_list(story())
    expected = here.rows()
    here.empty()
    here.users(USER)
    here.record(*story())
    assert crash(here, f"step={step}") == -signal.SIGKILL
    assert here.statuses() == {"received": 5}
    if step == "book":  # nothing was committed, not even the lease; PostgreSQL notices the end in a moment
        eventually(lambda: here.road.process("live") == {"processed": 5})
    else:
        assert here.road.process("live") == {}, "the lease holds"
    due_now(here)
    here.road.process("live")
    assert here.statuses() == {"processed": 5}
    assert here.rows() == expected
    assert here.one("SELECT count(*) FROM membership_changes").count == 1


@pytest.mark.parametrize("step", ["write", "link", "decide"])
def test_a_worker_killed_amid_a_change_of_the_catalogue_still_reaches_the_subscribers(here: World, step: str) -> None:
    """The second try finds the product's new metadata written already, and must not take that for "unchanged"."""
    here.users(USER)
    here.feed(*story())
    here.record(event(thing("product.created", metadata={"role": "USER"}), "product.updated", NOON + 50))
    crash(here, f"step={step}")
    due_now(here)
    here.road.process("live")
    assert here.one("SELECT role::text FROM users").role == "USER"


def test_a_worker_killed_after_linking_still_takes_the_former_users_role(here: World) -> None:
    """The customer moves to another user; whoever looks next knows that both need a decision."""
    here.users(USER, "43")
    here.feed(*story())
    here.record(event(thing("customer.created", metadata={"user_id": "43"}), "customer.updated", NOON + 50))
    assert crash(here, "step=decide") == -signal.SIGKILL
    due = here.execute("SELECT id FROM users WHERE next_change_at <= clock_timestamp() ORDER BY id")
    assert [row.id for row in due] == [USER, "43"]
    due_now(here)
    here.road.process("live")
    # The event concerns the new user; the former one is due, and beat looks every few seconds.
    decide_due(here.engine, here.settings)
    roles = here.execute("SELECT id, role::text FROM users ORDER BY id")
    assert [tuple(row) for row in roles] == [(USER, "USER"), ("43", "PREMIUM")]


def test_a_payload_that_ends_its_process_dies_alone_among_two_hundred(here: World) -> None:
    events: list[Event] = [
        event(thing("customer.created", id=f"cus_{n:03}"), "customer.created", NOON) for n in range(200)
    ]
    bad = events[77]["id"]
    here.record(*events)
    its_claim, sizes = "SELECT claim FROM stripe_events WHERE id = :id", []
    while here.one("SELECT count(*) FROM stripe_events WHERE status = 'received'").count:
        code = crash(here, f"event={bad}")
        if code != 0:
            sizes.append(here.one(f"SELECT count(*) FROM stripe_events WHERE claim = ({its_claim})", id=bad).count)
        assert len(sizes) < 5, "it takes too many lives"
        due_now(here)
    assert here.statuses() == {"processed": 199, "dead": 1}
    dead = here.one("SELECT id, reason, error, attempts FROM stripe_events WHERE status = 'dead'")
    assert (dead.id, dead.reason) == (bad, "worker_died")
    assert sizes[0] == 200
    assert 1 < sizes[1] <= 16
    assert sizes[2:] == [1]
