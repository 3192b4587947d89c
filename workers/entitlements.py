"""Decide a user's role, membership status and product from facts, people's decisions and the time.

Pure: no database, clock or Stripe; the same input gives the same answer in whatever order the facts stand.

A tombstone (a product, price or customer that was deleted at Stripe) is a fact like any other: the row keeps what was
last known of it, and a subscription decides by its own status alone. Stripe ends the subscriptions of a customer that
is deleted and says so of each; until it does, nothing has been taken from the person who paid.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

LIVE: Final = frozenset({"active", "trialing"})
OWING: Final = frozenset({"past_due", "unpaid"})
OVER: Final = frozenset({"canceled", "incomplete", "incomplete_expired", "paused"})
UNPAID: Final = frozenset({"open", "uncollectible"})
ROLES: Final = {"USER": 0, "PREMIUM": 1, "ADMIN": 2}
"""The roles that can be compared, by height. BANNED is no height: only a ban gives it."""

MAX_GRACE_DAYS: Final = 36_500
"""A hundred years; a figure above it is malformed, and the sum of a date and this many days rarely overflows."""

FOREVER: Final = datetime.max.replace(tzinfo=UTC)
LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)

_METADATA_ROLES: Final = frozenset({"USER", "PREMIUM"})
_DIGITS: Final = re.compile(r"[0-9]+")
_INTEGER: Final = re.compile(r"-?[0-9]+")
_RULING: Final = (("ban", "BANNED"), ("admin", "ADMIN"), ("pause", "USER"))
"""Overrides that decide the role whatever Stripe says, strongest first."""


@dataclass(frozen=True, slots=True)
class Invoice:
    """An invoice of a subscription; `status` of any kind may be given, only unpaid ones count."""

    id: str
    status: str | None
    created: datetime | None
    collection_method: str | None = None
    finalized_at: datetime | None = None
    due_date: datetime | None = None


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscription with what is known of its best item's product and price; metadata is null for stubs."""

    id: str
    status: str | None
    product_id: str | None = None
    price_id: str | None = None
    current_period_start: datetime | None = None
    current_period_end: datetime | None = None
    product_metadata: Mapping[str, object] | None = None
    price_metadata: Mapping[str, object] | None = None
    invoices: Sequence[Invoice] = ()


@dataclass(frozen=True, slots=True)
class Override:
    """A person's decision about a user: `kind` is ban, admin, comp or pause; `role` and `product_id` are a comp's."""

    id: str
    kind: str
    role: str | None = None
    product_id: str | None = None
    starts_at: datetime | None = None
    expires_at: datetime | None = None
    ended_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """All subscriptions of one user, those of aliased customers too; `grace_days` is the setting DUES_GRACE_DAYS."""

    subscriptions: Sequence[Subscription] = ()
    grace_days: int = 3


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer for one user: the columns of `users`, and why.

    `next_change_at` is the first moment after `now` at which time alone may change something (null: never).
    """

    role: str
    status: str
    product_id: str | None
    grace_until: datetime | None
    next_change_at: datetime | None
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Grace:
    """Where the grace of a past due subscription ends, and the invoice (or null) that it runs from."""

    until: datetime
    invoice_id: str | None


@dataclass(frozen=True, slots=True)
class _Standing:
    """What one subscription is worth at a moment; `grace` is set only while it runs."""

    subscription: Subscription
    live: bool
    grace: _Grace | None

    @property
    def gives_access(self) -> bool:
        return self.live or self.grace is not None

    @property
    def role(self) -> str:
        return role_of(self.subscription.product_metadata)

    @property
    def goodness(self) -> tuple[int, bool, Decimal, datetime, str]:
        subscription = self.subscription
        return (
            ROLES[self.role],
            self.live,
            rank_of(subscription.product_metadata),
            subscription.current_period_end or LONG_AGO,
            subscription.id,
        )


def decide(facts: Facts, overrides: Sequence[Override], now: datetime) -> Decision:
    """Decide one user's role, status and product at `now` (aware, UTC) from everything that is known."""
    running = sorted((override for override in overrides if is_running(override, now)), key=lambda o: (o.kind, o.id))
    standings = sorted(
        (_standing(s, facts.grace_days, now) for s in facts.subscriptions), key=lambda s: s.subscription.id
    )
    with_access = [standing for standing in standings if standing.gives_access]
    best = max(with_access, key=lambda standing: standing.goodness, default=None)
    stripe_role = best.role if best else "USER"
    stripe_product = best.subscription.product_id if best else None
    role, deciding = _overridden(stripe_role, running)
    comp_product = deciding.product_id if deciding and deciding.kind == "comp" else None
    return Decision(
        role=role,
        status=_status(standings),
        product_id=comp_product or stripe_product,
        grace_until=max((standing.grace.until for standing in standings if standing.grace), default=None),
        next_change_at=min((moment for moment in _turning_points(facts, overrides) if moment > now), default=None),
        reasons=tuple(_reasons(standings, best, running, deciding, role)),
    )


def is_running(override: Override, now: datetime) -> bool:
    """Say whether an override counts at `now`: from its start until it expires or a person ends it."""
    ends = [moment for moment in (override.expires_at, override.ended_at) if moment is not None]
    return (override.starts_at is None or override.starts_at <= now) and all(now < moment for moment in ends)


def role_of(product_metadata: Mapping[str, object] | None) -> str:
    """Return the role that a product gives: `metadata.role` if it is USER or PREMIUM, else PREMIUM."""
    role = (product_metadata or {}).get("role")
    return role if isinstance(role, str) and role in _METADATA_ROLES else "PREMIUM"


def rank_of(product_metadata: Mapping[str, object] | None) -> Decimal:
    """Return `metadata.rank` of a product, an integer of any size, else 0.

    A Decimal, because `int` refuses to read more than 4300 digits.
    """
    rank = (product_metadata or {}).get("rank")
    return Decimal(rank) if isinstance(rank, str) and _INTEGER.fullmatch(rank) else Decimal(0)


def grace_days_of(subscription: Subscription, default: int) -> int:
    """Return the days of grace: `metadata.grace_days` of the price, else of the product, else `default`."""
    for metadata in (subscription.price_metadata, subscription.product_metadata):
        days = (metadata or {}).get("grace_days")
        if isinstance(days, str) and _DIGITS.fullmatch(days) and Decimal(days) <= MAX_GRACE_DAYS:
            return int(Decimal(days))
    return default


def _standing(subscription: Subscription, grace_days: int, now: datetime) -> _Standing:
    grace = _grace(subscription, grace_days)
    return _Standing(subscription, subscription.status in LIVE, grace if grace and now < grace.until else None)


def _grace(subscription: Subscription, default_days: int) -> _Grace | None:
    """Return the grace of a past due subscription, over or not; null if nothing says when it began."""
    if subscription.status != "past_due":
        return None
    unpaid = [invoice for invoice in subscription.invoices if invoice.status in UNPAID]
    oldest = min(unpaid, key=lambda invoice: (invoice.created or FOREVER, invoice.id), default=None)
    owed_since = _owed_since(oldest) if oldest else None
    start = owed_since or subscription.current_period_start
    if start is None:
        return None
    until = _add_days(start, grace_days_of(subscription, default_days))
    return _Grace(until, oldest.id if oldest and owed_since else None)


def _owed_since(invoice: Invoice) -> datetime | None:
    return invoice.due_date if invoice.collection_method == "send_invoice" else invoice.finalized_at


def _add_days(start: datetime, days: int) -> datetime:
    try:
        return start + timedelta(days=days)
    except OverflowError:
        return FOREVER


def _status(standings: Sequence[_Standing]) -> str:
    statuses = {standing.subscription.status for standing in standings}
    if statuses & LIVE:
        return "ACTIVE"
    if statuses & OWING:
        return "PAST_DUE"
    return "CANCELED" if "canceled" in statuses else "INACTIVE"


def _overridden(stripe_role: str, running: Sequence[Override]) -> tuple[str, Override | None]:
    """Return the role and the override that decided it (null: Stripe did); `running` is sorted by kind and id."""
    for kind, role in _RULING:
        for override in running:
            if override.kind == kind:
                return role, override
    comps = [(_comp_role(override), override) for override in running if override.kind == "comp"]
    higher = [(role, comp) for role, comp in comps if ROLES.get(role, -1) > ROLES[stripe_role]]
    # Of several the highest; then one that names a product; then, as min keeps the first, the smallest id.
    return min(higher, key=lambda pair: (-ROLES[pair[0]], pair[1].product_id is None), default=(stripe_role, None))


def _comp_role(comp: Override) -> str:
    return comp.role or "PREMIUM"


def _turning_points(facts: Facts, overrides: Iterable[Override]) -> Iterator[datetime]:
    """Yield every moment, past or future, at which time alone may change a decision or call for a look at Stripe."""
    for subscription in facts.subscriptions:
        if subscription.status in LIVE | OWING and subscription.current_period_end is not None:
            yield subscription.current_period_end
        grace = _grace(subscription, facts.grace_days)
        if grace is not None:
            yield grace.until
    for override in overrides:
        yield from (m for m in (override.starts_at, override.expires_at, override.ended_at) if m is not None)


def _reasons(
    standings: Sequence[_Standing],
    best: _Standing | None,
    running: Sequence[Override],
    deciding: Override | None,
    role: str,
) -> Iterator[str]:
    """Yield sentences of ids, statuses and times, no person's data: Stripe's side first, then people's decisions."""
    if not standings:
        yield "There is no subscription."
    for standing in standings:
        yield _sentence(standing)
    if best is not None and len(standings) > 1:
        yield f"Of these {best.subscription.id} is the best."
    for override in running:
        verdict = f"decides the role: {role}" if override is deciding else "is outweighed"
        yield f"{override.kind} {override.id} {verdict}{_until(override)}."


def _sentence(standing: _Standing) -> str:
    subscription = standing.subscription
    known = subscription.status if subscription.status in LIVE | OWING | OVER else "of unknown status"
    named = f"{subscription.id} is {known}"
    product = subscription.product_id or "an unknown product"
    if standing.grace is not None:
        since = standing.grace.invoice_id or "the start of its period"
        return f"{named}; grace since {since} gives {standing.role} by {product} until {_iso(standing.grace.until)}."
    if standing.live:
        return f"{named} and gives {standing.role} by {product}."
    return f"{named} and gives no access."


def _until(override: Override) -> str:
    ends = [moment for moment in (override.expires_at, override.ended_at) if moment is not None]
    return f" until {_iso(min(ends))}" if ends else ""


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
