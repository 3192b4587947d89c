"""The demo: everything it says is so, nothing of anybody's is touched, and nothing stays behind however it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from sqlalchemy import create_engine, make_url

from ops import expected, observed
from ops.demo import isolate
from ops.story import in_families
from simulator.calendar import DAY
from simulator.people import USERS
from simulator.state import Stripe
from simulator.stories import STORIES
from tests.ops.command_line import Dues
from tests.ops.test_supervise import all_gone, below
from tests.support import Child, eventually, running
from workers.handlers import BY_EVENT_TYPE

DEMO = [sys.executable, "-m", "ops.cli", "demo"]
# The same without workers: nobody decides anything.
WITHOUT_WORKERS = """
from ops import demo, processes, story
processes.worker = lambda lanes, number: []
story.STEP_SECONDS = 1.0
demo.run(demo.Wish(once=True, seed=1, as_json=True))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for temporary files, with a space in its name, that every account can enter."""
    parent = Path(tempfile.mkdtemp(prefix="dues-test-"))
    parent.chmod(0o711)
    path = parent / "with a space"
    path.mkdir()
    yield path
    shutil.rmtree(parent, ignore_errors=True)


@contextlib.contextmanager
def trap() -> Iterator[int]:
    """A port of 127.0.0.1 that nobody may connect to."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]
        server.setblocking(False)  # noqa: FBT003 - the socket module's own
        with pytest.raises(BlockingIOError):
            server.accept()


@contextlib.contextmanager
def demo(folder: Path, *arguments: str) -> Iterator[Child]:
    with running([*DEMO, *arguments], env={"TMPDIR": str(folder)}) as process:
        yield process


@contextlib.contextmanager
def silent_demo(seed: int, place: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """`dues demo --once --json`, run in a folder, with its outputs apart; killed at the end."""
    with subprocess.Popen(
        [*DEMO, "--once", "--json", "--seed", str(seed)],
        env={**os.environ, **environment},
        cwd=place,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def nothing_left(folder: Path, pids: list[int], sockets: list[str], *, timeout: float = 30.0) -> None:
    all_gone(pids, timeout=timeout)
    eventually(lambda: not list(folder.iterdir()), timeout=timeout)
    assert [path for path in sockets if Path(path).exists()] == []


def socket_folders(pids: list[int]) -> list[str]:
    """Where the embedded PostgreSQL of these processes has its sockets."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += re.findall(r"--unix_socket_directories=(\S+)", " ".join(psutil.Process(pid).cmdline()))
    return found


def story_events(seed: int) -> list[str]:
    """The types of the events in the order of the story."""
    stripe = Stripe(seed, STORIES["membership"].begin(int(time.time())))
    for _ in STORIES["membership"].tell(stripe, USERS):
        pass
    return [event.type for event in stripe.events]


def check_answer(answer: Any, types: list[str]) -> None:
    processed = sum(type in BY_EVENT_TYPE for type in types)
    assert answer["ok"] is True
    assert answer["events"] == {"processed": processed, "ignored": len(types) - processed}
    assert [(user["email"], user["role"], user["membership_status"]) for user in answer["users"]] == [
        ("alice@example.com", "USER", "CANCELED"),
        ("bob@example.com", "PREMIUM", "ACTIVE"),
        ("cara@example.com", "PREMIUM", "ACTIVE"),
    ]
    assert {frozenset(user) for user in answer["users"]} == {
        frozenset({"email", "role", "membership_status", "tokens", "tokens_expires_at"})
    }
    assert answer["took_s"] > 0


def test_two_demos_at_once_keep_to_themselves_whatever_the_environment_says(folder: Path) -> None:
    with trap() as port:
        elsewhere = {
            "DATABASE_URL": f"postgresql://somebody@127.0.0.1:{port}/theirs",
            "REDIS_URL": f"redis://127.0.0.1:{port}/0",
        }
        hostile = {
            **elsewhere,
            "CELERY_BROKER_URL": elsewhere["REDIS_URL"],
            "PGHOST": "127.0.0.1",
            "PGPORT": str(port),
            "PGSSLMODE": "verify-full",
            "PGOPTIONS": "-c statement_timeout=1",
            "STRIPE_WEBHOOK_SECRET_FILE": "/nowhere",
            "STRIPE_API_KEY": "sk_live_somebodys",
            "STRIPE_API_BASE": f"http://127.0.0.1:{port}",
            "DUES_PAUSE": "processing",
            "TMPDIR": str(folder),
        }
        place = folder.parent / "where it is run"
        (place / ".dues").mkdir(parents=True)
        (place / ".env").write_text(
            "DUES_SHADOW=1\nSTRIPE_LIVEMODE=live\nDUES_GRACE_DAYS=0\nSTRIPE_API_KEY=sk_live_x\n"
        )
        (place / ".dues" / "env").write_text("".join(f"{name}='{value}'\n" for name, value in elsewhere.items()))
        before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
        with contextlib.ExitStack() as stack:
            both = {seed: stack.enter_context(silent_demo(seed, place, hostile)) for seed in (1, 7)}
            for seed, process in both.items():
                stdout, stderr = process.communicate(timeout=90)
                assert process.returncode == 0, stderr
                check_answer(json.loads(stdout), story_events(seed))
                assert "Bob subscribes" in stderr
        assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
        nothing_left(folder, [], [])


def test_what_it_tells_and_shows_is_in_the_database_until_ctrl_c_ends_it_all(folder: Path, tmp_path: Path) -> None:
    with demo(folder) as process:
        told = process.says("Ctrl-C ends all of it", timeout=80)
        started = below(process.pid)
        assert len(started) > 8
        url = re.findall(r"export DATABASE_URL=(\S+)", told)[0]
        dues = Dues(tmp_path, {"DATABASE_URL": url})
        assert len(dues.fine("events", "list", "--limit", "1000", "--json").json["events"]) == len(story_events(1))
        person = re.findall(r"dues users show (\S+)", told)[0]
        assert dues.fine("users", "show", person, "--json").json["email"] == person
        with psycopg.connect(url) as connection:
            changes = connection.execute(
                "SELECT u.email, m.status_to::text FROM membership_changes m JOIN users u ON u.id = m.user_id"
                " ORDER BY m.id"
            ).fetchall()
        decided = re.findall(r"~ user (\S+): (?=role|status|product)", told)
        assert decided == [email for email, _ in changes]
        assert ("bob@example.com", "PAST_DUE") in changes
        process.send(signal.SIGINT)
        assert process.ends(timeout=30) == 0
        nothing_left(folder, started, socket_folders(started))


def wait_for_initdb(process: Child) -> None:
    eventually(lambda: "initdb" in {psutil.Process(pid).name() for pid in below(process.pid)}, timeout=30)


def wait_for_the_story(process: Child) -> None:
    process.says("Bob subscribes", timeout=60)


MOMENTS = pytest.mark.parametrize("moment", [wait_for_initdb, wait_for_the_story])


@MOMENTS
def test_killed_at_any_moment_it_leaves_nothing_behind(folder: Path, moment: Callable[[Child], None]) -> None:
    with demo(folder, "--once") as process:
        moment(process)
        started = below(process.pid)
        sockets = socket_folders(started)
        process.send(signal.SIGKILL)
        process.ends()
        nothing_left(folder, started, sockets)


@MOMENTS
def test_told_to_end_early_it_says_so_and_leaves_nothing_behind(folder: Path, moment: Callable[[Child], None]) -> None:
    with demo(folder, "--once") as process:
        moment(process)
        started = below(process.pid)
        sockets = socket_folders(started)
        process.send(signal.SIGTERM)
        assert process.ends(timeout=40) == 2
        assert "Stopped before the story was over" in process.output
        assert "Traceback" not in process.output
        nothing_left(folder, started, sockets)


def test_it_fails_if_the_database_does_not_get_where_it_should(folder: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_WORKERS]
    environment = {**os.environ, "TMPDIR": str(folder)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    answer = json.loads(done.stdout)
    assert answer["ok"] is False
    assert "bob@example.com is ('USER', 'ACTIVE', None) instead of ('USER', 'INACTIVE', None)" in answer["error"]
    nothing_left(folder, [], [])


# --- its parts ----------------------------------------------------------------------------------------------------


def test_settings_of_anybody_are_taken_out_and_the_rest_is_kept() -> None:
    kept = {"PATH": "/bin", "PG_BIN_DIR": "/postgres", "VALKEY_SERVER": "/valkey", "HOME": "/home/x"}
    given = {"DATABASE_URL": "x", "REDIS_URL_FILE": "x", "PGSERVICE": "x", "CELERY_BROKER_URL": "x", "DUES_SHADOW": "1"}
    environ = {**kept, **given}
    isolate(environ)
    assert environ == kept


def test_a_fingerprint_sees_every_change_but_those_of_history(database_url: str) -> None:
    engine = create_engine(make_url(database_url).set(drivername="postgresql+psycopg"))
    changes = {
        "UPDATE stripe_products SET as_of = now(), source = 'evt_2', contested = true": False,
        "UPDATE stripe_products SET name = 'Studio'": True,
        "UPDATE users SET grace_until = now()": True,
        "DELETE FROM stripe_products": True,
    }
    try:
        with engine.connect() as connection:
            for statement in (
                "INSERT INTO stripe_products (id, as_of, source, name) VALUES ('prod_1', 'epoch', 'evt_1', 'Pro')",
                "INSERT INTO users (id, email) VALUES ('u1', 'u1@example.com')",
            ):
                connection.exec_driver_sql(statement)
            seen = observed.fingerprint(connection)
            assert set(seen) == {("stripe_products", "prod_1"), ("users", "u1")}
            for statement, is_seen in changes.items():
                connection.exec_driver_sql(statement)
                assert (observed.fingerprint(connection) != seen) is is_seen, statement
                seen = observed.fingerprint(connection)
    finally:
        engine.dispose()


STANDINGS: Mapping[str, tuple[str, str, bool]] = {
    "A payment fails": ("PREMIUM", "PAST_DUE", True),
    "Recovery": ("PREMIUM", "ACTIVE", True),
}


def test_what_is_expected_follows_the_simulated_stripe_and_the_clock() -> None:
    now = int(time.time())
    stripe = Stripe(1, STORIES["membership"].begin(now))
    seen = {}
    for step in STORIES["membership"].tell(stripe, USERS):
        bobs = next(
            (s for s in stripe.subscriptions.values() if stripe.customers[s.customer].name == "Bob Brown"), None
        )
        role, status, product = expected.standing(stripe, bobs, now)
        seen[step.title] = (role, status, product is not None)
        if step.title == "A payment fails":
            assert expected.standing(stripe, bobs, now + 4 * DAY) == ("USER", "PAST_DUE", None)
    assert seen["Catalogue"] == ("USER", "INACTIVE", False)
    assert {title: seen[title] for title in STANDINGS} == STANDINGS


def test_types_that_begin_alike_are_told_as_a_family() -> None:
    types = {"invoice.created": 2, "invoice.paid": 1, "charge.succeeded": 3, "plan.created": 1}
    assert in_families(types) == "invoice.* ×3, charge.succeeded ×3, plan.created"
