"""Every Celery task: a name and a call. No task carries data or is retried: the ledger knows what is to be done."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery.signals import worker_shutting_down
from sqlalchemy.exc import SQLAlchemyError

from models import ledger, sync_runs
from models.database import connect
from workers import backfill, catalog, hydrate, watchdog
from workers.bell import PRIORITY, TASK, Bell
from workers.catalog_version import CatalogVersion
from workers.celery import app, settings
from workers.due import decide_all_due
from workers.process import ConnectionLostError, Road, describe
from workers.reconcile import KIND, Tools, of_beat
from workers.stripe_api import StripeApi, StripeApiError

logger = logging.getLogger(__name__)


@functools.cache
def bell() -> Bell:
    """The bell of this process."""
    return Bell(settings.redis_url)


@functools.cache
def road() -> Road:
    """The road of this process, with its connections; made when the first task needs it, never before a fork."""
    # Whoever asks Stripe holds a connection meanwhile (`asking.alone_with`).
    engine = connect(settings, application="worker", pool_size=max(2, settings.pool_size))
    renew = CatalogVersion(settings.redis_url).renew
    return Road(engine, settings, ring=bell().ring, renew_catalog=renew)


@functools.cache
def stripe() -> StripeApi:
    """Stripe, as this process asks it."""
    return StripeApi(settings)


@functools.cache
def _has_key() -> bool:
    """Whether there is a key to Stripe; that there is none is said once."""
    if not settings.stripe_api_key:
        logger.info("STRIPE_API_KEY is not set: nothing is asked of Stripe, Dues runs on webhooks alone")
    return bool(settings.stripe_api_key)


@worker_shutting_down.connect
def stop(**_: Any) -> None:
    """On SIGTERM, let the task under way end soon and give its events back."""
    road().stopping.set()


@contextmanager
def _in_a_line(task: str) -> Iterator[None]:
    """Say in one line what PostgreSQL or Stripe refused: with one away, every ring would leave a traceback."""
    try:
        yield
    except (ConnectionLostError, SQLAlchemyError) as error:
        logger.warning("%s: %s", task, describe(error))
    except StripeApiError as error:
        logger.warning("%s: %s", task, error)


@app.task(name=TASK)
def process_events(lane: ledger.Lane) -> None:
    """Work off what is due in a lane of the ledger."""
    bell().answer(lane)
    with _in_a_line(TASK):
        counts = road().process(lane)
        if counts:
            logger.info("%s: %s", lane, ", ".join(f"{n} {ending}" for ending, n in sorted(counts.items())))
    if road().stopping.is_set():
        bell().ring(lane)
        bell().close()


@app.task(name="sweep")
def sweep() -> None:
    """Send a worker to each lane in which something is due, whether or not a bell has rung for it."""
    with _in_a_line("sweep"):
        with road().engine.connect() as connection:
            lanes = ledger.waiting_lanes(connection)
        for lane in lanes:
            process_events.apply_async((lane,), queue=lane, priority=PRIORITY)


def _place(kind: str) -> str | None:
    """A word for how far the run of this kind that is under way has come; None if there is none."""
    with road().engine.connect() as connection:
        run = sync_runs.running(connection, kind)
    return None if run is None else hashlib.sha256((run.cursor or "").encode()).hexdigest()


def _must_go_on(kind: str, place: str | None) -> bool:
    """Whether a slice is to be made: beat always asks, who was sent to go on from a place only if nobody has been.

    Else each beat during a long run would leave one more that sends itself again, and nothing else had its turn.
    """
    return _has_key() and (place is None or place == _place(kind))


@app.task(name="reconcile")
def reconcile(place: str | None = None) -> None:
    """Ask Stripe what was missed, a slice at a time; without a key there is nobody to ask."""
    with _in_a_line("reconcile"):
        if _must_go_on(KIND, place) and of_beat(
            Tools(road(), stripe(), resync=lambda: backfill.request(road().engine))
        ):
            reconcile.apply_async((_place(KIND),), queue="api")


@app.task(name="watchdog")
def watch() -> None:
    """Look from outside whether Stripe still reaches us."""
    with _in_a_line("watchdog"):
        watchdog.look(road().engine, settings, stripe() if settings.stripe_api_key else None)


@app.task(name="decide_due")
def decide_due() -> None:
    """Decide the users whose time has come: sign-ups, ends of grace, overrides."""
    with _in_a_line("decide_due"):
        decide_all_due(road().engine, settings, road().stopping)


@app.task(name="sync_catalog")
def sync_catalog(place: str | None = None) -> None:
    """Bring products and prices in step with Stripe, a slice at a time."""
    with _in_a_line("sync_catalog"):
        run = catalog.sync(road(), stripe(), road().stopping) if _must_go_on(catalog.KIND, place) else None
        if run and run.cursor is not None:
            sync_catalog.apply_async((_place(catalog.KIND),), queue="api")
        elif run:
            logger.info("sync_catalog: %s", json.dumps(run.counts))


@app.task(name="backfill")
def go_on_with_backfill(place: str | None = None) -> None:
    """Make the next slice of a backfill, if one is under way."""
    with _in_a_line("backfill"):
        run = backfill.go_on(road(), stripe(), road().stopping) if _must_go_on(backfill.KIND, place) else None
        if run and run.cursor is not None:
            go_on_with_backfill.apply_async((_place(backfill.KIND),), queue="api")
        elif run:
            logger.info("backfill: %s", json.dumps(run.counts))


@app.task(name="hydrate")
def ask_about_rows() -> None:
    """Have Stripe asked about stubs, contested rows, cut-off lines and packs without line items."""
    if not _has_key():
        return
    with _in_a_line("hydrate"):
        if n := hydrate.ask_for_all(road().engine):
            logger.info("hydrate: %d rows are asked about", n)
            bell().ring("api")
