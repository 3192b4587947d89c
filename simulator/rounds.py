"""Rounds of deliveries: events on their way to endpoints, in the order in which they are due, on a clock of choice."""

import heapq
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any, Protocol

from simulator.posting import Connection
from simulator.signing import sign
from simulator.versions import ENDIVE

# Older signatures are refused (docs.stripe.com/webhooks).
TOLERANCE_S = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How events travel; equal seeds make equal journeys.

    Shares, from 0 to 1: `duplicates` of the events are sent twice (a later retry is not counted), `drops` never; of the
    posts, `stale` are signed too long ago, and of `unheard` the answer is lost, so that they come again. An event sets
    out up to `delay_s` after it happened, so that others overtake it; `shuffle` puts them in any order.

    `api_versions` (of `deliver`): the endpoint's, or several of which each delivery takes one at random. `age_s` dates
    every signature back. Of the `attempts`, those after the first wait `backoff_s`, twice that, … at most
    `backoff_max_s` (± a quarter). An endpoint that has failed for `disable_after_s` is disabled (of `Courier`).
    """

    seed: int | str = 0
    shuffle: bool = False
    duplicates: float = 0.0
    drops: float = 0.0
    stale: float = 0.0
    unheard: float = 0.0
    delay_s: float = 0.0
    api_versions: Sequence[str] = (ENDIVE,)
    age_s: int = 0
    v0: bool = False
    attempts: int = 5
    backoff_s: float = 0.2
    backoff_max_s: float = 5.0
    timeout_s: float = 10.0
    disable_after_s: float = math.inf


@dataclass(slots=True, kw_only=True)
class Report:
    """What became of a delivery, and the seed that repeats it.

    Keys of `answers` are HTTP statuses, or the name of a connection's error. `undelivered` were given up, `dropped`
    never sent (ids of events); `disabled` are endpoints.
    """

    seed: int | str = 0
    posted: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    undelivered: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    disabled: list[str] = field(default_factory=list)
    took_s: float = 0.0

    @property
    def accepted(self) -> int:
        """How many posts were answered 2xx."""
        return sum(times for answer, times in self.answers.items() if _is_success(answer))

    @property
    def ok(self) -> bool:
        """Every event that was sent was accepted at last."""
        return not self.undelivered

    def to_json(self) -> dict[str, Any]:
        """The report for scripts; latencies in milliseconds."""
        ordered = sorted(self.latencies_s)
        middle, last = (ordered[len(ordered) // 2], ordered[-1]) if ordered else (0.0, 0.0)
        return {
            "ok": self.ok,
            "seed": self.seed,
            "posted": self.posted,
            "accepted": self.accepted,
            "answers": dict(sorted(self.answers.items())),
            "undelivered": self.undelivered,
            "dropped": self.dropped,
            "disabled": self.disabled,
            "latency_ms": {"median": round(middle * 1000, 2), "max": round(last * 1000, 2)},
            "took_s": round(self.took_s, 3),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """One event on its way to one endpoint.

    `secrets` gives those that sign at a moment, `tell` hears when each post was made and whether it was accepted, and
    when a post is due that is not wanted any more, the parcel is given up.
    """

    id: str
    url: str
    body: Callable[[], bytes]
    secrets: Callable[[float], Sequence[str]]
    random: Random
    is_wanted: Callable[[], bool] = lambda: True
    tell: Callable[[float, bool], None] = lambda _at, _is_accepted: None


class Clock(Protocol):
    """Seconds since some beginning."""

    def now(self) -> float:
        """The present moment."""
        ...

    def wait_until(self, due: float) -> None:
        """Let time pass, if `due` is yet to come."""
        ...


class RealClock:
    """Time passes by itself; its beginning is that of `time.monotonic()`."""

    def now(self) -> float:
        """The present moment."""
        return time.monotonic()

    def wait_until(self, due: float) -> None:
        """Sleep."""
        time.sleep(max(due - time.monotonic(), 0))


class SimulatedClock:
    """Time passes when somebody waits; in Unix seconds of a simulated account."""

    def __init__(self) -> None:
        self._at = 0.0

    def now(self) -> float:
        """The present moment."""
        return self._at

    def wait_until(self, due: float) -> None:
        """Be there."""
        self._at = due


class Rounds:
    """Parcels in the order in which they are due, posted until they are accepted or given up."""

    def __init__(self, plan: Plan, clock: Clock) -> None:
        self.report = Report(seed=plan.seed)
        self._plan = plan
        self._clock = clock
        self._queue: list[tuple[float, int, int, Parcel]] = []
        self._turn = count()
        self._connections: dict[str, Connection] = {}

    @property
    def waiting(self) -> int:
        """How many posts are due later."""
        return len(self._queue)

    def add(self, due: float, parcel: Parcel, attempt: int = 1) -> None:
        """Post it when it is due."""
        heapq.heappush(self._queue, (due, next(self._turn), attempt, parcel))

    def connect(self, url: str) -> Connection:
        """The connection to this URL; raises ValueError if it is none."""
        if url not in self._connections:
            self._connections[url] = Connection(url, self._plan.timeout_s)
        return self._connections[url]

    def close(self) -> None:
        """Hang up; later rounds dial again."""
        for connection in self._connections.values():
            connection.close()

    def run(self, until: float = math.inf) -> Report:
        """Post what is due until then."""
        started = time.monotonic()
        while self._queue and self._queue[0][0] <= until:
            due, _, attempt, parcel = heapq.heappop(self._queue)
            self._clock.wait_until(due)
            self._attempt(attempt, parcel)
        self.report.took_s += time.monotonic() - started
        return self.report

    def _attempt(self, attempt: int, parcel: Parcel) -> None:
        if not parcel.is_wanted():
            self.report.undelivered.append(parcel.id)
            return
        is_accepted = self._post(parcel) and parcel.random.random() >= self._plan.unheard
        parcel.tell(self._clock.now(), is_accepted)
        if is_accepted:
            return
        if attempt >= self._plan.attempts:
            self.report.undelivered.append(parcel.id)
            return
        wait = min(self._plan.backoff_s * 2 ** (attempt - 1), self._plan.backoff_max_s)
        self.add(self._clock.now() + wait * parcel.random.uniform(0.75, 1.25), parcel, attempt + 1)

    def _post(self, parcel: Parcel) -> bool:
        plan, body = self._plan, parcel.body()
        age_s = TOLERANCE_S + plan.age_s + 1 if parcel.random.random() < plan.stale else plan.age_s
        header = sign(body, parcel.secrets(self._clock.now()), int(time.time()) - age_s, v0=plan.v0)
        began = time.monotonic()
        answer = self.connect(parcel.url).post(body, header)
        self.report.posted += 1
        self.report.answers[answer] += 1
        self.report.latencies_s.append(time.monotonic() - began)
        return _is_success(answer)


def _is_success(answer: str) -> bool:
    return answer.startswith("2") and len(answer) == 3
