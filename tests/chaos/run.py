"""One fault under load: deliver a history while it lasts, wait until all is quiet, and compare with a calm day."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime

from simulator.calendar import DAY
from simulator.delivery import Plan, Report, arrange, deliver
from simulator.envelope import body_of
from simulator.histories import history
from simulator.people import people
from simulator.render import render_event
from tests.chaos.faults import Fault
from tests.chaos.scene import SECRET, Scene
from tests.chaos.verdict import Verdict, feed, judge
from tests.support import eventually
from tests.workers.world import World
from workers.recompute import decide_due

COURIERS = 3
PARCEL = 4  # posts between two pauses of a courier
DUPLICATES = 0.3
# What is refused or lost on the way is sent again for some minutes.
PATIENT = Plan(attempts=200, backoff_s=0.1, backoff_max_s=2.0, timeout_s=5.0)
QUIET_SECONDS = 1500.0  # a disk that was full puts off what met it thrice for a quarter of an hour


@dataclass(frozen=True, slots=True)
class Form:
    """How much is delivered, and whether the short durations hold."""

    is_short: bool
    customers: int
    months: int = 2


SHORT, LONG = Form(is_short=True, customers=3), Form(is_short=False, customers=20)


@dataclass(slots=True)
class Outcome:
    """What became of a run, times in seconds; it is as it should be if there are no findings."""

    fault: str
    events: int
    posted: int = 0
    lasted: float = 0.0
    recovered: float = 0.0
    verdict: Verdict = field(default_factory=Verdict)


def run(scene: Scene, fault: Fault, form: Form, seed: int) -> Outcome:
    """Have one fault, and judge what came of it. Raises AssertionError if there is no end to it."""
    past = history(seed, form.customers, form.months, clock=int(time.time()) - form.months * 30 * DAY - 3600)
    bodies = [*(body_of(render_event(event)) for event in past.events), *fault.also]
    users = [user.id for user in people(seed, form.customers)]
    scene.here.users(*users)
    scene.calm.users(*users)
    outcome = Outcome(fault.name, len(bodies))
    ended = disturb(scene, fault, form, bodies, outcome)
    eventually(lambda: is_quiet(scene.here, form), timeout=QUIET_SECONDS, every=0.2)
    outcome.recovered = recovery(scene.here, ended)
    feed(scene.calm, bodies)

    def is_right() -> bool:
        # What becomes due while we look is decided by beat, here at once.
        for world in (scene.here, scene.calm) if form.is_short else (scene.calm,):
            decide_due(world.engine, world.settings)
        outcome.verdict = judge(scene.here, scene.calm, past, bodies)
        return not outcome.verdict.findings

    with contextlib.suppress(AssertionError):
        eventually(is_right, timeout=5 if form.is_short else 200, every=0.5)
    return outcome


def disturb(scene: Scene, fault: Fault, form: Form, bodies: Sequence[bytes], outcome: Outcome) -> datetime:
    """Deliver all events, a third of them during the fault; returns when it had ended by PostgreSQL's clock."""
    posts = [body for _, body in arrange(bodies, Plan(seed=len(bodies), shuffle=True, duplicates=DUPLICATES))]
    third = len(posts) // 3
    seconds = fault.lasts.short if form.is_short else fault.lasts.long
    reports = carry(scene.url, posts[:third])
    began = time.monotonic()
    with ThreadPoolExecutor(1) as thread:
        with fault.on(scene, seconds):
            carrying = thread.submit(carry, scene.url, posts[third : 2 * third], seconds)
        outcome.lasted = time.monotonic() - began
        scene.here.engine.dispose()  # PostgreSQL may have ended its connections
        scene.calm.engine.dispose()
        ended: datetime = scene.here.one("SELECT clock_timestamp() AS now").now
        reports += carrying.result()
    reports += carry(scene.url, posts[2 * third :])
    outcome.posted = sum(report.posted for report in reports)
    refused = [id for report in reports for id in report.undelivered]
    assert not refused, f"never accepted: {', '.join(refused)}"
    return ended


def carry(url: str, posts: Sequence[bytes], seconds: float = 0.0) -> list[Report]:
    """Have some couriers deliver posts, in about `seconds` if nothing hinders them."""

    def courier(number: int) -> list[Report]:
        mine = posts[number::COURIERS]
        reports = []
        for start in range(0, len(mine), PARCEL):
            reports.append(deliver(mine[start : start + PARCEL], url, [SECRET], PATIENT))
            time.sleep(seconds * PARCEL / len(mine))
        return reports

    with ThreadPoolExecutor(COURIERS) as threads:
        return [report for reports in threads.map(courier, range(COURIERS)) for report in reports]


def is_quiet(here: World, form: Form) -> bool:
    """Whether every event has ended; in the short form, what a passing error has put off is tried at once."""
    if form.is_short:
        here.execute(
            "UPDATE stripe_events SET due_at = clock_timestamp()"
            " WHERE status = 'received' AND reason = 'transient' AND claim IS NULL AND due_at > clock_timestamp()"
        )
    return here.execute("SELECT FROM stripe_events WHERE status = 'received' LIMIT 1") == []


def recovery(here: World, ended: datetime) -> float:
    """Seconds from the end of the fault until all had ended that had come by then, and the first that came after."""
    return float(
        here.one(
            "SELECT extract(epoch FROM greatest(:ended, max(processed_at)) - :ended) AS seconds FROM stripe_events"
            " WHERE received_at <= greatest(:ended, (SELECT min(received_at) FROM stripe_events"
            " WHERE received_at > :ended))",
            ended=ended,
        ).seconds
    )
