"""A practice Stripe over HTTP, and Dues' own door to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from models.ledger import Lane
from simulator.api import KEY
from simulator.server import Server, serving
from simulator.state import Stripe
from tests.workers.world import World
from workers.reconcile import Tools
from workers.stripe_api import StripeApi


@contextlib.contextmanager
def asking(here: World, stripe: Stripe) -> Iterator[tuple[StripeApi, Server]]:
    """Stripe's API and our door to it, for a world without Redis."""
    with serving(stripe) as server:
        settings = replace(
            here.settings, stripe_api_key=KEY, stripe_api_base=server.url, stripe_rate=1000,
            redis_url="redis://127.0.0.1:1/0",
        )  # fmt: skip
        with contextlib.closing(StripeApi(settings, attempts=2, seconds=1)) as door:
            yield door, server


def tools(here: World, door: StripeApi) -> Tools:
    """What a reconciliation in this world works with; what is rung for is done at once."""
    road = here.another_road()

    def ring(lane: Lane) -> None:
        road.process(lane)

    road.ring = ring
    return Tools(road, door)
