"""What came of a run: compares the disturbed database with the calm one, and both with the simulated Stripe."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from models import envelope, ledger
from simulator.state import Stripe
from tests.workers.world import Rows, World
from workers.recompute import decide_due

Sums = dict[tuple[Any, ...], int]


@dataclass(slots=True)
class Verdict:
    """How many acknowledged events were lost, how many sums of tokens are too high, and all that is wrong."""

    lost: int = 0
    doubled: int = 0
    findings: list[str] = field(default_factory=list)


def feed(calm: World, bodies: Sequence[bytes]) -> None:
    """Record each event once, in order, and work all of them off."""
    for body in bodies:
        with calm.engine.begin() as connection:
            ledger.record(connection, envelope.read(body))
    while calm.road.process("live"):
        pass
    decide_due(calm.engine, calm.settings)


def judge(here: World, calm: World, stripe: Stripe, bodies: Sequence[bytes]) -> Verdict:
    """Compare; `bodies` are the events that were acknowledged, `stripe` the one to which they have happened."""
    ids = {json.loads(body)["id"] for body in bodies}
    ended, should = endings(here, ids), endings(calm, ids)
    lost = sorted(id for id in ids if ended.get(id) != should[id])
    ours, theirs = sums(here), sums(calm)
    findings = [f"{id} ended as {ended.get(id)} instead of {should[id]}" for id in lost]
    findings += different_rows(here.rows(), calm.rows())
    findings += [
        f"{source} has {ours.get(source, 0)} tokens instead of {theirs.get(source, 0)}"
        for source in sorted({*ours, *theirs}, key=str)
        if ours.get(source, 0) != theirs.get(source, 0)
    ]
    findings += unbalanced(here)
    findings += untrue(here, stripe)
    return Verdict(len(lost), sum(number > theirs.get(source, 0) for source, number in ours.items()), findings)


def endings(world: World, ids: Collection[str]) -> dict[str, tuple[str, str | None]]:
    """How each event ended, and why."""
    rows = world.execute("SELECT id, status, reason FROM stripe_events WHERE id = ANY(:ids)", ids=sorted(ids))
    return {row.id: (row.status, row.reason) for row in rows}


def sums(world: World) -> Sums:
    """The ledger's sum per user, source and expiry, as far as it is not 0."""
    rows = world.execute(
        "SELECT user_id, source, expires_at, sum(amount)::integer AS total FROM token_ledger GROUP BY 1, 2, 3"
        " HAVING sum(amount) <> 0"
    )
    return {tuple(row)[:3]: row.total for row in rows}


def different_rows(here: Rows, calm: Rows) -> list[str]:
    """A sentence for each row of users and mirrored tables that is not the same in both."""
    return [
        f"{table} {id}: " + ", ".join(sorted(different_columns(here[table].get(id, {}), calm[table].get(id, {}))))
        for table in calm
        for id in sorted({*here[table], *calm[table]})
        if here[table].get(id) != calm[table].get(id)
    ]


def different_columns(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [
        f"{name} is {one.get(name)!r} instead of {other.get(name)!r}"
        for name in {*one, *other}
        if one.get(name) != other.get(name)
    ]


def unbalanced(world: World) -> list[str]:
    """Users whose tokens are not the sum of their entries."""
    rows = world.execute(
        "SELECT u.id, u.tokens, coalesce(sum(e.amount), 0)::integer AS total FROM users u"
        " LEFT JOIN token_ledger e ON e.user_id = u.id GROUP BY u.id HAVING u.tokens <> coalesce(sum(e.amount), 0)"
    )
    return [f"{row.id} has {row.tokens} tokens and entries for {row.total}" for row in rows]


def untrue(world: World, stripe: Stripe) -> list[str]:
    """Subscriptions whose status is not Stripe's."""
    found = {row.id: row.status for row in world.execute("SELECT id, status FROM user_subscriptions")}
    return [
        f"{one.id} is {found.get(one.id)} instead of {one.status}"
        for one in stripe.subscriptions.values()
        if found.get(one.id) != one.status
    ]
