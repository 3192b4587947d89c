"""Signs webhook bodies as Stripe does: HMAC-SHA256 over "<timestamp>.<body>", keyed with the whole secret."""

import hashlib
import hmac
from collections.abc import Sequence


def signature(body: bytes, secret: str, timestamp: int) -> str:
    """The hex digest of one scheme v1 signature; the secret is used whole, including its `whsec_`."""
    return hmac.new(secret.encode(), b"%d." % timestamp + body, hashlib.sha256).hexdigest()


def sign(body: bytes, secrets: Sequence[str], timestamp: int, *, v0: bool = False) -> str:
    """A `Stripe-Signature` header with one v1 per secret, as while a secret is being rolled.

    `timestamp` is in Unix seconds. `v0` adds the signature of a scheme that receivers must not accept; Stripe sends
    one with test events (docs.stripe.com/webhooks, "Verify manually").
    """
    parts = [f"t={timestamp}", *(f"v1={signature(body, secret, timestamp)}" for secret in secrets)]
    if v0:
        parts.append(f"v0={signature(body, 'not a secret of anybody', timestamp)}")
    return ",".join(parts)
