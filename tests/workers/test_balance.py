from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cases.pure_tokens import Ledger
from tests.workers.test_tokens import FEB, JAN, MAR, PRICES, credit, day, facts, invoice, line, whole
from workers.balance import MAX_BALANCE, Booking, Grant, Plan, Spending, bring, grants, spend, standing
from workers.tokens import Facts, Stretch, Target, targets

NOW = day(5)
END = FEB
LATER = MAR
HASH = "5e1f"


class Book(Ledger):
    """A ledger in memory that checks after every entry what the database would check."""

    def append(self, booking: Booking) -> None:
        super().append(booking)
        balances: dict[str | None, int] = defaultdict(int)
        for entry in self.entries:
            balances[entry.user_id] += entry.amount
        assert all(0 <= tokens <= MAX_BALANCE for user, tokens in balances.items() if user is not None)

    def bring(self, *known: Target, user: str = "u1", now: datetime = NOW, **options: Any) -> Plan:
        """Book a plan, and see that planning again gives nothing and that the plan told the truth."""
        plan = bring(user, known, self.entries, now, **options)
        self.book(plan)
        assert standing(user, self.entries) == replace(plan, bookings=(), refused=())
        assert bring(user, known, self.entries, now, **options) == replace(plan, bookings=())
        return plan

    def spend(self, amount: int, key: str = "k", user: str = "u1", now: datetime = NOW) -> Spending:
        spending = spend(user, amount, key, self.entries, now)
        self.book(spending.plan)
        return spending

    def write(self, amount: int, expires_at: datetime | None = None, user: str = "u1") -> None:
        """Do what the trigger does when somebody else writes `users.tokens`."""
        number = len(self.entries)
        self.append(
            Booking(user, "adjust", amount, f"adjust:{number}", source="direct:app", expires_at=expires_at),
        )

    def tokens(self, user: str = "u1") -> int:
        return standing(user, self.entries).tokens

    def sums(self, user: str = "u1") -> dict[tuple[str | None, datetime | None], int]:
        """Return "per user the ledger's sum per source and expiry", but for what is nothing."""
        found: dict[tuple[str | None, datetime | None], int] = defaultdict(int)
        for entry in self.entries:
            if entry.user_id == user:
                found[entry.source, entry.expires_at] += entry.amount
        return {place: amount for place, amount in found.items() if amount}

    def kinds(self) -> list[tuple[str, int]]:
        return [(entry.kind, entry.amount) for entry in self.entries]


def target(source: str = "il_1", amount: int = 100, expires_at: datetime | None = END, **values: Any) -> Target:
    return Target(source, amount, expires_at, **values)


# --- granting, expiry -------------------------------------------------------------------------------------------------


def test_nothing_gives_nothing() -> None:
    assert Book().bring() == Plan((), 0, None)


def test_a_grant_names_source_user_and_expiry() -> None:
    plan = Book().bring(target())
    assert plan.bookings == (Booking("u1", "grant", 100, "grant:1:il_1:u1", source="il_1", expires_at=END),)
    assert (plan.tokens, plan.tokens_expires_at) == (100, END)


def test_what_has_expired_is_not_granted_and_ends_to_the_millisecond() -> None:
    book = Book()
    assert book.bring(target(expires_at=NOW)).bookings == ()
    book.bring(target())
    assert book.bring(target(), now=END - timedelta(milliseconds=1)).tokens == 100
    assert book.bring(target(), now=END).tokens == 0
    assert book.kinds() == [("grant", 100), ("expire", -100)]


def test_two_users_and_two_plans_never_share_a_key_by_chance() -> None:
    book = Book()
    book.bring(target("il:1"), user="u1")
    book.bring(target("il"), user="1:u1")
    book.bring(target("il%3A1"), user="u1%")
    assert len({entry.key for entry in book.entries}) == 3


def test_a_target_that_rises_grants_the_difference_to_the_same_lot() -> None:
    book = Book()
    book.bring(target())
    book.bring(target(amount=150))
    assert book.kinds() == [("grant", 100), ("grant", 50)]
    assert book.entries[1].grant_id == book.entries[0].id


def test_a_target_that_falls_and_rises_takes_back_what_is_unspent_and_gives_it_back() -> None:
    book = Book()
    book.bring(target())
    book.spend(40)
    assert book.bring(target(amount=30)).tokens == 0
    assert book.bring(target(amount=70)).tokens == 30
    assert book.bring(target()).tokens == 60
    assert [kind for kind, _ in book.kinds()] == ["grant", "spend", "clawback", "clawback", "clawback"]


def test_an_expiry_that_moves_takes_what_is_left_along() -> None:
    book = Book()
    book.bring(target(expires_at=None))
    book.spend(40)
    assert book.bring(target(expires_at=LATER)).tokens_expires_at == LATER
    assert book.sums() == {("il_1", LATER): 60}
    assert book.kinds()[2:] == [("adjust", -60), ("adjust", 60)]


def test_an_expiry_that_moves_while_the_target_rises_does_both() -> None:
    book = Book()
    book.bring(target())
    book.spend(40)
    book.bring(target(amount=150, expires_at=LATER))
    assert book.sums() == {("il_1", LATER): 110}


def test_what_has_expired_returns_if_the_expiry_turns_out_to_be_later() -> None:
    book = Book()
    book.bring(target())
    book.spend(40)
    book.bring(target(), now=END)
    assert book.bring(target(expires_at=LATER), now=END).tokens == 60
    assert book.sums() == {("il_1", LATER): 60}


def test_an_expiry_that_turns_out_to_be_past_ends_what_is_left() -> None:
    book = Book()
    book.bring(target(expires_at=None))
    assert book.bring(target(expires_at=NOW)).tokens == 0
    assert book.kinds()[-1] == ("expire", -100)


# --- reset ------------------------------------------------------------------------------------------------------------

FIRST = Stretch("il_1", "sub_1", JAN, FEB)
SECOND = Stretch("il_2", "sub_1", FEB, MAR)


def month(source: str, stretch: Stretch, amount: int = 100, **values: Any) -> Target:
    return Target(source, amount, stretch.end + timedelta(days=3), stretch=stretch, resets=True, **values)


def test_a_later_stretch_ends_the_rest_of_an_earlier_one_however_it_came_to_be_booked() -> None:
    together, apart, backwards = Book(), Book(), Book()
    first, second = month("il_1", FIRST), month("il_2", SECOND)
    together.bring(first, second, now=FEB)
    apart.bring(first, now=FEB)
    apart.bring(first, second, now=FEB)
    backwards.bring(second, now=FEB)
    backwards.bring(first, second, now=FEB)
    assert together.sums() == apart.sums() == backwards.sums() == {("il_2", second.expires_at): 100}
    assert ("expire", -100) in apart.kinds()


@pytest.mark.parametrize(
    "second",
    [
        month("il_2", SECOND, amount=0),
        month("il_2", replace(SECOND, subscription_id="sub_2")),
        month("il_2", replace(SECOND, start=FEB - timedelta(days=1))),
    ],
)
def test_nothing_else_ends_an_earlier_stretch(second: Target) -> None:
    book = Book()
    book.bring(month("il_1", FIRST), now=FEB)
    book.bring(month("il_1", FIRST), second, now=FEB)
    assert book.sums()["il_1", month("il_1", FIRST).expires_at] == 100


def test_what_rolls_over_ends_others_but_is_not_ended() -> None:
    book = Book()
    kept = replace(month("il_1", FIRST), resets=False, expires_at=None)
    book.bring(kept, month("il_2", SECOND), now=FEB)
    assert book.tokens() == 200


def test_a_later_stretch_that_was_booked_ends_the_earlier_even_if_all_of_it_is_refunded() -> None:
    book = Book()
    book.bring(month("il_1", FIRST), month("il_2", SECOND, share=Fraction(1)), now=FEB)
    assert book.tokens() == 0
    assert book.kinds() == [("grant", 100), ("clawback", -100)]


def test_a_later_grant_that_has_come_to_wait_for_data_gives_the_earlier_back() -> None:
    book = Book()
    book.bring(month("il_1", FIRST), month("il_2", SECOND), now=FEB)
    book.bring(month("il_1", FIRST), month("il_2", SECOND, amount=0), now=FEB)
    assert book.sums() == {("il_1", month("il_1", FIRST).expires_at): 100}


def test_while_the_later_grant_may_not_be_booked_the_earlier_lives_on() -> None:
    book = Book()
    book.bring(month("il_1", FIRST), now=FEB)
    book.bring(month("il_1", FIRST), month("il_2", SECOND), now=FEB, may_book=False)
    assert book.sums() == {("il_1", month("il_1", FIRST).expires_at): 100}


# --- taken back, held -------------------------------------------------------------------------------------------------


def test_a_refund_takes_its_share_of_that_very_grant_and_a_failed_one_returns_it() -> None:
    book = Book()
    other = target("pi_1", 1000, None)
    book.bring(target(), other)
    book.spend(80)
    assert book.bring(target(share=Fraction(1, 2)), other).tokens == 1000
    assert book.bring(target(), other).tokens == 1020
    assert book.sums() == {("il_1", END): 20, ("pi_1", None): 1000}


def test_a_dispute_holds_the_unspent_part_while_expiry_goes_on() -> None:
    book = Book()
    book.bring(target())
    book.spend(40)
    held = book.bring(target(held=True))
    assert (held.tokens, held.tokens_expires_at) == (0, None)
    assert book.bring(target()).tokens == 60
    book.bring(target(held=True))
    assert book.bring(target(), now=END).tokens == 0


def test_a_source_that_is_no_longer_there_is_taken_back() -> None:
    book = Book()
    book.bring(target())
    book.spend(40)
    book.bring()
    assert book.kinds()[-1] == ("clawback", -60)
    book.bring(target())
    assert book.tokens() == 60


# --- spending ---------------------------------------------------------------------------------------------------------


def test_a_spend_draws_on_the_nearest_expiry_then_on_the_smallest_source() -> None:
    book = Book()
    book.bring(target("pi_1", 10, None), target("il_2", 10), target("il_1", 10), target("il_0", 10, LATER))
    assert book.spend(35).accepted
    drawn = [(entry.source, entry.amount) for entry in book.entries if entry.kind == "spend"]
    assert drawn == [("il_1", -10), ("il_2", -10), ("il_0", -10), ("pi_1", -5)]
    assert all(entry.grant_id for entry in book.entries if entry.kind == "spend")


def test_a_spend_beyond_the_balance_is_refused_as_a_whole() -> None:
    book = Book()
    book.bring(target())
    assert book.spend(101) == Spending(accepted=False, plan=Plan((), 100, END))


def test_the_same_key_spends_once_and_keys_of_users_do_not_meet() -> None:
    book = Book()
    book.bring(target())
    book.bring(target("il_2"), user="u2")
    assert book.spend(30, "order 1").plan.tokens == 70
    assert book.spend(30, "order 1") == Spending(accepted=True, plan=Plan((), 70, END))
    assert book.spend(999, "order 1").accepted
    assert book.spend(30, "order 1", user="u2").plan.tokens == 70
    assert book.spend(30, "order 2").plan.tokens == 40


def test_a_spend_first_ends_what_has_expired() -> None:
    book = Book()
    book.bring(target(), target("pi_1", 10, None))
    refused = book.spend(11, now=END)
    assert (refused.accepted, refused.plan.tokens) == (False, 10)
    assert book.kinds()[-1] == ("expire", -100)
    assert book.spend(10, now=END).accepted


@pytest.mark.parametrize("amount", [0, -1])
def test_only_positive_numbers_can_be_spent(amount: int) -> None:
    with pytest.raises(ValueError, match="positive"):
        spend("u1", amount, "k", [], NOW)


# --- direct writes ----------------------------------------------------------------------------------------------------


def test_tokens_that_somebody_took_directly_draw_on_the_nearest_expiry() -> None:
    book = Book()
    book.bring(target(), target("pi_1", 1000, None))
    book.write(-130)
    assert book.bring(target(), target("pi_1", 1000, None)).tokens_expires_at is None
    assert book.bring(target(), target("pi_1", 1000, None), now=END).tokens == 970


def test_tokens_that_somebody_gave_directly_have_their_own_expiry_and_can_be_spent() -> None:
    book = Book()
    book.write(50, END)
    book.write(20)
    assert book.spend(10).accepted
    assert book.bring(now=END).tokens == 20
    assert book.kinds()[-1] == ("expire", -40)


def test_a_refund_counts_what_was_taken_directly_as_spent() -> None:
    book = Book()
    book.bring(target())
    book.write(-70)
    assert book.bring(target(share=Fraction(1))).tokens == 0
    assert book.bring(target()).tokens == 30


# --- whose ------------------------------------------------------------------------------------------------------------


def test_when_a_link_moves_there_and_back_what_was_spent_stays_spent() -> None:
    book = Book()
    book.bring(target())
    book.spend(30)
    book.bring()
    book.bring(target(), user="u2")
    assert (book.tokens("u1"), book.tokens("u2")) == (0, 100)
    book.bring(user="u2")
    book.bring(target())
    assert (book.tokens("u1"), book.tokens("u2")) == (70, 0)


def test_what_a_deleted_user_was_granted_is_gone_for_good() -> None:
    book = Book()
    book.bring(target(), target("il_2"))
    book.forget("u1")
    book.bring(target(), target("il_3"), user="u2")
    assert book.sums("u2") == {("il_3", END): 100}
    assert grants("u2", [target(), target("il_3")], book.entries) == (Grant("il_3", 100, END),)


def test_a_user_keeps_what_a_former_user_lost_and_was_deleted_after() -> None:
    book = Book()
    book.bring(target())
    book.bring()
    book.bring(target(), user="u2")
    book.forget("u1")
    assert book.bring(target(), user="u2").bookings == ()
    assert book.tokens("u2") == 100


def test_a_user_may_come_back_under_the_id_of_one_who_was_deleted() -> None:
    book = Book()
    book.bring(target())
    book.bring()
    book.bring(target(), user="u2")
    book.forget("u1")
    book.bring(user="u2")
    assert book.bring(target(), user="u1").bookings[0].key == "grant:2:il_1:u1"


# --- trials -----------------------------------------------------------------------------------------------------------


def trial(source: str, product: str = "prod_1", amount: int = 100) -> Target:
    return target(source, amount, trial_of=product)


def test_a_trial_is_granted_once_per_product_and_e_mail() -> None:
    book = Book()
    book.bring(trial("sub_1"), email_hash=HASH)
    assert book.entries[0].email_hash == HASH
    book.forget("u1")
    assert book.bring(trial("sub_2"), user="u2", email_hash=HASH).tokens == 0
    assert book.bring(trial("sub_2"), user="u2", email_hash="other").tokens == 100
    assert book.bring(trial("sub_3", "prod:2"), user="u3", email_hash=HASH).tokens == 100
    book.forget("u3")
    assert book.bring(trial("sub_4", "prod:2"), user="u4", email_hash=HASH).tokens == 0


def test_a_trial_is_granted_once_per_product_and_user_even_if_the_first_one_is_gone() -> None:
    book = Book()
    book.bring(trial("sub_1"), now=NOW)
    book.spend(1)
    book.bring()
    assert book.bring(trial("sub_2")).tokens == 0


def test_a_trial_that_was_taken_back_whole_because_it_was_somebody_elses_has_not_been_had() -> None:
    book = Book()
    book.bring(trial("sub_1"), email_hash=HASH)
    book.bring(email_hash=HASH)
    assert book.bring(trial("sub_2"), email_hash=HASH).tokens == 100


def test_a_trial_of_ones_own_that_takes_the_place_of_a_stranger_s_is_granted_at_once() -> None:
    book = Book()
    book.bring(trial("sub_1"))
    assert book.bring(trial("sub_2")).tokens == 100
    assert book.sums() == {("sub_2", END): 100}


def test_a_running_trial_survives_a_change_to_an_e_mail_that_has_had_one() -> None:
    book = Book()
    book.bring(trial("sub_1"), email_hash=HASH)
    book.bring(trial("sub_2"), user="u2", email_hash="other")
    assert book.bring(trial("sub_2"), user="u2", email_hash=HASH).bookings == ()


def test_users_without_an_e_mail_have_no_e_mail_in_common() -> None:
    book = Book()
    book.bring(trial("sub_1"))
    assert book.bring(trial("sub_2"), user="u2").tokens == 100


def test_a_trial_keeps_its_tokens_when_its_own_link_moves_to_whoever_has_the_e_mail_now() -> None:
    book = Book()
    book.bring(trial("sub_1"), email_hash=HASH)
    assert book.bring(trial("sub_1"), user="u2", email_hash=HASH).tokens == 100


def test_an_earlier_trial_that_comes_to_light_takes_over_what_the_later_has_left() -> None:
    book = Book()
    book.bring(trial("sub_2"))
    book.spend(70)
    assert book.bring(trial("sub_1"), trial("sub_2", amount=0)).tokens == 30
    assert book.sums() == {("sub_1", END): 30}


# --- bans, pauses, room -----------------------------------------------------------------------------------------------


def test_while_nothing_may_be_booked_what_was_booked_stays_is_taken_given_back_and_expires() -> None:
    book = Book()
    book.bring(target(), target("il_2", expires_at=LATER))
    both = target(amount=150), target("il_2", expires_at=LATER)
    assert book.bring(*both, target("il_3"), may_book=False).bookings == ()
    held = replace(both[0], held=True)
    assert book.bring(held, both[1], may_book=False).tokens == 100
    assert book.bring(*both, may_book=False).tokens == 200
    assert book.bring(*both, now=END, may_book=False).tokens == 100
    assert grants("u1", [*both, target("il_3")], book.entries)[1:] == (Grant("il_2", 100, LATER),)


def test_what_the_balance_cannot_hold_is_refused_until_there_is_room() -> None:
    book = Book()
    packs = [target(f"pi_{number}", 1_000_000_000, None) for number in (1, 2, 3)]
    assert book.bring(*packs).refused == ("pi_3",)
    book.spend(1_000_000_000)
    assert book.bring(*packs).refused == ()
    assert book.tokens() == 2_000_000_000


def test_a_reset_makes_room_for_the_grant_that_causes_it() -> None:
    book = Book()
    first, second = month("il_1", FIRST, 2_000_000_000), month("il_2", SECOND, 2_000_000_000)
    book.bring(first, now=FEB)
    assert book.bring(first, second, now=FEB).refused == ()
    assert book.sums() == {("il_2", second.expires_at): 2_000_000_000}


def test_a_grant_that_does_not_fit_ends_no_earlier_stretch() -> None:
    book = Book()
    book.write(2_000_000_000)
    first, second = month("il_1", FIRST), month("il_2", SECOND, 1_000_000_000)
    book.bring(first, now=FEB)
    assert book.bring(first, second, now=FEB).refused == ("il_2",)
    assert book.tokens() == 2_000_000_100


def test_what_is_given_back_must_fit_as_well() -> None:
    book = Book()
    pack = target("pi_1", 2_000_000_000, None)
    book.bring(pack)
    book.bring(replace(pack, held=True))
    book.write(1_000_000_000)
    assert book.bring(pack).refused == ("pi_1",)
    assert book.tokens() == 1_000_000_000


# --- properties -------------------------------------------------------------------------------------------------------

# A busy machine makes a slow draw, not a wrong answer.

SHOWN = ("subscriptions", "invoices", "invoice_payments", "payment_intents", "charges", "disputes", "sessions")
days = st.integers(0, 90).map(lambda number: JAN + timedelta(days=number))


def pieces(given_facts: Facts) -> list[tuple[str, Any]]:
    return [(name, piece) for name in SHOWN for piece in getattr(given_facts, name)] + [
        ("prices", price) for price in PRICES
    ]


def shown(given_facts: Facts, known: Sequence[tuple[str, Any]]) -> Facts:
    """Return the facts as far as they have arrived."""
    found: dict[str, Any] = {name: tuple(piece for kind, piece in known if kind == name) for name in (*SHOWN, "prices")}
    return replace(given_facts, **found)


@given(whole, days, st.data())
def test_in_whatever_order_facts_arrive_the_sums_per_source_and_expiry_are_the_same(
    given_facts: Facts,
    now: datetime,
    data: st.DataObject,
) -> None:
    at_once, one_by_one = Book(), Book()
    at_once.bring(*targets(given_facts).targets, now=now)
    order = data.draw(st.permutations(pieces(given_facts)))
    stops = data.draw(st.lists(st.integers(0, len(order)), max_size=8))
    for stop in sorted(stops):
        one_by_one.bring(*targets(shown(given_facts, order[:stop])).targets, now=now)
        strangers = data.draw(st.booleans())
        if strangers:
            # Evidence that comes late may have shown the customer to be somebody else's for a while.
            one_by_one.bring(now=now)
            one_by_one.bring(*targets(shown(given_facts, order[:stop])).targets, now=now, user="u2")
    one_by_one.bring(now=now, user="u2")
    one_by_one.bring(*targets(given_facts).targets, now=now)
    assert one_by_one.sums() == at_once.sums()
    assert one_by_one.sums("u2") == {}
    assert standing("u1", one_by_one.entries) == standing("u1", at_once.entries)


@given(whole, st.data())
def test_whatever_happens_entries_add_up_and_the_balance_is_never_negative(
    given_facts: Facts,
    data: st.DataObject,
) -> None:
    book, now = Book(), JAN
    order = data.draw(st.permutations(pieces(given_facts)))
    for step in range(data.draw(st.integers(1, 8))):
        now += timedelta(days=data.draw(st.integers(0, 20)))
        stop = data.draw(st.integers(0, len(order)))
        plan = book.bring(
            *targets(shown(given_facts, order[:stop])).targets, now=now, may_book=data.draw(st.booleans())
        )
        assert plan.tokens == sum(entry.amount for entry in book.entries) == sum(book.sums().values())
        if data.draw(st.booleans()):
            wanted = data.draw(st.integers(1, 1500))
            assert book.spend(wanted, str(step), now=now).accepted == (wanted <= plan.tokens)
        written = data.draw(st.integers(-300, 300))
        if written and book.tokens() + written >= 0:
            book.write(written, data.draw(st.none() | days))


@given(
    st.lists(
        st.tuples(st.integers(1, 27), st.sampled_from(["100", "300", "500"]), st.booleans()), min_size=1, max_size=4
    ).map(sorted),
    st.data(),
)
def test_no_arrival_and_no_spending_makes_a_stretch_grant_more_than_the_highest_plan_paid_for(
    changes: list[tuple[int, str, bool]],
    data: st.DataObject,
) -> None:
    story, item = [invoice(JAN, line("il_0", "100", item="si_0"))], "si_0"
    for number, (start, plan, swap) in enumerate(changes, 1):
        moment = JAN + timedelta(days=start, minutes=number)
        target_item = f"si_{number}" if swap else item
        lines = credit(f"il_{number}a", moment, item=item), line(f"il_{number}b", plan, moment, item=target_item)
        story.append(invoice(moment, *lines, id=f"in_{number}"))
        item = target_item
    # That one item took another's place is known only from the invoice which says so: swaps arrive in order.
    swapped = any(swap for _, _, swap in changes)
    book, order = Book(), story if swapped else data.draw(st.permutations(story))
    for known in range(1, len(order) + 1):
        book.bring(*targets(facts(*order[:known])).targets, now=day(30))
        wanted = data.draw(st.integers(0, book.tokens()))
        if wanted:
            assert book.spend(wanted, str(known), now=day(30)).accepted
    granted = sum(entry.amount for entry in book.entries if entry.kind in {"grant", "clawback", "adjust"})
    assert granted <= max(100, *(int(plan) for _, plan, _ in changes))
