"""How the API misbehaves: rules that say which requests go wrong, and how; equal seeds make equal misfortunes."""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from random import Random
from urllib.parse import parse_qsl

from simulator.api.errors import ApiError


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens to one request, after `latency_s` seconds.

    `error` is answered instead of what was asked for, `page` is an HTML page of some proxy with `status`. `silent`
    never answers, `reset` ends the connection at once, `cut` does so in the middle of the answer.
    """

    latency_s: float = 0.0
    error: ApiError | None = None
    page: tuple[int, str] | None = None
    silent: bool = False
    reset: bool = False
    cut: bool = False


SILENT, RESET, CUT = Fault(silent=True), Fault(reset=True), Fault(cut=True)
BAD_GATEWAY = Fault(page=(502, "<html><body><h1>502 Bad Gateway</h1></body></html>"))


def slow(seconds: float) -> Fault:
    """An answer that is right, and late."""
    return Fault(latency_s=seconds)


def rate_limited(
    *, reason: str = "endpoint-rate", should_retry: bool | None = None, retry_after: int | None = None
) -> Fault:
    """429; Stripe says why, at times whether to try again, and rarely when (docs.stripe.com/rate-limits)."""
    headers = {"Stripe-Rate-Limited-Reason": reason}
    if should_retry is not None:
        headers["Stripe-Should-Retry"] = str(should_retry).lower()
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    return Fault(error=ApiError(429, "Request rate limit exceeded.", code="rate_limit", headers=headers))


def server_error(status: int = 500, *, should_retry: bool | None = None) -> Fault:
    """Something broke at Stripe's."""
    headers = {} if should_retry is None else {"Stripe-Should-Retry": str(should_retry).lower()}
    return Fault(error=ApiError(status, "An unknown error occurred.", type="api_error", headers=headers))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Which requests have a fault.

    `route` is a pattern like `GET /v1/*`; `share` of those that match have it, `times` of them at most, and with
    `next_pages` only those that ask for a further page of a list.
    """

    fault: Fault
    route: str = "*"
    share: float = 1.0
    times: int | None = None
    next_pages: bool = False


@dataclass(slots=True)
class Faults:
    """The first rule that a request falls under decides; above `per_second` requests it is refused with 429 anyway.

    Which requests of a route those are depends on the seed and on how many came before on this route, not on what
    other routes are asked meanwhile. `met` counts the requests that each rule made go wrong.
    """

    rules: Sequence[Rule] = ()
    seed: int | str = 0
    per_second: float | None = None
    met: Counter[int] = field(default_factory=Counter)
    _came: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _tokens: float | None = None
    _refilled: float = 0.0

    def draw(self, route: str, query: str) -> Fault | None:
        """What happens to the next request of this route, if anything does."""
        with self._lock:
            self._came[route] += 1
            if not self._within_limit():
                return rate_limited(reason="global-rate")
            for number, rule in enumerate(self.rules):
                chance = Random(f"{self.seed} {number} {route} {self._came[route]}").random()
                if self._applies(number, rule, route, query) and chance < rule.share:
                    self.met[number] += 1
                    return rule.fault
            return None

    def _applies(self, number: int, rule: Rule, route: str, query: str) -> bool:
        return (
            fnmatchcase(route, rule.route)
            and (rule.times is None or self.met[number] < rule.times)
            and (not rule.next_pages or is_next_page(query))
        )

    def _within_limit(self) -> bool:
        """Take a token of a bucket that holds one second's worth."""
        if self.per_second is None:
            return True
        now = time.monotonic()
        tokens = self.per_second if self._tokens is None else self._tokens
        tokens = min(tokens + (now - self._refilled) * self.per_second, self.per_second)
        self._refilled = now
        self._tokens = tokens - 1 if tokens >= 1 else tokens
        return tokens >= 1


def is_next_page(query: str) -> bool:
    """Whether a request goes on with a list."""
    return bool({"starting_after", "ending_before", "page"} & {name for name, _ in parse_qsl(query)})


def bad_day(seed: int | str, share: float = 0.3) -> Faults:
    """A mix of all that passes: `share` of the requests are late, refused, broken or cut off."""
    faults = (slow(0.05), rate_limited(), rate_limited(should_retry=True), server_error(), BAD_GATEWAY, RESET, CUT)
    # Each takes its part of what the rules before it have left.
    part = share / len(faults)
    rules = [Rule(fault=fault, share=part / (1 - number * part)) for number, fault in enumerate(faults)]
    return Faults(rules, seed)
