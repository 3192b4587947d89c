"""Whether live events wait for a backfill that Stripe refuses again and again: `python -m benchmarks.live [--json]`.

A receiver, a worker and the practice Stripe's API, which answers most requests with 429, are processes of their own.
Signed events are posted at a steady rate, in turns while nothing else goes on and while the worker makes a backfill;
how long each waited is what the ledger says: from received_at to processed_at. It takes about three minutes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.backfill import serve
from models import sync_runs
from ops.embedded import EmbeddedPostgres, EmbeddedValkey
from simulator import posting
from simulator.api import KEY
from simulator.envelope import body_of
from simulator.people import people
from simulator.render import render_event
from simulator.signing import sign
from simulator.state import Stripe
from tests.conftest import migrate, scratch_folder
from tests.support import Child, eventually, free_port, running
from tests.workers.serving import send
from tests.workers.world import World, world
from workers import backfill

SECRET = "whsec_benchmark"  # noqa: S105 - nobody else signs with it
# Beat has a backfill gone on with every minute; phases are short, so here it is seconds.
NUDGE_SECONDS = 5.0
# A slice of a backfill takes ten seconds, and as long again if Stripe refuses its last question to the end.
SLICE_SECONDS = 60.0


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live")
    parser.add_argument("--objects", type=int, default=20_000, help="how large the account is")
    parser.add_argument("--refused", type=float, default=0.6, help="the share of Stripe's answers that are 429")
    parser.add_argument("--rate", type=int, default=20, help="live events per second")
    parser.add_argument("--seconds", type=int, default=20, help="how long a phase is")
    parser.add_argument("--rounds", type=int, default=3, help="how often both phases are made")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def main(wish: argparse.Namespace) -> None:
    pipe, other = multiprocessing.Pipe()
    arguments = (wish.objects, other, wish.refused)
    multiprocessing.get_context("spawn").Process(target=serve, args=arguments, daemon=True).start()
    with installation(pipe.recv()) as (here, url, redis_url):
        waits = measure(here, url, redis_url, wish)
        result = {**compared(waits), "backfill": told(here, pipe)}
    if wish.json:
        print(json.dumps(result))
        return
    for name in ("idle", "busy"):
        one = result[name]
        print(f"{name}: {one['events']} events, p50 {one['p50_ms']:.0f} ms, p99 {one['p99_ms']:.0f} ms")
    print(f"p99 while a backfill goes on is {result['ratio']:.2f} times the idle p99")
    print(
        "the backfill: {objects} objects, {answered} answers and {refused} refusals, {failed} failed".format(
            **result["backfill"]
        )
    )


@contextmanager
def installation(stripe_url: str) -> Iterator[tuple[World, str, str]]:
    """Servers, a receiver and a worker; a look into the database, where to post, and the broker."""
    with ExitStack() as stack:
        homes = (scratch_folder(), scratch_folder())
        for home in homes:
            stack.callback(shutil.rmtree, home, ignore_errors=True)
        # It writes to the disk as in earnest.
        postgres = stack.enter_context(EmbeddedPostgres(homes[0], port=0))
        valkey = stack.enter_context(EmbeddedValkey(homes[1], throwaway=True))
        migrate(postgres.url)
        bind = f"127.0.0.1:{free_port()}"
        env = {
            "DUES_ENV": "staging",  # in development `.env` would be read
            "DATABASE_URL": postgres.tcp_url,
            "REDIS_URL": valkey.redis_url,
            "STRIPE_WEBHOOK_SECRET": SECRET,
            "STRIPE_API_KEY": KEY,
            "STRIPE_API_BASE": stripe_url,
        }
        receiver = stack.enter_context(running([sys.executable, "-m", "ops.cli", "serve", "--bind", bind], env=env))
        worker = stack.enter_context(running([sys.executable, "-m", "ops.cli", "worker", "-c", "2"], env=env))
        receiver.says("Listening at", timeout=60)
        eventually(lambda: _both_are_ready(worker), timeout=60)
        here = stack.enter_context(world(postgres.url))
        yield here, f"http://{bind}/webhooks/stripe", valkey.redis_url


def _both_are_ready(worker: Child) -> bool:
    return worker.output.count(" ready.") == 2


def measure(here: World, url: str, redis_url: str, wish: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds that each event waited, in both kinds of phase."""
    known, bought = lives(2 * wish.rounds * wish.rate * wish.seconds)
    here.users(*(one.id for one in people("live", len(bought))))
    with ExitStack() as connection:
        live = posting.Connection(url, 10)
        connection.callback(live.close)
        for event in known:
            post(live, event)
        wait_for(here, known)
        waits: dict[str, list[float]] = {"idle": [], "busy": []}
        for number in range(2 * wish.rounds):
            n = wish.rate * wish.seconds
            events, phase = bought[number * n : (number + 1) * n], ("idle", "busy")[number % 2]
            with ExitStack() as stack:
                if phase == "idle":
                    stack.enter_context(rest(here))
                pace(live, events, wish.rate, (lambda: nudge(here, redis_url)) if phase == "busy" else None)
            waits[phase] += wait_for(here, events)
            print(f"{phase}: p99 {p99(waits[phase][-n:]):.0f} ms", file=sys.stderr, flush=True)
    return waits


def lives(count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Events of so many members: what is known before, and then a subscription that each of them buys."""
    stripe = Stripe("live", int(time.time()) - 3600)
    price = stripe.create_price(stripe.create_product("Pro", metadata={"role": "PREMIUM", "tokens": "500"}).id, 900)
    for one in people("live", count):
        customer = stripe.create_customer(one.email, metadata={"user_id": one.id})
        stripe.checkout(price.id, customer=customer.id)

    def of(*types: str) -> list[dict[str, Any]]:
        return [render_event(event) for event in stripe.events if event.type in types]

    return of("product.created", "price.created", "customer.created"), of("customer.subscription.created")


def post(live: posting.Connection, event: dict[str, Any]) -> None:
    body = body_of(event)
    status = live.post(body, sign(body, [SECRET], int(time.time())))
    assert status == "200", f"the receiver answered {status}"


def pace(live: posting.Connection, events: list[dict[str, Any]], rate: int, nudge: Callable[[], None] | None) -> None:
    """Post the events at a steady rate."""
    begin, nudged = time.monotonic(), -NUDGE_SECONDS
    for number, event in enumerate(events):
        if nudge and number / rate >= nudged + NUDGE_SECONDS:
            nudged = number / rate
            nudge()
        time.sleep(max(0.0, begin + number / rate - time.monotonic()))
        post(live, event)


def nudge(here: World, redis_url: str) -> None:
    """Have the worker go on with the backfill, or with another one if it is done."""
    backfill.request(here.engine)
    send(redis_url, "backfill", queue="api")


@contextmanager
def rest(here: World) -> Iterator[None]:
    """Have the turn of the backfill, so that the worker can't go on with it."""
    with ExitStack() as stack:
        deadline = time.monotonic() + SLICE_SECONDS
        while not stack.enter_context(sync_runs.turn(here.engine, backfill.KIND)):
            stack.close()
            assert time.monotonic() < deadline, "the worker does not end its slice"
            time.sleep(0.001)
        yield


def wait_for(here: World, events: list[dict[str, Any]]) -> list[float]:
    """Wait until the events have been processed; the milliseconds that each waited."""
    ids = [event["id"] for event in events]
    waited = "SELECT extract(epoch FROM processed_at - received_at)::float * 1000 AS ms FROM stripe_events"
    condition = "status = 'processed' AND id = ANY(:ids)"

    def rows() -> list[Any] | None:
        found = here.execute(f"{waited} WHERE {condition}", ids=ids)
        return list(found) if len(found) == len(ids) else None

    return [row.ms for row in eventually(rows, timeout=60, every=0.5) or ()]


def p99(waits: list[float]) -> float:
    return statistics.quantiles(waits, n=100)[98]


def compared(waits: dict[str, list[float]]) -> dict[str, Any]:
    told: dict[str, Any] = {
        name: {"events": len(some), "p50_ms": round(statistics.median(some), 1), "p99_ms": round(p99(some), 1)}
        for name, some in waits.items()
    }
    return {**told, "ratio": round(p99(waits["busy"]) / p99(waits["idle"]), 2)}


def told(here: World, pipe: Connection) -> dict[str, int]:
    """How far the backfill came."""
    runs = here.execute("SELECT status, counts FROM sync_runs WHERE kind = 'backfill'")
    pipe.send("enough")
    answers = pipe.recv()
    return {
        "objects": sum(sum(row.counts.values()) for row in runs),
        "answered": answers[200],
        "refused": answers[429],
        "done": sum(row.status == "done" for row in runs),
        "failed": sum(row.status == "failed" for row in runs),
    }


if __name__ == "__main__":
    main(options())
