"""The only door to Stripe: bounded in time and number, within a budget that all workers share, plain JSON out.

Every answer says as of when it is true (`as_of`, DESIGN §3). What fails has a name; neither the key nor anything that
Stripe said about anybody stands in a message, since Stripe's own errors quote what they read.
"""

from __future__ import annotations

import json
import logging
import math
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Never
from urllib.parse import quote

import stripe
import tenacity

from models.settings import Settings
from workers.budget import Budget

Json = dict[str, Any]

stripe.enable_telemetry = False
# Its lines hold addresses with ids and filters, and at DEBUG whole answers.
logging.getLogger("stripe").setLevel(logging.WARNING)

# What Stripe's library is made for, and so the newest whose shapes are known here.
API_VERSION: str = stripe.api_version
PAGE = 100
CONNECT_SECONDS = 3.0
# Of one question: how often it is asked, and how long after the first time it is still asked again.
ATTEMPTS, SECONDS = 5, 8.0
# So many failures in a row that are Stripe's or the network's, and for so long nobody asks.
FAILURES, REST_SECONDS = 5, 30.0
# How long everybody waits when Stripe says "too many" without saying for how long.
TOO_MANY_SECONDS = 1.0

PATHS = {
    "product": "/v1/products",
    "price": "/v1/prices",
    "customer": "/v1/customers",
    "subscription": "/v1/subscriptions",
    "invoice": "/v1/invoices",
    "invoice_payment": "/v1/invoice_payments",
    "payment_intent": "/v1/payment_intents",
    "charge": "/v1/charges",
    "refund": "/v1/refunds",
    "dispute": "/v1/disputes",
    "checkout.session": "/v1/checkout/sessions",
    "event": "/v1/events",
    "webhook_endpoint": "/v1/webhook_endpoints",
    "v2.core.event": "/v2/core/events",
}
# Stripe's words for an object that is not there, in v1 and v2.
MISSING = frozenset({"resource_missing", "not_found"})
# What a listing leaves out unless it is asked for.
WHOLE: Mapping[str, Json] = {"subscription": {"status": "all"}}

# FACTS §2.5: these would ask for something else than an object. Anything else may be an id: products are named freely.
_NO_ID = re.compile(r"\.{0,2}|.*[\x00-\x1f\x7f-\x9f\ud800-\udfff].*|.{256,}", re.DOTALL)


class StripeApiError(Exception):
    """Stripe gave no answer that could be used; the message says to what, never what it said."""


class StripeAwayError(StripeApiError):
    """It will pass: not reached, too busy, too slow, or our budget is used up. `retry_after` in seconds, if known."""

    def __init__(self, message: str, *, retry_after: float | None = None, again: bool = True) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.again = again


class NotFoundError(StripeApiError):
    """Stripe has no such object (or no longer, or this key may not know of it)."""


class RefusedError(StripeApiError):
    """The key is wrong or may not do this (401, 403): it needs a person."""


class RejectedError(StripeApiError):
    """Stripe found the question wrong (any other 4xx): it needs a change of our code."""


class InvalidIdError(ValueError):
    """Such an id is none that Stripe could be asked for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An object as Stripe had it at `as_of` (Unix seconds)."""

    object: Json
    as_of: int


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a listing; only one without `has_more` is its end."""

    objects: list[Json]
    as_of: int
    has_more: bool


class StripeApi:
    """Stripe's API with the key of `settings`; one per process, and made after a fork.

    `urgent` is what a person waits for: it goes before everything else in the shared budget. A question takes about
    `seconds` + the time-out of an answer at most.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        urgent: bool = False,
        attempts: int = ATTEMPTS,
        seconds: float = SECONDS,
    ) -> None:
        if not settings.stripe_api_key:
            raise RefusedError("STRIPE_API_KEY is not set")
        self._client = stripe.StripeClient(
            settings.stripe_api_key,
            max_network_retries=0,
            http_client=stripe.RequestsClient(timeout=(CONNECT_SECONDS, settings.stripe_timeout)),
            base_addresses={"api": settings.stripe_api_base.rstrip("/")} if settings.stripe_api_base else {},
        )
        self._budget = Budget(settings.redis_url, settings.stripe_rate)
        self._breaker = Breaker()
        self._urgent = urgent
        self._seconds = seconds
        self._retrying = tenacity.Retrying(
            stop=tenacity.stop_any(tenacity.stop_after_attempt(attempts), tenacity.stop_before_delay(seconds)),
            wait=_pause,
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, StripeAwayError) and error.again),
            reraise=True,
        )

    def retrieve(self, object_type: str, id: str, *, expand: Sequence[str] = ()) -> Answer:
        """One object; a deleted one is `{"id", "object", "deleted": true}`, or a NotFoundError. Raises StripeApiError.

        A thin event is of type `v2.core.event`.
        """
        return self._ask("get", f"{PATHS[object_type]}/{checked(id)}", {"expand": list(expand)} if expand else {})

    def pages(self, object_type: str, **params: Any) -> Iterator[Page]:
        """A listing, page by page, newest first; subscriptions of every status. Raises StripeApiError.

        `params` are Stripe's: filters, `expand`, and `starting_after` to go on behind an id. With `ending_before` it
        goes the other way: what is newer than that id, oldest first.
        """
        return self._pages(PATHS[object_type], {**WHOLE.get(object_type, {}), **params})

    def children(self, object_type: str, id: str, name: str, **params: Any) -> Iterator[Page]:
        """A listing within an object, as the `lines` of an invoice, page by page. Raises StripeApiError."""
        return self._pages(f"{PATHS[object_type]}/{checked(id)}/{name}", params)

    def modify(self, object_type: str, id: str, **params: Any) -> Answer:
        """Change an object, once however often it is tried; returns it as it is then. Raises StripeApiError."""
        key = str(uuid.uuid4())
        return self._ask("post", f"{PATHS[object_type]}/{checked(id)}", {**params, "idempotency_key": key})

    def close(self) -> None:
        """Let go of Redis."""
        self._budget.close()

    def _pages(self, path: str, params: Json) -> Iterator[Page]:
        is_backwards = "ending_before" in params
        cursor = "ending_before" if is_backwards else "starting_after"
        params = {"limit": PAGE, **params}
        while True:
            answer = self._ask("get", path, params)
            page = _page(answer, path, is_backwards=is_backwards)
            yield page
            if not page.has_more:
                return
            params[cursor] = page.objects[-1]["id"]

    def _ask(self, method: str, path: str, params: Json) -> Answer:
        return self._retrying(self._ask_once, method, path, params)

    def _ask_once(self, method: str, path: str, params: Json) -> Answer:
        self._breaker.check()
        self._wait_for_budget()
        begin = time.monotonic()
        try:
            answer = self._client.raw_request(method, path, **params)
            found = _answer(f"{method.upper()} {path}", answer, math.ceil(time.monotonic() - begin))
        except stripe.StripeError as error:
            named = _named(f"{method.upper()} {path}", error)
            self._breaker.note(is_fine=not _is_trouble(error))
            if error.http_status == 429:
                self._budget.drain(_retry_after(error) or TOO_MANY_SECONDS)
            raise named from None
        self._breaker.note(is_fine=True)
        return found

    def _wait_for_budget(self) -> None:
        end = time.monotonic() + self._seconds
        while wait := self._budget.take(urgent=self._urgent):
            if time.monotonic() + wait > end:
                raise StripeAwayError("the budget is used up", retry_after=wait, again=False)
            time.sleep(wait)


class Breaker:
    """Opens after FAILURES failures in a row: then nobody asks for `rest` seconds, and after that one at a time."""

    def __init__(self, rest: float = REST_SECONDS) -> None:
        self._rest = rest
        self._failures = 0
        self._opens_at = 0.0

    def check(self) -> None:
        """Raise StripeAwayError while it is open."""
        left = self._opens_at - time.monotonic()
        if self._failures >= FAILURES and left > 0:
            raise StripeAwayError("Stripe was away a moment ago", retry_after=left, again=False)

    def note(self, *, is_fine: bool) -> None:
        """Remember how a question ended."""
        self._failures = 0 if is_fine else self._failures + 1
        self._opens_at = time.monotonic() + self._rest


def checked(id: str) -> str:
    """The id, ready for an address. Raises InvalidIdError for what would ask for something else."""
    if _NO_ID.fullmatch(id):
        raise InvalidIdError("this is no id that Stripe could be asked for")
    return quote(id, safe="")


_backoff = tenacity.wait_random_exponential(multiplier=0.5, min=0.1, max=5)


def _pause(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return max(_backoff(state), (error.retry_after or 0.0) if isinstance(error, StripeAwayError) else 0.0)


def _answer(what: str, response: Any, took: int) -> Answer:
    try:
        body = json.loads(response.body, parse_constant=_no_constant)
        sent = parsedate_to_datetime(response.headers["Date"]).timestamp()
    except (KeyError, TypeError, ValueError):
        raise StripeAwayError(f"{what}: the answer cannot be read") from None
    if not isinstance(body, dict):
        raise StripeAwayError(f"{what}: the answer is no object")
    # Stripe may have read what it says before the request was over, and its clock shows whole seconds.
    return Answer(body, int(sent) - took - 1)


def _no_constant(_: str) -> Never:
    raise ValueError


def _page(answer: Answer, path: str, *, is_backwards: bool) -> Page:
    data, has_more = answer.object.get("data"), answer.object.get("has_more")
    objects = [one for one in data if isinstance(one, dict) and one.get("id")] if isinstance(data, list) else []
    # What claims to go on must say from where, and nothing of a page may be passed over.
    if (
        not isinstance(data, list)
        or len(objects) != len(data)
        or not isinstance(has_more, bool)
        or has_more > len(data)
    ):
        raise StripeAwayError(f"GET {path}: the answer is no page")
    return Page(objects[::-1] if is_backwards else objects, answer.as_of, has_more)


def _is_trouble(error: stripe.StripeError) -> bool:
    """Whether Stripe or the way to it is in trouble, rather than we."""
    return error.http_status is None or error.http_status >= 500


def _named(what: str, error: stripe.StripeError) -> StripeApiError:
    status, headers = error.http_status, error.headers or {}
    words = [type(error).__name__, status, error.code, headers.get("Request-Id")]
    message = f"{what}: {' '.join(str(word) for word in words if word)}"
    should = {"true": True, "false": False}.get(headers.get("Stripe-Should-Retry", ""))
    # What cannot be read, at whatever status, is no answer of Stripe's but of something in between.
    is_unreadable = isinstance(error, stripe.APIError) and not isinstance(error, stripe.APIConnectionError)
    if status is None or status in {409, 429} or status >= 500 or should or is_unreadable:
        return StripeAwayError(message, retry_after=_retry_after(error), again=should is not False)
    if status in {401, 403}:
        return RefusedError(message)
    # Not every 404: an address that is none of Stripe's says nothing about an object, and a cursor is refused with 400.
    return NotFoundError(message) if error.code in MISSING else RejectedError(message)


def _retry_after(error: stripe.StripeError) -> float | None:
    value = (error.headers or {}).get("Retry-After", "")
    return float(value) if re.fullmatch(r"[0-9]{1,5}(\.[0-9]+)?", value) else None
