"""Stripe's API over the simulated state: a request comes in, JSON goes out. Nothing here knows sockets or waits.

What there is to ask for stands in `resources.py`. Objects are shown in the request's `Stripe-Version`, the events of
/v1/events in the account's default at their time, whatever the request says (docs.stripe.com/api/versioning).
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from urllib.parse import unquote

from simulator.api import endpoints, errors, parameters, reading, thin
from simulator.api.call import Call, Json
from simulator.api.errors import ApiError
from simulator.ids import token
from simulator.state import Stripe
from simulator.versions import VERSIONS

# The key that is taken unless others are given.
KEY = "sk_test_practice"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client asks: `path`, `query` and `body` as they came, names of `headers` in lower case."""

    method: str
    path: str
    query: str = ""
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What Stripe says."""

    status: int
    body: Json
    headers: Mapping[str, str]


class Api:
    """Answers requests about one account, each of them at one moment of its state."""

    def __init__(self, stripe: Stripe, keys: Collection[str] = (KEY,)) -> None:
        self.stripe = stripe
        self._keys = frozenset(keys)
        self._answered = 0
        handlers = {**reading.routes(), **endpoints.routes(), **thin.routes()}
        self._routes = {route: (_pattern(route), handler) for route, handler in handlers.items()}

    def route_of(self, request: Request) -> str:
        """The method and path with `:id` for ids, as in `GET /v1/products/:id`; as it came if there is none such."""
        asked = f"{request.method} {request.path}"
        return next((route for route, (pattern, _) in self._routes.items() if pattern.fullmatch(asked)), asked)

    def answer(self, request: Request) -> Answer:
        """The answer, refusals included."""
        with self.stripe.lock:
            try:
                return self._answer(200, self._body(request), request)
            except ApiError as error:
                return self.refusal(error, request)

    def refusal(self, error: ApiError, request: Request) -> Answer:
        """The answer that says no."""
        return self._answer(error.status, error.body, request, error.headers)

    def _answer(self, status: int, body: Json, request: Request, more: Mapping[str, str] | None = None) -> Answer:
        self._answered += 1
        headers = {
            "Content-Type": "application/json",
            "Date": formatdate(self.stripe.now, usegmt=True),
            "Request-Id": f"req_{token(f'answer {self._answered}', 14)}",
            "Stripe-Version": self._version(request),
            **(more or {}),
        }
        return Answer(status=status, body=body, headers=headers)

    def _version(self, request: Request) -> str:
        return request.headers.get("stripe-version") or self.stripe.api_version

    def _body(self, request: Request) -> Json:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or key not in self._keys:
            raise errors.unauthorized(key)
        if self._version(request) not in VERSIONS:
            raise ApiError(400, f"Invalid Stripe API version: {self._version(request)}")
        asked = f"{request.method} {request.path}"
        for pattern, handler in self._routes.values():
            if match := pattern.fullmatch(asked):
                given = parameters.parse(request.query) | parameters.parse(request.body)
                call = Call(stripe=self.stripe, api_version=self._version(request), given=given)
                return handler(call, *(unquote(id) for id in match.groups()))
        raise errors.no_such_url(request.method, request.path)


def _pattern(route: str) -> re.Pattern[str]:
    return re.compile(re.escape(route).replace(":id", "([^/]+)"))


__all__ = ["KEY", "Answer", "Api", "ApiError", "Request"]
