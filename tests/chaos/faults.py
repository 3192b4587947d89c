"""What can go wrong, as data: how it begins, what goes on meanwhile, how it ends, and for how long it lasts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.chaos import older
from tests.chaos.scene import Scene
from tests.support import free_port
from tests.workers.world import fixture

Lever = Callable[[Scene], object]


@dataclass(frozen=True, slots=True)
class Duration:
    """Seconds in the short form and in the long one."""

    short: float
    long: float


MOMENT = Duration(0.5, 3)
WHILE = Duration(3, 20)
MINUTE = Duration(5, 60)


def nothing(_: Scene) -> None:
    """What most faults need at the beginning or at the end."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong under load. `meanwhile` is pulled ten times a second while it lasts."""

    name: str
    begin: Lever
    end: Lever = nothing
    lasts: Duration = MOMENT
    meanwhile: Lever = nothing
    # Events that are delivered among the others.
    also: tuple[bytes, ...] = ()
    # Whether it can be had here.
    is_possible: Callable[[], bool] = lambda: True

    @contextmanager
    def on(self, scene: Scene, seconds: float) -> Iterator[None]:
        """Begin it, and after the body let it last for some seconds."""
        self.begin(scene)
        try:
            yield
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                self.meanwhile(scene)
                time.sleep(0.1)
        finally:
            self.end(scene)


# --- levers -----------------------------------------------------------------------------------------------------------


def start(name: str) -> Lever:
    return lambda scene: scene.start(name)


def kill(name: str) -> Lever:
    return lambda scene: scene.kill(name)


def drain(name: str) -> Lever:
    return lambda scene: scene.drain(name)


def dies_at(step: str) -> Fault:
    """A worker ends just before it commits this step; its supervisor starts another."""
    return Fault(
        f"worker killed before the commit of {step.upper()}",
        begin=lambda scene: scene.ticket(step),
        end=lambda scene: scene.ticket_is_taken(step),
    )


def clocks(seconds: int) -> Fault:
    """The clocks of everything but PostgreSQL are wrong."""
    return Fault(
        f"clocks of receiver, workers and beat {seconds // 60:+} minutes",
        begin=lambda scene: scene.set_clocks(seconds),
        end=lambda scene: scene.set_clocks(0),
        lasts=WHILE,
    )


def lose_stripe(scene: Scene) -> None:
    """Let workers ask a Stripe that nobody can reach."""
    scene.restart("worker", STRIPE_API_KEY="sk_test_chaos", STRIPE_API_BASE=f"http://127.0.0.1:{free_port()}")


def forgo_stripe(scene: Scene) -> None:
    """Let them do without, as the calm database does: what they wanted to ask ends unasked."""
    scene.restart("worker", STRIPE_API_KEY="", STRIPE_API_BASE="")


def cut(scene: Scene) -> None:
    """Have PostgreSQL end every session of Dues that is in the middle of something."""
    scene.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name ~ '^dues ' AND application_name <> 'dues test' AND state <> 'idle'"
    )


def questions() -> tuple[bytes, ...]:
    """Thin events, which only Stripe can answer."""
    return tuple(
        json.dumps({**fixture("v1.customer.subscription.updated"), "id": f"evt_thin_{number}"}).encode()
        for number in range(30)
    )


FULL_TABLES = ("stripe_events", "stripe_customers", "user_subscriptions", "stripe_invoices", "token_ledger", "users")


def fill_the_disk(scene: Scene) -> None:
    """Let about every other statement that needs room fail as PostgreSQL lets it fail."""
    scene.sql(
        "CREATE FUNCTION chaos_no_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF random() < 0.5 THEN RAISE EXCEPTION USING ERRCODE = 'disk_full', MESSAGE = 'no space left'; END IF;"
        " RETURN NULL; END $$"
    )
    for table in FULL_TABLES:
        scene.sql(
            f"CREATE TRIGGER chaos_no_room BEFORE INSERT OR UPDATE ON {table}"
            " FOR EACH STATEMENT EXECUTE FUNCTION chaos_no_room()"
        )


def make_room(scene: Scene) -> None:
    scene.sql("DROP FUNCTION chaos_no_room CASCADE")


def poisonous() -> tuple[bytes, ...]:
    """Events as Stripe would never send them, each wrong in another way."""
    wrongs: dict[str, dict[str, Any]] = {
        "customer.subscription.updated": {"items": "none", "status": 7},
        "invoice.paid": {"id": "in_" + "9" * 300},
        "customer.updated": {"email": "\x00", "metadata": ["\ud800"]},
        "charge.succeeded": {"amount": 10**30},
        "product.updated": {"id": None},
    }
    events = (
        {**(real := fixture(name)), "id": f"evt_poison_{name}", "data": {"object": {**real["data"]["object"], **wrong}}}
        for name, wrong in wrongs.items()
    )
    return tuple(json.dumps(one).encode() for one in events)


# --- the table --------------------------------------------------------------------------------------------------------

FAULTS = (
    Fault("none", nothing),
    Fault("receiver killed", kill("receiver"), start("receiver")),
    Fault("receiver stopped with SIGTERM", drain("receiver"), start("receiver")),
    *map(dies_at, ("book", "write", "link", "decide")),
    Fault("worker killed with its supervisor", kill("worker"), start("worker")),
    Fault("worker stopped with SIGTERM", drain("worker"), start("worker")),
    Fault("beat killed", kill("beat"), start("beat"), lasts=WHILE),
    Fault("two beats", start("second beat"), drain("second beat"), lasts=WHILE),
    Fault("Valkey killed", lambda scene: scene.valkey.kill(), lambda scene: scene.valkey.start()),
    Fault("Valkey emptied again and again", nothing, lasts=WHILE, meanwhile=lambda scene: scene.flush()),
    Fault("Valkey away", lambda scene: scene.valkey.kill(), lambda scene: scene.valkey.start(), lasts=MINUTE),
    Fault("Valkey frozen", lambda scene: scene.valkey.pause(), lambda scene: scene.valkey.resume(), lasts=MINUTE),
    Fault("PostgreSQL killed", lambda scene: scene.postgres.kill(), lambda scene: scene.postgres.start()),
    Fault("PostgreSQL away", lambda scene: scene.postgres.kill(), lambda scene: scene.postgres.start(), lasts=MINUTE),
    Fault(
        "PostgreSQL frozen", lambda scene: scene.postgres.pause(), lambda scene: scene.postgres.resume(), lasts=WHILE
    ),
    Fault("connections cut in the middle of a statement", nothing, lasts=WHILE, meanwhile=cut),
    Fault("disk full for every other statement", fill_the_disk, make_room, lasts=WHILE),
    Fault("Stripe's API out of reach", lose_stripe, forgo_stripe, lasts=MINUTE, also=questions()),
    clocks(600),
    clocks(-600),
    Fault("poison among the events", nothing, also=poisonous()),
    Fault("workers of older code beside ours", older.start, older.stop, lasts=WHILE, is_possible=older.is_at_hand),
)
