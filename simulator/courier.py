"""Delivers what a simulated account owes to its webhook endpoints."""

import math
from collections.abc import Sequence
from random import Random

from simulator.calendar import DAY, HALF_DAY, HOUR, MINUTE
from simulator.envelope import body_of
from simulator.objects import Event, WebhookEndpoint
from simulator.render import render_event
from simulator.render.thin import notification
from simulator.rounds import Parcel, Plan, RealClock, Report, Rounds, SimulatedClock
from simulator.state import Stripe

# Three days of retries, the last ones half a day apart. That a dead endpoint is disabled is no longer documented.
AS_STRIPE = Plan(attempts=13, backoff_s=5 * MINUTE, backoff_max_s=HALF_DAY, disable_after_s=5 * DAY)


class Courier:
    """Posts on the account's clock, so that days of retries take no time, or in real time, where they take their time.

    Each event is rendered and signed as its endpoint has it. `report` grows with every call.
    """

    def __init__(self, stripe: Stripe, plan: Plan = AS_STRIPE, *, real_time: bool = False) -> None:
        self._stripe = stripe
        self._plan = plan
        self._real_time = real_time
        self._clock = RealClock() if real_time else SimulatedClock()
        self._rounds = Rounds(plan, self._clock)
        self._seen = 0
        self._failing_since: dict[str, float] = {}
        self.report = self._rounds.report

    @property
    def waiting(self) -> int:
        """How many posts are due later."""
        return self._rounds.waiting

    def advance(self, to: int, step: int = HOUR) -> Report:
        """Let the account's clock run to `to` (Unix seconds) and deliver what falls due, `step` seconds at a time."""
        while self._stripe.now < to:
            self._stripe.advance(min(self._stripe.now + step, to))
            self.deliver()
        return self.deliver()

    def deliver(self) -> Report:
        """Post all that is due by now; what is refused is due again later. In real time: all, until it is settled."""
        with self._stripe.lock:
            news = self._stripe.events[self._seen :]
            self._seen += len(news)
            self._set_out(news)
        try:
            return self._rounds.run(math.inf if self._real_time else self._stripe.now)
        finally:
            self._rounds.close()

    def resend(self, event: str, endpoint: str) -> Report:
        """Post an event once more, as by hand; automatic retries go on, accepted or not."""
        found = self._stripe.find(Event, event)
        if found is None:
            raise ValueError(f"there is no event {event}")
        self._rounds.add(self._start(self._stripe.now), self._parcel(found, endpoint, "resent"))
        return self.deliver()

    def _set_out(self, news: Sequence[Event]) -> None:
        parcels, dues = [], []
        for event in news:
            owed = self._stripe.owed(event.id)
            for endpoint in (id for id in self._stripe.webhook_endpoints if id in owed):
                parcel = self._parcel(event, endpoint, "first")
                if parcel.random.random() < self._plan.drops:
                    self.report.dropped.append(event.id)
                    continue
                twice = parcel.random.random() < self._plan.duplicates
                for one in (parcel, self._parcel(event, endpoint, "second"))[: 1 + twice]:
                    parcels.append(one)
                    dues.append(self._start(event.created) + one.random.uniform(0, self._plan.delay_s))
        if self._plan.shuffle:
            Random(f"order {self._plan.seed} {self._seen}").shuffle(parcels)
        for due, parcel in zip(dues, parcels, strict=True):
            self._rounds.add(due, parcel)

    def _start(self, moment: int) -> float:
        return self._clock.now() if self._real_time else moment

    def _parcel(self, event: Event, endpoint: str, which: str) -> Parcel:
        there = self._stripe.webhook_endpoints[endpoint]
        return Parcel(
            id=event.id,
            url=there.url,
            body=lambda: self._body(event, there),
            secrets=lambda at: self._stripe.secrets_of(endpoint, None if self._real_time else int(at)),
            random=Random(f"{self._plan.seed} {event.id} {endpoint} {which}"),
            is_wanted=lambda: self._is_enabled(endpoint),
            tell=lambda at, is_accepted: self._tell(event.id, endpoint, at, is_accepted=is_accepted),
        )

    def _body(self, event: Event, endpoint: WebhookEndpoint) -> bytes:
        if endpoint.payload == "thin":
            return body_of(notification(event))
        owed = len(self._stripe.owed(event.id))
        return body_of({**render_event(event, endpoint.api_version), "pending_webhooks": owed})

    def _is_enabled(self, endpoint: str) -> bool:
        there = self._stripe.webhook_endpoints.get(endpoint)
        return there is not None and there.status == "enabled"

    def _tell(self, event: str, endpoint: str, at: float, *, is_accepted: bool) -> None:
        if is_accepted:
            self._failing_since.pop(endpoint, None)
            self._stripe.accept(event, endpoint)
        elif at - self._failing_since.setdefault(endpoint, at) >= self._plan.disable_after_s:
            self._stripe.disable_failing_endpoint(endpoint)
            self._failing_since.pop(endpoint)
            self.report.disabled.append(endpoint)
