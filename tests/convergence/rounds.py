"""What a round of the proof delivers: a few true histories, their users, and the posts in which they arrive.

Everything follows from the number of the round and its clock; ids belong to one history alone, so that many rounds
share a database.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any

from simulator.calendar import DAY
from simulator.histories import history
from simulator.people import User, people
from simulator.render import render_event
from simulator.state import Stripe
from simulator.versions import ACACIA, ENDIVE

HISTORIES = 8


@dataclass(frozen=True, slots=True)
class SignUp:
    """A user as the front end makes one: perhaps with a verified address, perhaps by an account that vouches for it."""

    user: User
    is_verified: bool
    provider: str | None


@dataclass(frozen=True, slots=True)
class Round:
    """`events` in their true order, rendered for good; `clock` (Unix seconds) is when the last history ends."""

    number: int
    clock: int
    pasts: Sequence[Stripe]
    users: Sequence[SignUp]
    events: Sequence[dict[str, Any]]

    def chance(self, what: str) -> Random:
        """Randomness of this round for one purpose."""
        return Random(f"round {self.number} {what}")

    def arrivals(self) -> Iterator[Sequence[dict[str, Any] | SignUp]]:
        """Everything in random order and portions, some of it twice or thrice, users among the events."""
        chance = self.chance("arrivals")
        posts: list[dict[str, Any] | SignUp] = [*self.events, *chance.choices(self.events, k=len(self.events) // 5)]
        if chance.random() < 0.2:
            posts.reverse()
        else:
            chance.shuffle(posts)
        for user in self.users:
            posts.insert(chance.randrange(len(posts)) if chance.random() < 0.5 else 0, user)
        while posts:
            size = chance.choice([1, 5, 50, 300])
            yield posts[:size]
            posts = posts[size:]


def make_round(number: int, clock: int, *, histories: int = HISTORIES) -> Round:
    """The round with this number: `histories` histories of one to three customers over one to four months."""
    chance = Random(f"round {number}")
    pasts, users = [], []
    for seed in range(number * HISTORIES, number * HISTORIES + histories):
        months, customers = chance.choice([1, 1, 2, 4]), chance.choice([1, 1, 2, 3])
        begin = clock - (months * 30 + chance.choice([0, 0, 0, 3, 20])) * DAY - chance.randrange(DAY)
        own = people(f"proof {seed}", customers)
        pasts.append(
            history(
                f"proof {seed}",
                customers,
                months,
                clock=begin,
                burst=chance.random() < 0.8,
                twins=chance.choice([0.0, 0.0, 0.2]),
                restless=chance.random() < 0.4,
                users=own,
            )
        )
        users += [SignUp(user, chance.random() < 0.4, chance.choice(["google", "myspace", None, None])) for user in own]
    told = sorted((event for past in pasts for event in past.events), key=lambda event: event.created)
    events = [render_event(event, chance.choice([ACACIA, ENDIVE])) for event in told]
    return Round(number, clock, pasts, users, events)


def midnight() -> int:
    """The last midnight (UTC) in Unix seconds: rounds of one day repeat exactly."""
    return int(datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0).timestamp())
