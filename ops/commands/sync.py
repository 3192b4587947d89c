"""`dues sync`: from Stripe now."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from ops import console
from ops.failures import Failed

if TYPE_CHECKING:
    from models.sync_runs import Run
    from workers.mirroring import Mirroring
    from workers.process import Road
    from workers.stripe_api import StripeApi

WIDTH = 30
# Seconds of a slice, and between two looks at somebody else's.
SLICE, LOOK = 10.0, 0.5


@click.group(epilog="Example: dues sync all")
def command() -> None:
    """Bring the database in step with Stripe now."""


@contextlib.contextmanager
def _tools() -> Iterator[tuple[Road, StripeApi]]:
    from workers.catalog_version import CatalogVersion
    from workers.process import Road
    from workers.stripe_api import StripeApi

    console.settings("STRIPE_API_KEY")
    with (
        console.database("sync") as database,
        contextlib.closing(StripeApi(database.settings)) as stripe,
        contextlib.closing(CatalogVersion(database.settings.redis_url)) as version,
    ):
        road = Road(database.engine, database.settings, renew_catalog=version.renew)
        if road.is_paused:
            raise Failed("DUES_PAUSE names processing: nothing is applied until it does no more.")
        yield road, stripe


def _answer(counts: Counter[str] | dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        console.print_json({"ok": not counts.get("unreadable"), "counts": counts})
    else:
        click.echo(", ".join(f"{n} {name}" for name, n in counts.items()) or "Nothing was there.")
    if counts.get("unreadable"):
        raise click.exceptions.Exit(1)


@command.command(epilog="Example: dues sync products")
@console.as_json
def products(*, as_json: bool) -> None:
    """Fetch all products and prices."""
    from workers import catalog

    with _tools() as (road, stripe):
        run = catalog.sync(road, stripe, threading.Event(), every=0)
        if run is None:
            raise Failed("Another sync of the catalogue is under way; it will be over soon.")
        while run.cursor is not None and (rest := catalog.sync(road, stripe, threading.Event(), every=0)):
            run = rest
    _answer(run.counts, as_json=as_json)


@command.command(epilog="Example: dues sync customer cus_NffrFeUfNV2Hib")
@click.argument("customer_id", metavar="ID")
@console.as_json
def customer(*, customer_id: str, as_json: bool) -> None:
    """Fetch one of Stripe's customers and all of theirs."""
    from workers import backfill

    with _tools() as (road, stripe):
        counts = backfill.customer(road, stripe, customer_id)
    _answer(counts, as_json=as_json)


@command.command(epilog="Example: dues sync user clx4x7z1v0000")
@click.argument("user_id", metavar="ID")
@console.as_json
def user(*, user_id: str, as_json: bool) -> None:
    """Fetch all customers of a user and all of theirs."""
    from workers import backfill

    counts: Counter[str] = Counter()
    with _tools() as (road, stripe):
        customers = backfill.customers_of(road.engine, user_id)
        if not customers:
            raise Failed("No customer of Stripe's is linked to such a user: `dues users show` tells more.")
        for one in customers:
            counts += backfill.customer(road, stripe, one)
    _answer(counts, as_json=as_json)


@command.command("all", epilog="Example: dues sync all")
@console.as_json
def all_(*, as_json: bool) -> None:
    """Fetch everything: a backfill, which goes on where a killed one stopped.

    If workers are running they go on with it as well, should this command be ended.
    """
    from workers import backfill

    with _tools() as (road, stripe):
        run = backfill.request(road.engine)
        bar = Bar(is_shown=sys.stderr.isatty() and not as_json)
        bar.begin(run)
        while (now := _running(road, run.id)) is not None:
            bar.show(now)
            _slice(road, stripe, bar)
        bar.end()
        counts, error = _ended(road, run.id)
    if error:
        raise Failed(f"The backfill has failed: {error}.")
    _answer(counts, as_json=as_json)


def _slice(road: Road, stripe: StripeApi, bar: Bar) -> None:
    """Go on for a while, or wait while somebody else does, or while Stripe is away."""
    from workers import backfill
    from workers.stripe_api import StripeAwayError

    def tell(work: Mirroring) -> None:
        bar.show(work.run)

    try:
        if backfill.go_on(road, stripe, threading.Event(), seconds=SLICE, tell=tell) is None:
            time.sleep(LOOK)
    except StripeAwayError as error:
        pause = min(60.0, error.retry_after or 5.0)
        bar.say(f"Stripe is away, going on in {pause:.0f} s: {error}")
        time.sleep(pause)


def _running(road: Road, run_id: int) -> Run | None:
    from models import sync_runs
    from workers import backfill

    with road.engine.connect() as connection:
        run = sync_runs.running(connection, backfill.KIND)
    return run if run is not None and run.id == run_id else None


def _ended(road: Road, run_id: int) -> tuple[dict[str, Any], str | None]:
    from sqlalchemy import text

    with road.engine.connect() as connection:
        row = connection.execute(text("SELECT counts, error FROM sync_runs WHERE id = :id"), {"id": run_id}).one()
    return row.counts, row.error


@dataclass
class Bar:
    """How far a backfill is, on one line of stderr: objects, objects per second, and about how long it still takes."""

    is_shown: bool
    _began: float = 0.0
    _objects: int = 0
    _done: float = 0.0
    _said: str = field(default="")

    def begin(self, run: Run) -> None:
        """Count from here."""
        self._began, self._objects, self._done = time.monotonic(), _total(run), _progress(run)

    def show(self, run: Run) -> None:
        """Show how far it is."""
        if not self.is_shown:
            return
        seconds = max(0.001, time.monotonic() - self._began)
        done = _progress(run)
        left = seconds * (1 - done) / (done - self._done) if done > self._done else None
        filled = round(WIDTH * done)
        rate = (_total(run) - self._objects) / seconds
        eta = "" if left is None else f", about {_duration(left)} left"
        line = f"[{'#' * filled}{'.' * (WIDTH - filled)}] {done:4.0%} {_total(run)} objects, {rate:.0f}/s{eta}"
        click.echo(f"\r{line.ljust(len(self._said))}", nl=False, err=True)
        self._said = line

    def say(self, text: str) -> None:
        """Say something beside."""
        click.echo(f"\n{text}" if self._said else text, err=True)
        self._said = ""

    def end(self) -> None:
        """Leave the line."""
        if self._said:
            click.echo(err=True)


def _total(run: Run) -> int:
    return sum(n for name, n in run.counts.items() if name not in {"gone", "unreadable"})


def _progress(run: Run) -> float:
    from workers import backfill

    return backfill.progress(run)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min" if minutes else f"{rest} s"
