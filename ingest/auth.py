"""Who may ask: bearer tokens."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence

from flask import Response, request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Unauthorized


def needs_token(tokens: Sequence[str], view: Callable[[], Response]) -> Callable[[], Response]:
    """Return `view`, open only to requests with one of `tokens` as their bearer token, compared in constant time."""
    known = [token.encode() for token in tokens]

    def guarded() -> Response:
        scheme, _, token = request.environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        given = token.strip().encode("latin-1", "replace")
        matches = [hmac.compare_digest(given, one) for one in known]
        if scheme.lower() != "bearer" or not any(matches):
            raise Unauthorized(
                "This needs the header Authorization: Bearer <token>.", www_authenticate=WWWAuthenticate("bearer")
            )
        return view()

    return guarded
