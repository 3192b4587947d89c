from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cases.loading import Case, read_file
from tests.cases.pure_tokens import PureRoad
from workers.identity import (
    Account,
    Customer,
    Evidence,
    Link,
    Named,
    Rules,
    Session,
    Subscription,
    User,
    is_verified,
    named_users,
    resolve,
    resolve_guests,
)

Thing = TypeVar("Thing")

CASES = Path(__file__).parent.parent / "cases"
NOW = datetime(2026, 2, 15, tzinfo=UTC)
DAY = timedelta(days=1)
VERIFIED = Rules()

ANN = User("ann", "ann@example.com", email_verified=NOW)
BOB = User("bob", "bob@example.com", email_verified=NOW)


def _owner(evidence: Evidence, *users: User, rules: Rules = VERIFIED) -> tuple[str | None, str | None]:
    link = resolve(evidence, users, rules)["cus_1"]
    return link.owner_id, link.linked_by


# --- the cases that are kept as data ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", read_file(CASES / "links.json"), ids=lambda case: case.name)
def test_every_case_of_links_holds(case: Case) -> None:
    outcome = PureRoad().run(case)
    assert [str(finding) for finding in outcome.findings] == []
    assert outcome.checked > 0


# --- properties -------------------------------------------------------------------------------------------------------

# A busy machine makes a slow draw, not a wrong answer.

moments = st.none() | st.integers(-3, 3).map(lambda days: NOW + days * DAY)
user_ids = st.sampled_from(["u1", "u2", "u3", "u4"])
emails = st.sampled_from([None, "", "ann@example.com", "ANN@example.com", "bob@example.com"])
customer_ids = st.sampled_from(["cus_1", "cus_2", "cus_3"])
hostile: st.SearchStrategy[object] = st.one_of(
    st.none() | st.integers() | st.booleans(),
    st.sampled_from(["", "  ", "a\0b", "\ud800", "x" * 500]),
    st.lists(user_ids),
)
metadata: st.SearchStrategy[object] = st.one_of(
    st.dictionaries(st.sampled_from(["user_id", "userId", "plan"]), user_ids | hostile),
    hostile,
)
customers = st.builds(Customer, customer_ids, moments, st.booleans(), emails, metadata)
subscriptions = st.builds(Subscription, st.sampled_from(["sub_1", "sub_2"]), customer_ids, moments, metadata)
sessions = st.builds(
    Session,
    st.sampled_from(["cs_1", "cs_2"]),
    st.none() | customer_ids,
    moments,
    metadata,
    st.none() | user_ids,
    st.sampled_from([None, "plink_1"]),
    emails,
)
accounts = st.builds(Account, st.sampled_from(["google", "discord"]), moments.map(lambda moment: moment or NOW))
users = st.builds(User, user_ids, emails, moments, moments, st.lists(accounts, max_size=2))
rules = st.builds(Rules, st.sampled_from(["off", "verified", "any"]))
evidences = st.builds(
    Evidence,
    st.lists(customers, max_size=3, unique_by=lambda customer: customer.id),
    st.lists(subscriptions, max_size=2, unique_by=lambda subscription: subscription.id),
    st.lists(sessions, max_size=2, unique_by=lambda session: session.id),
    st.dictionaries(customer_ids, st.none() | user_ids, max_size=2),
)
some_users = st.lists(users, max_size=4, unique_by=lambda user: user.id)


@given(evidences, some_users, rules, st.randoms(use_true_random=False))
def test_the_order_of_the_evidence_changes_nothing(
    evidence: Evidence,
    existing: list[User],
    rule: Rules,
    random: Random,
) -> None:
    shuffled = Evidence(
        _shuffled(evidence.customers, random),
        _shuffled(evidence.subscriptions, random),
        _shuffled(evidence.sessions, random),
        dict(_shuffled(list(evidence.by_hand.items()), random)),
    )
    assert resolve(shuffled, _shuffled(existing, random), rule) == resolve(evidence, existing, rule)


@given(evidences, some_users, rules)
def test_every_owner_has_one_primary_and_the_rest_are_aliases_of_it(
    evidence: Evidence,
    existing: list[User],
    rule: Rules,
) -> None:
    links = resolve(evidence, existing, rule)
    assert links.keys() == {customer.id for customer in evidence.customers}
    primaries = {link.user_id: customer_id for customer_id, link in links.items() if link.user_id is not None}
    assert primaries.keys() == {link.owner_id for link in links.values() if link.owner_id is not None}
    assert primaries.keys() <= {user.id for user in existing}
    for customer_id, link in links.items():
        expected = None if link.owner_id is None else primaries[link.owner_id]
        assert link.alias_of == (None if expected == customer_id else expected)


@given(evidences, some_users, rules)
def test_whoever_is_linked_was_named_before(evidence: Evidence, existing: list[User], rule: Rules) -> None:
    named = named_users(evidence)
    for link in resolve(evidence, existing, rule).values():
        for user_id in {link.owner_id, *(claim.user_id for claim in link.conflicts)} - {None}:
            user = next(user for user in existing if user.id == user_id)
            assert user_id in named.ids or (user.email or "").lower() in named.emails
    for name in named.ids | named.emails:
        assert "\0" not in name
        assert name.encode()


@given(evidences, some_users, rules)
def test_users_whom_nothing_names_change_nothing(evidence: Evidence, existing: list[User], rule: Rules) -> None:
    stranger = User("nobody", "nobody@example.com", NOW)
    assert resolve(evidence, [*existing, stranger], rule) == resolve(evidence, existing, rule)


# --- classes ----------------------------------------------------------------------------------------------------------


def _everything() -> Evidence:
    """Evidence of each class for ann of class 1, bob of class 2, and so on downwards."""
    return Evidence(
        [Customer("cus_1", NOW, email="e@example.com", metadata={"user_id": "u2"})],
        [Subscription("sub_1", "cus_1", NOW, {"user_id": "u3"})],
        [
            Session("cs_1", "cus_1", NOW, client_reference_id="u4"),
            Session("cs_2", "cus_1", NOW, None, "u6", "plink_1", "f@example.com"),
        ],
        {"cus_1": "u1"},
    )


def test_each_class_decides_when_those_above_name_nobody_who_exists() -> None:
    people = [User(f"u{number}", f"{letter}@example.com", NOW) for number, letter in enumerate("abcdef", 1)]
    # Of one class and second the smallest id decides: cs_1 before sub_1, cus_1 before cs_2 (the Payment Link's).
    order = ["hand", "customer_metadata", "session", "subscription_metadata", "payment_link", "email"]
    found = []
    while people:
        owner, linked_by = _owner(_everything(), *people)
        found.append(linked_by)
        people = [user for user in people if user.id != owner]
    assert found == order


def test_a_decision_by_hand_settles_conflicts() -> None:
    people = [User(f"u{number}", None) for number in (1, 2, 3)]
    assert resolve(_everything(), people, VERIFIED)["cus_1"] == Link("u1", "u1", None, "hand")


def test_an_unlink_by_hand_makes_an_orphan_with_a_decision() -> None:
    evidence = replace(_everything(), by_hand={"cus_1": None})
    assert resolve(evidence, [User("u2", None)], VERIFIED)["cus_1"] == Link(linked_by="hand")


def test_a_link_by_hand_to_a_deleted_user_counts_for_nothing() -> None:
    assert _owner(_everything(), User("u2", None)) == ("u2", "customer_metadata")


def test_disagreeing_evidence_is_listed_strongest_first() -> None:
    people = [User(f"u{number}", f"{letter}@example.com", NOW) for number, letter in enumerate("abcdef", 1)]
    link = resolve(replace(_everything(), by_hand={}), people, VERIFIED)["cus_1"]
    assert link.owner_id == "u2"
    assert [(claim.user_id, claim.linked_by, claim.source_id) for claim in link.conflicts] == [
        ("u4", "session", "cs_1"),
        ("u3", "subscription_metadata", "sub_1"),
        ("u6", "payment_link", "cs_2"),
        ("u5", "email", "cus_1"),
    ]


def test_evidence_that_agrees_is_no_conflict() -> None:
    evidence = Evidence([Customer("cus_1", NOW, email="ann@example.com", metadata={"user_id": "ann"})])
    assert resolve(evidence, [ANN], VERIFIED)["cus_1"] == Link("ann", "ann", None, "customer_metadata")


def test_an_object_that_names_two_users_is_heard_in_order() -> None:
    both = {"userId": "bob", "user_id": "ann"}
    assert _owner(Evidence([Customer("cus_1", metadata=both)]), ANN, BOB) == ("ann", "customer_metadata")
    assert _owner(Evidence([Customer("cus_1", metadata=both)]), BOB) == ("bob", "customer_metadata")
    session = Session("cs_1", "cus_1", NOW, {"userId": "ann"}, "bob")
    assert _owner(Evidence([Customer("cus_1")], [], [session]), ANN, BOB) == ("ann", "session")


def test_evidence_of_unknown_time_comes_after_the_rest() -> None:
    late = Subscription("sub_2", "cus_1", NOW, {"user_id": "ann"})
    unknown = Subscription("sub_1", "cus_1", None, {"user_id": "bob"})
    assert _owner(Evidence([Customer("cus_1")], [unknown, late]), ANN, BOB) == ("ann", "subscription_metadata")


def test_a_payment_links_metadata_names_nobody() -> None:
    session = Session("cs_1", "cus_1", NOW, {"user_id": "ann"}, None, "plink_1", "ann@example.com")
    assert _owner(Evidence([Customer("cus_1")], [], [session]), ANN) == (None, None)


@pytest.mark.parametrize("reference", [None, "nobody", "bob"])
def test_a_payment_link_needs_a_reference_and_the_e_mail_of_the_one_it_names(reference: str | None) -> None:
    session = Session("cs_1", "cus_1", NOW, None, reference, "plink_1", "ann@example.com")
    assert _owner(Evidence([Customer("cus_1")], [], [session]), ANN, BOB) == (None, None)


@pytest.mark.parametrize(("allowed", "owner"), [("off", None), ("verified", None), ("any", "ann")])
def test_a_payment_links_reference_follows_the_same_rule_as_e_mails(allowed: str, owner: str | None) -> None:
    session = Session("cs_1", "cus_1", NOW, None, "ann", "plink_1", "Ann@Example.com")
    unverified = replace(ANN, email_verified=None)
    assert _owner(Evidence([Customer("cus_1")], [], [session]), unverified, rules=Rules(allowed))[0] == owner


def test_evidence_about_customers_outside_the_set_is_left_aside() -> None:
    evidence = Evidence([], [Subscription("sub_1", "cus_9", NOW, {"user_id": "ann"})], [Session("cs_1", "cus_9")])
    assert resolve(evidence, [ANN], VERIFIED) == {}


# --- e-mails ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "linked", "provider", "verified"),
    [
        (None, NOW, "google", True),
        (NOW, NOW + DAY, "google", True),
        (NOW, NOW, "google", False),
        (NOW, NOW - DAY, "google", False),
        (None, NOW, "discord", False),
        (None, NOW, "Google", False),
    ],
)
def test_an_account_vouches_if_its_provider_is_trusted_and_the_e_mail_has_not_changed_since(
    changed: datetime | None,
    linked: datetime,
    provider: str,
    verified: object,
) -> None:
    user = User("u1", "ann@example.com", None, changed, [Account(provider, linked)])
    assert is_verified(user, VERIFIED) is verified


def test_which_providers_are_trusted_is_a_setting() -> None:
    user = User("u1", "ann@example.com", accounts=[Account("discord", NOW)])
    assert is_verified(user, Rules(trusted_providers=("discord",)))
    assert not is_verified(user, Rules(trusted_providers=()))


def test_of_users_with_one_e_mail_the_verified_one_comes_first_then_the_smaller_id() -> None:
    evidence = Evidence([Customer("cus_1", email="ann@example.com")])
    people = [User("u1", "ann@example.com"), User("u2", "Ann@example.com", NOW), User("u3", "ANN@example.com", NOW)]
    for order in (people, people[::-1]):
        link = resolve(evidence, order, Rules("any"))["cus_1"]
        assert (link.owner_id, [claim.user_id for claim in link.conflicts]) == ("u2", ["u3", "u1"])


@pytest.mark.parametrize("email", [None, "", "  "])
def test_no_e_mail_equals_no_e_mail_of_nobody(email: str | None) -> None:
    assert _owner(Evidence([Customer("cus_1", email=email)]), User("u1", email, NOW)) == (None, None)


# --- primary and aliases ----------------------------------------------------------------------------------------------


def _placed(*some: Customer) -> dict[str, str | None]:
    links = resolve(Evidence([replace(one, metadata={"user_id": "ann"}) for one in some]), [ANN], VERIFIED)
    assert all(link.owner_id == "ann" for link in links.values())
    return {customer_id: link.alias_of for customer_id, link in links.items()}


def test_if_all_customers_are_deleted_the_earliest_keeps_the_user() -> None:
    early, late = Customer("cus_b", NOW - DAY, deleted=True), Customer("cus_a", NOW, deleted=True)
    assert _placed(late, early) == {"cus_a": "cus_b", "cus_b": None}


def test_a_customer_of_whom_only_the_id_is_known_is_no_primary_beside_another() -> None:
    assert _placed(Customer("cus_a"), Customer("cus_b", NOW)) == {"cus_a": "cus_b", "cus_b": None}


def test_a_stub_is_still_better_than_a_deleted_customer() -> None:
    assert _placed(Customer("cus_b"), Customer("cus_a", NOW, deleted=True)) == {"cus_a": "cus_b", "cus_b": None}


# --- sessions without a customer --------------------------------------------------------------------------------------


def test_a_guests_session_concerns_the_user_it_names() -> None:
    guests = [
        Session("cs_1", None, NOW, {"user_id": "ann"}),
        Session("cs_2", None, NOW, None, "bob"),
        Session("cs_3", None, NOW, None, "ann", "plink_1", "ann@example.com"),
        Session("cs_4", None, NOW, None, "ann", "plink_1", "eve@example.com"),
        Session("cs_5", None, NOW, None, None, None, "ann@example.com"),
        Session("cs_6", None, NOW, None, "nobody"),
        Session("cs_7", "cus_1", NOW, None, "ann"),
    ]
    concerned = resolve_guests(guests, [ANN, BOB], VERIFIED)
    assert {session_id: link.owner_id for session_id, link in concerned.items()} == {
        "cs_1": "ann", "cs_2": "bob", "cs_3": "ann", "cs_4": None, "cs_5": None, "cs_6": None,
    }  # fmt: skip


# --- whom to lock -----------------------------------------------------------------------------------------------------


def test_everybody_whom_evidence_may_concern_is_named() -> None:
    evidence = Evidence(
        [Customer("cus_1", email="Ann@Example.com", metadata={"user_id": "u1", "userId": "u2"})],
        [Subscription("sub_1", "cus_1", metadata={"userId": "u3"})],
        [Session("cs_1", "cus_1", None, {"user_id": "u4"}, "u5", "plink_1", "bob@example.com")],
        {"cus_1": "u6", "cus_2": None},
    )
    assert named_users(evidence) == Named(
        frozenset({"u1", "u2", "u3", "u4", "u5", "u6"}),
        frozenset({"ann@example.com"}),
    )


@pytest.mark.parametrize("value", [None, 7, True, "", " ", "a\0b", "\udfff", ["u1"], {"id": "u1"}])
def test_hostile_metadata_names_nobody(value: object) -> None:
    metadata: Mapping[str, object] = {"user_id": value, "userId": value}
    evidence = Evidence([Customer("cus_1", metadata=metadata)], [Subscription("sub_1", "cus_1", None, value)])
    assert named_users(evidence) == Named(frozenset(), frozenset())
    assert _owner(evidence, ANN) == (None, None)


def _shuffled(some: Sequence[Thing], random: Random) -> list[Thing]:
    shuffled = list(some)
    random.shuffle(shuffled)
    return shuffled
