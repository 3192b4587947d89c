from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from models.database import connect
from models.settings import Settings, read_settings
from workers.due import decide_all_due

SETTINGS = Settings()
# A user whose decision PostgreSQL refuses, as a fault of ours or of the data might.
CURSE = """
CREATE FUNCTION curse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'cursed'; END $$;
CREATE TRIGGER curse BEFORE UPDATE OF membership_status ON users
FOR EACH ROW WHEN (OLD.id = 'cursed') EXECUTE FUNCTION curse();
"""


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = connect(read_settings({"DATABASE_URL": database_url}), application="test")
    yield engine
    engine.dispose()


def sign_up(engine: Engine, *users: str) -> None:
    with engine.begin() as connection:
        for user in users:
            connection.execute(text("INSERT INTO users (id) VALUES (:id)"), {"id": user})


def undecided(engine: Engine) -> set[str]:
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT id FROM users WHERE membership_status = 'ACTIVE'"))
        return {row.id for row in rows}


def test_one_who_cannot_be_decided_holds_up_nobody_and_is_named(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    sign_up(engine, "cursed", *(f"user_{number}" for number in range(20)))
    with engine.begin() as connection:
        connection.execute(text(CURSE))
    decide_all_due(engine, SETTINGS, threading.Event())
    assert undecided(engine) == {"cursed"}
    assert caplog.text.count("user cursed can't be decided") == 1


def test_it_is_tried_again_ten_minutes_later_and_not_before(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    sign_up(engine, "cursed")
    with engine.begin() as connection:
        connection.execute(text(CURSE))
    for _ in range(3):
        decide_all_due(engine, SETTINGS, threading.Event())
    assert caplog.text.count("user cursed") == 1
    with engine.begin() as connection:
        seconds = text("SELECT extract(epoch FROM next_change_at - now()) FROM users")
        assert 590 < connection.execute(seconds).scalar_one() <= 600
        connection.execute(text("DROP TRIGGER curse ON users"))
        connection.execute(text("UPDATE users SET next_change_at = now()"))
    assert decide_all_due(engine, SETTINGS, threading.Event()) == 1
    assert undecided(engine) == set()


def test_after_what_passes_by_itself_it_is_tried_again_in_a_minute(engine: Engine) -> None:
    sign_up(engine, "cursed")
    with engine.begin() as connection:
        connection.execute(text(CURSE.replace("RAISE 'cursed'", "RAISE EXCEPTION USING ERRCODE = 'disk_full'")))
    decide_all_due(engine, SETTINGS, threading.Event())
    with engine.connect() as connection:
        seconds = text("SELECT extract(epoch FROM next_change_at - now()) FROM users")
        assert 50 < connection.execute(seconds).scalar_one() <= 60


def test_more_than_a_slice_is_decided_in_one_go(engine: Engine) -> None:
    sign_up(engine, *(f"user_{number:04}" for number in range(1100)))
    assert decide_all_due(engine, SETTINGS, threading.Event(), seconds=60) == 1100
    assert undecided(engine) == set()


def test_it_ends_when_it_is_told_to(engine: Engine) -> None:
    sign_up(engine, "user_1")
    stopping = threading.Event()
    stopping.set()
    assert decide_all_due(engine, SETTINGS, stopping) == 0
    assert undecided(engine) == {"user_1"}
