"""`dues events`: the ledger listed in pages, one event explained, and replays that take exactly what was meant."""

from __future__ import annotations

from collections.abc import Iterable

import psycopg
import pytest
import redis

from tests.ops.command_line import Dues

EVENT = {
    "id": "evt_1",
    "type": "customer.created",
    "object_type": "customer",
    "object_id": "cus_1",
    "created": "2026-01-31T12:00:00.000Z",
    "status": "processed",
    "reason": None,
    "error": None,
    "attempts": 1,
    "lane": "live",
    "received_at": "2026-01-31T12:00:01.234Z",
    "processed_at": "2026-01-31T12:00:02.345Z",
    "payload": b'{"id": "evt_1", "name": "L\xc3\xb6we"}',
}


def insert(connection: psycopg.Connection, *events: dict[str, object]) -> None:
    for changes in events:
        event = {**EVENT, **changes}
        names = ", ".join(event)
        values = ", ".join(f"%({name})s" for name in event)
        connection.execute(f"INSERT INTO stripe_events ({names}) VALUES ({values})".encode(), event)


def numbered(numbers: Iterable[int], **changes: object) -> list[dict[str, object]]:
    return [{"id": f"evt_{number}", "received_at": f"2026-01-31T12:00:{number:02}Z", **changes} for number in numbers]


def listed(dues: Dues, *options: str) -> list[str]:
    return [event["id"] for event in dues.fine("events", "list", "--json", *options).json["events"]]


# --- list ---------------------------------------------------------------------------------------------------------


def test_the_list_is_what_the_contract_says(dues: Dues, plain: psycopg.Connection) -> None:
    insert(plain, {})
    assert dues.fine("events", "list", "--json").json == {
        "events": [
            {
                "id": "evt_1",
                "type": "customer.created",
                "object_id": "cus_1",
                "created": "2026-01-31T12:00:00.000Z",
                "status": "processed",
                "reason": None,
                "attempts": 1,
                "lane": "live",
                "received_at": "2026-01-31T12:00:01.234Z",
                "processed_at": "2026-01-31T12:00:02.345Z",
            }
        ],
        "next_cursor": None,
    }


def test_pages_hold_every_event_once_even_if_many_came_at_once(dues: Dues, plain: psycopg.Connection) -> None:
    insert(plain, *numbered(range(3)), {"id": "evt_same_a"}, {"id": "evt_same_b"}, {"id": "evt_same_c"})
    found, cursor = [], None
    while True:
        page = dues.fine("events", "list", "--json", "--limit", "3", *(["--cursor", cursor] if cursor else [])).json
        found += [event["id"] for event in page["events"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
        assert len(page["events"]) == 3
    assert found == ["evt_2", "evt_same_c", "evt_same_b", "evt_same_a", "evt_1", "evt_0"]


def test_a_cursor_of_nobody_is_refused(dues: Dues) -> None:
    for cursor in ("nonsense", "bm9uc2Vuc2U", "ä"):
        answer = dues("events", "list", "--cursor", cursor)
        assert answer.code == 2
        assert "--cursor is not a next_cursor" in answer.stderr


def test_the_list_can_be_narrowed(dues: Dues, plain: psycopg.Connection) -> None:
    insert(
        plain,
        {"id": "evt_a", "status": "dead", "reason": "malformed"},
        {"id": "evt_b", "type": "customer.subscription.created", "object_id": "sub_1"},
        {"id": "evt_c", "type": "product.created", "received_at": "2026-03-01T00:00:00Z"},
    )
    assert listed(dues, "--status", "dead") == ["evt_a"]
    assert listed(dues, "--type", "product.created") == ["evt_c"]
    assert listed(dues, "--type", "customer.*") == ["evt_b", "evt_a"]
    assert listed(dues, "--object", "sub_1") == ["evt_b"]
    assert listed(dues, "--since", "2026-02-01") == ["evt_c"]
    assert dues("events", "list", "--status", "lost").code == 2


def test_people_get_a_table_and_the_way_to_its_next_page(dues: Dues, plain: psycopg.Connection) -> None:
    insert(plain, *numbered(range(2), type="evil\x1b[2J"))
    lines = dues.fine("events", "list", "--limit", "1").stdout.splitlines()
    assert lines[0].split() == ["received_at", "status", "reason", "attempts", "type", "object_id", "id"]
    assert lines[1].split() == ["2026-01-31T12:00:01.000Z", "processed", "–", "1", "evil\\x1b[2J", "cus_1", "evt_1"]
    assert lines[3].startswith("More: --cursor ")
    rest = dues.fine("events", "list", "--cursor", lines[3].split()[-1]).stdout.splitlines()
    assert [line.split()[-1] for line in rest] == ["id", "evt_0"]


def test_everything_is_counted_by_what_became_of_it(dues: Dues, plain: psycopg.Connection) -> None:
    insert(plain, {}, {"id": "evt_2"}, {"id": "evt_3", "status": "ignored", "reason": "type", "type": "plan.created"})
    assert dues.fine("events", "list", "--count", "--json").json == {
        "counts": [
            {"status": "ignored", "reason": "type", "type": "plan.created", "n": 1},
            {"status": "processed", "reason": None, "type": "customer.created", "n": 2},
        ]
    }
    assert dues.fine("events", "list", "--count").stdout.splitlines()[1].split() == [
        "ignored",
        "type",
        "plan.created",
        "1",
    ]


# --- show ---------------------------------------------------------------------------------------------------------


def test_an_event_is_shown_with_its_reason_but_not_its_payload(dues: Dues, plain: psycopg.Connection) -> None:
    insert(plain, {"status": "dead", "reason": "worker_died", "error": "3 tries in a row ended silently"})
    shown = dues.fine("events", "show", "evt_1").stdout
    assert "error         3 tries in a row ended silently" in shown
    assert "explanation   its process ended without a word each time it was tried" in shown
    assert "Löwe" not in shown
    told = dues.fine("events", "show", "evt_1", "--json").json
    assert "payload" not in told
    assert (told["status"], told["reason"], told["has_payload"]) == ("dead", "worker_died", True)


def test_the_payload_is_shown_byte_for_byte_to_who_asks_for_it(dues: Dues, plain: psycopg.Connection) -> None:
    insert(plain, {}, {"id": "evt_2", "payload": None})
    assert dues.fine("events", "show", "evt_1", "--payload").stdout.endswith('\n\n{"id": "evt_1", "name": "Löwe"}\n')
    told = dues.fine("events", "show", "evt_1", "--payload", "--json").json
    assert told["payload"] == '{"id": "evt_1", "name": "Löwe"}'
    assert "The payload is gone" in dues.fine("events", "show", "evt_2", "--payload").stdout
    assert dues.fine("events", "show", "evt_2", "--payload", "--json").json["payload"] is None


def test_an_event_that_is_not_there_is_a_failure(dues: Dues) -> None:
    answer = dues("events", "show", "evt_?")
    assert (answer.code, answer.stderr) == (2, "Error: There is no event evt_? in the ledger.\n")


# --- replay -------------------------------------------------------------------------------------------------------


def waiting(connection: psycopg.Connection) -> list[str]:
    query = (
        "SELECT id FROM stripe_events WHERE status = 'received' AND reason = 'replayed' AND attempts = 0 ORDER BY id"
    )
    return [row[0] for row in connection.execute(query)]


def test_a_replay_has_to_say_of_what(dues: Dues, plain: psycopg.Connection) -> None:
    insert(plain, {})
    answer = dues("events", "replay")
    assert answer.code == 2
    assert "Which events?" in answer.stderr
    assert waiting(plain) == []


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        (["evt_1", "evt_3"], ["evt_1", "evt_3"]),
        (["--dead"], ["evt_3", "evt_4"]),
        (["--since", "2026-01-31T12:00:02Z"], ["evt_2", "evt_3", "evt_4"]),
        (["--type", "product.*"], ["evt_2", "evt_4"]),
        (["--dead", "--type", "product.*", "--since", "2026-01-31T12:00:00Z"], ["evt_4"]),
    ],
)
def test_a_replay_takes_what_is_meant_and_nothing_else(
    dues: Dues, plain: psycopg.Connection, options: list[str], taken: list[str]
) -> None:
    insert(plain, *numbered([1, 3]), *numbered([2, 4], type="product.created"))
    plain.execute("UPDATE stripe_events SET status = 'dead' WHERE id IN ('evt_3', 'evt_4')")
    rehearsed = dues.fine("events", "replay", *options, "--dry-run", "--json").json
    assert rehearsed == {"dry_run": True, "replayable": len(taken), "replayed": 0, "without_payload": []}
    assert waiting(plain) == []
    done = dues.fine("events", "replay", *options, "--json").json
    assert done == {"dry_run": False, "replayable": len(taken), "replayed": len(taken), "without_payload": []}
    assert waiting(plain) == taken


def test_a_replay_tells_of_events_whose_payload_is_gone(dues: Dues, plain: psycopg.Connection) -> None:
    insert(plain, *numbered([1]), *numbered([2], payload=None))
    answer = dues("events", "replay", "evt_1", "evt_2")
    assert answer.code == 1
    assert answer.stdout == "1 event will now be processed again.\n"
    assert answer.stderr == "evt_2: payload gone (DUES_RETENTION_DAYS), to be fetched from Stripe again\n"
    assert waiting(plain) == ["evt_1"]


def test_a_replay_of_an_unknown_event_replays_nothing(dues: Dues, plain: psycopg.Connection) -> None:
    insert(plain, {})
    answer = dues("events", "replay", "evt_1", "evt_9")
    assert (answer.code, answer.stderr) == (2, "Error: Not in the ledger, so nothing was replayed: evt_9.\n")
    answer = dues("events", "replay", "evt_1", "--dead")
    assert answer.code == 2
    assert "among those that the other options mean" in answer.stderr
    assert waiting(plain) == []


def test_a_large_replay_has_to_be_confirmed(dues: Dues, plain: psycopg.Connection) -> None:
    plain.execute(
        "INSERT INTO stripe_events (id, type, status, payload) SELECT 'evt_' || n, 'x', 'dead', '' "
        "FROM generate_series(1, 1001) AS n"
    )
    answer = dues("events", "replay", "--dead")
    assert (answer.code, "Replay 1001 events?" in answer.stderr) == (2, True)
    assert waiting(plain) == []
    assert dues.fine("events", "replay", "--dead", "--yes").stdout == "1001 events will now be processed again.\n"
    assert len(waiting(plain)) == 1001


def test_a_replay_rings_the_bell_and_does_without_redis(
    dues: Dues, plain: psycopg.Connection, redis_db_url: str
) -> None:
    insert(plain, {})
    dues.fine("events", "replay", "evt_1", REDIS_URL=redis_db_url)
    with redis.Redis.from_url(redis_db_url) as client:
        assert client.keys("bulk*") != []
    answer = dues.fine("events", "replay", "evt_1", "--json", REDIS_URL="redis://127.0.0.1:1/0")
    assert answer.json["replayed"] == 1
