from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cases.loading import Case, read_folder
from tests.cases.pure_tokens import PureRoad
from workers.tokens import (
    Charge,
    Dispute,
    Facts,
    Invoice,
    InvoicePayment,
    Line,
    LineItem,
    Note,
    PaymentIntent,
    Price,
    Product,
    Session,
    Snapshot,
    Subscription,
    Target,
    half_up,
    read_lines,
    targets,
)

CASES = Path(__file__).parent.parent / "cases"
ASKED = [
    case
    for case in read_folder(CASES)
    if any(
        {"grants", "waiting"} & set(step.expect)
        or any({"tokens", "tokens_expires_at"} & set(columns) for columns in step.expect["users"].values())
        for step in case.steps
    )
]

JAN, FEB, MAR = (datetime(2026, month, 1, tzinfo=UTC) for month in (1, 2, 3))
TENTH = JAN.replace(day=10)
YEAR = JAN.replace(year=2027)
GRACE = timedelta(days=3)
DAY = timedelta(days=1)

PRODUCTS = [
    Product("prod_100", {"tokens": "100"}),
    Product("prod_300", {"tokens": "300"}),
    Product("prod_500", {"tokens": "500"}),
    Product("prod_1200", {"tokens": "1200"}),
    Product("prod_keeps", {"tokens": "100", "tokens_policy": "rollover"}),
    Product("prod_stub", stub=True),
]
PRICES = [
    *(Price(f"price_{product.id[5:]}", product.id, unit_amount=900) for product in PRODUCTS),
    Price("price_free", "prod_100", unit_amount=0),
]


@pytest.mark.parametrize("case", ASKED, ids=lambda case: case.name)
def test_every_case_that_asks_for_tokens_holds(case: Case) -> None:
    outcome = PureRoad().run(case)
    assert [str(finding) for finding in outcome.findings] == []
    assert outcome.checked > 0


def test_no_case_of_tokens_is_left_out() -> None:
    assert {case.source for case in ASKED} == {path.name for path in CASES.glob("*.json")}
    assert len(ASKED) > 90


def day(number: int, month: int = 1) -> datetime:
    return datetime(2026, month, number, tzinfo=UTC)


def line(
    line_id: str,
    price: str | None,
    start: datetime = JAN,
    end: datetime = FEB,
    *,
    item: str | None = "si_1",
    amount: int = 900,
    quantity: int | None = None,
) -> Line:
    return Line(
        line_id,
        amount,
        price_id=None if price is None else f"price_{price}",
        subscription_item=item,
        quantity=quantity,
        proration=amount < 0,
        start=start,
        end=end,
    )


def credit(
    line_id: str, start: datetime = TENTH, end: datetime = FEB, *, item: str = "si_1", amount: int = 600
) -> Line:
    return line(line_id, "100", start, end, item=item, amount=-amount)


def invoice(created: datetime, *lines: Line, subscription: str | None = "sub_1", **values: Any) -> Invoice:
    given: dict[str, Any] = {"id": f"in_{created:%m%d}", "status": "paid", "paid_at": created, "total": 900, **values}
    return Invoice(created=created, subscription_id=subscription, lines=lines, **given)


def facts(*invoices: Invoice, **values: Any) -> Facts:
    given: dict[str, Any] = {"subscriptions": [Subscription("sub_1", "active")], **values}
    return Facts(products=PRODUCTS, prices=PRICES, invoices=invoices, **given)


def amounts(given: Facts) -> dict[str, int]:
    return {target.source: target.amount for target in targets(given).targets if target.amount}


def waiting(given: Facts) -> dict[str, str]:
    return {note.id: note.reason for note in targets(given).waiting}


def only(given: Facts) -> Target:
    (target,) = targets(given).targets
    return target


# --- lines ------------------------------------------------------------------------------------------------------------


def test_nothing_gives_nothing() -> None:
    assert targets(Facts()).targets == ()


def test_a_renewal_of_an_annual_plan_swapped_back_to_months_earns_nothing_until_the_year_is_over() -> None:
    swapped = [
        invoice(JAN, line("il_1", "100")),
        invoice(day(10), credit("il_2a"), line("il_2b", "1200", day(10), YEAR, item="si_2", amount=9000)),
        invoice(
            day(20),
            credit("il_3a", day(20), YEAR, item="si_2"),
            line("il_3b", "100", day(20), day(20, 2), item="si_3"),
        ),
        invoice(day(20, 2), line("il_4", "100", day(20, 2), day(20, 3), item="si_3")),
    ]
    assert amounts(facts(*swapped)) == {"il_1": 100, "il_2b": 1100}
    later = invoice(YEAR, line("il_9", "100", YEAR, YEAR + 31 * DAY, item="si_3"), id="in_9")
    assert amounts(facts(*swapped, later)) == {"il_1": 100, "il_2b": 1100, "il_9": 100}


def test_an_item_added_after_another_was_removed_with_credit_joins_its_stretch() -> None:
    story = [
        invoice(JAN, line("il_1", "100"), line("il_1b", "500", item="si_2")),
        invoice(day(10), credit("il_2", item="si_2")),
        invoice(day(20), line("il_3", "500", day(20), item="si_3")),
    ]
    assert amounts(facts(*story)) == {"il_1": 100, "il_1b": 500}


def test_an_older_item_is_no_replacement_of_one_that_was_removed() -> None:
    story = [
        invoice(JAN, line("il_1", "100"), line("il_1y", "1200", JAN, YEAR, item="si_2")),
        invoice(day(10), credit("il_2", day(10), YEAR, item="si_2")),
        invoice(FEB, line("il_3", "100", FEB, MAR)),
    ]
    assert amounts(facts(*story)) == {"il_1": 100, "il_1y": 1200, "il_3": 100}


def test_of_several_credited_items_a_new_one_joins_the_first_that_is_no_longer_billed() -> None:
    story = [
        invoice(JAN, line("il_1", "300"), line("il_1b", "100", item="si_2"), line("il_1c", "500", item="si_3")),
        invoice(
            day(10),
            credit("il_2a", item="si_1"),
            credit("il_2b", item="si_2"),
            credit("il_2c", item="si_3"),
            line("il_2d", "300", day(10), item="si_1"),
            line("il_2e", "300", day(10), item="si_4"),
        ),
    ]
    assert amounts(facts(*story)) == {"il_1": 300, "il_1b": 100, "il_1c": 500, "il_2e": 200}


def test_an_item_added_while_another_loses_seats_shares_its_stretch_but_renews_by_itself() -> None:
    story = [
        invoice(JAN, line("il_1", "500", JAN, YEAR, quantity=2)),
        invoice(
            day(10),
            credit("il_2a", day(10), YEAR),
            line("il_2b", "500", day(10), YEAR, quantity=1),
            line("il_2c", "300", day(10), item="si_2"),
        ),
        invoice(FEB, line("il_3", "300", FEB, MAR, item="si_2")),
    ]
    # 1000 were covered, then 500 + 300; the add-on's next month is its own.
    assert amounts(facts(*story)) == {"il_1": 1000, "il_3": 300}


def test_a_swap_billed_with_the_renewal_only_grants_the_renewal_in_full() -> None:
    story = [
        invoice(JAN, line("il_1", "100")),
        invoice(FEB, credit("il_2a"), line("il_2b", "500", FEB, MAR, item="si_2")),
    ]
    assert amounts(facts(*story)) == {"il_1": 100, "il_2b": 500}


def test_two_changes_billed_together_are_taken_in_the_order_of_their_starts() -> None:
    changes = [
        credit("il_2a"),
        line("il_2b", "500", day(10)),
        credit("il_2c", day(20)),
        line("il_2d", "300", day(20)),
    ]
    story = [invoice(JAN, line("il_1", "100")), invoice(FEB, *changes, line("il_2e", "300", FEB, MAR))]
    assert amounts(facts(*story)) == {"il_1": 100, "il_2b": 400, "il_2e": 300}


def test_what_no_longer_covers_does_not_add_up_with_what_comes_later() -> None:
    split = [
        invoice(JAN, line("il_1", "1200", JAN, YEAR)),
        invoice(
            day(10),
            credit("il_2", day(10), YEAR),
            line("il_2b", "500", day(10), day(10, 2), item="si_2"),
            line("il_2c", "300", day(10), day(10, 2), item="si_3"),
        ),
        # The first of the two was not renewed, so 1200 are never exceeded.
        invoice(day(10, 2), line("il_3", "1200", day(10, 2), day(10, 3), item="si_3")),
    ]
    assert amounts(facts(*split)) == {"il_1": 1200}


def test_a_line_of_an_invoice_without_subscription_belongs_where_its_item_is_billed() -> None:
    loose = invoice(day(10), credit("il_2a"), line("il_2b", "500", day(10)), subscription=None)
    assert amounts(facts(invoice(JAN, line("il_1", "100")), loose)) == {"il_1": 100, "il_2b": 400}


def test_a_credit_of_an_unpaid_invoice_ends_nothing() -> None:
    unpaid = invoice(day(10), credit("il_2"), status="open")
    added = invoice(day(20), line("il_3", "100", day(20), item="si_2"))
    assert amounts(facts(invoice(JAN, line("il_1", "100")), unpaid, added)) == {"il_1": 100, "il_3": 100}


def test_lines_that_come_twice_count_once() -> None:
    assert only(facts(invoice(JAN, line("il_1", "100"), line("il_1", "100")))).amount == 100


def test_an_upgrade_ends_no_item_so_that_what_is_added_later_is_granted_in_full() -> None:
    story = [
        invoice(JAN, line("il_1", "100")),
        # The credit's id is the greater one: it precedes its own change all the same.
        invoice(day(10), credit("il_2z"), line("il_2a", "300", day(10))),
        invoice(day(20), line("il_3", "500", day(20), item="si_2")),
    ]
    assert amounts(facts(*story)) == {"il_1": 100, "il_2a": 200, "il_3": 500}


def test_the_invoice_of_a_purchase_grants_nothing_whatever_stands_on_it() -> None:
    sold = Session("cs_1", "payment", invoice_id="in_0101")
    assert targets(facts(invoice(JAN, line("il_1", "100")), sessions=[sold])).targets == ()
    subscribed = replace(sold, mode="subscription")
    assert amounts(facts(invoice(JAN, line("il_1", "100")), sessions=[subscribed])) == {"il_1": 100}


def test_a_line_without_a_period_is_reported_and_grants_nothing() -> None:
    broken = replace(line("il_1", "100"), end=None)
    assert targets(facts(invoice(JAN, broken))).reports == (Note("il_1", "the line has no period"),)
    assert amounts(facts(invoice(JAN, broken))) == {}


def test_a_line_that_bills_no_subscription_item_and_a_discount_grant_nothing() -> None:
    one_off = line("il_1", "500", item=None)
    discount = replace(line("il_2", "500"), amount=-100)
    assert targets(facts(invoice(JAN, one_off, discount))).targets == ()


def test_a_free_price_known_by_its_decimal_grants_and_a_fraction_is_not_free() -> None:
    prices = [
        Price("price_a", "prod_100", unit_amount_decimal=None),
        Price("price_b", "prod_100", unit_amount_decimal=Fraction(0)),  # type: ignore[arg-type]
    ]
    given = facts(invoice(JAN, line("il_1", "a", amount=0), line("il_2", "b", item="si_2", amount=0)))
    assert amounts(replace(given, prices=prices)) == {"il_2": 100}


def test_a_line_of_a_product_alone_grants_by_it() -> None:
    bare = replace(line("il_1", None), product_id="prod_500")
    assert amounts(facts(invoice(JAN, bare))) == {"il_1": 500}


def test_a_change_of_a_line_in_an_incomplete_invoice_waits_even_if_that_line_is_not_there() -> None:
    cut = invoice(JAN, line("il_1", "100"), lines_complete=False)
    change = invoice(day(10), credit("il_2a", item="si_7"), line("il_2b", "500", day(10), item="si_7"))
    swap = invoice(day(11), credit("il_3a", item="si_8"), line("il_3b", "500", day(11), item="si_9"))
    addition = invoice(day(9), line("il_4", "300", day(9), item="si_10"))
    given = facts(cut, addition, change, swap)
    assert amounts(given) == {"il_4": 300}
    assert set(waiting(given)) == {"in_0101", "il_2b", "il_3b"}


def test_a_missing_line_makes_nothing_else_wait_that_is_changed_beside_it() -> None:
    story = [
        invoice(JAN, line("il_1", "100")),
        invoice(day(5), line("il_2", "100", day(5), item="si_2"), lines_complete=False),
        invoice(
            day(10),
            credit("il_3a", item="si_1"),
            credit("il_3b", item="si_7"),
            line("il_3c", "500", day(10), item="si_1"),
        ),
    ]
    assert amounts(facts(*story)) == {"il_1": 100, "il_3c": 400}
    assert set(waiting(facts(*story))) == {"in_0105"}


def test_lines_of_an_incomplete_invoice_are_not_named_but_those_behind_them_are() -> None:
    cut = invoice(JAN, line("il_1", "100"), lines_complete=False)
    upgrade = invoice(day(10), credit("il_2a"), line("il_2b", "500", day(10)))
    renewal = invoice(FEB, line("il_3", "500", FEB, MAR))
    assert waiting(facts(cut, upgrade, renewal)) == {
        "in_0101": "not all of its lines are known yet",
        "il_2b": "its stretch waits for il_1",
    }
    assert amounts(facts(cut, upgrade, renewal)) == {"il_3": 500}


def test_a_line_of_0_whose_price_is_unknown_may_be_a_free_plan_and_waits() -> None:
    assert set(waiting(facts(invoice(JAN, line("il_1", "unheard_of", amount=0))))) == {"il_1"}
    assert set(waiting(facts(invoice(JAN, line("il_1", "stub"))))) == {"il_1"}


def test_incomplete_lines_of_an_invoice_that_bills_no_subscription_wait_for_nothing() -> None:
    given = facts(invoice(JAN, line("il_1", "100", item=None), subscription=None, lines_complete=False))
    assert targets(given).waiting == ()


def test_malformed_figures_count_as_0_and_are_reported() -> None:
    words: tuple[object, ...] = (
        "many",
        "",
        "-5",
        "+5",
        "1.5",
        "1e3",
        " 1",
        "1_0",
        "1000000001",
        "9" * 5000,
        "١",
        5,
        True,
        [],
    )
    for word in words:
        given = replace(
            facts(invoice(JAN, line("il_1", "x"))),
            prices=[Price("price_x", "prod_100", 900, metadata={"tokens": word})],
        )
        assert amounts(given) == {}, word
        assert [note.id for note in targets(given).reports] == ["price_x"], word


def test_figures_may_have_zeros_in_front_and_quantities_may_be_0() -> None:
    padded = Price("price_x", "prod_100", 900, metadata={"tokens": "0" * 5000 + "7"})
    one, none = line("il_1", "x"), line("il_2", "x", item="si_2", quantity=0)
    given = replace(facts(invoice(JAN, one, none)), prices=[padded])
    assert amounts(given) == {"il_1": 7}
    assert targets(given).reports == ()


def test_the_policy_of_a_moment_is_that_in_force_at_the_payment() -> None:
    history = [
        Snapshot("prod_100", day(5), {"tokens": "100", "tokens_policy": "rollover"}),
        Snapshot("prod_100", JAN - DAY, {"tokens": "100"}),
    ]
    early, late = invoice(JAN, line("il_1", "100")), invoice(FEB, line("il_2", "100", FEB, MAR))
    found = {target.source: target for target in targets(facts(early, late, snapshots=history)).targets}
    assert found["il_1"].expires_at == FEB + GRACE
    assert found["il_1"].resets
    assert found["il_2"].expires_at is None
    assert not found["il_2"].resets


def test_a_rollover_ends_with_its_subscription() -> None:
    ended = Subscription("sub_1", "canceled", ended_at=day(20))
    assert only(facts(invoice(JAN, line("il_1", "keeps")), subscriptions=[ended])).expires_at == day(20)


def test_a_period_at_the_end_of_all_calendars_never_expires() -> None:
    assert only(facts(invoice(JAN, line("il_1", "100", JAN, datetime.max.replace(tzinfo=UTC))))).expires_at is None


def test_lines_are_read_from_the_stored_json_whichever_way_times_are_written() -> None:
    stored: list[dict[str, Any]] = [
        {
            "id": "il_1",
            "amount": 900,
            "quantity": 2,
            "price": "price_1",
            "product": "prod_1",
            "subscription_item": "si_1",
            "proration": True,
            "period": {"start": "2026-01-01T00:00:00Z", "end": int(FEB.timestamp())},
        },
        {"id": "il_2"},
    ]
    assert read_lines(stored) == (
        Line("il_1", 900, "price_1", "prod_1", "si_1", 2, proration=True, start=JAN, end=FEB),
        Line("il_2", 0),
    )


# --- taken back -------------------------------------------------------------------------------------------------------


def paid(*charges: Charge, **values: Any) -> Facts:
    """One paid month and the charges that paid it."""
    given: dict[str, Any] = {"invoice_payments": [InvoicePayment("in_0101", "pi_1")], **values}
    bill = invoice(JAN, line("il_1", "100"), amount_paid=900)
    return facts(bill, charges=charges, **given)


def test_a_payment_of_two_invoices_is_refunded_in_proportion() -> None:
    bills = [invoice(JAN, line("il_1", "100"), amount_paid=400), invoice(FEB, line("il_2", "100", FEB, MAR))]
    payments = [InvoicePayment("in_0101", "pi_1", amount_paid=400), InvoicePayment("in_0201", "pi_1", amount_paid=600)]
    given = facts(
        *bills,
        invoice_payments=payments,
        charges=[Charge("ch_1", "pi_1", amount=1000, amount_refunded=250)],
    )
    assert [target.share for target in targets(given).targets] == [Fraction(1, 4)] * 2


def test_an_invoice_paid_in_parts_is_refunded_by_the_part() -> None:
    given = paid(
        Charge("ch_1", "pi_1", amount=300, amount_captured=300, amount_refunded=300),
        Charge("ch_2", None, amount=600, amount_captured=600, amount_refunded=0),
        invoice_payments=[InvoicePayment("in_0101", "pi_1"), InvoicePayment("in_0101", charge_id="ch_2")],
    )
    assert only(given).share == Fraction(1, 3)


def test_an_invoice_paid_by_a_part_of_one_payment_and_by_another_is_refunded_by_that_part() -> None:
    given = paid(
        Charge("ch_1", "pi_1", amount=1000, amount_refunded=500),
        Charge("ch_2", "pi_2", amount=600, amount_refunded=0),
        invoice_payments=[
            InvoicePayment("in_0101", "pi_1", amount_paid=400),
            InvoicePayment("in_0101", "pi_2", amount_paid=600),
        ],
    )
    assert only(given).share == Fraction(200, 1000)


def test_what_was_paid_out_of_band_is_not_refunded_with_the_rest() -> None:
    assert only(paid(Charge("ch_1", "pi_1", amount=300, amount_refunded=300))).share == Fraction(1, 3)


def test_a_failed_charge_beside_the_one_that_paid_does_not_water_down_the_refund() -> None:
    failed = Charge("ch_0", "pi_1", "failed", amount=900)
    assert only(paid(failed, Charge("ch_1", "pi_1", "succeeded", 900, 900, 900))).share == 1


@pytest.mark.parametrize("status", ["open", "canceled"])
def test_a_payment_that_was_not_made_does_not_water_down_the_refund(status: str) -> None:
    payments = [InvoicePayment("in_0101", "pi_0", status=status), InvoicePayment("in_0101", "pi_1", None, 900, "paid")]
    refunded = Charge("ch_1", "pi_1", "succeeded", 900, 900, 900)
    assert only(paid(refunded, invoice_payments=payments)).share == 1
    # What the charge says goes before what was last heard of the payment.
    assert only(paid(refunded, invoice_payments=[InvoicePayment("in_0101", "pi_1", None, 0, status)])).share == 1


def test_a_share_never_exceeds_the_whole() -> None:
    assert only(paid(Charge("ch_1", "pi_1", amount=900, amount_refunded=1800))).share == 1
    assert only(paid(Charge("ch_1", "pi_1", amount=None, amount_refunded=450))).share == Fraction(1, 2)


@pytest.mark.parametrize("status", ["needs_response", "under_review", "warning_needs_response", "new", None])
def test_a_dispute_that_is_not_settled_holds(status: str | None) -> None:
    for dispute in (Dispute("dp_1", "ch_1", None, status), Dispute("dp_1", None, "pi_1", status)):
        assert only(paid(Charge("ch_1", "pi_1", amount=900), disputes=[dispute])).held


@pytest.mark.parametrize(("status", "share"), [("lost", 1), ("won", 0), ("warning_closed", 0), ("prevented", 0)])
def test_a_dispute_that_is_settled_holds_nothing(status: str, share: int) -> None:
    target = only(paid(Charge("ch_1", "pi_1", amount=900), disputes=[Dispute("dp_1", "ch_1", None, status)]))
    assert not target.held
    assert target.share == share


def test_a_dispute_about_something_else_holds_nothing() -> None:
    assert not only(paid(disputes=[Dispute("dp_1", None, None, "needs_response")])).held


@pytest.mark.parametrize(
    ("later", "share"),
    [
        ([], Fraction(2, 3)),
        # What was billed but never paid is billed all the same, what was voided is not.
        ([invoice(FEB, line("il_3", "100", FEB, MAR), status="open")], 0),
        ([invoice(FEB, line("il_3", "100", FEB, MAR), status="void")], Fraction(2, 3)),
        ([invoice(FEB, line("il_3", "free", FEB, MAR, amount=0))], Fraction(2, 3)),
    ],
)
def test_only_a_credit_after_which_nothing_was_billed_takes_back(later: list[Invoice], share: Fraction) -> None:
    over = Subscription("sub_1", "canceled", ended_at=FEB)
    given = facts(invoice(JAN, line("il_1", "100")), invoice(day(11), credit("il_2")), *later, subscriptions=[over])
    assert targets(given).targets[0].share == share


def test_rounding_is_half_up() -> None:
    assert [half_up(Fraction(n, 4)) for n in range(9)] == [0, 0, 1, 1, 1, 1, 2, 2, 2]


# --- trials -----------------------------------------------------------------------------------------------------------


def trial(subscription_id: str, product: str, start: datetime = JAN, **values: Any) -> Subscription:
    return Subscription(
        subscription_id,
        **{
            "status": "trialing",
            "price_id": f"price_{product}",
            "product_id": f"prod_{product}",
            "trial_start": start,
            "trial_end": start + 14 * DAY,
            **values,
        },
    )


def test_the_earliest_trial_of_a_product_has_its_tokens() -> None:
    given = facts(subscriptions=[trial("sub_1", "100", day(2)), trial("sub_2", "100"), trial("sub_3", "500", day(3))])
    assert amounts(given) == {"sub_2": 100, "sub_3": 500}


def test_a_trial_behind_an_earlier_one_that_waits_gets_nothing_before_it() -> None:
    unknown = trial("sub_1", "100", price_id="price_unheard_of")
    given = facts(subscriptions=[unknown, trial("sub_2", "100", day(2))])
    assert amounts(given) == {}
    assert set(waiting(given)) == {"sub_1"}


def test_a_trial_multiplies_the_allotment_but_not_trial_tokens() -> None:
    assert amounts(facts(subscriptions=[trial("sub_1", "100", quantity=3)])) == {"sub_1": 300}
    given = facts(subscriptions=[trial("sub_1", "100", quantity=3)])
    tried = [Price("price_100", "prod_100", 900, metadata={"trial_tokens": "20"})]
    assert amounts(replace(given, prices=tried)) == {"sub_1": 20}


@pytest.mark.parametrize("status", ["incomplete", "incomplete_expired"])
def test_a_trial_that_never_began_grants_nothing(status: str) -> None:
    assert targets(facts(subscriptions=[trial("sub_1", "100", status=status)])).targets == ()


def test_a_trial_that_was_canceled_keeps_its_tokens_till_its_end() -> None:
    target = only(facts(subscriptions=[trial("sub_1", "100", status="canceled", ended_at=day(5))]))
    assert (target.amount, target.expires_at) == (100, day(15))


# --- purchases --------------------------------------------------------------------------------------------------------

PACK = PaymentIntent("pi_1", "succeeded", day(10), 500, {"tokens": "1000"})
SALE = Session("cs_1", "payment", "complete", "paid", day(10), "pi_1")


def shop(*sessions: Session, intents: tuple[PaymentIntent, ...] = (PACK,), **values: Any) -> Facts:
    return facts(sessions=sessions, payment_intents=intents, **values)


def test_a_payment_of_an_invoice_that_nobody_knows_yet_waits() -> None:
    payment = [InvoicePayment("in_1", "pi_1")]
    for unknown in ((), (Invoice("in_1", stub=True),)):
        given = replace(shop(invoice_payments=payment), invoices=unknown)
        assert (amounts(given), waiting(given)) == ({}, {"pi_1": "invoice in_1 is not known yet"})
    assert waiting(shop(invoice_payments=payment, intents=(replace(PACK, metadata={}),))) == {}


def test_a_payment_of_a_subscription_by_way_of_its_charge_is_no_purchase() -> None:
    given = replace(
        shop(invoice_payments=[InvoicePayment("in_1", charge_id="ch_1")], charges=[Charge("ch_1", "pi_1")]),
        invoices=[Invoice("in_1", "sub_1")],
    )
    assert targets(given).targets == ()


def test_a_paid_session_whose_payment_nobody_knows_yet_waits() -> None:
    assert waiting(shop(SALE, intents=())) == {"pi_1": "the PaymentIntent is not known yet"}
    assert waiting(shop(SALE, intents=(replace(PACK, stub=True),))) == {"pi_1": "the PaymentIntent is not known yet"}
    assert waiting(shop(replace(SALE, payment_status="unpaid"), intents=())) == {}
    assert waiting(shop(replace(SALE, mode="subscription"), intents=())) == {}


def test_a_payment_made_by_a_session_of_another_mode_is_no_purchase() -> None:
    assert targets(shop(replace(SALE, mode="subscription"))).targets == ()


def test_the_session_is_heard_before_the_payment_and_both_before_the_line_items() -> None:
    items = [LineItem("price_100", 2), LineItem("price_500")]
    bare = replace(PACK, metadata=None)
    assert amounts(shop(replace(SALE, metadata={"tokens": "7"}, line_items=items))) == {"pi_1": 7}
    assert amounts(shop(replace(SALE, line_items=items))) == {"pi_1": 1000}
    assert amounts(shop(replace(SALE, line_items=items), intents=(bare,))) == {"pi_1": 700}
    assert amounts(shop(replace(SALE, metadata={"tokens": "x"}, line_items=items))) == {}


def test_line_items_of_unknown_prices_wait_unless_somebody_else_names_the_tokens() -> None:
    unknown = replace(SALE, line_items=[LineItem("price_unheard_of")])
    assert set(waiting(shop(unknown, intents=(replace(PACK, metadata={}),)))) == {"pi_1"}
    assert amounts(shop(unknown)) == {"pi_1": 1000}


def test_days_that_are_no_number_are_reported_and_give_no_end() -> None:
    given = shop(intents=(replace(PACK, metadata={"tokens": "5", "tokens_days": "week"}),))
    assert only(given).expires_at is None
    assert [note.id for note in targets(given).reports] == ["pi_1"]
    endless = shop(intents=(replace(PACK, metadata={"tokens": "5", "tokens_days": "999999999"}),))
    assert only(endless).expires_at is None
    assert targets(endless).reports == ()


def test_a_purchase_is_taken_back_by_refund_dispute_and_credit_note() -> None:
    refunded = [Charge("ch_1", "pi_1", "succeeded", 500, 500, 125)]
    assert only(shop(charges=refunded)).share == Fraction(1, 4)
    assert only(shop(charges=[Charge("ch_1", "pi_1", amount_refunded=125)])).share == Fraction(1, 4)
    assert only(shop(disputes=[Dispute("dp_1", None, "pi_1", "lost")])).share == 1
    assert only(shop(disputes=[Dispute("dp_1", None, "pi_1", "under_review")])).held
    bill = Invoice("in_1", status="paid", total=500, credited=250)
    noted = replace(shop(invoice_payments=[InvoicePayment("in_1", "pi_1")]), invoices=[bill])
    assert only(noted).share == Fraction(1, 2)


def test_a_free_session_is_its_own_source() -> None:
    free = replace(SALE, payment_status="no_payment_required", payment_intent_id=None, metadata={"tokens": "25"})
    assert amounts(shop(free, intents=())) == {"cs_1": 25}
    assert set(waiting(shop(replace(free, metadata={}), intents=()))) == {"cs_1"}


# --- properties -------------------------------------------------------------------------------------------------------

# A busy machine makes a slow draw, not a wrong answer.

moments = st.integers(0, 90).map(lambda days: JAN + days * DAY)
prices = st.sampled_from([None, "100", "300", "500", "1200", "keeps", "free", "stub", "unheard_of"])
lines = st.builds(
    line,
    st.integers(0, 30).map(lambda number: f"il_{number}"),
    prices,
    moments,
    moments,
    item=st.sampled_from(["si_1", "si_2", "si_3", None]),
    amount=st.sampled_from([-600, 0, 900]),
    quantity=st.sampled_from([None, 0, 1, 2]),
)
invoices = st.builds(
    lambda number, created, found, values: invoice(created, *found, id=f"in_{number}", **values),
    st.integers(0, 9),
    moments,
    st.lists(lines, max_size=4),
    st.fixed_dictionaries(
        {
            "status": st.sampled_from(["paid", "paid", "paid", "open", "void", None]),
            "subscription": st.sampled_from(["sub_1", "sub_2", None]),
            "lines_complete": st.sampled_from([True, True, True, False]),
            "credited": st.sampled_from([None, 0, 450]),
        },
    ),
)
trials = st.builds(
    trial,
    st.sampled_from(["sub_1", "sub_2", "sub_3"]),
    st.sampled_from(["100", "500", "stub"]),
    moments,
    ended_at=st.none() | moments,
)
sales = st.builds(
    Session,
    id=st.sampled_from(["cs_1", "cs_2", "cs_3"]),
    mode=st.sampled_from(["payment", "payment", "subscription"]),
    status=st.sampled_from(["complete", "open"]),
    payment_status=st.sampled_from(["paid", "unpaid", "no_payment_required"]),
    created=moments,
    payment_intent_id=st.sampled_from([None, "pi_1", "pi_2"]),
    invoice_id=st.sampled_from([None, "in_1"]),
    metadata=st.sampled_from([None, {"tokens": "50"}, {"tokens_days": "30"}]),
    line_items=st.none() | st.lists(st.builds(LineItem, prices.map(lambda name: f"price_{name}")), max_size=2),
)
whole: st.SearchStrategy[Facts] = st.builds(
    Facts,
    products=st.just(PRODUCTS),
    prices=st.just(PRICES),
    snapshots=st.lists(
        st.builds(Snapshot, st.sampled_from(["prod_100", "price_100"]), moments, st.just({"tokens": "70"})),
        max_size=3,
        unique_by=lambda snapshot: (snapshot.object_id, snapshot.as_of),
    ),
    subscriptions=st.lists(trials, max_size=3, unique_by=lambda found: found.id),
    invoices=st.lists(
        invoices,
        max_size=5,
        unique_by=(lambda found: found.id, lambda found: found.created),
    ).map(lambda found: [replace(bill, lines=_renamed(bill)) for bill in found]),
    invoice_payments=st.lists(
        st.builds(InvoicePayment, st.sampled_from(["in_1", "in_2"]), st.sampled_from(["pi_1", "pi_2", None])),
        max_size=3,
    ),
    payment_intents=st.lists(
        st.builds(
            PaymentIntent,
            st.sampled_from(["pi_1", "pi_2"]),
            st.sampled_from(["succeeded", "succeeded", "processing"]),
            moments,
            st.just(500),
            st.sampled_from([None, {"tokens": "1000"}]),
        ),
        max_size=2,
        unique_by=lambda found: found.id,
    ),
    charges=st.lists(
        st.builds(
            Charge,
            st.sampled_from(["ch_1", "ch_2"]),
            st.sampled_from(["pi_1", "pi_2"]),
            amount=st.just(900),
            amount_refunded=st.sampled_from([0, 300, 900]),
        ),
        max_size=2,
        unique_by=lambda found: found.id,
    ),
    disputes=st.lists(
        st.builds(
            Dispute,
            st.sampled_from(["dp_1", "dp_2"]),
            st.none(),
            st.sampled_from(["pi_1", "pi_2"]),
            st.sampled_from(["lost", "won", "under_review"]),
        ),
        max_size=1,
    ),
    sessions=st.lists(sales, max_size=2, unique_by=lambda found: found.id),
)


def _renamed(bill: Invoice) -> list[Line]:
    """Stripe never gives two lines one id."""
    return [replace(found, id=f"{bill.id}_{number}") for number, found in enumerate(bill.lines)]


def shuffled(given: Facts, seed: int) -> Facts:
    random = Random(seed)

    def mix(things: Any) -> list[Any]:
        return random.sample(list(things), len(things))

    columns: dict[str, Any] = {
        name: mix(things)
        for name in Facts.__dataclass_fields__
        if isinstance(things := getattr(given, name), list | tuple)
    }
    columns["invoices"] = [replace(bill, lines=mix(bill.lines)) for bill in columns["invoices"]]
    return replace(given, **columns)


@given(whole, st.integers())
def test_the_order_of_facts_is_irrelevant(given_facts: Facts, seed: int) -> None:
    assert targets(shuffled(given_facts, seed)) == targets(given_facts)


@given(whole)
def test_a_target_is_never_negative_nor_greater_than_a_figure_may_be(given_facts: Facts) -> None:
    found = targets(given_facts)
    assert all(0 <= target.amount <= 2_000_000_000 and 0 <= target.share <= 1 for target in found.targets)
    assert len({target.source for target in found.targets}) == len(found.targets)


@given(whole)
def test_what_waits_grants_nothing(given_facts: Facts) -> None:
    assert not set(amounts(given_facts)) & set(waiting(given_facts))


@given(
    st.lists(st.tuples(st.integers(1, 27), st.sampled_from(["100", "300", "500"]), st.booleans()), max_size=6).map(
        sorted,
    ),
)
def test_changes_within_a_period_earn_up_to_the_highest_plan_once_whatever_items_they_use(
    changes: list[tuple[int, str, bool]],
) -> None:
    story, item, plan = [invoice(JAN, line("il_0", "100", item="si_0"))], "si_0", "100"
    for number, (start, wanted, swap) in enumerate(changes, 1):
        moment = JAN + start * DAY + timedelta(minutes=number)
        target_item = f"si_{number}" if swap else item
        story.append(
            invoice(
                moment,
                credit(f"il_{number}a", moment, item=item),
                line(f"il_{number}b", wanted, moment, item=target_item),
                id=f"in_{number}",
            ),
        )
        item, plan = target_item, wanted
    renewal = invoice(FEB, line("il_9", plan, FEB, MAR, item=item), id="in_9")
    earned = amounts(facts(*story, renewal))
    assert earned.pop("il_9") == int(plan)
    assert sum(earned.values()) == max(100, *(int(wanted) for _, wanted, _ in changes), 0)
