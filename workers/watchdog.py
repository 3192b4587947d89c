"""Looks from outside whether Stripe still reaches us: an alarm inside the receiver is silent when it should ring most.

Beat sends it every five minutes. Its row in `sync_runs` holds what it found, for /metrics and `dues doctor`, and is
also how one sees that beat and a worker are there. docs/operations.md says what each finding means.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import Connection, Engine, text

from models import sync_runs
from models.settings import Settings
from workers import missed, receiver
from workers.findings import Finding, some
from workers.handlers import BY_EVENT_TYPE
from workers.stripe_api import API_VERSION, StripeApi, StripeApiError

logger = logging.getLogger(__name__)

KIND = "watchdog"
EVERY_SECONDS = 300.0
LATE_MINUTES = 15
# A delivery may take so long; what Stripe has had for longer, within the last hour, should be here.
QUIET_SECONDS, LOOKED_AT_SECONDS = 300, 3600
# Since payment modes make a customer only if they must; what is older nobody has tried.
OLDEST_VERSION = "2022-08-01"
KEPT_DAYS = 7
THIN_DAYS = 3
PATH = "/webhooks/stripe"

Json = dict[str, Any]


def look(engine: Engine, settings: Settings, stripe: StripeApi | None) -> list[Finding]:
    """Look, unless somebody has just done so, and write down what was found; nothing if it was not our turn."""
    with sync_runs.turn(engine, KIND) as is_ours:
        if not is_ours:
            return []
        with engine.begin() as connection:
            before = sync_runs.latest(connection, KIND, "done")
            run = sync_runs.begin(connection, KIND, every=EVERY_SECONDS / 2)
        if run is None:
            return []
        found = list(_at_stripe(engine, settings, stripe))
        of_receiver, kept = receiver.look(settings, before.counts.get("receiver") if before else None, run.started_at)
        found += of_receiver
        run.counts = {"findings": [asdict(one) for one in found], "receiver": kept}
        with engine.begin() as connection:
            sync_runs.finish(connection, run, "done")
            connection.execute(_FORGET, {"kind": KIND, "days": KEPT_DAYS})
    for one in found:
        if one.level != "ok":
            logger.warning("%s: %s; %s", one.check, one.found, one.todo)
    return found


_FORGET = text("DELETE FROM sync_runs WHERE kind = :kind AND started_at < now() - make_interval(days => :days)")


def _at_stripe(engine: Engine, settings: Settings, stripe: StripeApi | None) -> Iterator[Finding]:
    if stripe is None:
        return
    try:
        with engine.connect() as connection:
            hears = hears_thin(connection)
        yield from endpoint(endpoints(stripe), settings, hears_thin=hears)
        with engine.connect() as connection:
            yield silence(connection, stripe)
    except StripeApiError as error:
        yield Finding("stripe", "warning", f"Stripe could not be asked: {error}", "see whether the key is right")


# --- the endpoint -----------------------------------------------------------------------------------------------------


def endpoints(stripe: StripeApi) -> list[Json]:
    """Every webhook endpoint of the account. Raises StripeApiError."""
    return [one for page in stripe.pages("webhook_endpoint") for one in page.objects]


def ours(found: Sequence[Json], settings: Settings) -> list[Json]:
    """Those that lead here: to DUES_WEBHOOK_URL, or, if that is not set, to the receiver's path on any host."""
    if settings.webhook_url:
        return [one for one in found if one["url"].rstrip("/") == settings.webhook_url.rstrip("/")]
    return [one for one in found if urlsplit(one["url"]).path.rstrip("/") == PATH]


def hears_thin(connection: Connection) -> bool:
    """Whether thin events have come within days: what sends them is not among the endpoints that Stripe lists."""
    heard = text(
        "SELECT FROM stripe_events WHERE type LIKE 'v1.%'"
        " AND received_at > now() - make_interval(days => :days) LIMIT 1"
    )
    return connection.execute(heard, {"days": THIN_DAYS}).first() is not None


def endpoint(found: Sequence[Json], settings: Settings, *, hears_thin: bool = False) -> Iterator[Finding]:
    """Judge the endpoints that lead here; several add up."""
    leading = ours(found, settings)
    if not leading and hears_thin:
        yield Finding("endpoint", "ok", "Stripe sends thin events here")
        return
    where = settings.webhook_url or f"any address that ends with {PATH}"
    if not leading:
        todo = f"create one at Stripe for {where}, or set DUES_WEBHOOK_URL to what it has"
        yield Finding("endpoint", "problem", f"none of Stripe's {len(found)} webhook endpoints leads to {where}", todo)
        return
    disabled = [one["id"] for one in leading if one["status"] != "enabled"]
    if disabled:
        todo = "mend what made it fail, then `dues doctor --fix` enables it and `dues reconcile --repair` catches up"
        yield Finding("endpoint", "problem", f"Stripe has disabled {some(tuple(disabled), len(disabled))}", todo)
    yield from (_version(one) for one in leading if one["api_version"] and not _is_known(one["api_version"]))
    enabled = {name for one in leading if one["status"] == "enabled" for name in one["enabled_events"]}
    lacking = () if "*" in enabled or not enabled else tuple(sorted(BY_EVENT_TYPE.keys() - enabled))
    if lacking:
        said = f"the endpoint is not sent {some(lacking[:5], len(lacking))}"
        yield Finding("endpoint", "warning", said, "add these event types to it at Stripe")
    if not disabled and not lacking:
        yield Finding("endpoint", "ok", f"Stripe sends all events to {leading[0]['url']}")


def _is_known(version: str) -> bool:
    return OLDEST_VERSION <= version[: len(OLDEST_VERSION)] <= API_VERSION[: len(OLDEST_VERSION)]


def _version(one: Json) -> Finding:
    said = f"endpoint {one['id']} speaks {one['api_version']}; Dues knows {OLDEST_VERSION} to {API_VERSION}"
    return Finding("endpoint", "warning", said, f"create another endpoint with api_version {API_VERSION}")


# --- silence ----------------------------------------------------------------------------------------------------------


def silence(connection: Connection, stripe: StripeApi) -> Finding:
    """Whether Stripe has recent events that did not come. Raises StripeApiError."""
    now = next(stripe.pages("event", limit=1)).as_of
    until = now - QUIET_SECONDS
    page = next(stripe.pages("event", created={"gte": now - LOOKED_AT_SECONDS, "lte": until}))
    lacking = missed.missed(connection, page.objects, until=until)
    awaited = [one for one in page.objects if one["type"] in BY_EVENT_TYPE]
    if not lacking:
        return Finding("silence", "ok", f"{len(awaited)} events of Stripe's of the last hour are here")
    ids = some(tuple(one["id"] for one in lacking[:3]), len(lacking))
    is_silent = len(lacking) == len(awaited)
    return Finding(
        "silence",
        "problem" if is_silent else "warning",
        f"{len(lacking)} of {len(awaited)} events of Stripe's of the last hour have not come: {ids}",
        "see whether the receiver can be reached from outside; `dues reconcile` fetches them",
    )


def load(counts: Json) -> list[Finding]:
    """What a run of the watchdog found."""
    return [Finding(**one) for one in counts.get("findings", ())]
