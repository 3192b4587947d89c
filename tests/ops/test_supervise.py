"""The processes of a deployment: what ends is started again, and nothing outlives its supervisor."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from models import ledger
from models.database import connect
from models.settings import DEVELOPMENT_SECRET, read_settings
from ops import processes, supervise
from ops.embedded import EmbeddedValkey
from simulator import signing
from tests.ops.command_line import Dues
from tests.support import ROOT, Child, eventually, free_port, running

DUES = [sys.executable, "-m", "ops.cli"]


def exists(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def all_gone(pids: list[int], *, timeout: float = 10.0) -> None:
    eventually(lambda: not [pid for pid in pids if exists(pid)], timeout=timeout)


def below(pid: int) -> list[int]:
    return [one.pid for one in psutil.Process(pid).children(recursive=True)]


class Supervised:
    """A supervisor of test children, with the journal that they write."""

    def __init__(self, process: Child, journal: Path) -> None:
        self.process = process
        self.journal = journal

    def noted(self, kind: str, word: str, times: int = 1, *, timeout: float = 15.0) -> list[int]:
        """Wait until children of a kind have noted a word so many times; their process ids."""

        def pids() -> list[int]:
            found = re.findall(rf"^{kind} {word} (\d+)$", self.journal.read_text(), re.MULTILINE)
            return [int(pid) for pid in found] if len(found) >= times else []

        return eventually(pids, timeout=timeout)


@contextlib.contextmanager
def supervised(
    journal: Path, *kinds: str, drain: float = 10.0, environment: Mapping[str, str] | None = None
) -> Iterator[Supervised]:
    journal.touch()
    command = [sys.executable, "-m", "tests.ops.supervised", str(drain), str(journal), *kinds]
    with running(command, env=environment) as process:
        try:
            yield Supervised(process, journal)
        finally:
            children = below(process.pid) if exists(process.pid) else []
            for pid in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


# --- the supervisor -----------------------------------------------------------------------------------------------


def test_a_child_that_dies_is_started_again_and_that_is_said(journal: Path) -> None:
    with supervised(journal, "steady", "failing") as group:
        [first] = group.noted("steady", "started")
        os.kill(first, signal.SIGKILL)
        _, second = group.noted("steady", "started", 2)
        assert second != first
        group.process.says(f"steady (process {first}) ended by itself")
        assert "with SIGKILL; starting it again in" in group.process.output
        group.process.says("with exit code 3; starting it again in")


def test_one_that_dies_at_once_again_and_again_waits_longer_and_longer(journal: Path) -> None:
    with supervised(journal, "failing") as group:
        group.noted("failing", "started", 3)
        group.process.says("with exit code 3; starting it again in")


@pytest.mark.parametrize(("deaths", "longest"), [(0, 0.0), (1, 0.5), (2, 1.0), (3, 2.0), (7, 30.0), (5000, 30.0)])
def test_delays_grow_to_half_a_minute_and_differ(deaths: int, longest: float) -> None:
    delays = [supervise.delay_after(deaths) for _ in range(100)]
    assert longest / 2 <= min(delays) <= max(delays) <= longest
    assert len(set(delays)) > 1 or not deaths


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_children_may_end_what_is_under_way(journal: Path, number: signal.Signals) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # or children of a run under nohup would pass over it
    with supervised(journal, "draining", "steady") as group:
        signal.signal(signal.SIGHUP, before)
        pids = group.noted("draining", "started") + group.noted("steady", "started")
        group.process.send(number)
        assert group.process.ends() == 0
        assert group.noted("draining", "drained")
        assert "all have ended" in group.process.output
        assert [pid for pid in pids if exists(pid)] == []


def test_a_child_that_does_not_end_in_time_is_killed_and_that_is_said(journal: Path) -> None:
    with supervised(journal, "deaf", drain=0.5) as group:
        [pid] = group.noted("deaf", "started")
        group.process.send(signal.SIGTERM)
        assert group.process.ends() == 0
        assert group.noted("deaf", "heard") == [pid]
        assert not exists(pid)
        assert "killed because 0 s were not enough: deaf" in group.process.output.replace("0.5 s", "0 s")


def test_a_second_signal_kills_at_once(journal: Path) -> None:
    with supervised(journal, "deaf", drain=60) as group:
        [pid] = group.noted("deaf", "started")
        group.process.send(signal.SIGTERM)
        group.noted("deaf", "heard")
        group.process.send(signal.SIGINT)
        assert group.process.ends(timeout=5) == 0
        assert not exists(pid)


def test_control_c_in_the_terminal_reaches_the_supervisor_alone(journal: Path) -> None:
    with supervised(journal, "draining") as group:
        [pid] = group.noted("draining", "started")
        os.killpg(group.process.pid, signal.SIGINT)
        assert group.process.ends() == 0
        assert not exists(pid)
        assert "interrupted" not in journal.read_text()


def test_children_end_with_a_killed_supervisor_even_if_they_are_deaf(journal: Path) -> None:
    with supervised(journal, "steady", "deaf", "parent", drain=0.5) as group:
        group.noted("deaf", "started")
        group.noted("parent", r"has \d+")
        pids = below(group.process.pid)
        assert len(pids) == 4
        group.process.send(signal.SIGKILL)
        try:
            all_gone(pids)
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def test_what_a_dead_child_had_started_does_not_stay_behind(journal: Path) -> None:
    with supervised(journal, "parent") as group:
        [pid] = group.noted("parent", r"has \d+")
        [grandchild] = below(pid)
        os.kill(pid, signal.SIGKILL)
        group.noted("parent", r"has \d+", 2)
        assert not exists(grandchild)


# --- dues worker --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lanes", "number", "queues"),
    [
        ((), 1, ["live,bulk,api"]),
        ((), 2, ["live", "live,bulk,api"]),
        ((), 3, ["live", "live,bulk,api", "live,bulk,api"]),
        (("live", "bulk", "api"), 2, ["live", "live,bulk,api"]),
        (("bulk",), 2, ["bulk", "bulk"]),
        (("api", "live"), 1, ["api,live"]),
    ],
)
def test_a_worker_for_all_lanes_keeps_one_process_for_live(
    lanes: tuple[str, ...], number: int, queues: list[str]
) -> None:
    programs = processes.worker(lanes, number)
    assert [one.arguments[-1] for one in programs if one.name != "sweeper"] == queues


def test_every_lane_of_the_ledger_is_swept_by_who_serves_it() -> None:
    swept = {lanes: [one.arguments for one in processes.worker(lanes, 1)[1:]] for lanes in ((), ("bulk",), ("api",))}
    assert swept == {(): [["live", "bulk", "api"]], ("bulk",): [["bulk"]], ("api",): [["api"]]}


class Ledger:
    """The ledger of a test's database: events go in, and what became of them comes out."""

    def __init__(self, url: str) -> None:
        self.engine = connect(read_settings({"DATABASE_URL": url}), application="test")

    def add(self, *ids: str) -> None:
        with self.engine.begin() as connection:
            for one in ids:
                payload = f'{{"id": "{one}", "type": "test.event", "data": {{"object": {{"id": "x"}}}}}}'
                ledger.record(connection, ledger.Received(id=one, type="test.event", payload=payload.encode()))

    def statuses(self) -> dict[str, str]:
        with self.engine.connect() as connection:
            return {row.id: row.status for row in ledger.listing(connection, ledger.Filter(), limit=1000)}

    def ended(self, *ids: str, status: str = "ignored", timeout: float = 20.0) -> None:
        def have() -> bool:
            statuses = self.statuses()
            return all(statuses[one] == status for one in ids)

        eventually(have, timeout=timeout)


@pytest.fixture
def events(database_url: str) -> Iterator[Ledger]:
    found = Ledger(database_url)
    yield found
    found.engine.dispose()


def test_a_worker_survives_its_processes_and_redis(
    tmp_path: Path,
    database_url: str,
    plain: psycopg.Connection,
    events: Ledger,
    own_valkey: Callable[..., EmbeddedValkey],
) -> None:
    valkey = own_valkey()
    environment = {"DATABASE_URL": database_url, "REDIS_URL": valkey.redis_url, "DUES_SWEEP_SECONDS": "1"}
    with running([*DUES, "worker"], env=environment, cwd=tmp_path) as worker:
        worker.says("worker-1@")
        worker.says("worker-2@")
        events.add("evt_swept")
        events.ended("evt_swept")

        killed = processes_of(worker, "worker-")
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: len(re.findall(r"worker-[12]@\S+ ready", worker.output)) == 4, timeout=20)
        events.add("evt_after_kill")
        events.ended("evt_after_kill")

        valkey.kill()
        plain.execute("INSERT INTO users (id) VALUES ('c1')")
        plain.execute("INSERT INTO user_overrides (user_id, kind, author) VALUES ('c1', 'admin', 'eve')")
        events.add("evt_without_redis")
        events.ended("evt_without_redis")
        worker.says("Redis is away")
        eventually(lambda: plain.execute("SELECT role::text FROM users").fetchone() == ("ADMIN",))

        pids = below(worker.pid)
        worker.send(signal.SIGTERM)
        assert worker.ends(timeout=20) == 0
        assert [pid for pid in pids if exists(pid)] == []
    assert list(tmp_path.iterdir()) == []


def processes_of(worker: Child, name: str) -> list[int]:
    found = psutil.Process(worker.pid).children()
    pids = [one.pid for one in found if any(part.startswith(f"{name}") for part in one.cmdline())]
    assert len(pids) == 2
    return pids


def test_a_payload_that_ends_its_process_is_given_up_and_the_supervisor_goes_on(
    journal: Path, database_url: str, events: Ledger
) -> None:
    good = [f"evt_{number}" for number in range(20)]
    events.add(*good[:10], "evt_poison", *good[10:])
    environment = {
        "DATABASE_URL": database_url,
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "DUES_SWEEP_SECONDS": "1",
        "DUES_LEASE_SECONDS": "1",
    }
    with supervised(journal, "poisoned", environment=environment) as group:
        events.ended("evt_poison", status="dead", timeout=40)
        events.ended(*good)
        assert len(group.noted("poisoned", "started", 4)) == 4
        group.process.send(signal.SIGTERM)
        assert group.process.ends() == 0


def test_what_no_worker_comes_for_is_worked_off_by_the_sweeper(
    tmp_path: Path, database_url: str, redis_db_url: str, plain: psycopg.Connection, events: Ledger
) -> None:
    environment = {"DATABASE_URL": database_url, "REDIS_URL": redis_db_url, "DUES_SWEEP_SECONDS": "1"}
    plain.execute("INSERT INTO users (id) VALUES ('c1')")
    events.add("evt_1")
    with running([sys.executable, "-m", "ops.sweeper", "live", "bulk"], env=environment, cwd=ROOT) as sweeper:
        events.ended("evt_1")
        eventually(lambda: plain.execute("SELECT next_change_at FROM users").fetchone() == (None,))
        sweeper.send(signal.SIGTERM)
        assert sweeper.ends() == 0
        assert "Redis is away" not in sweeper.output


@pytest.mark.parametrize("command", ["worker", "beat", "serve"])
def test_a_process_without_its_settings_says_which(bare: Dues, command: str) -> None:
    answer = bare(command)
    assert answer.code == 2
    assert "REDIS_URL is not set" in answer.stderr


# --- dues beat ----------------------------------------------------------------------------------------------------


def test_beat_goes_on_when_redis_is_back(tmp_path: Path, own_valkey: Callable[..., EmbeddedValkey]) -> None:
    valkey = own_valkey()
    client = redis.Redis.from_url(valkey.redis_url)

    def sends() -> bool:
        with contextlib.suppress(redis.ConnectionError):
            return bool(client.delete("live"))
        return False

    valkey.kill()
    environment = {"REDIS_URL": valkey.redis_url, "DUES_SWEEP_SECONDS": "1"}
    with running([*DUES, "beat"], env=environment, cwd=tmp_path) as beat:
        beat.says("beat: Starting")
        valkey.start()
        eventually(sends, timeout=20)
        valkey.kill()
        beat.says("ConnectionError", timeout=20)
        valkey.start()
        eventually(sends, timeout=20)
        beat.send(signal.SIGTERM)
        assert beat.ends() == 0
    client.close()
    assert list(tmp_path.iterdir()) == []


# --- dues dev -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not pytest's own: under root PostgreSQL runs as somebody else, who can't enter that one."""
    path = Path(tempfile.mkdtemp(prefix="dues test "))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def development(folder: Path) -> Iterator[tuple[Child, str]]:
    bind = f"127.0.0.1:{free_port()}"
    ours = ("DATABASE_URL", "REDIS_URL", "STRIPE_WEBHOOK_SECRET")
    with running([*DUES, "dev", "--bind", bind, "-c", "1"], env=dict.fromkeys(ours, ""), cwd=folder) as process:
        process.says("Ctrl-C ends all of it", timeout=60)
        yield process, bind


def everything_in(folder: Path) -> list[int]:
    """Whatever runs in the folder, or on it."""
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(folder) in " ".join(one.cmdline()) or one.cwd().startswith(str(folder)):
                found.append(one.pid)
    return found


def test_dev_runs_everything_and_ends_all_of_it(folder: Path) -> None:
    dues = Dues(folder, {})
    with development(folder) as (process, bind):
        body = b'{"id": "evt_1", "type": "test.event", "created": 1, "data": {"object": {"id": "x_1"}}}'
        headers = {"Stripe-Signature": signing.sign(body, [DEVELOPMENT_SECRET], int(time.time()))}
        request = urllib.request.Request(f"http://{bind}/webhooks/stripe", body, headers)
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - the same
            assert answer.status == 200
        listed = eventually(
            lambda: dues.fine("events", "list", "--status", "ignored", "--json").json["events"], timeout=30
        )
        assert [event["id"] for event in listed] == ["evt_1"]
        second = dues("dev")
        assert second.code == 2
        assert f"`dues dev` is already running in this folder (process {process.pid})" in second.stderr
        dues.fine("setup-admin", "ada@example.com")
        address = (folder / ".dues" / "env").read_text()
        os.killpg(process.pid, signal.SIGINT)
        assert process.ends() == 0
        assert "killed because" not in process.output
    assert everything_in(folder) == []
    assert "DATABASE_URL is not set" in dues("events", "list").stderr

    with development(folder) as (process, _):
        assert (folder / ".dues" / "env").read_text() == address
        assert dues.fine("users", "show", "ada@example.com", "--json").json["role"] == "ADMIN"
        assert len(everything_in(folder)) > 5
        process.send(signal.SIGKILL)
        process.ends()
        eventually(lambda: everything_in(folder) == [], timeout=15)
    assert "DATABASE_URL is not set" in dues("events", "list").stderr


def test_dev_refuses_production_and_an_address_in_use(bare: Dues) -> None:
    assert "is for development" in bare("dev", DUES_ENV="production").stderr
    assert "listens on host:port only" in bare("dev", "--bind", "unix:/tmp/x").stderr
    with socket.create_server(("127.0.0.1", 0)) as server:
        answer = bare("dev", "--bind", f"127.0.0.1:{server.getsockname()[1]}")
    assert answer.code == 2
    assert "is taken by another process" in answer.stderr
