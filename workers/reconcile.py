"""Asks Stripe what Dues has missed: events that never came (or were lost), and rows that are not what Stripe says.

Beat asks every hour: events since the last run, and once a day every list beside its table. A person may ask at any
time. Where a run stands is in its row of `sync_runs`; see `models.sync_runs`. docs/operations.md says what is found,
what is repaired and what needs a person.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, text

from models import sync_runs
from models.settings import Settings
from workers import missed
from workers.mirroring import OtherAccountError
from workers.process import Road
from workers.reconciler import EVENTS, LISTS, PEOPLE, Counts, Order, Reconciler, State
from workers.stripe_api import NotFoundError, StripeApi, StripeApiError, StripeAwayError

logger = logging.getLogger(__name__)

KIND = "reconcile"
EVERY_SECONDS = 3600.0
DRIFT_SECONDS = 86400
# So far each run looks back behind where the last one ended; once a day as far as Stripe's own retries.
OVERLAP_SECONDS, DEEP_SECONDS = 3600, 3 * 86400
# Beat's runs leave alone what is so new that its delivery may still be on its way.
PATIENCE_SECONDS = 60
RESOLVED = "v2.core.health.event_generation_failure.resolved"
# A run that Stripe's absence has kept from ending for so long is given up.
LONGEST_SECONDS = 86400


class BusyError(Exception):
    """Another reconciliation is under way; the message says so."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What a run works with; `resync` has everything fetched anew, if more was missed than Stripe remembers."""

    road: Road
    stripe: StripeApi
    resync: Callable[[], object] = lambda: None

    @property
    def engine(self) -> Engine:
        """The road's."""
        return self.road.engine


def of_beat(tools: Tools, *, seconds: float = 10.0) -> bool:
    """Make the next slice of the hourly run; whether there is more to do at once.

    Nothing is done if somebody else is at it, or if the last run is not an hour old; so beat asks far more often, and
    what was interrupted is soon taken up.
    """
    with sync_runs.turn(tools.engine, KIND) as is_ours:
        if not is_ours:
            return False
        with tools.engine.begin() as connection:
            run = sync_runs.running(connection, KIND)
            run = run or sync_runs.begin(connection, KIND, every=EVERY_SECONDS)
        if run is None:
            return False
        try:
            return not _go_on(tools, run, Order(), lambda: tools.road.ring("bulk"), seconds=seconds)
        except StripeAwayError as error:
            if run.age < LONGEST_SECONDS:
                logger.warning("reconcile: Stripe is away, going on later: %s", error)
                return False
            _fail(tools, run, error)
        except StripeApiError as error:
            _fail(tools, run, error)
        return False


def by_hand(
    tools: Tools,
    order: Order,
    *,
    since: int | None = None,
) -> Counts:
    """Make a whole run, of what happened or was created from `since` (Unix seconds) on.

    An order to record nothing leaves the database as it is. Raises BusyError and StripeApiError.
    """
    with sync_runs.turn(tools.engine, KIND) as is_ours:
        if not is_ours:
            raise BusyError("Another reconciliation is under way; it will be over soon.")
        if not order.records:
            counts: Counts = {}
            state = _open(tools, order, counts, since=since, is_by_hand=True)
            Reconciler(tools.road, tools.stripe, order, state, counts).go_on(seconds=float("inf"))
            return counts
        with tools.engine.begin() as connection:
            run = sync_runs.begin(connection, KIND)
        if run is None:
            raise BusyError("A reconciliation could not be begun.")
        try:
            state = _open(tools, order, run.counts, since=since, is_by_hand=True)
            run.cursor = state.dump()
            # What was missed must be done before the lists are compared, whether or not a worker is running.
            _go_on(tools, run, order, lambda: tools.road.process("bulk", seconds=float("inf")))
        except StripeApiError as error:
            _fail(tools, run, error)
            raise
        return run.counts


def _go_on(
    tools: Tools,
    run: sync_runs.Run,
    order: Order,
    work_off: Callable[[], object],
    *,
    seconds: float = float("inf"),
) -> bool:
    """Take steps for `seconds`; whether the run has ended."""
    state = _open(tools, order, run.counts) if run.cursor is None else State.load(run.cursor)

    def save(state: State) -> None:
        run.cursor = state.dump()
        with tools.engine.begin() as connection:
            sync_runs.save(connection, run)

    if not Reconciler(tools.road, tools.stripe, order, state, run.counts, work_off, save).go_on(seconds=seconds):
        return False
    run.cursor = json.dumps(state.closing)
    with tools.engine.begin() as connection:
        sync_runs.finish(connection, run, "done")
    log = logger.warning if findings(run.counts) else logger.info
    log("reconcile: %s", json.dumps({name: n for name, n in run.counts.items() if name != "examples"}))
    return True


def _fail(tools: Tools, run: sync_runs.Run, error: StripeApiError) -> None:
    logger.error("reconcile: %s", error)
    with tools.engine.begin() as connection:
        sync_runs.finish(connection, run, "failed", str(error))


def findings(counts: Counts) -> bool:
    """Whether a run has found anything."""
    return bool(counts.keys() & {"missed", "drift", "money", "people", "gap_days", "unreadable", "refused"})


# --- where a run begins -----------------------------------------------------------------------------------------------


def _open(tools: Tools, order: Order, counts: Counts, *, since: int | None = None, is_by_hand: bool = False) -> State:
    """Ask Stripe what time it is, and see since when events may have been missed."""
    page = next(tools.stripe.pages(EVENTS, limit=1))
    now = page.as_of
    _check_mode(tools.road.settings, page.objects)
    with tools.engine.connect() as connection:
        last = _last(connection)
        heard = last["until"] if last else _last_event(connection)
        known = _known(connection)
        is_told_of_gap = last is not None and _is_told_of_gap(connection, since=last["drift"])
    _check_account(tools.stripe, known)
    is_gap = since is None and heard is not None and now - heard > missed.RETENTION_SECONDS
    drifts = is_by_hand or is_gap or is_told_of_gap or last is None or now - last["drift"] > DRIFT_SECONDS
    if is_gap and heard is not None:
        counts["gap_days"] = (now - heard) // 86400
        logger.warning("reconcile: nothing was heard for %d days, and Stripe keeps events for 30", counts["gap_days"])
        if order.repairs and not tools.road.settings.pause & {"repairs", "processing"}:
            tools.resync()
    begin = now - missed.RETENTION_SECONDS
    if last is not None:
        begin = max(begin, last["until"] - (DEEP_SECONDS if drifts else OVERLAP_SECONDS))
    until = now if is_by_hand else now - PATIENCE_SECONDS
    # Drift that was only looked at is still to be mended.
    mended = now if drifts and order.repairs else last["drift"] if last else 0
    closing = {"until": until, "drift": mended}
    return State(
        events_since=begin if since is None else since,
        until=until,
        lists=[EVENTS, *LISTS, PEOPLE] if drifts else [EVENTS],
        created_since=since,
        # Who looked at a part only has not looked at the rest.
        closing=closing if since is None else last,
    )


def _last(connection: Connection) -> dict[str, int] | None:
    """What the last whole run left: until when events were looked at, and when the lists were."""
    run = sync_runs.latest(connection, KIND, "done")
    left: dict[str, int] | None = None if run is None or run.cursor is None else json.loads(run.cursor)
    return left


def _is_told_of_gap(connection: Connection, *, since: int) -> bool:
    """Whether Stripe has said since then that it had failed to make events: no list of events holds those.

    https://docs.stripe.com/api/v2/core/events/event-types, `v2.core.health.event_generation_failure.resolved`.
    """
    told = text(
        "SELECT FROM stripe_events WHERE received_at > now() - interval '3 days' AND type = :type"
        " AND created > to_timestamp(:since) LIMIT 1"
    )
    return connection.execute(told, {"type": RESOLVED, "since": since}).first() is not None


def _last_event(connection: Connection) -> int | None:
    newest = text("SELECT extract(epoch FROM max(created))::bigint FROM stripe_events")
    seconds: int | None = connection.execute(newest).scalar_one()
    return seconds


def _known(connection: Connection) -> list[tuple[str, str]]:
    """A few objects (type, id) that Stripe has told of, of either mode; by id, which finds them at once."""
    some = " UNION ALL ".join(
        f"(SELECT '{object_type}', id FROM {table} WHERE source <> 'stub' AND livemode = {mode} ORDER BY id LIMIT 2)"
        for object_type, table in (("customer", "stripe_customers"), ("product", "stripe_products"))
        for mode in ("true", "false")
    )
    return [(object_type, object_id) for object_type, object_id in connection.execute(text(some))]


def _check_mode(settings: Settings, objects: Sequence[dict[str, Any]]) -> None:
    wanted = {"live": True, "test": False}.get(settings.stripe_livemode)
    if wanted is not None and any(one.get("livemode") is not wanted for one in objects):
        raise OtherAccountError(
            f"STRIPE_LIVEMODE is {settings.stripe_livemode}, and STRIPE_API_KEY is a key of the other mode."
        )


def _check_account(stripe: StripeApi, known: Sequence[tuple[str, str]]) -> None:
    """Make sure that Stripe knows something of what is here: else all of it would seem to have been deleted."""
    for object_type, object_id in known:
        try:
            stripe.retrieve(object_type, object_id)
        except NotFoundError:
            continue
        return
    if known:
        raise OtherAccountError(
            "Stripe knows none of the customers and products that are here:"
            " is STRIPE_API_KEY the key of another account, or of the other mode?"
        )
