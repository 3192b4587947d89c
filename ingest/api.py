"""The read API for the front end: people, their payments, what is on sale; spending tokens, and looking at Stripe.

CONTRACT §8 shows every answer. Times are ISO 8601 in UTC, money is in minor units. What a request names wrongly is a
400 or a 404, PostgreSQL's absence a 503.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Final, TypeVar

from flask import Blueprint, Response, jsonify, request
from sqlalchemy import Connection, Row
from werkzeug.exceptions import BadRequest, NotFound, ServiceUnavailable

from ingest.auth import needs_token
from ingest.database import Database, UnavailableError
from ingest.freshness import Freshness
from ingest.shelf import Shelf
from models import reading, token_ledger
from models.settings import Settings
from workers import balance, entitlements
from workers.explain import explain

T = TypeVar("T")
Json = dict[str, Any]

OPENAPI: Final = Path(__file__).with_name("openapi.json")
RETRY_AFTER: Final = 5  # seconds
LARGEST_BODY: Final = 16 * 1024  # bytes
MOST_TOKENS: Final = 1_000_000_000
LONGEST_KEY: Final = 255  # characters
PAGE: Final = 20
LONGEST_PAGE: Final = 100


def blueprint(settings: Settings, database: Database, freshness: Freshness) -> Blueprint:
    """The routes, open to holders of one of `settings.api_tokens`; without any they should not be registered."""
    routes = Blueprint("api", __name__, url_prefix="/api")
    views = _Views(settings, database, freshness)
    check_token = needs_token(settings.api_tokens, Response)

    def check() -> None:
        check_token()

    routes.before_request(check)
    routes.after_request(_keep_private)
    routes.add_url_rule("/users", "user_by_email", views.user_by_email)
    routes.add_url_rule("/users/<user_id>", "user", views.user)
    routes.add_url_rule("/users/<user_id>/payments", "payments", views.payments)
    routes.add_url_rule("/users/<user_id>/explain", "explain", views.explain)
    routes.add_url_rule("/users/<user_id>/sync", "sync", views.sync, methods=["POST"])
    routes.add_url_rule("/users/<user_id>/tokens/spend", "spend", views.spend, methods=["POST"])
    routes.add_url_rule("/products", "products", views.products)
    routes.add_url_rule("/openapi.json", "openapi", _openapi)
    return routes


def _openapi() -> Response:
    return Response(OPENAPI.read_bytes(), mimetype="application/json")


def _keep_private(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-store"
    return response


class _Views:
    """What each route answers."""

    def __init__(self, settings: Settings, database: Database, freshness: Freshness) -> None:
        self._settings = settings
        self._database = database
        self._freshness = freshness
        self._shelf = Shelf(settings.redis_url)

    def user(self, user_id: str) -> Response:
        _refuse_nul(user_id)
        return self._answer(lambda connection: reading.user_by_id(connection, user_id))

    def user_by_email(self) -> Response:
        email = request.args.get("email", "")
        if not email:
            raise BadRequest("Name the user by ?email= or by the path /api/users/<id>.")
        _refuse_nul(email)
        return self._answer(lambda connection: reading.user_by_email(connection, email))

    def sync(self, user_id: str) -> tuple[Response, int]:
        _refuse_nul(user_id)
        user = self._show(lambda connection: reading.user_by_id(connection, user_id))
        try:
            self._freshness.ask(user["id"], rest=0)
            is_done = self._freshness.wait(user["id"])
            status, reason = self._freshness.ending(user["id"])
        except UnavailableError:
            raise _unavailable() from None
        if is_done:
            user = self._show(lambda connection: reading.user_by_id(connection, user_id))
        outcome = {"synced": status == "processed", "reason": "queued" if status == "received" else reason}
        return jsonify(**user, **outcome), 202 if status == "received" else 200

    def explain(self, user_id: str) -> Response:
        _refuse_nul(user_id)
        return jsonify(_found(self._run(lambda c: explain(c, self._settings, user_id), "REPEATABLE READ")))

    def payments(self, user_id: str) -> Response:
        _refuse_nul(user_id)
        limit = _limit(request.args.get("limit"))
        after = _read_cursor(request.args.get("cursor"))

        def read(connection: Connection) -> Sequence[Row[Any]] | None:
            if reading.user_by_id(connection, user_id) is None:
                return None
            # One more than is shown, to know whether there is another page.
            return reading.payments(connection, user_id, limit + 1, after=after)

        rows = _found(self._run(read, "REPEATABLE READ"))
        shown = rows[:limit]
        cursor = _cursor(shown[-1].created, shown[-1].id) if len(rows) > limit else None
        return jsonify(payments=[_payment(row) for row in shown], next_cursor=cursor)

    def products(self) -> Response:
        return Response(self._shelf.answer(self._read_products), mimetype="application/json")

    def _read_products(self) -> bytes:
        rows, as_of = self._run(lambda c: (reading.on_sale(c), reading.catalogue_as_of(c)), "REPEATABLE READ")
        products = [_product(list(prices)) for _, prices in groupby(rows, key=lambda row: row.product_id)]
        return jsonify(products=products, as_of=_iso(as_of)).get_data()

    def spend(self, user_id: str) -> tuple[Response, int]:
        _refuse_nul(user_id)
        amount, key = _order(_body())
        work = partial(_spend, user_id=user_id, amount=amount, key=key)
        accepted, tokens = _found(self._run(work, "READ COMMITTED"))
        if accepted:
            return jsonify(tokens=tokens), 200
        detail = f"There are {tokens} tokens, and {amount} were to be spent."
        return jsonify(error="insufficient", detail=detail, tokens=tokens), 409

    def _answer(self, find: Callable[[Connection], Row[Any] | None]) -> Response:
        """Show a user; if that may be out of date have Stripe asked, and if it must be fresh wait for that a moment."""
        is_awaited = _switch("fresh")
        user = self._show(find)
        if is_awaited or user["stale"]:
            # The answer is there, whatever becomes of the question.
            with contextlib.suppress(UnavailableError):
                self._freshness.ask(user["id"], is_awaited=is_awaited)
                if is_awaited and self._freshness.wait(user["id"]):
                    user = self._show(find)
        return jsonify(user)

    def _show(self, find: Callable[[Connection], Row[Any] | None]) -> Json:
        def read(connection: Connection) -> Json | None:
            user = find(connection)
            if user is None:
                return None
            news = reading.news(connection, user.id)
            standings = _standings(connection, user, self._settings.grace_days)
            is_stale = self._freshness.is_stale(news, [standing.row for standing in standings], user.now)
            return {**_user(user, standings), "as_of": _iso(news.as_of), "stale": is_stale}

        return _found(self._run(read, "REPEATABLE READ"))

    def _run(self, work: Callable[[Connection], T], isolation_level: str) -> T:
        """Return what `work` makes of one transaction. Raises ServiceUnavailable."""

        def transact(connection: Connection) -> T:
            within = connection.execution_options(isolation_level=isolation_level)
            with within.begin():
                return work(within)

        try:
            return self._database.run(transact)
        except UnavailableError:
            raise _unavailable() from None


def _unavailable() -> ServiceUnavailable:
    return ServiceUnavailable("The database does not answer; ask again.", retry_after=RETRY_AFTER)


def _switch(name: str) -> bool:
    given = request.args.get(name, "0")
    if given not in {"0", "1"}:
        raise BadRequest(f"{name} is 0 or 1.")
    return given == "1"


def _found(answer: T | None) -> T:
    if answer is None:
        raise NotFound("There is no such user.")
    return answer


# --- one user ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Standing:
    """A subscription, and whether it gives access."""

    row: Row[Any]
    gives_access: bool

    def goodness(self, product_id: str | None) -> tuple[bool, bool, int, int, bool, Decimal, datetime, str]:
        """The order in which one is shown: what the decision stands on, then who gives access, owes, has canceled."""
        row = self.row
        return (
            self.gives_access and row.stripe_product_id == product_id,
            self.gives_access,
            2 * (row.status in entitlements.OWING) + (row.status == "canceled"),
            # What follows is the order in which `workers.entitlements` chooses the best.
            entitlements.ROLES[entitlements.role_of(row.product_metadata)],
            row.status in entitlements.LIVE,
            entitlements.rank_of(row.product_metadata),
            row.current_period_end or entitlements.LONG_AGO,
            row.id,
        )


def _standings(connection: Connection, user: Row[Any], grace_days: int) -> list[_Standing]:
    rows = reading.subscriptions(connection, user.id)
    late = [row.id for row in rows if row.status == "past_due"]
    invoices: dict[str, list[entitlements.Invoice]] = defaultdict(list)
    for row in reading.unpaid_invoices(connection, late) if late else ():
        invoices[row.stripe_subscription_id].append(entitlements.Invoice(*tuple(row)[1:]))
    return [_Standing(row, _gives_access(row, invoices[row.id], grace_days, user.now)) for row in rows]


def _gives_access(row: Row[Any], invoices: Sequence[entitlements.Invoice], grace_days: int, now: datetime) -> bool:
    """Whether it is live or within grace, as the decision has it."""
    if row.status in entitlements.LIVE:
        return True
    subscription = entitlements.Subscription(
        id=row.id,
        status=row.status,
        current_period_start=row.current_period_start,
        product_metadata=row.product_metadata,
        price_metadata=row.price_metadata,
        invoices=invoices,
    )
    return entitlements.decide(entitlements.Facts((subscription,), grace_days), (), now).grace_until is not None


def _user(user: Row[Any], standings: Sequence[_Standing]) -> Json:
    best = max(standings, key=lambda standing: standing.goodness(user.stripe_product_id), default=None)
    return {
        "id": user.id,
        "email": user.email,
        "name": user.name,
        "role": user.role,
        "membership_status": user.membership_status,
        "grace_until": _iso(user.grace_until),
        "tokens": user.tokens,
        "tokens_expires_at": _iso(user.tokens_expires_at),
        "subscription": None if best is None else _subscription(best.row),
    }


def _subscription(row: Row[Any]) -> Json:
    product = {"id": row.stripe_product_id, "name": row.product_name}
    price = {
        "id": row.stripe_price_id,
        "unit_amount": row.unit_amount,
        "currency": row.currency,
        "recurring_interval": row.recurring_interval,
    }
    return {
        "id": row.id,
        "status": row.status,
        "quantity": row.quantity,
        "current_period_start": _iso(row.current_period_start),
        "current_period_end": _iso(row.current_period_end),
        "cancel_at_period_end": bool(row.cancel_at_period_end),
        "cancel_at": _iso(row.cancel_at),
        "product": None if row.stripe_product_id is None else product,
        "price": None if row.stripe_price_id is None else price,
    }


# --- payments ---------------------------------------------------------------------------------------------------------


def _payment(row: Row[Any]) -> Json:
    currency = row.currency
    exponent = None if currency is None else reading.EXPONENTS.get(currency.lower(), reading.TWO_DECIMALS)
    return {**row._mapping, "created": _iso(row.created), "exponent": exponent}  # noqa: SLF001 - SQLAlchemy's public name


def _limit(given: str | None) -> int:
    if given is None:
        return PAGE
    if not re.fullmatch(r"[0-9]{1,3}", given) or not 1 <= int(given) <= LONGEST_PAGE:
        raise BadRequest(f"limit is a whole number from 1 to {LONGEST_PAGE}.")
    return int(given)


def _cursor(created: datetime, payment_id: str) -> str:
    return base64.urlsafe_b64encode(f"{_iso(created)} {payment_id}".encode()).decode().rstrip("=")


def _read_cursor(cursor: str | None) -> tuple[datetime, str] | None:
    if not cursor:
        return None
    try:
        raw = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        moment, _, payment_id = raw.decode().partition(" ")
        created = datetime.strptime(moment, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    except (ValueError, binascii.Error):
        raise BadRequest("cursor is none of ours.") from None
    if "\0" in payment_id:
        raise BadRequest("cursor is none of ours.")
    return created, payment_id


# --- what is on sale --------------------------------------------------------------------------------------------------


def _product(rows: Sequence[Row[Any]]) -> Json:
    first = rows[0]
    return {
        "id": first.product_id,
        "name": first.name,
        "description": first.description,
        "metadata": first.product_metadata,
        "prices": [_price(row) for row in rows],
    }


def _price(row: Row[Any]) -> Json:
    exact = row.unit_amount_decimal
    return {
        "id": row.id,
        "unit_amount": row.unit_amount,
        "unit_amount_decimal": None if exact is None else f"{exact:f}",
        "currency": row.currency,
        "type": row.type,
        "recurring_interval": row.recurring_interval,
        "recurring_interval_count": row.recurring_interval_count,
        "nickname": row.nickname,
        "lookup_key": row.lookup_key,
        "metadata": row.metadata,
    }


# --- spending ---------------------------------------------------------------------------------------------------------


def _body() -> Mapping[str, Any]:
    request.max_content_length = LARGEST_BODY
    try:
        body = json.loads(request.get_data(cache=False))
    # Brackets within brackets end Python's patience, not ours.
    except (ValueError, RecursionError):
        raise BadRequest("The body is not JSON.") from None
    if not isinstance(body, dict):
        raise BadRequest("The body is not a JSON object.")
    return body


def _order(body: Mapping[str, Any]) -> tuple[int, str]:
    """The amount and the key of a spend."""
    amount, key = body.get("amount"), body.get("key")
    if isinstance(amount, float) and amount.is_integer():  # 5.0 is a whole number in JSON
        amount = int(amount)
    # JSON's true is an int to Python.
    if not isinstance(amount, int) or isinstance(amount, bool) or not 1 <= amount <= MOST_TOKENS:
        raise BadRequest(f"amount is a whole number from 1 to {MOST_TOKENS}.")
    if not isinstance(key, str) or not 1 <= len(key) <= LONGEST_KEY or not _is_storable(key):
        raise BadRequest(f"key is a text of 1 to {LONGEST_KEY} characters, the same whenever this spend is tried.")
    return amount, key


def _spend(connection: Connection, user_id: str, amount: int, key: str) -> tuple[bool, int] | None:
    """Spend in the ledger; whether that went, and the tokens that are left. What has expired by now is booked anyway.

    A key that was spent before is answered as it was then. Null if there is no such user.
    """
    now = reading.lock_user(connection, user_id)
    if now is None:
        return None
    entries = [balance.Entry(*row) for row in token_ledger.entries(connection, [user_id])]
    spending = balance.spend(user_id, amount, key, entries, now)
    plan = spending.plan
    if plan.bookings:
        token_ledger.book(connection, plan.bookings)
        reading.write_tokens_expiry(connection, user_id, plan.tokens_expires_at)
    before = _spent_before(entries, user_id, key)
    return spending.accepted, plan.tokens if before is None else before


def _spent_before(entries: Iterable[balance.Entry], user_id: str, key: str) -> int | None:
    """The balance right after an earlier spend with this key; null if there was none."""
    left, answer = 0, None
    ours = [balance.SPEND, _part(user_id), _part(key)]
    for entry in entries:
        left += entry.amount
        kind, _, *names = entry.key.split(":")
        # A spend that draws on several grants is as many entries; the last of them completes it.
        if [kind, *names] == ours:
            answer = left
    return answer


def _part(name: str) -> str:
    """A name as it stands in the keys of `workers.balance`."""
    return name.replace("%", "%25").replace(":", "%3A")


# --- texts ------------------------------------------------------------------------------------------------------------


def _iso(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _refuse_nul(name: str) -> None:
    if not _is_storable(name):
        raise NotFound("There is no such user.")


def _is_storable(name: str) -> bool:
    """Whether PostgreSQL can hold it: no NUL, no half of a surrogate pair."""
    return "\0" not in name and not re.search("[\ud800-\udfff]", name)
