"""Compute whose customer each customer is, from stored evidence.

Pure: no database, clock or Stripe; the same evidence gives the same links in whatever order it stands or arrived.

The classes of evidence, strongest first (`Link.linked_by` names the one that decided):

1. `hand`: a person's decision, a link or an unlink;
2. `customer_metadata`: `metadata.user_id` (or `userId`) of the customer;
3. `subscription_metadata`, `session`: the same of its subscriptions; `metadata.user_id` (or `userId`) or
   `client_reference_id` of its sessions not made by a Payment Link, whose reference buyers can edit in the URL;
4. `email`, `payment_link`: the customer's e-mail is a user's; a Payment Link's reference names a user whose e-mail is
   the session's. Both as far as DUES_LINK_BY_EMAIL trusts the user's e-mail.

Within a class the earliest `created` decides, then the smallest id of the object that bears the evidence. What names
nobody who exists, a deleted user too, counts for nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

HAND: Final = "hand"
CUSTOMER_METADATA: Final = "customer_metadata"
SUBSCRIPTION_METADATA: Final = "subscription_metadata"
SESSION: Final = "session"
EMAIL: Final = "email"
PAYMENT_LINK: Final = "payment_link"

STRENGTH: Final = {CUSTOMER_METADATA: 2, SUBSCRIPTION_METADATA: 3, SESSION: 3, EMAIL: 4, PAYMENT_LINK: 4}
"""The class that each kind of Stripe's evidence belongs to; the smaller the stronger."""

_FOREVER: Final = datetime.max.replace(tzinfo=UTC)
_KEYS: Final = ("user_id", "userId")


@dataclass(frozen=True, slots=True)
class Account:
    """An OAuth account of a user; `created_at` is when it was linked."""

    provider: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class User:
    """A user who exists, with what tells whether the e-mail is really theirs."""

    id: str
    email: str | None
    email_verified: datetime | None = None
    email_changed_at: datetime | None = None
    accounts: Sequence[Account] = ()


@dataclass(frozen=True, slots=True)
class Customer:
    """A customer of Stripe's; `created` is null for stubs, `metadata` may be anything."""

    id: str
    created: datetime | None = None
    deleted: bool = False
    email: str | None = None
    metadata: object = None


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscription as evidence."""

    id: str
    customer_id: str
    created: datetime | None = None
    metadata: object = None


@dataclass(frozen=True, slots=True)
class Session:
    """A Checkout session as evidence; a guest's has no customer."""

    id: str
    customer_id: str | None = None
    created: datetime | None = None
    metadata: object = None
    client_reference_id: str | None = None
    payment_link: str | None = None
    email: str | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything stored about a set of customers.

    `by_hand` is the latest decision of a person for each customer that has one: a user's id, or null for nobody.
    Subscriptions and sessions of customers outside the set are left aside.
    """

    customers: Sequence[Customer] = ()
    subscriptions: Sequence[Subscription] = ()
    sessions: Sequence[Session] = ()
    by_hand: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rules:
    """How far e-mails are trusted: DUES_LINK_BY_EMAIL (`off`, `verified`, `any`) and DUES_TRUSTED_PROVIDERS."""

    link_by_email: str = "verified"
    trusted_providers: Collection[str] = ("google", "apple", "github")


@dataclass(frozen=True, slots=True)
class Claim:
    """One piece of evidence: the object `source_id` says that the customer is the user's."""

    user_id: str
    linked_by: str
    created: datetime | None
    source_id: str

    @property
    def weight(self) -> tuple[int, datetime, str]:
        """Sort strongest first; claims of one object keep the order in which it makes them."""
        return STRENGTH[self.linked_by], self.created or _FOREVER, self.source_id


@dataclass(frozen=True, slots=True)
class Link:
    """The answer for one customer.

    `user_id` and `alias_of` are the columns of `stripe_customers`: a user's primary customer has the first, a further
    one the second, an orphan neither. `owner_id` is the user in both cases: the `user_id` of the customer's
    subscriptions and payments. `conflicts` are the claims that name somebody else, strongest first; a person's
    decision settles them.
    """

    owner_id: str | None = None
    user_id: str | None = None
    alias_of: str | None = None
    linked_by: str | None = None
    conflicts: tuple[Claim, ...] = ()


@dataclass(frozen=True, slots=True)
class Named:
    """The users whom evidence may concern: to be locked, if they exist, before it is read for good."""

    ids: frozenset[str]
    emails: frozenset[str]
    """In lower case."""


def resolve(evidence: Evidence, users: Iterable[User], rules: Rules) -> dict[str, Link]:
    """Link each customer of `evidence` to one of `users` or to nobody.

    Of a user's customers the living one with the earliest `created`, then the smallest id, is primary and the others
    are aliases of it; if all are deleted, the same order decides among them, so that what was paid keeps its owner.
    The set must therefore hold all customers that any of these users may have.
    """
    directory = _Directory(users, rules)
    verdicts = {
        customer_id: _verdict(claims, evidence.by_hand.get(customer_id, _SILENT), directory)
        for customer_id, claims in _claims_by_customer(evidence, directory).items()
    }
    primaries = _primaries(evidence.customers, verdicts)
    return {customer_id: _place(customer_id, link, primaries) for customer_id, link in verdicts.items()}


def resolve_guests(sessions: Iterable[Session], users: Iterable[User], rules: Rules) -> dict[str, Link]:
    """Tell whom sessions without a customer concern, by the session's id: the user that the session names."""
    directory = _Directory(users, rules)
    return {
        session.id: _verdict(list(_session_claims(session, directory)), _SILENT, directory)
        for session in sessions
        if session.customer_id is None
    }


def named_users(evidence: Evidence) -> Named:
    """Name everybody whom this evidence may concern, whether they exist or not and whatever the rules allow."""
    ids: set[str | None] = {*evidence.by_hand.values()}
    bearers: list[Customer | Subscription | Session] = [*evidence.customers]
    for bearer in [*bearers, *evidence.subscriptions, *evidence.sessions]:
        ids.update(_metadata_names(bearer.metadata))
    ids.update(_name(session.client_reference_id) for session in evidence.sessions)
    emails = {_fold(customer.email) for customer in evidence.customers}
    return Named(
        frozenset(user_id for user_id in ids if user_id is not None),
        frozenset(email for email in emails if email is not None),
    )


def is_verified(user: User, rules: Rules) -> bool:
    """Say whether the user's e-mail counts as verified.

    Auth.js leaves `email_verified` null for OAuth, so an account of a trusted provider vouches for it too, unless the
    e-mail was changed since that account was linked.
    """
    changed = user.email_changed_at
    return user.email_verified is not None or any(
        account.provider in rules.trusted_providers and (changed is None or changed < account.created_at)
        for account in user.accounts
    )


class _Directory:
    """The users who exist, by id and, as far as the rules trust it, by e-mail."""

    def __init__(self, users: Iterable[User], rules: Rules) -> None:
        self._by_id = {user.id: user for user in users}
        trusted = [(user, is_verified(user, rules)) for user in self._by_id.values()]
        # Two users may share an e-mail but for its case. One who has verified it comes before one who just says so.
        trusted.sort(key=lambda pair: (not pair[1], pair[0].id))
        self._by_email: dict[str, list[str]] = defaultdict(list)
        for user, verified in trusted:
            email = _fold(user.email)
            if email and (rules.link_by_email == "any" or (verified and rules.link_by_email == "verified")):
                self._by_email[email].append(user.id)

    def __contains__(self, user_id: object) -> bool:
        return user_id in self._by_id

    def having(self, email: object) -> Sequence[str]:
        """Return the ids of those whose trusted e-mail this is, best first."""
        folded = _fold(email)
        return self._by_email.get(folded, ()) if folded else ()


class _Silent:
    """No person has decided; not the same as a decision for nobody."""


_SILENT: Final = _Silent()


def _verdict(claims: Iterable[Claim], by_hand: str | _Silent | None, directory: _Directory) -> Link:
    if by_hand is None or (isinstance(by_hand, str) and by_hand in directory):
        return Link(owner_id=by_hand, linked_by=HAND)
    heard = sorted((claim for claim in claims if claim.user_id in directory), key=lambda claim: claim.weight)
    if not heard:
        return Link()
    strongest = heard[0]
    others = tuple(claim for claim in heard if claim.user_id != strongest.user_id)
    return Link(owner_id=strongest.user_id, linked_by=strongest.linked_by, conflicts=others)


def _primaries(customers: Iterable[Customer], verdicts: Mapping[str, Link]) -> dict[str, str]:
    """Return the primary customer's id for each user who has any."""
    primaries: dict[str, str] = {}
    for customer in sorted(customers, key=lambda c: (c.deleted, c.created or _FOREVER, c.id)):
        owner = verdicts[customer.id].owner_id
        if owner is not None:
            primaries.setdefault(owner, customer.id)
    return primaries


def _place(customer_id: str, link: Link, primaries: Mapping[str, str]) -> Link:
    if link.owner_id is None:
        return link
    primary = primaries[link.owner_id]
    return Link(
        owner_id=link.owner_id,
        user_id=link.owner_id if primary == customer_id else None,
        alias_of=None if primary == customer_id else primary,
        linked_by=link.linked_by,
        conflicts=link.conflicts,
    )


def _claims_by_customer(evidence: Evidence, directory: _Directory) -> dict[str, list[Claim]]:
    claims = {customer.id: list(_customer_claims(customer, directory)) for customer in evidence.customers}
    for subscription in evidence.subscriptions:
        if subscription.customer_id in claims:
            claims[subscription.customer_id].extend(_metadata_claims(subscription, SUBSCRIPTION_METADATA))
    for session in evidence.sessions:
        if session.customer_id in claims:
            claims[session.customer_id].extend(_session_claims(session, directory))
    return claims


def _customer_claims(customer: Customer, directory: _Directory) -> Iterator[Claim]:
    yield from _metadata_claims(customer, CUSTOMER_METADATA)
    for user_id in directory.having(customer.email):
        yield Claim(user_id, EMAIL, customer.created, customer.id)


def _session_claims(session: Session, directory: _Directory) -> Iterator[Claim]:
    reference = _name(session.client_reference_id)
    if session.payment_link is None:
        yield from _metadata_claims(session, SESSION)
        if reference is not None:
            yield Claim(reference, SESSION, session.created, session.id)
    elif reference is not None and reference in directory.having(session.email):
        yield Claim(reference, PAYMENT_LINK, session.created, session.id)


def _metadata_claims(bearer: Customer | Subscription | Session, linked_by: str) -> Iterator[Claim]:
    for user_id in _metadata_names(bearer.metadata):
        yield Claim(user_id, linked_by, bearer.created, bearer.id)


def _metadata_names(metadata: object) -> Iterator[str]:
    if isinstance(metadata, Mapping):
        for key in _KEYS:
            name = _name(metadata.get(key))
            if name is not None:
                yield name


def _name(value: object) -> str | None:
    """Return a user's id as evidence gives it; null if no user can have it.

    PostgreSQL stores neither NUL nor lone surrogates, and refuses to be asked for them.
    """
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        return None
    return None if any("\ud800" <= letter <= "\udfff" for letter in value) else value


def _fold(email: object) -> str | None:
    """Return the e-mail as it is compared."""
    name = _name(email)
    return name.lower() if name else None
