"""Runs: one at a time of each kind, continued by whoever comes next."""

from __future__ import annotations

from sqlalchemy import Engine, text

from models import sync_runs
from tests.support import eventually


def begun(engine: Engine, kind: str = "reconcile", *, every: float = 0) -> sync_runs.Run | None:
    with engine.begin() as connection:
        return sync_runs.begin(connection, kind, every=every)


def test_of_two_who_come_at_once_one_has_the_turn(engine: Engine) -> None:
    with sync_runs.turn(engine, "reconcile") as first, sync_runs.turn(engine, "reconcile") as second:
        assert (first, second) == (True, False)
        with sync_runs.turn(engine, "backfill") as other:
            assert other
    with sync_runs.turn(engine, "reconcile") as again:
        assert again


def test_the_turn_ends_with_the_session_that_held_it(engine: Engine) -> None:
    with sync_runs.turn(engine, "reconcile"):
        with engine.connect() as connection:
            connection.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND database ="
                     " (SELECT oid FROM pg_database WHERE datname = current_database())")
            )  # fmt: skip

        def is_ours() -> bool:
            with sync_runs.turn(engine, "reconcile") as next_one:
                return next_one

        eventually(is_ours)  # its backend lets go when it comes to see the signal


def test_a_run_is_found_with_what_was_saved_until_it_is_finished(engine: Engine) -> None:
    run = begun(engine)
    assert run is not None
    run.cursor, run.counts = "evt_7", {"missed": 3}
    with engine.begin() as connection:
        sync_runs.save(connection, run)
        assert sync_runs.running(connection, "reconcile") == run
        sync_runs.finish(connection, run, "failed", "Stripe is away")
        assert sync_runs.running(connection, "reconcile") is None
        assert sync_runs.latest(connection, "reconcile", "failed") == run
        assert sync_runs.latest(connection, "reconcile", "done") is None
        assert connection.execute(text("SELECT status, error, finished_at >= started_at FROM sync_runs")).all() == [
            ("failed", "Stripe is away", True)
        ]


def test_a_finished_run_is_not_changed_by_its_former_maker(engine: Engine) -> None:
    run = begun(engine)
    assert run is not None
    with engine.begin() as connection:
        sync_runs.finish(connection, run, "done")
        run.cursor = "later"
        sync_runs.save(connection, run)
        assert connection.execute(text("SELECT status, cursor FROM sync_runs")).all() == [("done", None)]


def test_who_asks_too_soon_begins_nothing(engine: Engine) -> None:
    assert begun(engine, every=1800) is not None
    assert begun(engine, every=1800) is None
    assert begun(engine, "backfill", every=1800) is not None
    assert begun(engine) is not None
