"""Bring a user's ledger to the targets: what to book, what a spend draws on, what is left and until when.

Pure, like `workers.tokens` whose targets it takes: no database, clock, Redis or Stripe. The caller locks the user,
loads the entries, books what is planned in the order given, and commits; planning once more then gives nothing.

The ledger is read as *lots*: an entry that draws on no other (a grant, or tokens that somebody wrote directly) opens
one; entries that name it as `grant_id` add to it or take from it, each with the lot's source and the expiry that it
concerns. What a lot has left at an expiry is therefore the sum of its entries there. Tokens that somebody took directly
name no lot: they count, at their place in the ledger, against the nearest expiry like any spend.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

from workers.tokens import Target, half_up

GRANT: Final = "grant"
SPEND: Final = "spend"
EXPIRE: Final = "expire"
CLAWBACK: Final = "clawback"
ADJUST: Final = "adjust"

MAX_BALANCE: Final = 2_147_483_647
"""The greatest value of `users.tokens`."""

_FOREVER: Final = datetime.max.replace(tzinfo=UTC)
_TRIAL: Final = "trial"


# --- the ledger and plans for it --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of `token_ledger`; `user_id` is null if the user was deleted."""

    id: int
    user_id: str | None
    kind: str
    amount: int
    key: str
    grant_id: int | None = None
    source: str | None = None
    expires_at: datetime | None = None
    email_hash: str | None = None


@dataclass(frozen=True, slots=True)
class Booking:
    """A row to add to `token_ledger`: it opens a lot, or draws on that of the row `grant_id` or with `grant_key`.

    A `grant_key` is the key of an earlier booking of the same plan, whose id is known when that one has been added.
    """

    user_id: str
    kind: str
    amount: int
    key: str
    grant_id: int | None = None
    grant_key: str | None = None
    source: str | None = None
    expires_at: datetime | None = None
    email_hash: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to book, in this order, and the balance and "the nearest expiry among unspent grants" afterwards.

    That expiry is also when time alone changes the balance next. `refused` are sources that the balance can't hold;
    `withheld` says that something would have been granted if it might.
    """

    bookings: tuple[Booking, ...]
    tokens: int
    tokens_expires_at: datetime | None
    refused: tuple[str, ...] = ()
    withheld: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Spending:
    """A spend: refused as a whole if the balance is less; the plan ends what has expired in either case."""

    accepted: bool
    plan: Plan


@dataclass(frozen=True, slots=True)
class Grant:
    """A source that was granted to a user, with the target and the expiry that it has by now."""

    source: str
    amount: int
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Holding:
    """Tokens that came together: what was granted, what became of them by kind of entry, what is left and until when.

    `left` is what there is at each expiry, nearest first; of a grant that was not moved there is one at most.
    """

    source: str | None
    kind: str
    sums: Mapping[str, int]
    left: tuple[tuple[datetime | None, int], ...]


def bring(
    user_id: str,
    targets: Sequence[Target],
    entries: Sequence[Entry],
    now: datetime,
    *,
    may_book: bool = True,
    email_hash: str | None = None,
) -> Plan:
    """Plan what brings the ledger of one user to their targets at `now`.

    `entries` are all of the user's, all of any user (and of nobody) whose source is one of the targets', and all with
    the user's `email_hash` (null: no e-mail). With `may_book` false (BANNED, or grants are paused) nothing new is
    granted: "what was booked before stays", is taken back, given back and expires as ever.
    """
    amounts = _amounts(user_id, targets, entries, email_hash)
    refused: list[str] = []
    while True:
        ledger = _Ledger(user_id, entries)
        ever_granted = {entry.source for entry in entries if entry.kind == GRANT}
        work = _Work(ledger, targets, amounts, now, may_book, refused, email_hash, ever_granted)
        try:
            work.bring()
        except _OverflowError as overflow:
            refused.append(overflow.source)
        else:
            return replace(ledger.plan(refused), withheld=work.withholds())


def spend(user_id: str, amount: int, key: str, entries: Iterable[Entry], now: datetime) -> Spending:
    """Plan to spend `amount` (above 0) of the user's tokens; what was spent with this `key` before is not spent again.

    `entries` are all of the user's.
    """
    if amount <= 0:
        raise ValueError("only a positive number of tokens can be spent")
    ledger = _Ledger(user_id, entries)
    for lot in ledger.lots:
        for expires_at in [end for end in lot.left if _is_over(end, now)]:
            ledger.draw(lot, EXPIRE, -lot.left[expires_at], expires_at)
    if _key(SPEND, "1", user_id, key) in ledger.keys:
        return Spending(accepted=True, plan=ledger.plan())
    if amount > ledger.tokens:
        return Spending(accepted=False, plan=ledger.plan())
    for part, (lot, expires_at, drawn) in enumerate(ledger.nearest(amount), 1):
        ledger.book(lot, SPEND, -drawn, expires_at, _key(SPEND, str(part), user_id, key))
    return Spending(accepted=True, plan=ledger.plan())


def standing(user_id: str, entries: Iterable[Entry]) -> Plan:
    """Return the balance and the nearest expiry as the user's entries have them, with nothing to book."""
    return _Ledger(user_id, entries).plan()


def holdings(user_id: str, entries: Iterable[Entry]) -> tuple[Holding, ...]:
    """Return what the user was ever given, in the order of booking, and what became of it."""
    return tuple(
        Holding(
            lot.source, lot.kind, dict(lot.sums), tuple(sorted(lot.left.items(), key=lambda end: end[0] or _FOREVER))
        )
        for lot in _Ledger(user_id, entries).lots
    )


def grants(
    user_id: str, targets: Sequence[Target], entries: Sequence[Entry], email_hash: str | None = None
) -> tuple[Grant, ...]:
    """Return what was granted to a user so far of these targets, before anything was spent, expired or taken back."""
    amounts = _amounts(user_id, targets, entries, email_hash)
    granted = {entry.source for entry in entries if entry.user_id == user_id and entry.kind == GRANT}
    return tuple(
        Grant(target.source, amounts[target.source], target.expires_at)
        for target in targets
        if amounts[target.source] > 0 and target.source in granted
    )


# --- reading the ledger -----------------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class _Lot:
    """A lot: what it has `left` at each expiry, and what came together under each kind of entry."""

    kind: str
    key: str
    source: str | None
    email_hash: str | None
    id: int | None = None
    left: dict[datetime | None, int] = field(default_factory=dict)
    sums: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, kind: str, amount: int, expires_at: datetime | None) -> None:
        self.left[expires_at] = self.left.get(expires_at, 0) + amount
        self.sums[kind] += amount


class _Ledger:
    """The lots of one user, and what is booked in addition."""

    def __init__(self, user_id: str, entries: Iterable[Entry]) -> None:
        self.user_id = user_id
        self.tokens = 0
        self.keys: set[str] = set()
        self.lots: list[_Lot] = []
        self.bookings: list[Booking] = []
        by_id: dict[int, _Lot] = {}
        for entry in sorted(entries, key=lambda entry: entry.id):
            self.keys.add(entry.key)
            if entry.user_id == user_id:
                self.tokens += entry.amount
                self._read(entry, by_id)

    def _read(self, entry: Entry, by_id: dict[int, _Lot]) -> None:
        if entry.grant_id is not None:
            by_id[entry.grant_id].add(entry.kind, entry.amount, entry.expires_at)
        elif entry.amount < 0:
            for lot, expires_at, drawn in self.nearest(-entry.amount):
                lot.add(SPEND, -drawn, expires_at)
        else:
            lot = by_id[entry.id] = _Lot(entry.kind, entry.key, entry.source, entry.email_hash, entry.id)
            lot.add(entry.kind, entry.amount, entry.expires_at)
            self.lots.append(lot)

    def nearest(self, amount: int) -> Iterator[tuple[_Lot, datetime | None, int]]:
        """Yield what a spend draws on: "the nearest expiry first", of equal ones the smallest source."""
        stock = [(lot, end, left) for lot in self.lots for end, left in lot.left.items() if left > 0]
        stock.sort(key=lambda piece: (piece[1] or _FOREVER, piece[0].source or "", piece[0].key))
        for lot, end, left in stock:
            drawn = min(left, amount)
            if drawn > 0:
                yield lot, end, drawn
            amount -= drawn

    def open(self, key: str, source: str, email_hash: str | None) -> _Lot:
        """Open the lot of a source; the booking with this key will be its first."""
        lot = _Lot(GRANT, key, source, email_hash)
        self.lots.append(lot)
        return lot

    def draw(self, lot: _Lot, kind: str, amount: int, expires_at: datetime | None) -> None:
        """Book an entry on a lot, if it is of any amount."""
        if amount:
            self.book(lot, kind, amount, expires_at, self.free_key(kind, lot.key))

    def book(self, lot: _Lot, kind: str, amount: int, expires_at: datetime | None, key: str) -> None:
        """Book an entry; raise _OverflowError if the balance can't hold it."""
        if self.tokens + amount > MAX_BALANCE:
            raise _OverflowError(lot.source or "")
        opens = key == lot.key
        self.bookings.append(
            Booking(
                self.user_id,
                kind,
                amount,
                key,
                grant_id=lot.id,
                grant_key=lot.key if lot.id is None and not opens else None,
                source=lot.source,
                expires_at=expires_at,
                email_hash=lot.email_hash,
            )
        )
        self.keys.add(key)
        self.tokens += amount
        lot.add(kind, amount, expires_at)

    def free_key(self, kind: str, *names: str) -> str:
        """Return the first key of this kind and these names that nobody has taken."""
        number = 1
        while (key := _key(kind, str(number), *names)) in self.keys:
            number += 1
        return key

    def plan(self, refused: Iterable[str] = ()) -> Plan:
        """Return what was booked, and what is left after it."""
        ends = [end for lot in self.lots for end, left in lot.left.items() if left > 0 and end is not None]
        return Plan(tuple(self.bookings), self.tokens, min(ends, default=None), tuple(refused))


class _OverflowError(Exception):
    """The balance can't hold what a source grants."""

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.source = source


def _is_over(expires_at: datetime | None, now: datetime) -> bool:
    return expires_at is not None and expires_at <= now


def _key(*parts: str) -> str:
    """Join the parts so that different ones never give the same key."""
    return ":".join(part.replace("%", "%25").replace(":", "%3A") for part in parts)


def _parts(key: str) -> list[str]:
    return [part.replace("%3A", ":").replace("%25", "%") for part in key.split(":")]


# --- from targets to bookings -----------------------------------------------------------------------------------------


def _amounts(
    user_id: str, targets: Iterable[Target], entries: Sequence[Entry], email_hash: str | None
) -> dict[str, int]:
    """Return the targets' amounts by source, but for what people have had.

    "What a *deleted* user was granted is gone for good": a source whose latest holder was deleted grants nothing.
    """
    known = list(targets)
    granted = sorted((entry for entry in entries if entry.kind == GRANT), key=lambda entry: entry.id)
    holders = {entry.source: entry.user_id for entry in granted}
    gone = {source for source, holder in holders.items() if holder is None}
    had = {entry.source for entry in granted if entry.user_id == user_id}
    tried = _tried(user_id, {target.source for target in known}, entries, email_hash)
    refused = {target.source for target in known if target.trial_of in tried and target.source not in had}
    return {target.source: 0 if target.source in gone | refused else target.amount for target in known}


def _tried(user_id: str, current: Collection[str], entries: Sequence[Entry], email_hash: str | None) -> set[str]:
    """Return the products that "the user [or] their e-mail, kept as a hash in the ledger, has had" on trial.

    Of today's sources `workers.tokens` chooses itself. One that turned out to be somebody else's has been had only as
    far as it can't be taken back any more.
    """
    kept: dict[int, int] = defaultdict(int)
    for entry in entries:
        if entry.kind in {GRANT, CLAWBACK, ADJUST}:
            kept[entry.grant_id or entry.id] += entry.amount
    own = [(lot.source, lot.key) for lot in _Ledger(user_id, entries).lots if lot.sums[SPEND] + lot.sums[EXPIRE] < 0]
    others = [
        (entry.source, entry.key)
        for entry in entries
        if entry.kind == GRANT and entry.user_id != user_id and kept[entry.grant_id or entry.id] > 0
        if email_hash is not None and entry.email_hash == email_hash
    ]
    keys = [_parts(key) for source, key in (*own, *others) if source not in current]
    return {parts[2] for parts in keys if parts[0] == _TRIAL}


@dataclass(eq=False, slots=True)
class _Work:
    """One user's targets beside their ledger; `refused` are sources for which there is no room."""

    ledger: _Ledger
    targets: Sequence[Target]
    amounts: Mapping[str, int]
    now: datetime
    may_book: bool
    refused: Collection[str]
    email_hash: str | None
    ever_granted: Collection[str | None]
    lots: dict[str | None, _Lot] = field(init=False)

    def __post_init__(self) -> None:
        self.targets = sorted(self.targets, key=lambda target: (target.expires_at or _FOREVER, target.source))
        self.lots = {lot.source: lot for lot in reversed(self.ledger.lots) if lot.kind == GRANT}

    def withholds(self) -> bool:
        """Say whether a source that has not ended would grant more if it might."""
        live = set() if self.may_book else self._live()
        return any(
            self.amounts[target.source] > self._level(target) for target in self.targets if target.source in live
        )

    def bring(self) -> None:
        """Book what is missing: first what goes, so that there is room for what comes."""
        live = self._live()
        wanted = {source: left if source in live else 0 for source, left in self._wanted().items()}
        growing = [target for target in self.targets if target.source in live and self._growth(target) > 0]
        moved = self._take(live, wanted, {target.source for target in growing})
        for target in self.targets:
            if target not in growing:
                self._give(target, wanted[target.source], moved)
        for target in growing:
            self._grant(target)
            self._give(target, wanted[target.source], moved)

    def _level(self, target: Target) -> int:
        """Return up to where a source is granted: its amount, or what was granted before if no more may be."""
        amount = self.amounts[target.source]
        return amount if self.may_book and target.source not in self.refused else min(amount, self._sum(target, GRANT))

    def _growth(self, target: Target) -> int:
        return self._level(target) - self._sum(target, GRANT)

    def _sum(self, target: Target, kind: str) -> int:
        lot = self.lots.get(target.source)
        return lot.sums[kind] if lot else 0

    def _live(self) -> set[str]:
        """Return the sources that have not ended: by their expiry, or because "a later stretch's grant is booked"."""
        booked: dict[str, datetime] = {}
        for target in self.targets:
            stretch = target.stretch
            is_booked = target.source in self.ever_granted or self._level(target) > 0
            if stretch is not None and target.amount > 0 and is_booked:
                booked[stretch.subscription_id] = max(stretch.start, booked.get(stretch.subscription_id, stretch.start))
        return {target.source for target in self.targets if not self._is_over(target) and not _is_reset(target, booked)}

    def _is_over(self, target: Target) -> bool:
        return _is_over(target.expires_at, self.now)

    def _wanted(self) -> dict[str, int]:
        """Return what every source should have left if it has not ended: its level but for what is taken or spent.

        Of sources that share one allotment (a stretch, the trials of a product) one may have been spent beyond a level
        that has fallen since, because a fact that came late gave it to another: that one then has as much less.
        """
        excess: dict[object, int] = defaultdict(int)
        for target in self.targets:
            excess[_pool(target)] += max(0, -self._sum(target, SPEND) - self._level(target))
        wanted = {}
        for target in self.targets:
            level = self._level(target)
            left = max(0, level + self._sum(target, SPEND))
            charged = min(left, excess[_pool(target)])
            excess[_pool(target)] -= charged
            taken = level if target.held else half_up(level * target.share)
            wanted[target.source] = max(0, left - charged - taken)
        return wanted

    def _take(self, live: Collection[str], wanted: Mapping[str, int], growing: Collection[str]) -> set[str]:
        """Book what every lot has too much; return the sources of which something moves to another expiry."""
        targets = {target.source: target for target in self.targets}
        moved = set()
        for lot in list(self.ledger.lots):
            target = targets.get(lot.source or "") if lot is self.lots.get(lot.source) else None
            for end, left in list(lot.left.items()):
                if lot.kind != GRANT:
                    self._trim(lot, EXPIRE, 0 if _is_over(end, self.now) else left, end)
                elif target is None:
                    self._trim(lot, EXPIRE if _is_over(end, self.now) else CLAWBACK, 0, end)
                elif target.source not in live:
                    self._trim(lot, EXPIRE, 0, end)
                elif end != target.expires_at:
                    moved |= {target.source} if left else set()
                    self._trim(lot, ADJUST, 0, end)
                elif target.source not in growing:
                    self._trim(lot, CLAWBACK, wanted[target.source], end)
        return moved

    def _trim(self, lot: _Lot, kind: str, keep: int, end: datetime | None) -> None:
        self.ledger.draw(lot, kind, min(0, keep - lot.left.get(end, 0)), end)

    def _grant(self, target: Target) -> None:
        """Book what a source has not granted yet."""
        names = (target.source, self.ledger.user_id)
        kind, *rest = (_TRIAL, target.trial_of, *names) if target.trial_of is not None else (GRANT, *names)
        key = self.ledger.free_key(kind, *rest)
        lot = self.lots.get(target.source)
        growth = self._growth(target)
        if lot is None:
            trial_hash = self.email_hash if target.trial_of is not None else None
            lot = self.lots[target.source] = self.ledger.open(key, target.source, trial_hash)
        self.ledger.book(lot, GRANT, growth, target.expires_at, key)

    def _give(self, target: Target, wanted: int, moved: Collection[str]) -> None:
        """Bring what a source has left to what it should have; what was granted in full may at once be taken back."""
        lot = self.lots.get(target.source)
        if lot is None:
            return
        missing = wanted - lot.left.get(target.expires_at, 0)
        if missing < 0:
            self.ledger.draw(lot, CLAWBACK, missing, target.expires_at)
        elif target.source not in self.refused:
            returned = EXPIRE if lot.sums[EXPIRE] < 0 else CLAWBACK
            self.ledger.draw(lot, ADJUST if target.source in moved else returned, missing, target.expires_at)


def _is_reset(target: Target, booked: Mapping[str, datetime]) -> bool:
    """Say whether a later stretch, "starting at or after the end of this one's billed periods", is booked."""
    if target.stretch is None or not target.resets:
        return False
    start = booked.get(target.stretch.subscription_id)
    return start is not None and start >= target.stretch.end


def _pool(target: Target) -> object:
    """Return what a source shares its allotment with."""
    if target.stretch is not None:
        return target.stretch.id
    return (_TRIAL, target.trial_of) if target.trial_of is not None else (GRANT, target.source)
