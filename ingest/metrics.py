"""What one receiver counts of itself. Several processes of one `dues serve` add up, through files that they share.

`dues serve` sets PROMETHEUS_MULTIPROC_DIR for that: https://prometheus.github.io/client_python/multiprocess/.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

# Stripe knows some 300 event types; whatever comes after them is counted together.
MANY_TYPES = 500
OTHER = "other"

_own = CollectorRegistry()

ANSWERS = Counter("dues_webhook_answers", "Answers to POST /webhooks/stripe, by HTTP status.", ["code"], registry=_own)
RECEIVED = Counter("dues_events_received", "Events stored for the first time, by type.", ["type"], registry=_own)
DUPLICATES = Counter("dues_events_duplicate", "Deliveries of events that were stored already.", registry=_own)
SIGNATURE_FAILURES = Counter(
    "dues_signature_failures", "Requests refused for their signature: absent, wrong, stale.", ["reason"], registry=_own
)
SECRET_USED = Counter(
    "dues_secret_used",
    "Requests whose signature a secret verified, by its place in STRIPE_WEBHOOK_SECRET: 1, 2, …",
    ["secret"],
    registry=_own,
)
LAG = Histogram(
    "dues_event_lag_seconds",
    "Seconds between Stripe's creating an event and our storing it.",
    buckets=(1, 2, 5, 10, 30, 60, 300, 1800, 3600, 21600, 86400),
    registry=_own,
)

_types: set[str] = set()


def type_label(event_type: str) -> str:
    """The event's type, or `other` once there are too many of them."""
    if event_type not in _types:
        if len(_types) >= MANY_TYPES:
            return OTHER
        _types.add(event_type)
    return event_type


class _Given(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def exposition(more: Iterable[Metric]) -> bytes:
    """Return everything counted so far, and `more`, as Prometheus' text."""
    given = CollectorRegistry()
    given.register(_Given(more))
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]
    else:
        together = _own
    return generate_latest(together) + generate_latest(given)
