"""What the receiver counts of itself, read from its /metrics: refused signatures, and which secrets are still used.

Each receiver counts for itself since it was started; nobody writes that down but the watchdog, in its own row, from one
look to the next. With receivers on several hosts behind one address each look meets one of them: then let Prometheus
add them up (docs/operations.md has the rules).
"""

from __future__ import annotations

import http.client
from collections import Counter
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from models.settings import Settings
from workers.findings import Finding

TIMEOUT_SECONDS = 3.0
LARGEST = 4 * 1024 * 1024  # bytes
# From one look to the next: so many refusals, and more of them than events that were taken.
MANY_REFUSED = 10
# As long as Stripe goes on trying, a secret that was rotated out may still be needed.
UNUSED_DAYS = 3

Kept = dict[str, Any]


def look(settings: Settings, before: Kept | None, now: datetime) -> tuple[list[Finding], Kept | None]:
    """Read the figures, and judge them by those of the look before; without an address or a token nothing is read."""
    if not settings.webhook_url or not settings.api_tokens:
        return [], None
    try:
        text = read(settings.webhook_url, settings.api_tokens[0])
        figures = count(text)
    except (OSError, http.client.HTTPException, ValueError) as error:
        found = f"/metrics of the receiver can't be read ({type(error).__name__})"
        return [Finding("receiver", "warning", found, "see whether DUES_WEBHOOK_URL leads to it from here")], before
    kept = keep(figures, before, now)
    return judge(figures, before, kept, now), kept


def read(webhook_url: str, token: str) -> str:
    """The receiver's /metrics. Raises OSError, HTTPException, ValueError.

    A redirect is no answer: it might lead the token elsewhere.
    """
    parts = urlsplit(webhook_url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise ValueError("not 200")
        return answer.read(LARGEST).decode()
    finally:
        connection.close()


def count(exposition: str) -> Kept:
    """`{"refused": n, "taken": n, "secrets": {"1": n, …}}`. Raises ValueError for what is no exposition."""
    totals: Counter[str] = Counter()
    secrets: dict[str, float] = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            if sample.name == "dues_signature_failures_total":
                totals["refused"] += int(sample.value)
            elif sample.name == "dues_secret_used_total":
                secrets[sample.labels["secret"]] = sample.value
    return {"refused": totals["refused"], "taken": int(sum(secrets.values())), "secrets": secrets}


def keep(figures: Kept, before: Kept | None, now: datetime) -> Kept:
    """The figures, with when each secret was last seen used (or first seen at all)."""
    earlier = before or {"secrets": {}, "used": {}}
    used = {
        name: earlier["used"].get(name, now.isoformat()) if n == earlier["secrets"].get(name, 0) else now.isoformat()
        for name, n in figures["secrets"].items()
    }
    return {**figures, "used": used}


def judge(figures: Kept, before: Kept | None, kept: Kept, now: datetime) -> list[Finding]:
    """What the figures tell since the look before."""
    refused, taken = (_since(figures, before, name) for name in ("refused", "taken"))
    found = []
    if refused >= MANY_REFUSED and refused > taken:
        said = f"{refused} requests were refused for their signature since the last look, {taken} were taken"
        todo = "compare STRIPE_WEBHOOK_SECRET with the endpoint's signing secret at Stripe"
        found.append(Finding("signature", "problem" if not taken else "warning", said, todo))
    limit = now - timedelta(days=UNUSED_DAYS)
    unused = [name for name, at in kept["used"].items() if datetime.fromisoformat(at) < limit]
    # If none is used, nothing is sent: that is told as silence.
    if unused and len(unused) < len(kept["used"]):
        said = f"of STRIPE_WEBHOOK_SECRET number {', '.join(unused)} has verified nothing for {UNUSED_DAYS} days"
        found.append(
            Finding("secret", "warning", said, "take it out, if its endpoint is gone or its secret was rolled")
        )
    return found or [
        Finding("signature", "ok", f"{taken} requests were taken and {refused} refused since the last look")
    ]


def _since(figures: Kept, before: Kept | None, name: str) -> int:
    """How many since the look before; a receiver that was started anew counts from 0."""
    earlier = before[name] if before else 0
    n: int = figures[name] - earlier if figures[name] >= earlier else figures[name]
    return n
