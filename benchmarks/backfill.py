"""How fast a backfill is, and whether its memory stays flat: `python -m benchmarks.backfill 100000`.

A practice Stripe in a process of its own sells subscriptions until it has so many objects; then everything is fetched
into an embedded PostgreSQL, with the budget out of the way.
"""

from __future__ import annotations

import multiprocessing
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from models.database import connect
from models.settings import read_settings
from ops.embedded import EmbeddedPostgres
from simulator.api import KEY
from simulator.faults import Faults, Rule, rate_limited
from simulator.server import serving
from simulator.state import Stripe
from tests.conftest import migrate
from workers import backfill
from workers.process import Road
from workers.stripe_api import StripeApi

# Of a subscription that is bought: customer, subscription, invoice, its payment, PaymentIntent, charge, session.
OBJECTS_OF_A_MEMBER = 7


def serve(objects: int, pipe: Connection, refused: float = 0.0) -> None:
    """Answer a share of the requests, `refused`, with 429; when told that it is enough, say what was answered."""
    stripe = Stripe("benchmark", 1_790_000_000)
    price = stripe.create_price(stripe.create_product("Pro", metadata={"tokens": "500"}).id, 900)
    for n in range(objects // OBJECTS_OF_A_MEMBER):
        customer = stripe.create_customer(f"{n}@pays.example")
        stripe.checkout(price.id, customer=customer.id)
    stripe.events.clear()
    with serving(stripe, faults=Faults([Rule(fault=rate_limited(), share=refused)])) as server:
        pipe.send(server.url)
        pipe.recv()
        pipe.send(Counter(asked.status for asked in server.log))


def main(objects: int) -> None:
    pipe, other = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(objects, other), daemon=True)
    server.start()
    url = pipe.recv()
    home = Path(tempfile.mkdtemp(prefix="dues-benchmark-")) / "postgres"
    with EmbeddedPostgres(home, port=0, throwaway=True) as postgres:
        migrate(postgres.url)
        settings = read_settings({"DATABASE_URL": postgres.url, "STRIPE_API_KEY": KEY, "STRIPE_API_BASE": url})
        road = Road(connect(settings, application="benchmark"), settings)
        measure(road, StripeApi(settings))
        road.engine.dispose()
    pipe.send("enough")
    shutil.rmtree(home.parent, ignore_errors=True)


def measure(road: Road, stripe: StripeApi) -> None:
    run, begin, slices = backfill.request(road.engine), time.monotonic(), 0
    resident: list[float] = []
    while (now := backfill.go_on(road, stripe, threading.Event())) is not None:
        run, slices = now, slices + 1
        resident.append(psutil.Process().memory_info().rss / 2**20)
        print(
            f"{sum(run.counts.values()):>8} objects {time.monotonic() - begin:6.0f} s {resident[-1]:6.1f} MiB",
            flush=True,
        )
    seconds, fetched = time.monotonic() - begin, sum(run.counts.values())
    print(f"{fetched} objects in {seconds:.0f} s, {fetched / seconds:.0f}/s, {slices} slices;", end=" ")
    print(f"memory after the first slice {resident[0]:.0f} MiB, at most {max(resident):.0f} MiB")


if __name__ == "__main__":
    main(int(sys.argv[1]))
