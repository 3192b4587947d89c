"""Posts signed events over HTTP as Stripe does: at least once, in no promised order, again when not answered 2xx."""

import heapq
import http.client
import ssl
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any
from urllib.parse import urlsplit

from simulator.envelope import body_of
from simulator.objects import Event
from simulator.render import render_event
from simulator.signing import sign
from simulator.versions import ENDIVE

Deliverable = Event | Mapping[str, Any] | bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How events travel; equal seeds make equal journeys.

    `duplicates` is the share of events that are sent twice (a later retry is not counted). `api_versions`: the
    endpoint's, or several of which each delivery takes one at random. `age_s` dates the signature back. Of the
    `attempts`, those after the first wait `backoff_s`, twice that, … at most `backoff_max_s` (± a quarter).
    """

    seed: int = 0
    shuffle: bool = False
    duplicates: float = 0.0
    api_versions: Sequence[str] = (ENDIVE,)
    age_s: int = 0
    v0: bool = False
    attempts: int = 5
    backoff_s: float = 0.2
    backoff_max_s: float = 5.0
    timeout_s: float = 10.0


IN_ORDER = Plan()


@dataclass(slots=True, kw_only=True)
class Report:
    """What became of a delivery. Keys of `answers` are HTTP statuses, or the name of a connection's error."""

    posted: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    undelivered: list[str] = field(default_factory=list)
    took_s: float = 0.0

    @property
    def accepted(self) -> int:
        """How many posts were answered 2xx."""
        return sum(times for answer, times in self.answers.items() if answer.startswith("2") and len(answer) == 3)

    @property
    def ok(self) -> bool:
        """Every event was accepted at last."""
        return not self.undelivered

    def to_json(self) -> dict[str, Any]:
        """The report for scripts; latencies in milliseconds."""
        ordered = sorted(self.latencies_s)
        middle, last = (ordered[len(ordered) // 2], ordered[-1]) if ordered else (0.0, 0.0)
        return {
            "ok": self.ok,
            "posted": self.posted,
            "accepted": self.accepted,
            "answers": dict(sorted(self.answers.items())),
            "undelivered": self.undelivered,
            "latency_ms": {"median": round(middle * 1000, 2), "max": round(last * 1000, 2)},
            "took_s": round(self.took_s, 3),
        }


def arrange(events: Sequence[Deliverable], plan: Plan = IN_ORDER) -> list[tuple[str, bytes]]:
    """The posts of a journey: (event id, body) in the order in which they are first tried."""
    random = Random(plan.seed)
    posts = [_post(event, random.choice(plan.api_versions)) for event in events]
    doubled = [_post(event, random.choice(plan.api_versions)) for event in events if random.random() < plan.duplicates]
    if plan.shuffle:
        posts += doubled
        random.shuffle(posts)
        return posts
    for post in doubled:
        first = next(at for at, (id, _) in enumerate(posts) if id == post[0])
        posts.insert(random.randint(first + 1, len(posts)), post)
    return posts


def deliver(events: Sequence[Deliverable], url: str, secrets: Sequence[str], plan: Plan = IN_ORDER) -> Report:
    """Post the events to `url`, each signed afresh at every attempt, until all are accepted or given up.

    Events of the simulator are rendered for the endpoint's API version; dicts and bytes are sent as they are.
    """
    report, random, turn = Report(), Random(plan.seed), count()
    started = time.monotonic()
    queue = [(0.0, next(turn), 1, id, body) for id, body in arrange(events, plan)]
    connection = _Connection(url, plan.timeout_s)
    try:
        while queue:
            due, _, attempt, id, body = heapq.heappop(queue)
            time.sleep(max(due - time.monotonic(), 0))
            header = sign(body, secrets, int(time.time()) - plan.age_s, v0=plan.v0)
            began = time.monotonic()
            answer = connection.post(body, header)
            report.posted += 1
            report.answers[answer] += 1
            report.latencies_s.append(time.monotonic() - began)
            if answer.startswith("2"):
                continue
            if attempt >= plan.attempts:
                report.undelivered.append(id)
                continue
            wait = min(plan.backoff_s * 2 ** (attempt - 1), plan.backoff_max_s) * random.uniform(0.75, 1.25)
            heapq.heappush(queue, (time.monotonic() + wait, next(turn), attempt + 1, id, body))
    finally:
        connection.close()
        report.took_s = time.monotonic() - started
    return report


def _post(event: Deliverable, api_version: str) -> tuple[str, bytes]:
    if isinstance(event, bytes):
        return event[:40].decode(errors="replace"), event
    shown = render_event(event, api_version) if isinstance(event, Event) else event
    return str(shown.get("id")), body_of(shown)


class _Connection:
    """One connection, kept alive between posts and made anew when it broke."""

    def __init__(self, url: str, timeout_s: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"cannot post to {url!r}: expected http://host[:port]/path")
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._http: http.client.HTTPConnection
        if parts.scheme == "https":
            context = ssl.create_default_context()
            self._http = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=timeout_s, context=context)
        else:
            self._http = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)

    def post(self, body: bytes, signature: str) -> str:
        """The status as text, or the name of what went wrong on the way."""
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": signature,
            "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
        }
        try:
            self._http.request("POST", self._path, body, headers)
            answer = self._http.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            return type(error).__name__
        return str(answer.status)

    def close(self) -> None:
        self._http.close()
