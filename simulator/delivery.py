"""Posts signed events over HTTP as Stripe does: at least once, in no promised order, again when not answered 2xx.

Here to any URL, in real time; `courier.py` serves the endpoints of a simulated account on its own clock.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from simulator.envelope import body_of
from simulator.objects import Event
from simulator.render import render_event
from simulator.rounds import Parcel, Plan, RealClock, Report, Rounds

__all__ = ["IN_ORDER", "Deliverable", "Plan", "Report", "arrange", "deliver"]

Deliverable = Event | Mapping[str, Any] | bytes

IN_ORDER = Plan()


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
    rounds = Rounds(plan, RealClock())
    try:
        # A URL that is none is refused even if there is nothing to post.
        rounds.connect(url)
        for number, (id, body) in enumerate(arrange(events, plan)):
            random = Random(f"{plan.seed} {number}")
            if random.random() < plan.drops:
                rounds.report.dropped.append(id)
                continue
            parcel = Parcel(id=id, url=url, body=_always(body), secrets=lambda _: secrets, random=random)
            rounds.add(time.monotonic() + random.uniform(0, plan.delay_s) if plan.delay_s else 0.0, parcel)
        return rounds.run()
    finally:
        rounds.close()


def _always(body: bytes) -> Callable[[], bytes]:
    return lambda: body


def _post(event: Deliverable, api_version: str) -> tuple[str, bytes]:
    if isinstance(event, bytes):
        return event[:40].decode(errors="replace"), event
    shown = render_event(event, api_version) if isinstance(event, Event) else event
    return str(shown.get("id")), body_of(shown)
