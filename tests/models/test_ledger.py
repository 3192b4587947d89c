"""The ledger of events: recorded once, claimed by one, and changed only by whoever holds the claim."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, Engine, text

from models import ledger
from models.ledger import SECOND_TRY_LIST, SILENT_ENDS, Claim, Ending, Filter, Lane, Received

VERSION = "1.2.3"
PROCESSED = Ending("processed")
WHY = ("transient", "DeadlockDetected 40P01")


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    """Dues, each statement a transaction."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield connection


def event(row_id: str, **values: Any) -> Received:
    return Received(**{"id": row_id, "type": "product.updated", "payload": b"{}", **values})


def receive(connection: Connection, *ids: str, **values: Any) -> None:
    for row_id in ids:
        assert ledger.record(connection, event(row_id, **values))


def put(site: psycopg.Connection, attempts: dict[str, int], *, lane: str = "live", due: str = "now()") -> None:
    """Events tried so often, due one millisecond after the other."""
    for place, (row_id, number) in enumerate(attempts.items()):
        site.execute(
            "INSERT INTO stripe_events (id, type, payload, attempts, lane, due_at)"
            f" VALUES (%s, 'x', '', %s, %s, {due} - interval '1 minute' + %s * interval '1 ms')",
            [row_id, number, lane, place],
        )


def take(connection: Connection, lane: Lane = "live", *, size: int = 200, lease: float = 60) -> Claim:
    return ledger.claim(connection, lane, size=size, lease=lease)


def ids(claim: Claim) -> list[str]:
    return [one.id for one in claim.events]


def let_leases_end(site: psycopg.Connection) -> None:
    site.execute("UPDATE stripe_events SET due_at = clock_timestamp() - interval '1 s' WHERE status = 'received'")


def row(connection: Connection, row_id: str = "evt_1") -> Any:
    return connection.execute(text("SELECT * FROM stripe_events WHERE id = :id"), {"id": row_id}).one()


# --- recording ----------------------------------------------------------------------------------------------------


def test_an_event_is_kept_as_it_came(connection: Connection) -> None:
    given = event(
        "evt_1",
        payload=b'\x00\xff{"a": 1}',
        created=1_793_520_000,
        object_type="product",
        object_id="prod_1",
        api_version="2026-05-27.dahlia",
        livemode=True,
        account="acct_1",
        lane="bulk",
    )
    assert ledger.record(connection, given)
    kept = row(connection)
    for name in Received.__slots__:
        expected = getattr(given, name)
        assert getattr(kept, name) == (datetime.fromtimestamp(expected, UTC) if name == "created" else expected), name
    assert (kept.status, kept.attempts, kept.claim) == ("received", 0, None)


def test_an_event_may_say_no_more_than_its_id_and_type(connection: Connection) -> None:
    assert ledger.record(connection, Received(id="evt_1", type="x", payload=b""))
    kept = row(connection)
    assert (kept.created, kept.object_id, kept.livemode, kept.account) == (None, None, None, None)
    assert ids(take(connection)) == ["evt_1"]


def test_an_event_is_recorded_once_and_the_first_stays(connection: Connection) -> None:
    assert ledger.record(connection, event("evt_1", payload=b"first"))
    before = row(connection)
    assert not ledger.record(connection, event("evt_1", payload=b"second", type="y", lane="bulk"))
    assert row(connection) == before


def test_a_repetition_of_a_finished_event_does_not_wake_it(connection: Connection) -> None:
    receive(connection, "evt_1")
    ledger.finish(connection, take(connection).token, ["evt_1"], PROCESSED, VERSION)
    assert not ledger.record(connection, event("evt_1"))
    assert ids(take(connection)) == []


def test_one_event_delivered_many_times_at_once_is_stored_once(engine: Engine) -> None:
    def deliver(number: int) -> bool:
        with engine.begin() as connection:
            return ledger.record(connection, event(f"evt_{number % 10}"))

    with ThreadPoolExecutor(6) as threads:
        assert sum(threads.map(deliver, range(60))) == 10


def test_an_event_can_be_claimed_at_once_after_its_commit(connection: Connection) -> None:
    for number in range(100):
        receive(connection, f"evt_{number}")
        claim = take(connection)
        assert ids(claim) == [f"evt_{number}"]
        assert ledger.give_back(connection, claim.token, ids(claim), tried=False)
        assert ledger.waiting_lanes(connection) == ["live"]
        assert ledger.finish(connection, take(connection).token, ids(claim), PROCESSED, VERSION)


# --- claiming -----------------------------------------------------------------------------------------------------


def test_a_claim_counts_the_try_and_takes_the_lease_before_it_is_made(connection: Connection) -> None:
    receive(connection, "evt_1", livemode=False, account="acct_1", payload=b"x")
    claim = take(connection, lease=45)
    (claimed,) = claim.events
    assert (claimed.id, claimed.type, claimed.payload, claimed.livemode, claimed.account, claimed.attempts) == (
        "evt_1", "product.updated", b"x", False, "acct_1", 1,
    )  # fmt: skip
    held = row(connection)
    assert (held.attempts, str(held.claim)) == (1, claim.token)
    left = connection.execute(text("SELECT :due - clock_timestamp()"), {"due": held.due_at}).scalar_one()
    assert timedelta(seconds=40) < left <= timedelta(seconds=45)
    assert ids(take(connection)) == []


def test_an_empty_lane_gives_an_empty_claim(connection: Connection) -> None:
    assert take(connection).events == ()


@pytest.mark.parametrize(("attempts", "size"), [(0, 30), (1, SECOND_TRY_LIST), (2, 1), (3, 1), (9, 1)])
def test_the_more_often_tried_the_shorter_the_list(
    connection: Connection, site: psycopg.Connection, attempts: int, size: int
) -> None:
    put(site, {f"evt_{number:02}": attempts for number in range(40)})
    assert ids(take(connection, size=30)) == [f"evt_{number:02}" for number in range(size)]


def test_a_list_smaller_than_sixteen_is_the_limit_of_second_tries_too(
    connection: Connection, site: psycopg.Connection
) -> None:
    put(site, {f"evt_{number:02}": 1 for number in range(40)})
    assert len(take(connection, size=1).events) == 1
    assert len(take(connection, size=5).events) == 5


def test_a_list_is_of_the_kind_of_its_oldest_event(connection: Connection, site: psycopg.Connection) -> None:
    put(site, {"a": 0, "b": 5, "c": 0, "d": 1, "e": 2, "f": 1, "g": 0})
    lists = [ids(take(connection)) for _ in range(5)]
    assert lists == [["a", "c", "g"], ["b"], ["d", "f"], ["e"], []]


def test_what_is_due_first_is_taken_first_and_what_is_not_due_not_at_all(
    connection: Connection, site: psycopg.Connection
) -> None:
    put(site, {"c": 0, "a": 0, "b": 0})
    put(site, {"z": 0}, due="now() + interval '1 hour'")
    assert [ids(take(connection, size=1)) for _ in range(4)] == [["c"], ["a"], ["b"], []]


def test_lanes_are_apart(connection: Connection, site: psycopg.Connection) -> None:
    put(site, {"l1": 0, "l2": 2})
    put(site, {"b1": 0}, lane="bulk")
    assert ledger.waiting_lanes(connection) == ["live", "bulk"]
    assert ids(take(connection, "bulk")) == ["b1"]
    assert ledger.waiting_lanes(connection) == ["live"]
    assert [ids(take(connection)) for _ in range(2)] == [["l1"], ["l2"]]
    assert ledger.waiting_lanes(connection) == []


def test_claims_made_side_by_side_never_overlap_and_leave_nothing(engine: Engine, site: psycopg.Connection) -> None:
    put(site, {f"evt_{number:03}": number % 4 for number in range(400)})

    def work(_: int) -> list[str]:
        taken: list[str] = []
        while True:
            with engine.begin() as connection:
                claim = take(connection, size=20)
                time.sleep(0.001)
            if not claim.events:
                return taken
            taken += ids(claim)

    with ThreadPoolExecutor(4) as threads:
        taken = [row_id for part in threads.map(work, range(4)) for row_id in part]
    assert len(taken) == len(set(taken))
    assert sorted(taken) == [f"evt_{number:03}" for number in range(400)]


def test_a_claim_not_yet_committed_holds_up_nobody(engine: Engine, site: psycopg.Connection) -> None:
    put(site, {"poison": 2, "a": 0, "b": 0})
    with engine.begin() as first, engine.begin() as second:
        assert ids(take(first)) == ["poison"]
        assert ids(take(second)) == ["a", "b"]


def test_a_claim_rolled_back_was_no_try(engine: Engine, connection: Connection) -> None:
    receive(connection, "evt_1")
    with engine.connect() as other:
        assert ids(take(other)) == ["evt_1"]
        other.rollback()
    assert take(connection).events[0].attempts == 1


# --- leases that end ----------------------------------------------------------------------------------------------


def test_an_event_whose_lease_ends_is_claimed_by_the_next(connection: Connection, site: psycopg.Connection) -> None:
    receive(connection, "evt_1")
    first = take(connection, lease=0.05)
    second = None
    deadline = time.monotonic() + 5
    while not (second and second.events) and time.monotonic() < deadline:
        second = take(connection)
    assert second is not None
    assert ids(second) == ["evt_1"]
    assert second.token != first.token
    assert second.events[0].attempts == 2


def test_silent_ends_are_counted_until_a_try_says_how_it_ended(
    connection: Connection, site: psycopg.Connection
) -> None:
    receive(connection, "evt_1")
    seen = []
    for _ in range(SILENT_ENDS + 1):
        claim = take(connection)
        seen.append(claim.events[0].silent_ends)
        let_leases_end(site)
    assert seen == list(range(SILENT_ENDS + 1))
    claim = take(connection)
    assert ledger.postpone(connection, claim.token, "evt_1", 0, WHY, VERSION)
    assert row(connection).error == WHY[1]
    assert take(connection).events[0].silent_ends == 0
    let_leases_end(site)
    assert take(connection).events[0].silent_ends == 1


def test_a_silent_end_after_a_recorded_failure_counts_from_one(
    connection: Connection, site: psycopg.Connection
) -> None:
    receive(connection, "evt_1")
    ledger.postpone(connection, take(connection).token, "evt_1", 0, ("x", "silent end of the week"), VERSION)
    take(connection)
    let_leases_end(site)
    assert take(connection).events[0].silent_ends == 1


def test_a_list_given_back_in_time_was_no_silent_end(connection: Connection) -> None:
    receive(connection, "evt_1")
    for _ in range(5):
        claim = take(connection)
        assert claim.events[0].silent_ends == 0
        ledger.give_back(connection, claim.token, ["evt_1"], tried=True)


# --- what the holder of a claim may do ----------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Connection, str], object]] = {
    "finish": lambda connection, token: ledger.finish(connection, token, ["evt_1"], PROCESSED, VERSION),
    "postpone": lambda connection, token: ledger.postpone(connection, token, "evt_1", 60, WHY, VERSION),
    "give back": lambda connection, token: ledger.give_back(connection, token, ["evt_1"], tried=True),
    "give back untried": lambda connection, token: ledger.give_back(connection, token, ["evt_1"], tried=False),
    "next slice": lambda connection, token: ledger.next_slice(connection, token, "evt_1", b"rest"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_former_holder_changes_nothing(connection: Connection, site: psycopg.Connection, change: str) -> None:
    receive(connection, "evt_1")
    former = take(connection)
    let_leases_end(site)
    holder = take(connection)
    before = row(connection)
    assert not CHANGES[change](connection, former.token)
    assert row(connection) == before
    assert CHANGES[change](connection, holder.token)
    after = row(connection)
    assert not CHANGES[change](connection, holder.token)
    assert row(connection) == after


@pytest.mark.parametrize("change", CHANGES)
def test_whoever_held_an_event_that_was_replayed_changes_nothing(connection: Connection, change: str) -> None:
    receive(connection, "evt_1")
    former = take(connection)
    ledger.replay(connection, ["evt_1"])
    assert not CHANGES[change](connection, former.token)


def test_finishing_a_list_says_which_were_still_ours(connection: Connection, site: psycopg.Connection) -> None:
    receive(connection, "evt_1", "evt_2", "evt_3")
    claim = take(connection)
    site.execute("UPDATE stripe_events SET claim = gen_random_uuid() WHERE id = 'evt_2'")
    finished = ledger.finish(connection, claim.token, ["evt_3", "evt_2", "evt_1", "evt_9"], PROCESSED, VERSION)
    assert finished == {"evt_1", "evt_3"}


@pytest.mark.parametrize(
    "ending", [PROCESSED, Ending("ignored", "type"), Ending("dead", "malformed", "created is missing")]
)
def test_an_ending_is_written_down_with_its_reason_and_is_the_end(
    connection: Connection, site: psycopg.Connection, ending: Ending
) -> None:
    receive(connection, "evt_1")
    take(connection)
    let_leases_end(site)  # leaves an error that the ending replaces
    ledger.finish(connection, take(connection).token, ["evt_1"], ending, VERSION)
    ended = row(connection)
    assert (ended.status, ended.reason, ended.error) == (ending.status, ending.reason, ending.error)
    assert (ended.claim, ended.code_version, ended.attempts) == (None, VERSION, 2)
    assert ended.processed_at is not None
    let_leases_end(site)
    assert ids(take(connection)) == []


def test_a_failed_try_is_due_again_later_with_its_reason(connection: Connection) -> None:
    receive(connection, "evt_1")
    assert ledger.postpone(connection, take(connection).token, "evt_1", 300.5, WHY, VERSION)
    waits = row(connection)
    assert (waits.status, waits.reason, waits.error, waits.claim) == ("received", *WHY, None)
    left = connection.execute(text("SELECT :due - clock_timestamp()"), {"due": waits.due_at}).scalar_one()
    assert timedelta(seconds=290) < left < timedelta(seconds=301)
    assert ids(take(connection)) == []


@pytest.mark.parametrize(("tried", "attempts"), [(True, 2), (False, 1)])
def test_what_is_given_back_can_be_claimed_at_once(connection: Connection, tried: bool, attempts: int) -> None:
    receive(connection, "evt_1", "evt_2")
    claim = take(connection)
    assert ledger.give_back(connection, claim.token, ids(claim), tried=tried) == {"evt_1", "evt_2"}
    again = take(connection)
    assert [one.attempts for one in again.events] == [attempts, attempts]


def test_work_of_our_own_goes_on_with_its_rest_as_if_never_tried(connection: Connection) -> None:
    row_id = ledger.enqueue(connection, "dues.recompute", b"all")
    assert ids(take(connection, "live")) == []
    for rest in (b"half", b"quarter"):
        claim = take(connection, "bulk")
        assert [(one.id, one.type, one.attempts) for one in claim.events] == [(row_id, "dues.recompute", 1)]
        assert ledger.next_slice(connection, claim.token, row_id, rest)
        assert row(connection, row_id).payload == rest


def test_what_another_lane_must_do_waits_there_untried(connection: Connection, site: psycopg.Connection) -> None:
    receive(connection, "evt_1", "evt_2")
    claim = take(connection)
    assert ledger.hand_over(connection, claim.token, ["evt_1"], "api") == {"evt_1"}
    assert ids(take(connection)) == []
    again = take(connection, "api")
    assert [(one.id, one.attempts, one.silent_ends) for one in again.events] == [("evt_1", 1, 0)]
    # Whose lease has ended hands nothing over any more.
    let_leases_end(site)
    take(connection)
    assert ledger.hand_over(connection, claim.token, ["evt_2"], "api") == set()


def test_what_many_ask_of_stripe_is_asked_once_and_again_after_a_rest(
    connection: Connection, site: psycopg.Connection
) -> None:
    def ask(rest: float = 10) -> bool:
        return ledger.ask(connection, "dues_1", "dues.refresh", b"{}", rest=rest)

    assert [ask() for _ in range(3)] == [True, False, False]
    claim = take(connection, "api")
    assert (ids(claim), ask(0)) == (["dues_1"], False)
    ledger.finish(connection, claim.token, ["dues_1"], Ending("dead", "unexpected", "x"), VERSION)
    assert (ask(), ask(0), ask(0)) == (False, True, False)
    again = row(connection, "dues_1")
    assert (again.status, again.attempts, again.reason, again.error) == ("received", 0, None, None)
    ledger.finish(connection, take(connection, "api").token, ["dues_1"], PROCESSED, VERSION)
    site.execute("UPDATE stripe_events SET processed_at = processed_at - interval '10 s'")
    assert ask()


def test_an_event_is_settled_once_what_was_asked_because_of_it_has_ended(connection: Connection) -> None:
    receive(connection, "evt_1", "evt_2")
    assert not ledger.is_settled(connection, "evt_1")
    assert ledger.ask(connection, ledger.fetch_id("evt_1"), "dues.fetch", b"{}")
    ledger.finish(connection, take(connection).token, ["evt_1"], PROCESSED, VERSION)
    assert not ledger.is_settled(connection, "evt_1")
    ledger.finish(connection, take(connection, "api").token, [ledger.fetch_id("evt_1")], PROCESSED, VERSION)
    assert ledger.is_settled(connection, "evt_1")
    assert not ledger.is_settled(connection, "evt_2")


# --- for people ---------------------------------------------------------------------------------------------------


def test_what_has_ended_can_be_replayed_while_its_payload_is_kept(
    connection: Connection, site: psycopg.Connection
) -> None:
    receive(connection, "evt_1", "evt_2", "evt_3")
    ledger.finish(connection, take(connection).token, ["evt_1", "evt_2"], Ending("dead", "unexpected", "x"), VERSION)
    site.execute("UPDATE stripe_events SET payload = NULL WHERE id = 'evt_2'")
    assert ledger.replayable(connection, Filter(status="dead")) == (["evt_1"], ["evt_2"])
    assert ledger.replay(connection, ["evt_2", "evt_1", "evt_9"]) == 1
    again = row(connection)
    assert (again.status, again.attempts, again.lane) == ("received", 0, "bulk")
    assert (again.error, again.processed_at, again.claim) == (None, None, None)
    assert row(connection, "evt_2").status == "dead"
    claim = take(connection, "bulk")
    assert [(one.id, one.attempts, one.silent_ends) for one in claim.events] == [("evt_1", 1, 0)]


def test_a_replay_may_take_the_live_lane(connection: Connection) -> None:
    receive(connection, "evt_1", lane="bulk")
    assert ledger.replay(connection, ["evt_1"], lane="live") == 1
    assert ids(take(connection, "live")) == ["evt_1"]


def test_pages_stay_as_they_are_while_events_arrive(connection: Connection, site: psycopg.Connection) -> None:
    # Several share a moment: their ids tell them apart.
    for number in range(20):
        site.execute(
            "INSERT INTO stripe_events (id, type, received_at) VALUES (%s, 'x', '2026-01-01'::timestamptz + %s)",
            [f"evt_{number:02}", timedelta(seconds=number // 4)],
        )
    seen: list[str] = []
    after = None
    for page in range(10):
        rows = ledger.listing(connection, Filter(), limit=3, after=after)
        seen += [one.id for one in rows]
        if len(rows) < 3:
            break
        after = (rows[-1].received_at, rows[-1].id)
        receive(connection, f"new_{page}")
        site.execute("UPDATE stripe_events SET attempts = attempts + 1, due_at = now()")
    order = {group: [f"evt_{4 * group + place:02}" for place in range(4)] for group in range(5)}
    assert seen == [row_id for group in (4, 3, 2, 1, 0) for row_id in sorted(order[group], reverse=True)]


def test_a_listing_shows_no_payload(connection: Connection, site: psycopg.Connection) -> None:
    receive(connection, "evt_1", "evt_2")
    site.execute("UPDATE stripe_events SET payload = NULL WHERE id = 'evt_1'")
    rows = ledger.listing(connection, Filter(), limit=10)
    assert [(one.id, one.has_payload) for one in rows] == [("evt_2", True), ("evt_1", False)]
    assert "payload" not in rows[0]._mapping


TYPES = ("invoice.paid", "invoice.payment_failed", "invoice_paid", "invoiceXpaid", "100%", "1000", "a\\b", "a\\", "axb")


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("invoice.paid", {"invoice.paid"}),
        ("invoice.*", {"invoice.paid", "invoice.payment_failed"}),
        ("*paid", {"invoice.paid", "invoice_paid", "invoiceXpaid"}),
        ("invoice_paid", {"invoice_paid"}),
        ("100%", {"100%"}),
        ("a\\b", {"a\\b"}),
        ("a\\*", {"a\\b", "a\\"}),
        ("a\\", {"a\\"}),
        ("*", set(TYPES)),
        ("invoice", set()),
    ],
)
def test_only_a_star_in_a_type_stands_for_others(connection: Connection, pattern: str, found: set[str]) -> None:
    for type_ in TYPES:
        receive(connection, f"evt_{type_}", type=type_)
    assert {one.type for one in ledger.listing(connection, Filter(type=pattern), limit=50)} == found
    assert set(ledger.replayable(connection, Filter(type=pattern))[0]) == {f"evt_{type_}" for type_ in found}


@pytest.mark.parametrize(
    ("which", "found"),
    [
        (Filter(), ["c", "b", "a"]),
        (Filter(ids=("a", "c", "nobody")), ["c", "a"]),
        (Filter(status="received"), ["c"]),
        (Filter(object_id="prod_1"), ["b", "a"]),
        (Filter(since=datetime(2026, 1, 2, tzinfo=UTC)), ["c", "b"]),
        (Filter(object_id="prod_1", since=datetime(2026, 1, 2, tzinfo=UTC), type="x*", status="dead"), ["b"]),
        (Filter(ids=("a",), status="received"), []),
    ],
)
def test_everything_that_a_filter_names_must_hold(
    connection: Connection, site: psycopg.Connection, which: Filter, found: list[str]
) -> None:
    for day, (row_id, status, object_id) in enumerate(
        [("a", "dead", "prod_1"), ("b", "dead", "prod_1"), ("c", "received", "prod_2")], start=1
    ):
        site.execute(
            "INSERT INTO stripe_events (id, type, status, object_id, received_at) VALUES (%s, 'xyz', %s, %s, %s)",
            [row_id, status, object_id, datetime(2026, 1, day, tzinfo=UTC)],
        )
    assert [one.id for one in ledger.listing(connection, which, limit=10)] == found


def test_everything_in_the_ledger_is_counted(connection: Connection) -> None:
    receive(connection, "evt_1", "evt_2", "evt_3")
    receive(connection, "evt_4", type="y")
    ledger.finish(connection, take(connection).token, ["evt_1", "evt_2"], Ending("ignored", "type"), VERSION)
    counted = {tuple(one) for one in ledger.counts(connection)}
    assert counted == {("ignored", "type", "product.updated", 2), ("received", None, "product.updated", 1),
                       ("received", None, "y", 1)}  # fmt: skip


# --- a large ledger -----------------------------------------------------------------------------------------------


def plan_of(connection: Connection, lane: Lane) -> tuple[str, dict[str, Any]]:
    """The plan of a claim, made and rolled back, as text, and the numbers of its run."""
    parameters = {"lane": lane, "size": 200, "second": 16, "token": "00000000-0000-0000-0000-000000000000", "lease": 60}
    explain = text(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {ledger._CLAIM.text}")
    with connection.begin() as transaction:
        (plan,) = connection.execute(explain, parameters).scalar_one()
        transaction.rollback()
    return json.dumps(plan), plan


@pytest.mark.parametrize("analyzed", [False, True], ids=["before statistics", "with statistics"])
def test_a_claim_reads_only_what_is_due_however_much_is_stored(
    engine: Engine, site: psycopg.Connection, analyzed: bool
) -> None:
    site.execute(
        "INSERT INTO stripe_events (id, type, payload, status)"
        " SELECT 'old_' || n, 'x', '{}', 'processed' FROM generate_series(1, 100000) AS n"
    )
    site.execute(
        "INSERT INTO stripe_events (id, type, payload, attempts, due_at) SELECT 'later_' || n, 'x', '{}', 1,"
        " now() + interval '1 hour' FROM generate_series(1, 20000) AS n"
    )
    put(site, {f"evt_{number:03}": 0 for number in range(300)})
    if analyzed:
        site.execute("ANALYZE stripe_events")
    with engine.connect() as connection:
        as_text, plan = plan_of(connection, "live")
        assert '"Relation Name": "stripe_events"' in as_text
        assert "Seq Scan" not in as_text
        assert "stripe_events_lane_due_at_id_idx" in as_text
        # 20,000 that wait for later lie behind the 300 in the index, and are not looked at.
        assert plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] < 20_000
        assert plan["Execution Time"] < 250
        _, empty = plan_of(connection, "bulk")
        assert empty["Plan"]["Shared Hit Blocks"] < 100
    site.execute("TRUNCATE stripe_events")


def rows_read(connection: Connection) -> int:
    query = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'stripe_events'"
    return int(connection.execute(text(query)).scalar_one())


def test_looking_for_waiting_lanes_reads_nothing_that_waits_for_later(engine: Engine, site: psycopg.Connection) -> None:
    site.execute(
        "INSERT INTO stripe_events (id, type, due_at) SELECT 'later_' || n, 'x', now() + interval '1 hour'"
        " FROM generate_series(1, 20000) AS n"
    )
    site.execute("ANALYZE stripe_events")
    with engine.begin() as connection:
        before = rows_read(connection)
        assert ledger.waiting_lanes(connection) == []
        assert take(connection).events == ()
        assert rows_read(connection) - before < 10
    site.execute("TRUNCATE stripe_events")
