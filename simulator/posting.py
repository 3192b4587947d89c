"""Posting one webhook after another over a connection that is kept alive."""

import http.client
import ssl
from urllib.parse import urlsplit


class Connection:
    """A connection to an endpoint, made anew when it broke; raises ValueError for a URL that is none."""

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
        """Hang up; the next post dials again."""
        self._http.close()
