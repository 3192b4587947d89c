"""Whose customer is it? CONTRACT §5, read aloud."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tests.convergence.naive import Facts, Row, Settings, age, by_id, of


def owners(facts: Facts, settings: Settings) -> dict[str, str]:
    """{customer: user} for every customer that is somebody's."""
    found = {row["id"]: _owner(facts, settings, row) for row in of(facts, "customers")}
    return {customer: user for customer, user in found.items() if user is not None}


def links(facts: Facts, settings: Settings) -> dict[str, dict[str, str | None]]:
    """{customer: its `user_id` and `alias_of`}: the primary customer has the user, the others point to it."""
    whose = owners(facts, settings)
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in of(facts, "customers"):
        if row["id"] in whose:
            groups[whose[row["id"]]].append(row)
    answer: dict[str, dict[str, str | None]] = {
        row["id"]: {"user_id": None, "alias_of": None} for row in of(facts, "customers")
    }
    for user, group in groups.items():
        primary = min(group, key=lambda row: (row["deleted_at"] is not None, age(row)))
        for row in group:
            is_primary = row is primary
            answer[row["id"]] = {
                "user_id": user if is_primary else None,
                "alias_of": None if is_primary else primary["id"],
            }
    return answer


def named_by(facts: Facts, settings: Settings, session: Row) -> str | None:
    """The user whom a session without a customer concerns."""
    if session["payment_link"] is None:
        return next(_existing(facts, _metadata_user(session), session["client_reference_id"]), None)
    user = by_id(facts, "users", session["client_reference_id"])
    return session["client_reference_id"] if user and _is_mail_of(facts, settings, session["email"], user) else None


def _owner(facts: Facts, settings: Settings, customer: Row) -> str | None:
    for decision in of(facts, "links_by_hand"):
        if decision["customer"] == customer["id"]:
            if decision["user_id"] is None:
                return None
            if by_id(facts, "users", decision["user_id"]):
                return str(decision["user_id"])
    for evidence in (_by_itself, _by_what_it_bought, _by_mail):
        found = sorted(evidence(facts, settings, customer), key=lambda one: (age(one[0]), one[1]))
        if found:
            return found[0][1]
    return None


def _by_itself(facts: Facts, _: Settings, customer: Row) -> Iterator[tuple[Row, str]]:
    for user in _existing(facts, _metadata_user(customer)):
        yield customer, user


def _by_what_it_bought(facts: Facts, _: Settings, customer: Row) -> Iterator[tuple[Row, str]]:
    for row in of(facts, "subscriptions"):
        if row["stripe_customer_id"] == customer["id"]:
            for user in _existing(facts, _metadata_user(row)):
                yield row, user
    for row in of(facts, "sessions"):
        if row["stripe_customer_id"] == customer["id"] and row["payment_link"] is None:
            for user in list(_existing(facts, _metadata_user(row), row["client_reference_id"]))[:1]:
                yield row, user


def _by_mail(facts: Facts, settings: Settings, customer: Row) -> Iterator[tuple[Row, str]]:
    for user in of(facts, "users"):
        if _is_mail_of(facts, settings, customer["email"], user):
            yield customer, user["id"]
    for row in of(facts, "sessions"):
        if row["stripe_customer_id"] == customer["id"] and row["payment_link"] is not None:
            named = named_by(facts, settings, row)
            if named is not None:
                yield row, named


def _is_mail_of(facts: Facts, settings: Settings, address: str | None, user: Row) -> bool:
    rule = settings["DUES_LINK_BY_EMAIL"]
    if rule == "off" or not address or not user["email"] or address.lower() != user["email"].lower():
        return False
    return rule == "any" or user["email_verified"] is not None or _is_vouched_for(facts, settings, user)


def _is_vouched_for(facts: Facts, settings: Settings, user: Row) -> bool:
    trusted = settings["DUES_TRUSTED_PROVIDERS"].split(",")
    return any(
        account["user_id"] == user["id"]
        and account["provider"] in trusted
        and (user["email_changed_at"] is None or account["created_at"] > user["email_changed_at"])
        for account in of(facts, "accounts")
    )


def _metadata_user(row: Row) -> str | None:
    metadata = row["metadata"] or {}
    found = metadata.get("user_id") or metadata.get("userId")
    return found if isinstance(found, str) else None


def _existing(facts: Facts, *candidates: str | None) -> Iterator[str]:
    for candidate in candidates:
        if by_id(facts, "users", candidate):
            yield str(candidate)
