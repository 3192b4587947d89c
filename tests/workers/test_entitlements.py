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
from workers.entitlements import (
    ROLES,
    Decision,
    Facts,
    Invoice,
    Override,
    Subscription,
    decide,
    grace_days_of,
    is_running,
    rank_of,
    role_of,
)

Thing = TypeVar("Thing")

CASES = Path(__file__).parent.parent / "cases"
NOW = datetime(2026, 2, 15, tzinfo=UTC)
DAY = timedelta(days=1)
TICK = timedelta(milliseconds=1)
STATUS_ORDER = ("INACTIVE", "CANCELED", "PAST_DUE", "ACTIVE")

# --- the cases that are kept as data ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    [*read_file(CASES / "roles.json"), *read_file(CASES / "overrides.json")],
    ids=lambda case: case.name,
)
def test_every_case_of_roles_and_overrides_holds(case: Case) -> None:
    outcome = PureRoad().run(case)
    assert [str(finding) for finding in outcome.findings] == []
    assert outcome.checked > 0


# --- properties -------------------------------------------------------------------------------------------------------

# A busy machine makes a slow draw, not a wrong answer.

moments = st.integers(-20, 20).map(lambda days: NOW + days * DAY)
maybe = st.none() | moments
statuses = st.sampled_from(
    ["active", "trialing", "past_due", "unpaid", "canceled", "incomplete", "incomplete_expired", "paused", "new", None],
)
words: st.SearchStrategy[object] = st.one_of(
    st.sampled_from(["USER", "PREMIUM", "ADMIN", "BANNED", "user", "", "0", "1", "2", "-1", "10", "³", "1e3", None]),
    st.integers(),
    st.text("a1 ٣-", max_size=3),
    st.lists(st.integers(), max_size=1),
)
metadata: st.SearchStrategy[Mapping[str, object] | None] = st.none() | st.dictionaries(
    st.sampled_from(["role", "rank", "grace_days"]),
    words,
)
invoices = st.builds(
    Invoice,
    id=st.sampled_from(["in_1", "in_2", "in_3"]),
    status=st.sampled_from(["open", "uncollectible", "paid", "void", "draft", None]),
    created=maybe,
    collection_method=st.sampled_from(["charge_automatically", "send_invoice", None]),
    finalized_at=maybe,
    due_date=maybe,
)
subscriptions = st.builds(
    Subscription,
    id=st.text("abc", min_size=1, max_size=2).map("sub_{}".format),
    status=statuses,
    product_id=st.none() | st.sampled_from(["prod_1", "prod_2", "prod_3"]),
    price_id=st.none() | st.sampled_from(["price_1", "price_2"]),
    current_period_start=maybe,
    current_period_end=maybe,
    product_metadata=metadata,
    price_metadata=metadata,
    invoices=st.lists(invoices, max_size=3, unique_by=lambda invoice: invoice.id),
)
many_subscriptions = st.lists(subscriptions, max_size=4, unique_by=lambda subscription: subscription.id)
overrides = st.builds(
    Override,
    id=st.text("abc", min_size=1, max_size=2).map("ov_{}".format),
    kind=st.sampled_from(["ban", "admin", "comp", "pause"]),
    role=st.sampled_from([None, "USER", "PREMIUM", "ADMIN", "BANNED"]),
    product_id=st.none() | st.sampled_from(["prod_1", "prod_8", "prod_9"]),
    starts_at=maybe,
    expires_at=maybe,
    ended_at=maybe,
)
many_overrides = st.lists(overrides, max_size=4, unique_by=lambda override: override.id)


@given(many_subscriptions, many_overrides, st.randoms(use_true_random=False))
def test_the_order_of_the_facts_changes_nothing(
    some: list[Subscription],
    decisions: list[Override],
    random: Random,
) -> None:
    before = decide(Facts(some), decisions, NOW)
    shuffled = [replace(one, invoices=_shuffled(one.invoices, random)) for one in _shuffled(some, random)]
    assert decide(Facts(shuffled), _shuffled(decisions, random), NOW) == before


@given(many_subscriptions, many_overrides, subscriptions, st.sampled_from(["active", "trialing"]))
def test_one_more_live_subscription_never_lowers_role_or_status(
    some: list[Subscription],
    decisions: list[Override],
    another: Subscription,
    status: str,
) -> None:
    before = decide(Facts(some), decisions, NOW)
    after = decide(Facts([*some, replace(another, id="sub_more", status=status)]), decisions, NOW)
    heights = {**ROLES, "BANNED": -1}
    assert heights[after.role] >= heights[before.role]
    assert STATUS_ORDER.index(after.status) >= STATUS_ORDER.index(before.status)
    assert after.status == "ACTIVE"


@given(many_subscriptions, many_overrides)
def test_nothing_changes_before_the_next_change(some: list[Subscription], decisions: list[Override]) -> None:
    now = decide(Facts(some), decisions, NOW)
    assert now.next_change_at is None or now.next_change_at > NOW
    later = now.next_change_at - TICK if now.next_change_at else NOW + 100 * DAY
    assert decide(Facts(some), decisions, later) == now


@given(many_subscriptions, many_overrides, overrides, st.sampled_from(["expires_at", "ended_at"]))
def test_an_override_that_is_over_is_as_good_as_none(
    some: list[Subscription],
    decisions: list[Override],
    another: Override,
    end: str,
) -> None:
    without_end = replace(another, id="ov_over", starts_at=None, expires_at=None, ended_at=None)
    over = replace(without_end, expires_at=NOW) if end == "expires_at" else replace(without_end, ended_at=NOW)
    assert decide(Facts(some), [*decisions, over], NOW) == decide(Facts(some), decisions, NOW)


@given(many_subscriptions, many_overrides)
def test_status_and_grace_are_stripes_whatever_people_decide(
    some: list[Subscription],
    decisions: list[Override],
) -> None:
    with_people, without = decide(Facts(some), decisions, NOW), decide(Facts(some), [], NOW)
    assert (with_people.status, with_people.grace_until) == (without.status, without.grace_until)


@given(many_subscriptions)
def test_without_people_a_product_means_access_and_stripe_makes_no_admin(some: list[Subscription]) -> None:
    decision = decide(Facts(some), [], NOW)
    assert decision.role in {"USER", "PREMIUM"}
    if decision.product_id is not None or decision.role == "PREMIUM":
        assert decision.status in {"ACTIVE", "PAST_DUE"}


@given(many_subscriptions, many_overrides)
def test_the_same_question_has_the_same_answer(some: list[Subscription], decisions: list[Override]) -> None:
    assert decide(Facts(some), decisions, NOW) == decide(Facts(tuple(some)), tuple(decisions), NOW)


# --- grace ------------------------------------------------------------------------------------------------------------


def _past_due(**changes: object) -> Subscription:
    one = Subscription("sub_1", "past_due", "prod_1", "price_1", NOW - DAY, NOW + 30 * DAY)
    return replace(one, **changes)  # type: ignore[arg-type]


def _decide(*some: Subscription, people: Sequence[Override] = (), days: int = 3) -> Decision:
    return decide(Facts(some, days), people, NOW)


def test_several_running_graces_show_the_latest_end() -> None:
    one = _past_due(id="sub_1", current_period_start=NOW - DAY)
    two = _past_due(id="sub_2", current_period_start=NOW - 2 * DAY)
    over = _past_due(id="sub_3", current_period_start=NOW - 9 * DAY)
    assert _decide(one, two, over).grace_until == NOW + 2 * DAY
    assert _decide(one, two, over).next_change_at == NOW + DAY


def test_grace_stands_beside_a_live_subscription() -> None:
    decision = _decide(_past_due(), Subscription("sub_2", "active"))
    assert (decision.status, decision.grace_until) == ("ACTIVE", NOW + 2 * DAY)


def test_grace_that_is_over_is_not_shown() -> None:
    assert _decide(_past_due(current_period_start=NOW - 3 * DAY)).grace_until is None


def test_a_past_due_subscription_of_which_nothing_is_known_has_no_grace() -> None:
    decision = _decide(Subscription("sub_1", "past_due"))
    assert (decision.role, decision.status, decision.grace_until, decision.next_change_at) == (
        "USER", "PAST_DUE", None, None,
    )  # fmt: skip


@pytest.mark.parametrize(
    "invoice",
    [
        Invoice("in_1", "open", NOW - 9 * DAY, "charge_automatically", None, NOW - 9 * DAY),
        Invoice("in_1", "open", NOW - 9 * DAY, "send_invoice", NOW - 9 * DAY, None),
    ],
    ids=["not finalized", "sent without a due date"],
)
def test_an_oldest_invoice_without_its_date_lets_grace_run_from_the_period(invoice: Invoice) -> None:
    younger = Invoice("in_2", "open", NOW, "charge_automatically", NOW, NOW)
    decision = _decide(_past_due(invoices=[younger, invoice]))
    assert decision.grace_until == NOW + 2 * DAY
    assert "the start of its period" in decision.reasons[0]


def test_of_two_invoices_of_one_second_the_smaller_id_is_the_older() -> None:
    first = Invoice("in_a", "open", NOW - DAY, None, NOW - 2 * DAY)
    second = Invoice("in_b", "open", NOW - DAY, None, NOW - DAY)
    assert _decide(_past_due(invoices=[second, first])).grace_until == NOW + DAY


def test_an_invoice_that_says_no_creation_is_the_youngest() -> None:
    unknown = Invoice("in_a", "open", None, None, NOW - 9 * DAY)
    known = Invoice("in_b", "open", NOW - DAY, None, NOW - DAY)
    assert _decide(_past_due(invoices=[unknown, known])).grace_until == NOW + 2 * DAY


@pytest.mark.parametrize(
    "days", ["", " 5", "5 ", "+5", "-5", "5.0", "5\n", "٣", "³", "36501", "9" * 5000, 5, True, None, ["5"]]
)
def test_malformed_grace_days_count_as_not_given(days: object) -> None:
    subscription = _past_due(price_metadata={"grace_days": days}, product_metadata={"grace_days": "4"})
    assert grace_days_of(subscription, 3) == 4
    assert grace_days_of(replace(subscription, product_metadata={"grace_days": days}), 3) == 3
    assert grace_days_of(replace(subscription, product_metadata=None), 3) == 3


def test_a_hundred_years_of_grace_are_the_most() -> None:
    assert grace_days_of(_past_due(price_metadata={"grace_days": "0036500"}), 3) == 36_500


@pytest.mark.parametrize("days", [3, 10**12])
def test_grace_beyond_the_calendar_never_ends(days: int) -> None:
    forever = datetime.max.replace(tzinfo=UTC)
    assert _decide(_past_due(current_period_start=forever - DAY), days=days).grace_until == forever


def test_a_grace_of_no_days_is_none() -> None:
    assert _decide(_past_due(current_period_start=NOW), days=0).role == "USER"


# --- role, rank, best -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["user", "ADMIN", "BANNED", "", " USER", "USER\n", None, 1, ["USER"], {}])
def test_a_malformed_role_counts_as_not_given(role: object) -> None:
    assert role_of({"role": role}) == "PREMIUM"
    assert role_of(None) == "PREMIUM"


@pytest.mark.parametrize("rank", ["gold", "", "1.5", "1e3", "+1", " 1", "1\n", "٣", "²", "--1", None, 7, True, ["1"]])
def test_a_malformed_rank_is_0(rank: object) -> None:
    assert rank_of({"rank": rank}) == 0


def test_ranks_of_any_size_compare_as_numbers() -> None:
    ranks = [{"rank": text} for text in ("-" + "9" * 5000, "-2", "-0", "0009", "10", "9" * 5000, "1" + "0" * 5000)]
    assert sorted([*ranks[3:], *ranks[:3]], key=rank_of) == ranks


def _best(*some: Subscription) -> str | None:
    forwards, backwards = _decide(*some), _decide(*reversed(some))
    assert forwards == backwards
    return forwards.product_id


def test_a_higher_role_in_grace_is_better_than_a_live_lower_one() -> None:
    live = Subscription("sub_9", "active", "prod_user", product_metadata={"role": "USER", "rank": "9"})
    assert _best(live, _past_due(product_id="prod_premium")) == "prod_premium"


def test_a_negative_rank_is_worse_than_none() -> None:
    low = Subscription("sub_9", "active", "prod_low", product_metadata={"rank": "-1"}, current_period_end=NOW + DAY)
    assert _best(low, Subscription("sub_1", "active", "prod_plain")) == "prod_plain"


def test_an_unknown_period_end_is_the_earliest() -> None:
    known = Subscription("sub_1", "active", "prod_known", current_period_end=NOW)
    assert _best(known, Subscription("sub_9", "active", "prod_unknown")) == "prod_known"


def test_a_subscription_whose_product_is_unknown_gives_access_all_the_same() -> None:
    decision = _decide(Subscription("sub_1", "active"))
    assert (decision.role, decision.status, decision.product_id) == ("PREMIUM", "ACTIVE", None)


# --- overrides --------------------------------------------------------------------------------------------------------


def test_an_override_holds_from_its_start_until_just_before_its_end() -> None:
    override = Override("1", "ban", starts_at=NOW, expires_at=NOW + DAY)
    moments_of_truth = [NOW - TICK, NOW, NOW + DAY - TICK, NOW + DAY]
    assert [is_running(override, moment) for moment in moments_of_truth] == [False, True, True, False]


def test_an_override_that_a_person_ends_ends_then() -> None:
    override = Override("1", "ban", expires_at=NOW + 9 * DAY, ended_at=NOW)
    assert [is_running(override, moment) for moment in (NOW - TICK, NOW)] == [True, False]


def test_overrides_that_start_expire_or_end_call_for_a_decision_then() -> None:
    starting = Override("1", "comp", starts_at=NOW + 3 * DAY, expires_at=NOW + 4 * DAY)
    expiring = Override("2", "ban", expires_at=NOW + 2 * DAY)
    ending = Override("3", "ban", expires_at=NOW + 2 * DAY, ended_at=NOW + DAY)
    assert _decide(people=[starting]).next_change_at == NOW + 3 * DAY
    assert _decide(people=[starting, expiring]).next_change_at == NOW + 2 * DAY
    assert _decide(people=[starting, expiring, ending]).next_change_at == NOW + DAY
    assert _decide(people=[Override("4", "ban")]).next_change_at is None


def test_a_period_end_calls_for_a_look_unless_the_subscription_is_over() -> None:
    end = NOW + 5 * DAY
    for status, expected in (("active", end), ("trialing", end), ("unpaid", end), ("canceled", None), ("paused", None)):
        assert _decide(Subscription("sub_1", status, current_period_end=end)).next_change_at == expected


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (Override("9", "comp", "ADMIN"), Override("1", "comp", "PREMIUM", "prod_9")),
        (Override("9", "comp", "PREMIUM", "prod_9"), Override("1", "comp", "PREMIUM")),
        (Override("1", "comp", "PREMIUM", "prod_9"), Override("2", "comp", "PREMIUM", "prod_8")),
        (Override("9", "comp", None, "prod_9"), Override("1", "comp", "USER", "prod_8")),
        (Override("9", "comp", "PREMIUM", "prod_9"), Override("1", "comp", "BANNED", "prod_8")),
    ],
    ids=["higher role", "names a product", "smaller id", "no role means PREMIUM", "BANNED is no height"],
)
def test_of_several_comps_one_is_chosen_whatever_their_order(better: Override, worse: Override) -> None:
    for people in ([better, worse], [worse, better]):
        decision = _decide(people=people)
        assert (decision.role, decision.product_id) == (better.role or "PREMIUM", better.product_id)


def test_a_comp_without_a_product_leaves_stripes() -> None:
    subscription = Subscription("sub_1", "active", "prod_1", product_metadata={"role": "USER"})
    decision = _decide(subscription, people=[Override("1", "comp", "PREMIUM")])
    assert (decision.role, decision.product_id) == ("PREMIUM", "prod_1")


def test_the_product_of_a_comp_that_decides_replaces_stripes() -> None:
    subscription = Subscription("sub_1", "active", "prod_1", product_metadata={"role": "USER"})
    assert _decide(subscription, people=[Override("1", "comp", "PREMIUM", "prod_9")]).product_id == "prod_9"


@pytest.mark.parametrize("kind", ["ban", "admin", "pause"])
def test_an_outweighed_comp_does_not_even_give_its_product(kind: str) -> None:
    decision = _decide(people=[Override("1", "comp", "PREMIUM", "prod_9"), Override("2", kind)])
    assert decision.product_id is None


# --- reasons ----------------------------------------------------------------------------------------------------------


def test_the_reasons_name_what_decided_and_nothing_that_a_stranger_wrote() -> None:
    decision = _decide(
        Subscription("sub_2", "active", "prod_2", product_metadata={"role": "ann@example.com"}),
        _past_due(product_metadata={"role": "USER"}, invoices=[Invoice("in_1", "open", NOW, None, NOW - DAY)]),
        Subscription("sub_3", "something ann@example.com wrote"),
        people=[Override("7", "comp", "PREMIUM"), Override("8", "pause", expires_at=NOW + DAY)],
    )
    assert decision.reasons == (
        "sub_1 is past_due; grace since in_1 gives USER by prod_1 until 2026-02-17T00:00:00.000Z.",
        "sub_2 is active and gives PREMIUM by prod_2.",
        "sub_3 is of unknown status and gives no access.",
        "Of these sub_2 is the best.",
        "comp 7 is outweighed.",
        "pause 8 decides the role: USER until 2026-02-16T00:00:00.000Z.",
    )


def test_nothing_at_all_has_a_reason_too() -> None:
    assert _decide() == Decision("USER", "INACTIVE", None, None, None, ("There is no subscription.",))


def _shuffled(some: Sequence[Thing], random: Random) -> list[Thing]:
    shuffled = list(some)
    random.shuffle(shuffled)
    return shuffled
