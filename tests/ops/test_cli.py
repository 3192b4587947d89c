"""The command as a whole: it loads what is asked for, and every failure is one sentence and exit code 2."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest

from ops import cli, commands, console, failures
from tests.ops.command_line import Dues
from tests.support import ROOT, free_port

HEAVY = ("sqlalchemy", "celery", "alembic", "flask", "redis", "psycopg", "dotenv")


def test_help_loads_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "ops.cli", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "setup-admin" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {name for name in HEAVY if name in loaded} == set()


def test_a_file_is_enough_to_add_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import click\n@click.command()\ndef command():\n    click.echo('hello')\n"
    (tmp_path / "say_hello.py").write_text(text)
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    found = cli.Commands()
    assert {"say-hello", "setup-admin", "db"} <= set(found)
    assert len(found) == len(list(found))
    assert found["say-hello"].name == "command"
    del sys.modules["ops.commands.say_hello"]


def test_a_command_can_be_added_and_taken_away_by_hand() -> None:
    found = cli.Commands()
    found["mine"] = click.Command("mine")
    assert "mine" in found
    del found["mine"]
    assert "mine" not in found


def test_the_version_is_shown(bare: Dues) -> None:
    assert bare.fine("--version").stdout.startswith("dues 0.")


def test_an_unknown_command_is_a_usage_error(bare: Dues) -> None:
    assert bare("nonsense").code == 2


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, "DATABASE_URL is not set"),
        ({"DATABASE_URL": "mysql://x"}, "DATABASE_URL must be an address that begins with postgresql://"),
        ({"DATABASE_URL": "postgresql://u:hush-hush@127.0.0.1:1/x"}, "PostgreSQL can't be reached"),
        ({"DATABASE_URL": "postgresql://u:hush-hush@127.0.0.1:x/x"}, "port that is a number"),
        ({"DATABASE_URL": "postgresql://u:hush-hush@127.0.0.1/x?sslmode=hush-hush"}, "sslmode"),
        ({"DATABASE_URL_FILE": "/nowhere"}, "DATABASE_URL_FILE can't be read"),
        ({"DUES_ENV": "production", "DATABASE_URL": "postgresql://u:hush-hush@db.example.com/x"}, "without TLS"),
    ],
)
def test_settings_that_do_not_work_end_in_one_sentence(bare: Dues, environment: dict[str, str], told: str) -> None:
    answer = bare("events", "list", **environment)
    assert answer.code == 2
    assert answer.stdout == ""
    assert told in answer.stderr
    assert answer.stderr.startswith("Error: ")
    assert len(answer.stderr.splitlines()) == 1
    assert "hush-hush" not in answer.stderr


def test_a_database_without_tables_is_told_what_to_do(bare: Dues, empty_database_url: str) -> None:
    answer = bare("users", "show", "nobody", DATABASE_URL=empty_database_url)
    assert answer.code == 2
    assert "run `dues db upgrade`" in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


def test_a_fault_of_ours_is_one_sentence_and_on_request_a_traceback(
    bare: Dues, monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command()
    def broken() -> None:
        raise ZeroDivisionError("somebody's e-mail address and whsec_hushhush")

    monkeypatch.setitem(cli.main.commands, "broken", broken)
    secret = {"STRIPE_WEBHOOK_SECRET": "whsec_hushhush,whsec_other"}
    told = bare("broken", **secret)
    assert told.code == 2
    assert "Unexpected ZeroDivisionError at ops/test_cli.py:" in told.stderr
    assert "somebody" not in told.stderr
    shown = bare("--traceback", "broken", **secret)
    assert shown.code == 2
    assert "Traceback" in shown.stderr
    assert "whsec_hushhush" not in shown.stderr


def test_what_was_interrupted_has_failed(bare: Dues, monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.main.commands, "interrupted", interrupted)
    assert bare("interrupted").code == 2


def test_secrets_are_taken_out_of_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:p%40ssword@host/x")
    monkeypatch.setenv("REDIS_URL", "redis://:sesame@host/0")
    monkeypatch.setenv("STRIPE_API_KEY", "rk_live_1")
    said = failures.without_secrets("p@ssword, p%40ssword, sesame and rk_live_1 are secrets")
    assert said == "***, ***, *** and *** are secrets"


def test_a_reader_that_has_seen_enough_is_no_failure() -> None:
    command = [sys.executable, "-m", "ops.cli", "db", "sql"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, "")


# --- the environment ----------------------------------------------------------------------------------------------


def test_in_development_a_file_adds_to_the_environment(dues: Dues) -> None:
    (dues.folder / ".env").write_text(f"DATABASE_URL={dues.environment.pop('DATABASE_URL')}\n")
    dues.fine("events", "list")
    dues.fine("events", "list", DUES_ENV="development")
    assert "DATABASE_URL is not set" in dues("events", "list", DUES_ENV="production").stderr


def test_what_the_file_leaves_empty_is_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("PG_BIN_DIR=\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PG_BIN_DIR", raising=False)
    console.load_environment()
    assert "PG_BIN_DIR" not in os.environ


def test_the_real_environment_wins_over_the_file(dues: Dues) -> None:
    (dues.folder / ".env").write_text("DATABASE_URL=postgresql://127.0.0.1:1/nowhere\n")
    dues.fine("events", "list")
    (dues.folder / "url").write_text(dues.environment.pop("DATABASE_URL"))
    dues.fine("events", "list", DATABASE_URL_FILE="url")


def test_a_file_that_is_not_text_is_refused(bare: Dues) -> None:
    (bare.folder / ".env").write_bytes(b"DUES_ENV=\xff\xfe")
    assert bare("events", "list").stderr == "Error: .env is not UTF-8 text.\n"


def test_what_a_killed_dev_left_behind_is_not_believed(bare: Dues) -> None:
    (bare.folder / ".dues").mkdir()
    (bare.folder / ".dues" / "env").write_text("DATABASE_URL=postgresql://127.0.0.1:1/nowhere\n")
    (bare.folder / ".dues" / "lock").write_text("1")
    assert "DATABASE_URL is not set" in bare("events", "list").stderr


# --- what commands share ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T12:00:00Z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31 13:00+01:00", datetime(2026, 1, 31, 12, tzinfo=UTC)),
    ],
)
def test_times_are_read_as_utc_unless_they_say_otherwise(text: str, moment: datetime) -> None:
    assert console.Moment().convert(text, None, None) == moment


def test_times_can_be_given_as_how_long_ago() -> None:
    moment = console.Moment().convert("2h", None, None)
    assert abs(datetime.now(UTC) - timedelta(hours=2) - moment) < timedelta(seconds=10)


@pytest.mark.parametrize("text", ["yesterday", "2w", "-1h", "999999d", ""])
def test_a_time_that_can_not_be_read_is_a_usage_error(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is neither a time"):
        console.Moment().convert(text, None, None)


def test_times_are_written_in_utc_with_milliseconds() -> None:
    moment = datetime.fromisoformat("2026-01-31T13:00:00.123456+01:00")
    assert console.iso(moment) == "2026-01-31T12:00:00.123Z"
    assert console.iso(None) is None


def test_control_characters_of_strangers_do_not_reach_the_terminal() -> None:
    assert console.printable("Ada\x1b[2J\nLöwe") == "Ada\\x1b[2J\\nLöwe"


def test_an_address_in_use_is_refused_before_anything_starts(bare: Dues) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port), reuse_port=True):
        answer = bare("serve", "--bind", f"127.0.0.1:{port}")
    assert answer.code == 2
    assert "is taken by another process: choose another address with --bind" in answer.stderr
    assert "is not an address" in bare("serve", "--bind", "127.0.0.1:port").stderr
