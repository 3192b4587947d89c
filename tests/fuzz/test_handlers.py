"""Every handler, given events of which one field is wrong: never stuck, never half written, never unexpected."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import settings

from models import envelope, ledger
from models.upsert import LOCK_ORDER
from tests.conftest import new_database
from tests.fuzz.mutations import WRONGS, paths, renamed, with_wrong
from tests.workers.test_process import USER
from tests.workers.world import FIXTURES, World, fixture, world

# In every run each field is wrong in some ways, under `make fuzz` in all.
WAYS = len(WRONGS) if settings.get_current_profile_name() == "thorough" else 2
NAMES = sorted(path.stem for path in FIXTURES.glob("*.json") if isinstance(fixture(path.stem).get("data"), dict))
# Without these the receiver would not have stored it.
NEEDED = {("id",), ("type",)}


@pytest.fixture(scope="module")
def shared(postgres_url: str, template_database: str) -> Iterator[World]:
    with new_database(postgres_url, template_database) as url, world(url) as one:
        yield one


@pytest.fixture
def here(shared: World) -> World:
    """A database with nothing in it but the user whom the fixtures name."""
    shared.empty()
    shared.users(USER)
    return shared


def feed(here: World, events: Sequence[Mapping[str, Any]]) -> None:
    """Receive events as they come over the wire, and work off all of them."""
    with here.engine.begin() as connection:
        for event in events:
            ledger.record(connection, envelope.read(json.dumps(event).encode()))
    for lane in ledger.LANES:
        while here.road.process(lane):
            pass


def mutated(name: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Events about an object each, one field of each wrong; and what is wrong, by event id."""
    events, said = [], {}
    original, names = fixture(name), list(WRONGS)
    for number, path in enumerate(path for path in paths(original) if path not in NEEDED):
        for way in range(WAYS):
            wrong = names[(number * 7 + way) % len(names)]
            event = with_wrong(renamed(original, number * WAYS + way), path, WRONGS[wrong])
            events.append(event)
            said[event["id"]] = f"{'.'.join(map(str, path))}: {wrong}"
    return events, said


@pytest.mark.parametrize("name", NAMES)
def test_an_event_with_a_wrong_field_is_read_or_dies_as_malformed_and_harms_no_other(here: World, name: str) -> None:
    events, said = mutated(name)
    good = [renamed(fixture(name), 10**6 + number) for number in range(len(events) // 10)]
    fine = renamed(fixture(name), 10**9)
    feed(here, [*events, *good, fine])
    rows = here.execute("SELECT id, status, reason, error FROM stripe_events")
    ended = {row.id: (row.status, row.reason) for row in rows}
    assert {ended[one["id"]] for one in good} == {ended[fine["id"]]}
    assert ended[fine["id"]][0] in {"processed", "ignored"}
    unexpected = [
        f"{said[row.id]} → {row.status} {row.reason}: {row.error}"
        for row in rows
        if row.status not in {"processed", "ignored"} and (row.status, row.reason) != ("dead", "malformed")
    ]
    assert unexpected == []
    dead = [row.id for row in rows if row.status == "dead"]
    for table in LOCK_ORDER:
        left = here.execute(f"SELECT source FROM {table} WHERE source = ANY(:dead)", dead=dead)
        assert [said[row.source] for row in left] == [], f"a dead event left something in {table}"
