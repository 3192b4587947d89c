"""A practice Stripe over HTTP, and Dues' own door to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from simulator.api import KEY
from simulator.server import Server, serving
from simulator.state import Stripe
from tests.workers.world import World
from workers import concern, snapshots
from workers.link import link, owners_of
from workers.recompute import decide
from workers.reconcile import Tools
from workers.shapes import Snapshot
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
    """What a reconciliation in this world works with."""
    return Tools(
        here.engine,
        here.settings,
        door,
        apply=lambda said: applied(here, said),
        work_off=lambda: here.road.process("bulk"),
        resync=lambda: None,
    )


def applied(here: World, said: Sequence[Snapshot]) -> None:
    with here.engine.begin() as connection:
        effects = snapshots.write(connection, said, applies=lambda _: True)
    moved = link(here.engine, here.settings, customers=effects.evidence_changed)
    with here.engine.begin() as connection:
        affected = concern.customers_with(connection, effects.catalogue, limit=10000)
        customers = effects.customers | set(affected) | concern.customers_of(connection, effects.objects)
        users = moved | set(owners_of(connection, customers).values())
        users |= concern.guests_of(connection, here.settings, effects)
    with here.engine.begin() as connection:
        decide(connection, here.settings, users, customers=customers)
