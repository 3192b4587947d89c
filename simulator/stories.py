"""Stories to tell: what happened at the merchant's, step by step, with the events of each step.

A story is a generator over a `Stripe`: when a step is given out its events have happened, and the clock stands where
the step ends. Make the `Stripe` with the clock at `story.begin(now)`, and all of the story lies before `now`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from simulator.calendar import DAY, HALF_DAY, HOUR, add_months
from simulator.objects import Event
from simulator.people import USERS, User
from simulator.state import Stripe


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that happened: a title, a sentence, the events that Stripe sent, the clock after it (Unix seconds)."""

    title: str
    sentence: str
    events: Sequence[Event]
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """A story by name; started at `begin(now)` it ends less than three days before `now` (Unix seconds)."""

    name: str
    sentence: str
    users: int
    begin: Callable[[int], int]
    tell: Callable[[Stripe, Sequence[User]], Iterator[Step]]


class _Teller:
    """Cuts the stream of events into steps."""

    def __init__(self, stripe: Stripe) -> None:
        self._stripe = stripe
        self._told = len(stripe.events)

    def step(self, title: str, sentence: str) -> Step:
        events = tuple(self._stripe.events[self._told :])
        self._told = len(self._stripe.events)
        return Step(title=title, sentence=sentence, events=events, at=self._stripe.now)


# The story is over so long after two months.
LAST_STEP = 10 * HOUR


def _two_months_before(now: int) -> int:
    # Two months back and forth may lose two days at the end of a month, never gain any.
    return add_months((now - LAST_STEP) // HALF_DAY * HALF_DAY, -2)


def membership_story(stripe: Stripe, users: Sequence[User] = USERS) -> Iterator[Step]:
    """Two months at a membership site with three members; see the sentences of its steps.

    It begins at midnight or noon, so that all who sign up before the next are billed on the same day of each month.
    """
    alice, bob, cara = users[:3]
    stripe.advance(-(-stripe.now // HALF_DAY) * HALF_DAY)
    begin, teller = stripe.now, _Teller(stripe)

    pro = stripe.create_product("Pro", description="All articles", metadata={"role": "PREMIUM", "tokens": "500"})
    pro_monthly = stripe.create_price(pro.id, 900, lookup_key="pro_monthly")
    stripe.update_product(pro.id, default_price=pro_monthly.id)
    studio = stripe.create_product("Studio", metadata={"role": "PREMIUM", "tokens": "2000", "rank": "1"})
    studio_monthly = stripe.create_price(studio.id, 2900, lookup_key="studio_monthly")
    pack = stripe.create_product("Token pack", description="1,000 tokens")
    pack_once = stripe.create_price(pack.id, 1000, interval=None, lookup_key="token_pack")
    yield teller.step(
        "Catalogue",
        "The merchant puts on sale Pro at $9 and Studio at $29 a month, and a pack of 1,000 tokens at $10.",
    )

    stripe.advance(begin + HOUR)
    customer = stripe.create_customer(bob.email, name=bob.name, metadata={"user_id": bob.id})
    bobs = stripe.checkout(pro_monthly.id, customer=customer.id, client_reference_id=bob.id, name=bob.name)
    yield teller.step("Bob subscribes", f"{bob.name} pays $9 in Checkout and is a Pro member.")

    stripe.advance(begin + 9 * HOUR)
    alices = stripe.checkout(pro_monthly.id, client_reference_id=alice.id, email=alice.email, name=alice.name)
    yield teller.step("Alice subscribes", f"{alice.name} goes to Checkout without ever having been a customer.")

    stripe.advance(begin + 3 * DAY)
    trial = stripe.open_checkout(
        pro_monthly.id, client_reference_id=cara.id, email=cara.email, trial_days=14, metadata={"user_id": cara.id}
    )
    caras = stripe.complete_checkout(trial.id, name=cara.name, completed_first=True)
    yield teller.step("Cara tries", f"{cara.name} begins a trial of fourteen days; nothing is charged yet.")

    stripe.advance(begin + 18 * DAY)
    yield teller.step("The trial ends", f"{cara.name}'s trial ends, and the first $9 are collected an hour later.")

    stripe.advance(add_months(begin, 1) + 2 * DAY)
    yield teller.step("Renewals", f"A month is over: {bob.name} and {alice.name} are billed again, and both pay.")

    stripe.advance(add_months(begin, 1) + 12 * DAY)
    stripe.schedule_cancel(alices.id, feedback="unused")
    yield teller.step("Alice cancels", f"{alice.name} cancels for the end of the period; until then everything stays.")

    stripe.advance(add_months(begin, 1) + 21 * DAY)
    yield teller.step("Cara renews", f"{cara.name}'s first month after the trial is over, and she pays for the next.")

    stripe.card_starts_failing(bobs.customer)
    stripe.advance(add_months(begin, 2) + 3 * HOUR)
    yield teller.step("A payment fails", f"{bob.name}'s card is declined at the renewal: the subscription is past due.")

    stripe.advance(add_months(begin, 2) + 5 * HOUR)
    stripe.set_card(bobs.customer, "ok")
    stripe.pay_invoice(stripe.subscriptions[bobs.id].latest_invoice or "")
    yield teller.step("Recovery", f"{bob.name} puts in another card and pays: the subscription is renewed after all.")

    stripe.advance(add_months(begin, 2) + 6 * HOUR)
    stripe.change_item(caras.subscription or "", price=studio_monthly.id)
    yield teller.step(
        "Cara upgrades", f"{cara.name} changes to Studio and pays the difference for the rest of the month."
    )

    stripe.advance(add_months(begin, 2) + 7 * HOUR)
    bought = stripe.purchase(
        pack_once.id, customer=bobs.customer, client_reference_id=bob.id, metadata={"user_id": bob.id, "tokens": "1000"}
    )
    yield teller.step("Bob buys tokens", f"{bob.name} pays $10 for the pack of 1,000 tokens.")

    stripe.advance(add_months(begin, 2) + 8 * HOUR)
    stripe.refund(bought.payment_intent or "", 400)
    yield teller.step("A refund", f"{bob.name} asks for money back, and the merchant refunds $4 of the $10.")

    stripe.advance(add_months(begin, 2) + LAST_STEP)
    yield teller.step("Alice's period ends", f"{alice.name}'s last paid period is over: the subscription is canceled.")


STORIES: Mapping[str, Story] = {
    "membership": Story(
        name="membership",
        sentence="sign-up, trial, renewal, a failed payment, recovery, upgrade, token pack, refund, cancellation",
        users=3,
        begin=_two_months_before,
        tell=membership_story,
    )
}
