"""The road of a list of events: BOOK, WRITE, LINK, DECIDE, a transaction and a commit each.

Ending anywhere in between loses nothing and doubles nothing: the events stay in the ledger until DECIDE has finished
them, and every step can be repeated. Why the steps are separate transactions stands in DESIGN §2.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import logging
import random
import threading
import time
import traceback
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from models import drift, ledger, upsert
from models.settings import Settings
from workers import asking, concern, snapshots
from workers.handlers import BY_EVENT_TYPE
from workers.link import UnsettledError, link, owners_of
from workers.recompute import SLICE, decide
from workers.shapes import MalformedError, Snapshot
from workers.stripe_api import RefusedError, StripeApi, StripeAwayError

logger = logging.getLogger(__name__)

# Work of our own, kept in the ledger like events: a change of the catalogue that concerns very many, and customers
# whose user was deleted (enqueued by a trigger); and what is left to do once the API's word has been written.
OURS = "dues."
RECOMPUTE, RELINK, SETTLE = "dues.recompute", "dues.relink", "dues.settle"
# After a try that failed for a reason that passes: 1 minute … 1 day, three and a half days in all.
BACKOFF = (60, 300, 900, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86400, 86400, 86400)
# After a try whose connection was lost: mostly PostgreSQL was restarted, but it may be the event that ends it.
LOST = (0, 1, 5, 20, 60, 300, 900, 3600)
# Seconds for which PostgreSQL is given time to come back, before a lease is left to end by itself.
AGAIN = (0, 1, 3)
# After a try that failed unexpectedly: three tries over an hour.
UNEXPECTED = (600, 3000)
# Of the last 50 events tried alone, so many unexpected ends mean that the fault is in our code.
WINDOW, TOO_MANY = 50, 20
PAUSE_SECONDS = 60.0
# PostgreSQL's errors that pass by themselves: https://www.postgresql.org/docs/current/errcodes-appendix.html
PASSING = ("08", "25P03", "40", "53", "55P03", "57", "58")


def version() -> str:
    """The version of this code, written beside every event that it ended."""
    try:
        return importlib.metadata.version("dues")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


class ConnectionLostError(Exception):
    """PostgreSQL went away while a list was tried; its events wait for our return, or for their lease to end."""


# What is raised when PostgreSQL can't be told how a try ended.
AWAY = (ConnectionLostError, DBAPIError, PoolTimeoutError)


@dataclass
class Road:
    """Everything that a process needs to work off a lane; one per process, it remembers how tries ended.

    `ring` asks further workers to join in; `stopping` is set when the process has been told to end.
    """

    engine: Engine
    settings: Settings
    ring: Callable[[ledger.Lane], None] = lambda _: None
    # Tells the web processes that something has changed in what is on sale.
    renew_catalog: Callable[[], None] = lambda: None
    stopping: threading.Event = field(default_factory=threading.Event)
    # A place where tests end the process: called with the name of each step before it commits.
    checkpoint: Callable[[str], None] = lambda _: None
    version: str = field(default_factory=version)
    _ends: deque[bool] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _paused_until: float = 0.0
    # A try whose end could not be written down, and why.
    _unsaid: tuple[ledger.Claim, Exception] | None = None

    def process(self, lane: ledger.Lane, *, seconds: float = 10.0) -> Counter[str]:
        """Work off what is due in `lane`, for about `seconds` at most; returns how many events ended how."""
        counts: Counter[str] = Counter()
        end = time.monotonic() + seconds
        self._say(counts)
        while not self.stopping.is_set() and not self.is_paused:
            claim = self._book(lane, counts)
            if not claim.events:
                break
            if len(claim.events) >= self._size(lane):
                self.ring(lane)
            try:
                self._try(claim, counts)
            except AWAY as error:
                self._say_soon(claim, error, counts)
            if time.monotonic() >= end:
                self.ring(lane)
                break
        return counts

    def _size(self, lane: ledger.Lane) -> int:
        # One event tells whether the code has been mended, and what waits for Stripe shall not wait for others too.
        return 1 if self._paused_until or lane == "api" else self.settings.list_size

    @property
    def is_paused(self) -> bool:
        """Whether nothing is to be applied now: an operator wants it, or too much has failed."""
        return "processing" in self.settings.pause or time.monotonic() < self._paused_until

    # --- BOOK ---

    def _book(self, lane: ledger.Lane, counts: Counter[str]) -> ledger.Claim:
        with self.engine.begin() as connection:
            claim = ledger.claim(connection, lane, size=self._size(lane), lease=self.settings.lease_seconds)
            doomed = [event.id for event in claim.events if event.silent_ends >= ledger.SILENT_ENDS]
            if doomed:
                ending = ledger.Ending("dead", "worker_died", f"{ledger.SILENT_ENDS} tries in a row ended silently")
                ledger.finish(connection, claim.token, doomed, ending, self.version)
                counts["dead"] += len(doomed)
                logger.error("parked as dead: %s: %s", ", ".join(doomed), ending.error)
            self.checkpoint("book")
        return ledger.Claim(claim.token, lane, tuple(event for event in claim.events if event.id not in doomed))

    # --- a list, or its events one by one ---

    def _try(self, claim: ledger.Claim, counts: Counter[str]) -> None:
        as_list = len(claim.events) > 1
        if as_list:
            error = self._attempt(claim, claim.events, counts)
            if error is None:
                return
            logger.warning("a list of %d failed, trying its events alone: %s", len(claim.events), describe(error))
        rest = [dataclasses.replace(event, is_repeated=event.is_repeated or as_list) for event in claim.events]
        while rest and not self.stopping.is_set() and not self.is_paused:
            self._try_alone(claim, rest.pop(0), counts)
        if rest:
            self._give_back(claim, rest, tried=as_list)

    def _try_alone(self, claim: ledger.Claim, event: ledger.Claimed, counts: Counter[str]) -> None:
        error = self._attempt(claim, [event], counts)
        if error is None:
            self._ends.append(True)
            self._paused_until = 0.0
        else:
            self._fail(claim, event, error, counts)

    def _attempt(
        self,
        claim: ledger.Claim,
        events: Sequence[ledger.Claimed],
        counts: Counter[str],
    ) -> Exception | None:
        """Try some events; return what went wrong. Raises ConnectionLostError: then there is nowhere to write it."""
        try:
            counts.update(self._work(claim, events))
        except Exception as error:
            if is_connection_lost(error):
                raise ConnectionLostError(describe(error)) from None
            return error
        return None

    def _give_back(self, claim: ledger.Claim, rest: Sequence[ledger.Claimed], *, tried: bool) -> None:
        try:
            with self.engine.begin() as connection:
                ledger.give_back(connection, claim.token, [event.id for event in rest], tried=tried)
        except DBAPIError as error:
            logger.warning("%d events wait for their lease to end: %s", len(rest), describe(error))

    def _say_soon(self, claim: ledger.Claim, error: Exception, counts: Counter[str]) -> None:
        """Write down how a try ended once PostgreSQL is there again; raise `error` if nothing can be done for now.

        Left unsaid, it would look as if the events had ended a worker, and three such ends park an event.
        """
        self._unsaid = (claim, error)
        for seconds in AGAIN:
            self.stopping.wait(seconds)
            with contextlib.suppress(*AWAY):
                self._say(counts)
                if isinstance(error, ConnectionLostError):
                    return
                break
        raise error

    def _say(self, counts: Counter[str]) -> None:
        if self._unsaid is None:
            return
        claim, error = self._unsaid
        if len(claim.events) == 1:
            self._fail(claim, claim.events[0], error, counts)
        else:
            # A lost connection may be an event's work; that PostgreSQL could not note how a try ended is none's.
            is_lost = isinstance(error, ConnectionLostError)
            with self.engine.begin() as connection:
                ids = [event.id for event in claim.events]
                ledger.give_back(connection, claim.token, ids, tried=is_lost, reason="transient")
        self._unsaid = None

    def _fail(self, claim: ledger.Claim, event: ledger.Claimed, error: Exception, counts: Counter[str]) -> None:
        is_lost, passing = isinstance(error, ConnectionLostError), is_passing(error)
        reason = "transient" if is_lost or passing else "unexpected"
        schedule = LOST if is_lost else BACKOFF if passing else UNEXPECTED
        what = describe(error)
        with self.engine.begin() as connection:
            if event.attempts > len(schedule):
                ledger.finish(connection, claim.token, [event.id], ledger.Ending("dead", reason, what), self.version)
                counts["dead"] += 1
                logger.error("parked as dead: %s after %d tries: %s", event.id, event.attempts, what)
            else:
                seconds = schedule[event.attempts - 1] * random.uniform(1.0, 1.2)
                ledger.postpone(connection, claim.token, event.id, seconds, (reason, what), self.version)
                counts["postponed"] += 1
                logger.warning("%s again in %.0f s: %s", event.id, seconds, what)
        if reason == "unexpected":
            self._ends.append(False)
            self._pause_if_it_is_us()

    def _pause_if_it_is_us(self) -> None:
        failed = self._ends.count(False)
        if failed >= TOO_MANY:
            self._paused_until = time.monotonic() + PAUSE_SECONDS
            logger.critical(
                "%d of the last %d events tried alone failed unexpectedly: the fault is in this code (%s), not in them."
                " Claiming pauses for %.0f s, events go on being captured; `dues events list --status received` shows"
                " them with their errors",
                failed,
                len(self._ends),
                self.version,
                PAUSE_SECONDS,
            )

    # --- WRITE, LINK, DECIDE ---

    def _work(self, claim: ledger.Claim, events: Sequence[ledger.Claimed]) -> Counter[str]:
        counts: Counter[str] = Counter()
        ours = {RECOMPUTE: self._recompute_slice, RELINK: self._relink, SETTLE: self._settle_work}
        given, for_api = [], []
        for event in events:
            if event.type in ours:
                counts[ours[event.type](claim, event)] += 1
            elif not self._must_ask(event):
                given.append(event)
            elif claim.lane == "api":
                counts[self._ask(claim, event)] += 1
            else:
                for_api.append(event.id)
        if for_api:
            counts["handed over"] += self._hand_over(claim, for_api)
        if given:
            counts.update(self._work_off(claim, given))
        return counts

    def _work_off(self, claim: ledger.Claim, events: Sequence[ledger.Claimed]) -> Counter[str]:
        read, refused = self._read(events)
        ids = {one.source for one in read}
        must_ring = False

        def refuse(connection: Connection) -> None:
            for ending, some in refused.items():
                ledger.finish(connection, claim.token, some, ending, self.version)

        def finish(connection: Connection) -> None:
            nonlocal must_ring
            must_ring = bool(self.settings.stripe_api_key) and asking.ask_for_ends(connection, read)
            ledger.finish(connection, claim.token, ids, ledger.Ending("processed"), self.version)

        again = {event.id for event in events if event.is_repeated}
        self._take(read, with_write=refuse, finish=finish, assume_changed=again)
        if must_ring:
            self.ring("api")
        counts: Counter[str] = Counter(processed=len(ids))
        for ending, some in refused.items():
            counts[ending.status] += len(some)
        return counts

    def _take(
        self,
        read: Sequence[Snapshot],
        *,
        finish: Callable[[Connection], object],
        with_write: Callable[[Connection], object] = lambda _: None,
        assume_changed: Collection[str] = (),
        cause: str | None = None,
    ) -> None:
        """Take the snapshots of claimed events down the road.

        `with_write` and `finish` are part of the first and of the last transaction. `assume_changed` are sources whose
        former try may have written without telling; `cause` is the event that led here, if it is not their source.
        """
        with self.engine.begin() as connection:
            effects = snapshots.write(
                connection,
                read,
                applies=lambda row: self._reason_to_ignore(row) is None,
                assume_changed=assume_changed,
            )
            with_write(connection)
            self.checkpoint("write")
        if any(one.handler.is_tariff for one in read):
            self.renew_catalog()
        causes = {one.customer: cause or one.source for one in read if one.customer is not None}
        self._settle(effects, causes, finish)

    def _settle(
        self,
        effects: snapshots.Effects,
        causes: Mapping[str, str],
        finish: Callable[[Connection], object],
    ) -> None:
        """LINK and DECIDE for what has been written; `causes` names what led here, by customer."""
        with self.engine.begin() as connection:
            guests = concern.guests_of(connection, self.settings, effects)
        moved: set[str] = set()
        if effects.evidence_changed or guests:
            # Guests too: they may have signed up just now, and once they are decided nobody looks for their customers.
            moved = link(self.engine, self.settings, customers=effects.evidence_changed, users=guests)
            self.checkpoint("link")
        with self.engine.begin() as connection:
            affected = concern.customers_with(connection, effects.catalogue, limit=SLICE + 1)
            if len(affected) > SLICE:
                ledger.enqueue(connection, RECOMPUTE, _slice(effects.catalogue, after=""))
                affected = []
            customers = effects.customers | set(affected) | concern.customers_of(connection, effects.objects)
            owners = owners_of(connection, customers)
        users = moved | guests | set(owners.values())
        self._decide(users, customers, {owners[one]: causes[one] for one in causes if one in owners}, finish)

    def _read(
        self,
        events: Iterable[ledger.Claimed],
    ) -> tuple[list[Snapshot], dict[ledger.Ending, list[str]]]:
        """Split a list into snapshots and the events that end without having any effect."""
        read: list[Snapshot] = []
        refused: dict[ledger.Ending, list[str]] = defaultdict(list)
        for event in events:
            reason = self._reason_to_ignore(event)
            try:
                found = [] if reason else snapshots.read(event)
            except MalformedError as error:
                refused[ledger.Ending("dead", "malformed", str(error))].append(event.id)
                continue
            if not found:
                refused[ledger.Ending("ignored", reason or self._unhandled(event))].append(event.id)
            read += found
        return read, refused

    def _reason_to_ignore(self, event: ledger.Kept) -> str | None:
        if event.type.startswith(OURS):
            return None
        if event.account is not None and event.account not in self.settings.stripe_account:
            return "account"
        return None if self._mode is None or event.livemode is self._mode else "livemode"

    def _is_ours(self, one: Snapshot) -> bool:
        """Whether it is of the mode that is wanted; what is gone no longer says."""
        return None in {self._mode, one.livemode} or one.livemode is self._mode

    @property
    def _mode(self) -> bool | None:
        return {"live": True, "test": False}.get(self.settings.stripe_livemode)

    def _unhandled(self, event: ledger.Kept) -> str:
        if event.type in BY_EVENT_TYPE:
            return "preview"
        wants_stripe = event.type.startswith(asking.THIN) or event.type in {asking.FETCH, asking.REFRESH}
        return "no_api_key" if wants_stripe and not self.settings.stripe_api_key else "type"

    def _decide(
        self,
        users: Collection[str],
        customers: Collection[str],
        causes: Mapping[str, str],
        finish: Callable[[Connection], object],
    ) -> None:
        """Decide the users, SLICE at a time; the last slice also finishes what led here, in the same transaction."""
        ordered = sorted(users)
        slices = [ordered[start : start + SLICE] for start in range(0, len(ordered), SLICE)] or [[]]
        for part in slices:
            is_last = part is slices[-1]
            with self.engine.begin() as connection:
                decide(connection, self.settings, part, customers=customers if is_last else (), causes=causes)
                if is_last:
                    finish(connection)
                self.checkpoint("decide")

    # --- what the API said ---

    def take_in(
        self,
        told: Iterable[Snapshot],
        also: Callable[[Connection], object] = lambda _: None,
    ) -> Counter[str]:
        """Write what Stripe's API said, link, and decide whom it concerns; returns how that ended, if there was any.

        One commit holds the rows, what `also` writes (the caller's cursor) and, as claimed work of our own in the
        ledger, what is left to do. So it is done even if we end right after it, and nobody has to repeat anything.
        """
        counts: Counter[str] = Counter()
        newest = {(one.handler.table, one.id): one for one in told if self._is_ours(one)}
        with self.engine.begin() as connection:
            is_news = _is_news(connection, [one for one in newest.values() if one.handler.is_tariff])
            effects = snapshots.write(connection, newest.values(), applies=lambda row: not self._reason_to_ignore(row))
            left = effects and self._undertake(connection, effects)
            also(connection)
            self.checkpoint("write")
        if is_news:
            self.renew_catalog()
        if left:
            self._try_alone(left, left.events[0], counts)
        return counts

    def _undertake(self, connection: Connection, effects: snapshots.Effects) -> ledger.Claim:
        return ledger.undertake(connection, SETTLE, effects.to_json(), lease=self.settings.lease_seconds)

    def _settle_work(self, claim: ledger.Claim, event: ledger.Claimed) -> str:
        """LINK and DECIDE for what the API said; says how the event ended."""
        effects = snapshots.Effects.from_json(event.payload or b"{}")
        done = ledger.Ending("processed")
        self._settle(
            effects,
            dict.fromkeys(effects.customers, event.id),
            lambda connection: ledger.finish(connection, claim.token, [event.id], done, self.version),
        )
        return "processed"

    # --- asking Stripe ---

    @functools.cached_property
    def stripe(self) -> StripeApi:
        """The door to Stripe of this process, made when the first event needs it."""
        return StripeApi(self.settings, urgent=True)

    def _must_ask(self, event: ledger.Claimed) -> bool:
        has_key = bool(self.settings.stripe_api_key)
        return has_key and self._reason_to_ignore(event) is None and asking.must_ask(event)

    def _hand_over(self, claim: ledger.Claim, ids: Sequence[str]) -> int:
        with self.engine.begin() as connection:
            ours = ledger.hand_over(connection, claim.token, ids, "api")
            self.checkpoint("hand over")
        self.ring("api")
        return len(ours)

    def _ask(self, claim: ledger.Claim, event: ledger.Claimed) -> str:
        """Ask Stripe what an event wants to know, and take the answers down the road; says how the event ended."""
        with asking.alone_with(self.engine, event):
            question = asking.Question(self.stripe, self.engine)
            try:
                ending = question.ask(event)
            except MalformedError as error:
                ending = ledger.Ending("dead", "malformed", str(error))
            self.checkpoint("ask")
            self._take(
                [one for one in question.answers.values() if self._is_ours(one)],
                finish=lambda connection: ledger.finish(connection, claim.token, [event.id], ending, self.version),
                assume_changed={snapshots.API} if event.is_repeated else (),
                cause=event.id,
            )
        return ending.status

    # --- work of our own ---

    def _recompute_slice(self, claim: ledger.Claim, event: ledger.Claimed) -> str:
        """Decide the next SLICE of customers that a change of the catalogue concerns; says how the event ended."""
        work = json.loads(event.payload or b"{}")
        with self.engine.begin() as connection:
            concerned = concern.customers_with(connection, work["objects"], limit=SLICE, after=work["after"])
            owners = owners_of(connection, concerned)
        is_last = len(concerned) < SLICE
        rest = b"" if is_last else _slice(work["objects"], after=max(concerned))

        def finish(connection: Connection) -> object:
            if is_last:
                return ledger.finish(connection, claim.token, [event.id], ledger.Ending("processed"), self.version)
            return ledger.next_slice(connection, claim.token, event.id, rest)

        self._decide(set(owners.values()), set(concerned), dict.fromkeys(owners.values(), event.id), finish)
        return "processed" if is_last else "sliced"

    def _relink(self, claim: ledger.Claim, event: ledger.Claimed) -> str:
        """Link the customers of a deleted user anew, and decide whom that concerns; says how the event ended."""
        customers = json.loads(event.payload or b"{}")["customers"]
        moved = link(self.engine, self.settings, customers=customers)
        with self.engine.begin() as connection:
            users = moved | set(owners_of(connection, customers).values())
        self._decide(
            users,
            (),
            dict.fromkeys(users, event.id),
            lambda connection: ledger.finish(
                connection, claim.token, [event.id], ledger.Ending("processed"), self.version
            ),
        )
        return "processed"


def _is_news(connection: Connection, products_and_prices: Iterable[Snapshot]) -> bool:
    """Whether anything of what is on sale is not as these say; Stripe is asked often, and nearly never it is."""
    rows: dict[str, list[upsert.Row]] = defaultdict(list)
    for one in products_and_prices:
        rows[one.handler.table].append(snapshots.as_row(one))
    return any(drift.differences(connection, table, some) for table, some in rows.items())


def _slice(objects: Iterable[str], *, after: str) -> bytes:
    return json.dumps({"objects": sorted(objects), "after": after}).encode()


# --- errors -------------------------------------------------------------------------------------------------------


def sqlstate(error: BaseException) -> str | None:
    """PostgreSQL's code of an error, if it is one of PostgreSQL's."""
    return getattr(getattr(error, "orig", None), "sqlstate", None)


def is_connection_lost(error: BaseException) -> bool:
    """Whether the database is away, rather than displeased."""
    if isinstance(error, PoolTimeoutError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    return error.connection_invalidated or (isinstance(error, OperationalError) and sqlstate(error) is None)


def is_passing(error: BaseException) -> bool:
    """Whether trying again later will do: deadlocks, lock timeouts, a full disk, a server being restarted."""
    by_itself = (UnsettledError, StripeAwayError, RefusedError)  # a key that was refused, once somebody has seen to it
    return isinstance(error, by_itself) or (sqlstate(error) or "none").startswith(PASSING)


def describe(error: BaseException) -> str:
    """Say what went wrong and where, without a value of anybody's data: messages of libraries quote what they read."""
    if isinstance(error, ConnectionLostError):
        return str(error)
    cause = getattr(error, "orig", None) or error
    constraint = getattr(getattr(cause, "diag", None), "constraint_name", None)
    words = [type(cause).__name__, sqlstate(error), constraint]
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    places = [f"{Path(frame.filename).parent.name}/{Path(frame.filename).name}:{frame.lineno}" for frame in frames]
    return f"{' '.join(word for word in words if word)} at {' > '.join(places)}"
