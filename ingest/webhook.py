"""POST /webhooks/stripe: verify, store, ring, answer. A 2xx means that the event is committed.

The end of a Checkout is answered a moment later if that lets the buyer come back as a member: once it is processed, and
what it names was fetched.
"""

from __future__ import annotations

import logging
import time

from flask import Blueprint, Response, request
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge, ServiceUnavailable

from ingest import metrics
from ingest.database import Database, UnavailableError
from ingest.signature import SignatureError, verified_by
from ingest.waiting import WaitingRoom
from models import envelope, ledger
from models.settings import Settings
from workers.bell import Bell

logger = logging.getLogger(__name__)

LARGEST = 1024 * 1024  # bytes
RETRY_AFTER = 5  # seconds
# Checkout sends the buyer back to the site when these have been answered:
# https://docs.stripe.com/checkout/fulfillment#redirect-hosted-checkout
AWAITED = frozenset({"checkout.session.completed", "checkout.session.async_payment_succeeded"})


def blueprint(settings: Settings, database: Database, bell: Bell, room: WaitingRoom) -> Blueprint:
    """The receiver's route."""
    secrets = [secret.encode() for secret in settings.stripe_webhook_secrets]
    # Nobody would end it.
    patience = 0.0 if "processing" in settings.pause else settings.checkout_wait
    for number in range(1, len(secrets) + 1):
        metrics.SECRET_USED.labels(number)  # from 0 on, so that one sees which is not used
    routes = Blueprint("webhook", __name__)

    def receive() -> Response:
        body = _body()
        _verify(body, secrets)
        try:
            received = envelope.read(body)
        except envelope.UnreadableError as error:
            raise BadRequest(str(error)) from None
        _store(database, received)
        bell.ring(received.lane)
        if received.type.removeprefix("v1.") in AWAITED:
            room.wait(received.id, patience)
        return Response(b'{"received": true}', mimetype="application/json")

    routes.add_url_rule("/webhooks/stripe", "receive", receive, methods=["POST"], provide_automatic_options=False)
    routes.after_request(_count)
    return routes


def _count(response: Response) -> Response:
    metrics.ANSWERS.labels(response.status_code).inc()
    return response


def _body() -> bytes:
    """The raw body; of one that is too large no more is read than shows that.

    That much is read whatever Content-Length says: who is refused while still sending may never see the answer.
    """
    parts: list[bytes] = []
    room = LARGEST + 1
    while room > 0 and (part := request.stream.read(room)):
        parts.append(part)
        room -= len(part)
    if room <= 0:
        raise RequestEntityTooLarge(f"The body is larger than {LARGEST} bytes.")
    return b"".join(parts)


def _verify(body: bytes, secrets: list[bytes]) -> None:
    header = request.environ.get("HTTP_STRIPE_SIGNATURE", "").encode("latin-1", "replace")
    try:
        index = verified_by(body, header, secrets, time.time())
    except SignatureError as error:
        metrics.SIGNATURE_FAILURES.labels(error.reason).inc()
        raise BadRequest(str(error)) from None
    metrics.SECRET_USED.labels(index + 1).inc()


def _store(database: Database, received: ledger.Received) -> None:
    try:
        is_new = database.run(lambda connection: ledger.record(connection, received))
    except UnavailableError as error:
        logger.warning("503: an event could not be stored: %s", error)
        raise ServiceUnavailable("The event could not be stored; send it again.", retry_after=RETRY_AFTER) from None
    if not is_new:
        metrics.DUPLICATES.inc()
        return
    metrics.RECEIVED.labels(metrics.type_label(received.type)).inc()
    if received.created is not None:
        metrics.LAG.observe(max(0.0, time.time() - received.created))
